// A generation_config.json of any bytes: refused with a sentence, or a list of ids that end a text.
#include "fuzz_folder.h"

#include "eval/generate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct config c = {.eos = 2};
    struct end_ids ends;
    if (!fuzz_folder[0]) fuzz_folder_make();
    fuzz_put("generation_config.json", data, size);
    if (end_ids_read(&ends, &c, fuzz_folder) == OK) {
        CHECK(ends.n > 0 && ends.n <= END_IDS);
        for (long i = 0; i < ends.n; i++) CHECK(ends.id[i] >= 0);
    } else {
        fuzz_blames(fuzz_path("generation_config.json"));
    }
    return 0;
}
