// Text of any bytes as `prepare` reads it, once as a .txt and once as a .jsonl: refused with a sentence, or every
// document is UTF-8 without NUL, and the split gives each to one part.
#include "fuzz_folder.h"

#include "base/json.h"
#include "data/split.h"

static void check_documents(struct corpus *c)
{
    struct split_options o = {.share = {50, 25, 25}, .near_copy = 0.2, .seed = 1};
    long bytes = 0, kept;
    for (long i = 0; i < c->documents; i++) {
        const struct text *t = &c->document[i].text;
        CHECK(t->bytes > 0 && utf8_valid(t->data, t->bytes) && !memchr(t->data, 0, (size_t)t->bytes));
        bytes += t->bytes;
    }
    CHECK(bytes == c->bytes);
    if (c->documents == 0) return;
    CHECK(split_documents(c, &o, &kept) == OK);
    for (long i = 0; i < c->documents; i++) CHECK(c->document[i].split >= 0 && c->document[i].split < SPLITS);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"a.txt", "a.jsonl"};
    if (!fuzz_folder[0]) {
        fuzz_folder_make();
        CHECK(folder_make(fuzz_path("in")) == OK);
        fuzz_put("in/known.md", "what is there already, so that copies can be found", 50);
        fuzz_put("in/ignored.c", "", 0);
    }
    for (int i = 0; i < 2; i++) {
        struct corpus c;
        fuzz_put(names[i], data, size);
        const char *const input[] = {fuzz_path("in"), fuzz_path(names[i])};
        if (corpus_read(&c, input, 2) == OK) check_documents(&c);
        else fuzz_blames(input[1]);
        corpus_close(&c);
    }
    return 0;
}
