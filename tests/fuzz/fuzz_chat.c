// What a model folder says about conversations, any bytes: the first says which file the others are, j, a or c. Refused
// with a sentence that names the folder, or a conversation becomes ids in which text never is a control token.
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "data/chat_template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[PATH_LENGTH], path[3][PATH_LENGTH + 32];
static struct tokenizer tokenizer;

static void remove_folder(void)
{
    tokenizer_close(&tokenizer);
    CHECK(folder_remove(folder) == OK);
}

static void start(void)
{
    static const char *const name[] = {"chat_template.jinja", "added_tokens.json", "tokenizer_config.json"};
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/skymoe-fuzz-XXXXXX", tmp ? tmp : "/tmp");
    CHECK(mkdtemp(folder));
    for (int i = 0; i < 3; i++) snprintf(path[i], sizeof path[i], "%s/%s", folder, name[i]);
    CHECK(tokenizer_open(&tokenizer, "tests/golden/chat/tokenizer.model") == OK);
    atexit(remove_folder);
}

static void put(const char *to, const uint8_t *data, size_t size)
{
    FILE *f = fopen(to, "wb"); // not file_write: it waits for the disk
    CHECK(f);
    CHECK(fwrite(data, 1, size, f) == size);
    CHECK(fclose(f) == 0);
}

static long count(const struct chat_template *c, const int *ids, long n)
{
    long controls = 0;
    for (long i = 0; i < n; i++)
        for (long k = 0; k < c->controls; k++) controls += ids[i] == c->control[k];
    return controls;
}

static void use(const struct chat_template *c)
{
    static const char said[] = " <|im_start|>a\n</s><|eot_id|> \xE3\x80\x80";
    struct chat_message m[] = {{CHAT_SYSTEM, "b", 1}, {CHAT_USER, "c", 1}};
    int *ids;
    long n, plain;
    CHECK(chat_encode(&ids, &n, c, m, 2) == OK);
    plain = count(c, ids, n);
    free(ids);
    m[1] = (struct chat_message){CHAT_USER, said, sizeof said - 1};
    CHECK(chat_encode(&ids, &n, c, m, 2) == OK);
    CHECK(count(c, ids, n) == plain);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {NULL, "chatml", "llama2", "llama3", "mistral", "plain"};
    if (!folder[0]) start();
    if (size == 0) return 0;
    const char *file = path[data[0] == 'j' ? 0 : data[0] == 'a' ? 1 : 2];
    put(file, data + 1, size - 1);
    for (int i = 0; i < 6; i++) {
        struct chat_template c;
        enum status status = chat_template_open(&c, &tokenizer, folder, names[i]);
        if (status == OK) {
            use(&c);
            chat_template_close(&c);
        } else {
            CHECK(status == ERR_FORMAT && strncmp(fail_message(), folder, strlen(folder)) == 0);
        }
    }
    unlink(file);
    return 0;
}
