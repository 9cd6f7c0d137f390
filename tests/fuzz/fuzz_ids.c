// A file of token ids (eval --tokens FILE) of any bytes: refused with a sentence, or ids.
#include "fuzz_folder.h"

#include "cli/ids.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int *ids;
    long n;
    if (!fuzz_folder[0]) fuzz_folder_make();
    fuzz_put("ids.txt", data, size);
    enum status status = ids_read(&ids, &n, fuzz_path("ids.txt"), "--tokens");
    CHECK(status != ERR_CONFIG); // it is the file that is wrong
    if (status == OK) {
        CHECK(n > 0 && n <= (long)size);
        for (long i = 0; i < n; i++) CHECK(ids[i] >= 0);
        free(ids);
    } else {
        fuzz_blames(fuzz_path("ids.txt"));
    }
    char *text = malloc(size + 1); // the same as a word of the command line
    memcpy(text, data, size);
    text[size] = '\0';
    if (ids_parse(&ids, &n, text, "--tokens") == OK) free(ids);
    free(text);
    return 0;
}
