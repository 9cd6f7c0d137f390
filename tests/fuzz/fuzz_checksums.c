// A checksums.json of any bytes: refused with a sentence, or what it lists is there. It never reaches outside its
// folder.
#include "fuzz_folder.h"

#include "base/json.h"
#include "checkpoint/folder.h"

// What was taken lists no file outside the folder.
static void stays_inside(const char *text, long bytes)
{
    cJSON *json;
    CHECK(json_parse(&json, text, bytes, "checksums") == OK);
    const cJSON *files = json_field(json, "files");
    for (const cJSON *file = files ? files->child : NULL; file; file = file->next)
        CHECK(!strstr(file->string, "outside"));
    cJSON_Delete(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!fuzz_folder[0]) {
        fuzz_folder_make();
        CHECK(folder_make(fuzz_path("m/training")) == OK);
        fuzz_put("outside", "secret", 6);
        fuzz_put("m/config.json", "{}\n", 3);
        fuzz_put("m/training/state.json", "{\"step\": 1}\n", 12);
    }
    fuzz_put("m/checksums.json", data, size);
    if (folder_verify(fuzz_path("m")) != OK) fuzz_blames(fuzz_path("m"));
    else stays_inside((const char *)data, (long)size);
    return 0;
}
