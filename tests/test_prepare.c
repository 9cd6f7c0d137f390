// Text files to token data: what is read, which documents are held out, what is written.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/rng.h"
#include "data/dataset.h"
#include "data/prepare.h"
#include <cmocka.h> // last: it defines fail()

static char folder[PATH_LENGTH - 64];

static const char *at(const char *name) // valid for the next seven calls
{
    static char path[8][PATH_LENGTH];
    static int next;
    next = (next + 1) % 8;
    snprintf(path[next], PATH_LENGTH, "%s/%s", folder, name);
    return path[next];
}

static int set_up(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/skymoe-prepare-XXXXXX", tmp ? tmp : "/tmp");
    log_quiet(true);
    files_fail_write(0);
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    files_fail_write(0);
    return folder_remove(folder) == OK ? 0 : -1;
}

// A text of `n` words drawn from 400; the same for the same seed.
static long words(char *text, long n, uint64_t seed)
{
    long used = 0;
    for (long i = 0; i < n; i++) {
        uint64_t word = rng_bits(seed, 0, (uint64_t)i) % 400;
        used += snprintf(text + used, 16, "%c%c%ld%s", (int)('a' + word % 26), (int)('a' + word / 26), (long)word,
                        i % 12 == 11 ? "\n" : " ");
    }
    return used;
}

static void write_words(const char *path, long n, uint64_t seed)
{
    char *text = malloc((size_t)n * 10 + 1);
    assert_int_equal(file_write(path, text, words(text, n, seed)), OK);
    free(text);
}

static struct prepare_options options(const char *const *input, long inputs, const char *output)
{
    return (struct prepare_options){.input = input, .inputs = inputs, .output = output, .vocab_size = 400, .threads = 2,
                                    .split = {.share = {80, 10, 10}, .near_copy = 0.2, .seed = 1}};
}

// ---- reading ----

static void test_reads_files_and_folders(void **state)
{
    (void)state;
    struct corpus c;
    static const char json[] = "{\"text\": \"one\", \"id\": 7}\n\n"
                               "{\"text\": \"zwei \\u00e4\\n\"}\r\n{\"text\": \" \"}\n"
                               "{\"text\": \"last\"}";
    assert_int_equal(folder_make(at("in/b/deep")), OK);
    assert_int_equal(file_write(at("in/b/deep/x.txt"), "deep", 4), OK);
    assert_int_equal(file_write(at("in/a.md"), "\xEF\xBB\xBFmark", 7), OK); // a byte-order mark is dropped
    assert_int_equal(file_write(at("in/c.jsonl"), json, sizeof json - 1), OK);
    assert_int_equal(file_write(at("in/empty.txt"), "", 0), OK);
    assert_int_equal(file_write(at("in/blank.txt"), " \n\t\n", 4), OK);
    assert_int_equal(file_write(at("in/picture.png"), "\0\1", 2), OK);
    assert_int_equal(file_write(at("in/.hidden.txt"), "hidden", 6), OK);
    assert_int_equal(symlink("..", at("in/b/loop")), 0);
    const char *input[] = {at("in"), at("in/a.md")};
    assert_int_equal(corpus_read(&c, input, 2), OK);
    static const char *const expected[] = {"mark", "deep", "one", "zwei ä\n", "last", "mark"};
    assert_int_equal(c.documents, 6);
    for (long i = 0; i < 6; i++) {
        assert_int_equal(c.document[i].text.bytes, strlen(expected[i]));
        assert_memory_equal(c.document[i].text.data, expected[i], strlen(expected[i]));
    }
    assert_int_equal(c.empty, 3);
    assert_int_equal(c.ignored, 1);
    assert_int_equal(c.document[0].hash, c.document[5].hash);
    corpus_close(&c);
}

static void refused(const char *name, const void *data, long bytes, enum status expected, const char *message)
{
    struct corpus c;
    assert_int_equal(file_write(at(name), data, bytes), OK);
    const char *input[] = {at(name)};
    assert_int_equal(corpus_read(&c, input, 1), expected);
    corpus_close(&c);
    if (!strstr(fail_message(), message) || !strstr(fail_message(), name)) fail_msg("%s", fail_message());
}

static void test_refuses_what_is_not_text(void **state)
{
    (void)state;
    struct corpus c;
    refused("nul.txt", "a\0b", 3, ERR_FORMAT, "has a NUL byte");
    refused("latin.txt", "caf\xE9", 4, ERR_FORMAT, "is not UTF-8");
    refused("binary.md", "\x7F" "ELF\x02\x01\x01\0\0", 9, ERR_FORMAT, "has a NUL byte");
    refused("page.html", "<p>", 3, ERR_CONFIG, "is not .txt, .md or .jsonl");
    refused("a.jsonl", "{\"text\": \"x\"}\n{\"text\": 5}\n", 26, ERR_FORMAT, "a.jsonl:2");
    refused("b.jsonl", "{\"txt\": \"x\"}", 12, ERR_FORMAT, "b.jsonl:1: has no field `text`");
    refused("c.jsonl", "[1]", 3, ERR_FORMAT, "c.jsonl:1: is not an object");
    refused("d.jsonl", "{\"text\": \"x\"", 12, ERR_FORMAT, "d.jsonl:1: is not JSON");
    refused("e.jsonl", "\0\0\n", 3, ERR_FORMAT, "e.jsonl:1");
    refused("f.jsonl", "{\"text\": \"\xFF\"}", 13, ERR_FORMAT, "f.jsonl:1");
    const char *absent[] = {at("absent.txt")};
    assert_int_equal(corpus_read(&c, absent, 1), ERR_IO);
    corpus_close(&c);
}

// ---- which documents are held out ----

enum { DOCUMENTS = 200 };
static char *texts[DOCUMENTS];

static void make_corpus(struct corpus *c)
{
    *c = (struct corpus){.document = calloc(DOCUMENTS, sizeof *c->document), .documents = DOCUMENTS};
    for (long i = 0; i < DOCUMENTS; i++) {
        struct document *d = &c->document[i];
        d->text = (struct text){texts[i], (long)strlen(texts[i])};
        d->hash = xxh3(d->text.data, d->text.bytes);
        c->bytes += d->text.bytes;
    }
}

static void make_texts(void)
{
    for (long i = 0; i < DOCUMENTS; i++) {
        texts[i] = calloc(1, 6000);
        words(texts[i], 100 + 2 * i, 100 + (uint64_t)i);
    }
}

static void free_texts(void)
{
    for (long i = 0; i < DOCUMENTS; i++) free(texts[i]);
}

static void test_split_shares(void **state)
{
    (void)state;
    struct corpus c, turned;
    long kept, bytes[SPLITS] = {0}, moved = 0;
    struct split_options o = {.share = {80, 15, 5}, .near_copy = 0.2, .seed = 3};
    make_texts();
    make_corpus(&c);
    assert_int_equal(split_documents(&c, &o, &kept), OK);
    assert_int_equal(kept, 0);
    for (long i = 0; i < DOCUMENTS; i++) bytes[c.document[i].split] += c.document[i].text.bytes;
    print_message("bytes %ld %ld %ld\n", bytes[0], bytes[1], bytes[2]);
    assert_true(20 * bytes[SPLIT_TEST] <= c.bytes && 21 * bytes[SPLIT_TEST] >= c.bytes);
    assert_true(100 * bytes[SPLIT_VALID] <= 15 * c.bytes && 105 * bytes[SPLIT_VALID] >= 15 * c.bytes);

    // In another order: the same documents are held out.
    make_corpus(&turned);
    for (long i = 0; i < DOCUMENTS; i++) turned.document[i] = c.document[DOCUMENTS - 1 - i];
    assert_int_equal(split_documents(&turned, &o, &kept), OK);
    for (long i = 0; i < DOCUMENTS; i++)
        assert_int_equal(turned.document[i].split, c.document[DOCUMENTS - 1 - i].split);
    o.seed = 4;
    assert_int_equal(split_documents(&turned, &o, &kept), OK);
    for (long i = 0; i < DOCUMENTS; i++) moved += turned.document[i].split != c.document[DOCUMENTS - 1 - i].split;
    assert_true(moved > DOCUMENTS / 10);
    free(c.document);
    free(turned.document);
    free_texts();
}

// Documents 2i and 2i + 1 for i < 40 share the given part of their text.
static long held_out_pairs(double part, double near_copy, long *kept)
{
    struct corpus c;
    struct split_options o = {.share = {50, 40, 10}, .near_copy = near_copy, .seed = 9};
    make_texts();
    for (long i = 0; i < 80; i += 2) {
        long n = (long)strlen(texts[i]), m = (long)strlen(texts[i + 1]);
        long shared = (long)(part * (double)(n < m ? n : m));
        memcpy(texts[i + 1] + m / 2 - shared / 2, texts[i] + n / 2 - shared / 2, (size_t)shared);
    }
    make_corpus(&c);
    assert_int_equal(split_documents(&c, &o, kept), OK);
    long held = 0, bytes = 0;
    for (long i = 0; i < 80; i++) held += c.document[i].split != SPLIT_TRAIN;
    for (long i = 0; i < DOCUMENTS; i++) bytes += c.document[i].split != SPLIT_TRAIN ? c.document[i].text.bytes : 0;
    print_message("%.0f %% shared: %ld of 80 held out, %ld kept in training, %.1f %% held out in all\n", 100 * part,
                  held, *kept, 100.0 * (double)bytes / (double)c.bytes);
    assert_true((double)bytes > 0.45 * (double)c.bytes); // others took their place
    free(c.document);
    free_texts();
    return held;
}

static void test_near_copies_stay_in_training(void **state)
{
    (void)state;
    long kept;
    assert_true(held_out_pairs(0, 0.2, &kept) > 10);
    assert_int_equal(kept, 0);
    assert_int_equal(held_out_pairs(1, 0.2, &kept), 0);
    assert_true(kept > 10);
    assert_int_equal(held_out_pairs(0.5, 0.2, &kept), 0);
    assert_true(held_out_pairs(0.1, 0.2, &kept) > 10);
    assert_true(held_out_pairs(0.5, 0.8, &kept) > 10);
    assert_true(held_out_pairs(1, 0, &kept) > 10); // off
    assert_int_equal(kept, 0);
}

// ---- all together ----

static long file_bytes(const char *path)
{
    struct file_map map;
    assert_int_equal(file_map_open(&map, path), OK);
    long bytes = map.bytes;
    file_map_close(&map);
    return bytes;
}

static void test_writes_parts(void **state)
{
    (void)state;
    static const char *const part[] = {"out/text_train", "out/text_valid", "out/text_test"};
    char name[64];
    long bytes = 0;
    assert_int_equal(folder_make(at("many")), OK);
    for (long i = 0; i < 60; i++) {
        snprintf(name, sizeof name, "many/%02ld.txt", i);
        write_words(at(name), 300, 1000 + (uint64_t)i);
        bytes += file_bytes(at(name));
    }
    char output[PATH_LENGTH], many[PATH_LENGTH];
    snprintf(many, sizeof many, "%s", at("many"));
    const char *input[] = {many};
    snprintf(output, sizeof output, "%s/out/text", folder);
    struct prepare_options o = options(input, 1, output);
    struct prepare_result r;
    if (prepare(&r, &o) != OK) fail_msg("%s", fail_message());
    assert_int_equal(r.vocab, 400);
    assert_int_equal(r.part[0].bytes + r.part[1].bytes + r.part[2].bytes, bytes);
    assert_int_equal(r.part[0].documents + r.part[1].documents + r.part[2].documents, 60);
    struct tokenizer t;
    assert_int_equal(tokenizer_open(&t, at("out/text_tokenizer")), OK);
    for (int s = 0; s < SPLITS; s++) {
        struct dataset d;
        assert_int_equal(dataset_open(&d, at(part[s])), OK);
        assert_int_equal(d.documents, r.part[s].documents);
        assert_int_equal(d.tokens, r.part[s].tokens);
        long text_bytes = 0;
        for (long i = 0; i < d.documents; i++) {
            long n = dataset_document_tokens(&d, i), back;
            int *token = malloc((size_t)n * sizeof *token);
            char *text, *known = malloc(4000);
            dataset_read(token, &d, i, 0, n);
            assert_int_equal(token[0], t.bos);
            assert_int_equal(token[n - 1], t.eos);
            assert_int_equal(tokenizer_decode(&text, &back, &t, token + 1, n - 2), OK);
            text_bytes += back;
            bool found = false;
            for (uint64_t k = 0; k < 60 && !found; k++)
                found = words(known, 300, 1000 + k) == back && memcmp(known, text, (size_t)back) == 0;
            assert_true(found);
            free(token);
            free(text);
            free(known);
        }
        assert_int_equal(text_bytes, r.part[s].bytes);
        dataset_close(&d);
    }
    tokenizer_close(&t);

    // The same again, with one thread and the tokenizer given, and without a test part: the old one is removed.
    struct prepare_result again;
    char tokenizer[PATH_LENGTH];
    snprintf(tokenizer, sizeof tokenizer, "%s/out/text_tokenizer/tokenizer.model", folder);
    o.threads = 1;
    o.tokenizer = tokenizer;
    snprintf(output, sizeof output, "%s/other", folder);
    if (prepare(&again, &o) != OK) fail_msg("%s", fail_message());
    assert_int_equal(again.part[SPLIT_TEST].tokens, r.part[SPLIT_TEST].tokens);
    assert_true(path_exists(at("other_test.idx")));
    assert_true(path_exists(at("other_tokenizer/tokenizer_config.json")));
    o.split.share[SPLIT_TEST] = 0;
    o.write_text = true;
    if (prepare(&again, &o) != OK) fail_msg("%s", fail_message());
    assert_false(path_exists(at("other_test.idx")));
    assert_false(path_exists(at("other_test.bin")));
    assert_int_equal(file_bytes(at("other_valid.txt")), again.part[SPLIT_VALID].bytes);
}

static void test_refuses_empty_input(void **state)
{
    (void)state;
    struct prepare_result r;
    assert_int_equal(folder_make(at("nothing")), OK);
    assert_int_equal(file_write(at("nothing/a.txt"), "\n", 1), OK);
    const char *input[] = {at("nothing")};
    char output[PATH_LENGTH];
    snprintf(output, sizeof output, "%s/none", folder);
    struct prepare_options o = options(input, 1, output);
    assert_int_equal(prepare(&r, &o), ERR_FORMAT);
    assert_non_null(strstr(fail_message(), "holds no text"));
    assert_false(path_exists(at("none_train.idx")));
}

// The n-th write fails: prepare says so, and what it left is either whole or refused.
static void test_failing_writes(void **state)
{
    (void)state;
    write_words(at("alone.txt"), 2000, 5);
    char output[PATH_LENGTH], alone[PATH_LENGTH], tokenizer[PATH_LENGTH];
    snprintf(alone, sizeof alone, "%s", at("alone.txt"));
    // The tokenizer of the test above: training one takes its time.
    snprintf(tokenizer, sizeof tokenizer, "%s", at("out/text_tokenizer/tokenizer.model"));
    const char *input[] = {alone};
    snprintf(output, sizeof output, "%s/full/disk", folder);
    struct prepare_options o = options(input, 1, output);
    struct prepare_result r;
    bool done = false;
    o.tokenizer = tokenizer;
    o.split.share[SPLIT_VALID] = o.split.share[SPLIT_TEST] = 0;
    long n = 1;
    for (; n < 200 && !done; n++) {
        assert_int_equal(folder_remove(at("full")), OK);
        files_fail_write(n);
        done = prepare(&r, &o) == OK;
        files_fail_write(0);
        struct dataset d;
        enum status status = dataset_open(&d, at("full/disk_train"));
        assert_true(!done || status == OK);
        if (status != OK) continue;
        assert_int_equal(d.tokens, r.part[SPLIT_TRAIN].tokens);
        dataset_close(&d);
    }
    print_message("%ld writes\n", n - 2);
    assert_true(done);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_files_and_folders),
        cmocka_unit_test(test_refuses_what_is_not_text),
        cmocka_unit_test(test_split_shares),
        cmocka_unit_test(test_near_copies_stay_in_training),
        cmocka_unit_test(test_writes_parts),
        cmocka_unit_test(test_refuses_empty_input),
        cmocka_unit_test(test_failing_writes),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
