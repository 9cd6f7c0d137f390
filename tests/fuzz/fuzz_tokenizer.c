// A tokenizer.model of any bytes, in a folder: refused with a sentence, or it encodes, decodes and streams.
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "base/json.h"
#include "data/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[PATH_LENGTH], model[PATH_LENGTH + 32];

static void remove_folder(void)
{
    CHECK(folder_remove(folder) == OK);
}

static void make_folder(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/skymoe-fuzz-XXXXXX", tmp ? tmp : "/tmp");
    CHECK(mkdtemp(folder));
    snprintf(model, sizeof model, "%s/tokenizer.model", folder);
    atexit(remove_folder);
}

static void use(const struct tokenizer *t)
{
    static const char text[] = " the  kernel\tschedules 12 处理器 \xF0\x9F\x98\x80\n <s>a\xEF\xBF\xBD▁b";
    int *ids;
    char *back;
    long n, bytes, shown = 0;
    for (long i = 0; i < t->pieces; i++) CHECK(t->piece_bytes[i] >= 0);
    if (tokenizer_encode(&ids, &n, t, text, sizeof text - 1) == OK) {
        for (long i = 0; i < n; i++) CHECK(ids[i] >= 0 && ids[i] < t->pieces);
        if (tokenizer_decode(&back, &bytes, t, ids, n) == OK) free(back);
        free(ids);
    }
    int some[16];
    for (int i = 0; i < 16; i++) some[i] = (int)(i * t->pieces / 16);
    for (long i = 1; i <= 16; i++) {
        if (tokenizer_decode_next(&back, &shown, t, some, i) != OK) break;
        free(back);
    }
    if (t->pieces % 16) return; // writing waits for the disk
    enum status status = tokenizer_write_folder(folder, NULL, t);
    CHECK(status == OK || status == ERR_FORMAT);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tokenizer t;
    if (!folder[0]) make_folder();
    FILE *f = fopen(model, "wb"); // not file_write: it waits for the disk
    CHECK(f);
    CHECK(fwrite(data, 1, size, f) == size);
    CHECK(fclose(f) == 0);
    if (tokenizer_open(&t, folder) == OK) {
        use(&t);
        tokenizer_close(&t);
    } else {
        CHECK(strncmp(fail_message(), model, strlen(model)) == 0);
    }
    return 0;
}
