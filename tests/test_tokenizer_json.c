// tokenizer.json says the same as tokenizer.model: a plain BPE by its vocabulary and merges gives SentencePiece's ids.
#include "model_util.h"

#include "base/files.h"
#include "base/json.h"
#include "data/tokenizer.h"

static char folder[PATH_LENGTH];

// What a reader of tokenizer.json does with one text: spaces, characters or their bytes, merges by rank from the left.
struct reader {
    cJSON *json;
    struct json_index vocab, merges; // merges: pair -> rank, kept as an object
    cJSON *ranks;
};

static void reader_open(struct reader *r, const char *path)
{
    OK_OR_FAIL(json_read(&r->json, path, 64 << 20));
    const cJSON *model = json_field(r->json, "model");
    OK_OR_FAIL(json_index_make(&r->vocab, json_field(model, "vocab")));
    r->ranks = cJSON_CreateObject();
    long rank = 0;
    for (const cJSON *m = json_field(model, "merges")->child; m; m = m->next)
        cJSON_AddItemToObject(r->ranks, m->valuestring, cJSON_CreateNumber((double)rank++));
    OK_OR_FAIL(json_index_make(&r->merges, r->ranks));
    assert_true(rank > 100);
}

static void reader_close(struct reader *r)
{
    json_index_free(&r->vocab);
    json_index_free(&r->merges);
    cJSON_Delete(r->ranks);
    cJSON_Delete(r->json);
}

enum { SYMBOLS = 1000, SYMBOL = 64 };

// Characters of the text as its normaliser leaves it.
static long characters(char symbol[][SYMBOL], const char *text, long length)
{
    long n = 0;
    if (length) memcpy(symbol[n++], "\xE2\x96\x81", 4);
    for (const char *c = text; c < text + length; n++) {
        long bytes = 1;
        while (c + bytes < text + length && ((unsigned char)c[bytes] & 0xC0) == 0x80) bytes++;
        snprintf(symbol[n], SYMBOL, "%.*s", (int)(*c == ' ' ? 3 : bytes), *c == ' ' ? "\xE2\x96\x81" : c);
        c += bytes;
    }
    return n;
}

static long reader_encode(int *ids, const struct reader *r, const char *text, long length)
{
    static char symbol[SYMBOLS][SYMBOL];
    char pair[2 * SYMBOL];
    long n = characters(symbol, text, length), ids_n = 0;
    for (;;) {
        long best = -1, best_rank = 1 << 30;
        for (long i = 0; i + 1 < n; i++) {
            snprintf(pair, sizeof pair, "%.60s %.60s", symbol[i], symbol[i + 1]);
            const cJSON *rank = json_index_find(&r->merges, pair);
            if (rank && rank->valuedouble < (double)best_rank) best = i, best_rank = (long)rank->valuedouble;
        }
        if (best < 0) break;
        snprintf(pair, sizeof pair, "%.63s%.63s", symbol[best], symbol[best + 1]);
        memcpy(symbol[best], pair, SYMBOL);
        n--;
        for (long i = best + 1; i < n; i++) memcpy(symbol[i], symbol[i + 1], SYMBOL);
    }
    for (long i = 0; i < n; i++) {
        const cJSON *id = json_index_find(&r->vocab, symbol[i]);
        if (id) ids[ids_n++] = id->valueint;
        for (const char *c = symbol[i]; *c && !id; c++) { // byte fallback
            char byte[8];
            snprintf(byte, sizeof byte, "<0x%02X>", (unsigned char)*c);
            ids[ids_n++] = json_index_find(&r->vocab, byte)->valueint;
        }
    }
    return ids_n;
}

static const char *const lines[] = {
    "  leading spaces and  double  ones ", "numbers 1234567890 and 3.14159", "naïve café, Straße, Ελληνικά",
    "中文文本，标点符号。", "emoji 🙂 are bytes", "tabs\tand\nlines", "the the the there then these",
    "x", " ", "",
};

static long compare(const struct reader *r, const struct tokenizer *t, const char *line, long bytes)
{
    int *want, got[4 * SYMBOLS];
    long n, m = reader_encode(got, r, line, bytes);
    OK_OR_FAIL(tokenizer_encode(&want, &n, t, line, bytes));
    if (m != n || memcmp(got, want, (size_t)n * sizeof *want) != 0)
        fail_msg("\"%.*s\": %ld ids, not %ld, or others", (int)bytes, line, m, n);
    free(want);
    return n;
}

static void test_same_ids(void **state)
{
    (void)state;
    char path[PATH_LENGTH], json[PATH_LENGTH], *document;
    struct text text = {0};
    struct tokenizer t;
    struct reader r;
    OK_OR_FAIL(file_read(&document, &text.bytes, "docs/formats.md", 1 << 20)); // any text of some length
    text.data = document;
    OK_OR_FAIL(path_join(path, folder, "tokenizer.model"));
    OK_OR_FAIL(path_join(json, folder, "tokenizer.json"));
    struct tokenizer_training wanted = {.text = &text, .texts = 1, .vocab_size = 900, .threads = 1, .path = path};
    OK_OR_FAIL(tokenizer_train(&wanted));
    OK_OR_FAIL(tokenizer_open(&t, path));
    assert_true(t.ranked);
    OK_OR_FAIL(tokenizer_write_folder(folder, NULL, &t));
    reader_open(&r, json);
    long total = 0, texts = 0;
    for (unsigned i = 0; i < sizeof lines / sizeof *lines; i++, texts++)
        total += compare(&r, &t, lines[i], (long)strlen(lines[i]));
    for (char *line = document; *line; texts++) {
        long bytes = (long)strcspn(line, "\n");
        total += compare(&r, &t, line, bytes);
        line += bytes + (line[bytes] == '\n');
    }
    printf("  %ld texts, %ld ids alike, %ld pieces, %ld merges\n", texts, total, t.pieces, r.merges.n);
    const cJSON *added = json_field(r.json, "added_tokens");
    assert_int_equal(cJSON_GetArraySize(added), 3);
    assert_string_equal(json_field(added->child, "content")->valuestring, "<unk>");
    assert_int_equal(r.vocab.n, t.pieces);
    reader_close(&r);
    tokenizer_close(&t);
    free(document);
}

static int set_up(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/skymoe-json-XXXXXX", base ? base : "/tmp");
    return !mkdtemp(folder);
}

static int tear_down(void **state)
{
    (void)state;
    return folder_remove(folder) != OK;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_ids)};
    return cmocka_run_group_tests_name("tokenizer.json", tests, set_up, tear_down);
}
