// Token data (.bin/.idx) and the loader.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "data/loader.h"
#include <cmocka.h> // last: it defines fail()

static char folder[PATH_LENGTH - 64];

static int make_folder(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/skymoe-data-XXXXXX", tmp ? tmp : "/tmp");
    files_fail_write(0);
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    files_fail_write(0);
    return folder_remove(folder) == OK ? 0 : -1;
}

static const char *at(const char *name)
{
    static char path[4][PATH_LENGTH];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], PATH_LENGTH, "%s/%s", folder, name);
    return path[next];
}

// ---- files ----

static const uint8_t golden_bin[12] = {10, 0, 11, 0, 0, 0, 0, 0, 7, 0, 0, 0};
static const char golden_idx[] =
    "4d4d49444944580000" "0100000000000000" "08" "0300000000000000" "0400000000000000" "030000000100000002000000"
    "0000000000000000" "0600000000000000" "0800000000000000"
    "0000000000000000" "0100000000000000" "0200000000000000" "0300000000000000";

static void unhex(uint8_t *bytes, const char *text)
{
    for (long i = 0; text[2 * i]; i++) sscanf(text + 2 * i, "%2hhx", &bytes[i]);
}

static void test_writes_golden_bytes(void **state)
{
    (void)state;
    static const int document[3][3] = {{10, 11, 0}, {0}, {7, 0}};
    static const long size[3] = {3, 1, 2};
    uint8_t expected[102];
    struct dataset_writer w;
    struct file_map map;
    unhex(expected, golden_idx);
    assert_int_equal(dataset_writer_open(&w, at("golden"), 100), OK);
    for (int i = 0; i < 3; i++) assert_int_equal(dataset_writer_add(&w, document[i], size[i]), OK);
    assert_false(path_exists(at("golden.bin")));
    assert_int_equal(dataset_writer_commit(&w), OK);
    assert_int_equal(file_map_open(&map, at("golden.bin")), OK);
    assert_int_equal(map.bytes, 12);
    assert_memory_equal(map.data, golden_bin, 12);
    file_map_close(&map);
    assert_int_equal(file_map_open(&map, at("golden.idx")), OK);
    assert_int_equal(map.bytes, 102);
    assert_memory_equal(map.data, expected, 102);
    file_map_close(&map);

    struct dataset d;
    int token[3];
    assert_int_equal(dataset_open(&d, at("golden")), OK);
    assert_int_equal(d.documents, 3);
    assert_int_equal(d.tokens, 6);
    assert_int_equal(dataset_document_tokens(&d, 0), 3);
    assert_int_equal(dataset_document_start(&d, 3), 6);
    dataset_read(token, &d, 0, 1, 2);
    assert_int_equal(token[0], 11);
    dataset_read(token, &d, 2, 0, 2);
    assert_int_equal(token[0], 7);
    dataset_close(&d);
}

static void test_wide_tokens(void **state)
{
    (void)state;
    static const int document[] = {70000, 1, 65535, 65499};
    struct dataset_writer w;
    struct dataset d;
    int token[4];
    assert_int_equal(dataset_writer_open(&w, at("wide"), 65500), OK);
    assert_int_equal(w.token_bytes, 4);
    assert_int_equal(dataset_writer_add(&w, document, 4), OK);
    assert_int_equal(dataset_writer_add(&w, document, 0), OK); // an empty document is kept
    assert_int_equal(dataset_writer_commit(&w), OK);
    assert_int_equal(dataset_open(&d, at("wide")), OK);
    assert_int_equal(d.documents, 2);
    assert_int_equal(dataset_document_tokens(&d, 1), 0);
    dataset_read(token, &d, 0, 0, 4);
    assert_memory_equal(token, document, sizeof token);
    dataset_close(&d);
    assert_int_equal(dataset_writer_open(&w, at("wide"), 65499), OK);
    assert_int_equal(w.token_bytes, 2);
    dataset_writer_abort(&w);
    assert_int_equal(dataset_open(&d, at("wide")), OK); // the aborted writer left the files alone
    dataset_close(&d);
}

// Puts `bytes` at `offset` of the golden index and parses it; "" when it is accepted.
static const char *parse_changed(long offset, const void *value, long bytes, long length, long bin_bytes)
{
    uint8_t golden[102];
    unhex(golden, golden_idx);
    memcpy(golden + offset, value, (size_t)bytes);
    uint8_t *copy = malloc((size_t)length + 1); // shifted by one: nothing is aligned
    memcpy(copy + 1, golden, (size_t)length);
    struct dataset d = {0};
    enum status status = dataset_parse_idx(&d, copy + 1, length, bin_bytes, "x.idx");
    free(copy);
    assert_true(status == OK || status == ERR_FORMAT);
    assert_true(status == OK || strncmp(fail_message(), "x.idx: ", 7) == 0);
    return status == OK ? "" : fail_message();
}

static void test_refuses_damaged_index(void **state)
{
    (void)state;
    const int64_t huge = INT64_MAX, negative = -1, two = 2, four = 4, much = (int64_t)1 << 61;
    const int32_t minus = -3, large = INT32_MAX;
    const uint8_t f32 = 7;
    assert_string_equal(parse_changed(0, "M", 1, 102, 12), "");
    for (long n = 0; n < 102; n++) assert_string_not_equal(parse_changed(0, "M", 1, n, 12), "");
    assert_non_null(strstr(parse_changed(0, "X", 1, 102, 12), "not an index"));
    assert_non_null(strstr(parse_changed(9, &two, 8, 102, 12), "version 2"));
    assert_non_null(strstr(parse_changed(17, &f32, 1, 102, 12), "type code 7"));
    assert_non_null(strstr(parse_changed(18, &huge, 8, 102, 12), "do not hold"));
    assert_non_null(strstr(parse_changed(18, &much, 8, 102, 12), "do not hold"));
    assert_non_null(strstr(parse_changed(18, &negative, 8, 102, 12), "do not hold"));
    assert_non_null(strstr(parse_changed(26, &negative, 8, 102, 12), "do not hold"));
    assert_non_null(strstr(parse_changed(34, &minus, 4, 102, 12), "-3 tokens"));
    assert_non_null(strstr(parse_changed(34, &large, 4, 102, 12), "the .bin beside it has 12"));
    assert_non_null(strstr(parse_changed(54, &four, 8, 102, 12), "begins at byte 4, expected 6"));
    assert_non_null(strstr(parse_changed(70, &two, 8, 102, 12), "document 0 begins"));
    assert_non_null(strstr(parse_changed(78, &four, 8, 102, 12), "document 2 begins at sequence 2, before"));
    assert_non_null(strstr(parse_changed(94, &two, 8, 102, 12), "end at sequence 2, expected 3"));
    assert_non_null(strstr(parse_changed(94, &huge, 8, 102, 12), "end at sequence"));
    assert_non_null(strstr(parse_changed(0, "M", 1, 102, 10), "the .bin beside it has 10"));
    assert_non_null(strstr(parse_changed(0, "M", 1, 102, 14), "the .bin beside it has 14"));
    assert_non_null(strstr(parse_changed(0, "M", 1, 102, 13), "the .bin beside it has 13"));
}

static void test_missing_files(void **state)
{
    (void)state;
    struct dataset d;
    assert_int_equal(dataset_open(&d, at("nothing")), ERR_IO);
    assert_non_null(strstr(fail_message(), "nothing.idx: cannot be opened"));
    assert_int_equal(file_write(at("empty.idx"), "", 0), OK);
    assert_int_equal(file_write(at("empty.bin"), "", 0), OK);
    assert_int_equal(dataset_open(&d, at("empty")), ERR_FORMAT);
}

// Documents of several sequences, as other programs write them.
static void test_documents_of_sequences(void **state)
{
    (void)state;
    const int64_t first[4] = {0, 2, 2, 3};
    uint8_t idx[102];
    unhex(idx, golden_idx);
    memcpy(idx + 70, first, sizeof first);
    struct dataset d = {0};
    assert_int_equal(dataset_parse_idx(&d, idx, 102, 12, "x.idx"), OK);
    assert_int_equal(d.documents, 3);
    assert_int_equal(dataset_document_tokens(&d, 0), 4);
    assert_int_equal(dataset_document_tokens(&d, 1), 0);
    assert_int_equal(dataset_document_tokens(&d, 2), 2);
    d.bin.data = golden_bin;
    int token[4];
    dataset_read(token, &d, 0, 1, 3);
    assert_int_equal(token[0], 11);
    assert_int_equal(token[2], 0);
}

static enum status write_pair(const char *prefix, int value)
{
    struct dataset_writer w;
    int token[5] = {value, value, value, value, value};
    enum status status = dataset_writer_open(&w, prefix, 1000);
    if (status != OK) return status;
    for (long i = 0; i < 3 && status == OK; i++) status = dataset_writer_add(&w, token, 5);
    if (status == OK) return dataset_writer_commit(&w);
    dataset_writer_abort(&w);
    return status;
}

// Whatever write fails: the pair is the old one, or the new one, or visibly not a pair.
static void test_failing_writes(void **state)
{
    (void)state;
    struct dataset d;
    long written = 0, old = 0, none = 0;
    for (long n = 1; n < 100 && !written; n++) {
        int token;
        files_fail_write(0);
        assert_int_equal(write_pair(at("failing"), 5), OK);
        files_fail_write(n);
        written = write_pair(at("failing"), 6) == OK;
        files_fail_write(0);
        enum status status = dataset_open(&d, at("failing"));
        if (status != OK) {
            none++;
            continue;
        }
        dataset_read(&token, &d, 0, 0, 1);
        assert_int_equal(token, written ? 6 : 5);
        old += !written;
        dataset_close(&d);
    }
    print_message("%ld failures kept the old pair, %ld left none\n", old, none);
    assert_true(written);
    assert_true(old > 0);
}

// ---- loader ----

// Token k of document d is 1000 d + k; sizes as given.
static void write_documents(const char *prefix, const long *size, long n)
{
    struct dataset_writer w;
    assert_int_equal(dataset_writer_open(&w, prefix, 100000), OK);
    for (long d = 0; d < n; d++) {
        int *token = malloc((size_t)(size[d] + 1) * sizeof *token);
        for (long k = 0; k < size[d]; k++) token[k] = (int)(1000 * d + k);
        assert_int_equal(dataset_writer_add(&w, token, size[d]), OK);
        free(token);
    }
    assert_int_equal(dataset_writer_commit(&w), OK);
}

enum { S_MOST = 64 };
struct sample {
    int token[S_MOST], target[S_MOST], position[S_MOST], start[S_MOST];
    long which;
};

static struct sample get(struct loader *l, long i)
{
    struct sample s;
    memset(&s, 0x55, sizeof s); // what is not filled differs
    assert_int_equal(loader_sample(l, i, s.token, s.target, s.position, s.start, &s.which), OK);
    for (long t = l->S; t < S_MOST; t++) assert_int_equal(s.token[t], 0x55555555);
    return s;
}

// The endless stream written out naively: tokens, and whether each begins a document.
struct stream {
    int *token;
    bool *first;
    long n;
};

static struct stream naive_stream(const long *size, long documents, long epochs, long seed, long source)
{
    struct stream s = {0};
    for (long d = 0; d < documents; d++) s.n += size[d] * epochs;
    s.token = malloc((size_t)s.n * sizeof *s.token);
    s.first = malloc((size_t)s.n * sizeof *s.first);
    long at_token = 0;
    for (long e = 0; e < epochs; e++) {
        for (long p = 0; p < documents; p++) {
            uint64_t stream = (uint64_t)source << 40 ^ (uint64_t)e;
            long d = (long)rng_permute((uint64_t)p, (uint64_t)documents, (uint64_t)seed, stream);
            for (long k = 0; k < size[d]; k++, at_token++) {
                s.token[at_token] = (int)(1000 * d + k);
                s.first[at_token] = k == 0;
            }
        }
    }
    return s;
}

static void check_sample(const struct sample *a, const struct stream *s, long from, long S, bool mask)
{
    long start = 0;
    for (long t = 0; t < S; t++) {
        if (mask && s->first[from + t]) start = t;
        assert_int_equal(a->token[t], s->token[from + t]);
        assert_int_equal(a->start[t], mask ? start : 0);
        assert_int_equal(a->position[t], t - a->start[t]);
        assert_int_equal(a->target[t], mask && s->first[from + t + 1] ? -1 : s->token[from + t + 1]);
    }
}

static const long sizes[] = {5, 3, 0, 9, 1, 4, 7, 31, 2, 0, 12, 1, 1, 40};
enum { DOCUMENTS = sizeof sizes / sizeof *sizes, EPOCHS = 12 };

static void test_order_against_naive(void **state)
{
    (void)state;
    write_documents(at("order_train"), sizes, DOCUMENTS);
    for (long S = 1; S <= 64; S = S * 2 + 1) {
        for (int mask = 0; mask < 2; mask++) {
            struct stream s = naive_stream(sizes, DOCUMENTS, EPOCHS, 7, 0);
            struct loader l;
            assert_int_equal(loader_open(&l, at("order"), "_train", S, 7, mask), OK);
            for (long i = 0; (i + 1) * S < s.n; i++) {
                struct sample a = get(&l, i);
                check_sample(&a, &s, i * S, S, mask);
            }
            loader_close(&l);
            free(s.token);
            free(s.first);
        }
    }
}

static void test_each_epoch_once_and_differently(void **state)
{
    (void)state;
    struct loader l;
    write_documents(at("epoch"), sizes, DOCUMENTS);
    long tokens = 0, S = 4; // 116 tokens: samples end where the epoch ends
    for (long d = 0; d < DOCUMENTS; d++) tokens += sizes[d];
    assert_int_equal(tokens % S, 0);
    assert_int_equal(loader_open(&l, at("epoch"), "_train", S, 1, true), OK);
    int before[256] = {0};
    long differ = 0;
    for (long e = 0; e < 3; e++) {
        char seen[DOCUMENTS][64] = {{0}};
        for (long i = 0; i < tokens / S; i++) {
            struct sample a = get(&l, e * tokens / S + i);
            for (long t = 0; t < S; t++) {
                assert_false(seen[a.token[t] / 1000][a.token[t] % 1000]++);
                differ += e > 0 && a.token[t] != before[i * S + t];
                before[i * S + t] = a.token[t];
            }
        }
        for (long d = 0; d < DOCUMENTS; d++)
            for (long k = 0; k < sizes[d]; k++) assert_true(seen[d][k]);
    }
    assert_true(differ > tokens);
    loader_close(&l);
    // Another seed gives another order.
    assert_int_equal(loader_open(&l, at("epoch"), "_train", S, 2, true), OK);
    struct sample a = get(&l, 0), b;
    loader_close(&l);
    assert_int_equal(loader_open(&l, at("epoch"), "_train", S, 3, true), OK);
    b = get(&l, 0);
    loader_close(&l);
    assert_memory_not_equal(a.token, b.token, (size_t)S * sizeof(int));
}

static void test_sample_is_a_function_of_its_number(void **state)
{
    (void)state;
    static const long other[] = {50, 60};
    char list[3 * PATH_LENGTH];
    struct loader l, again;
    enum { N = 60, S = 16 };
    static struct sample sample[N];
    write_documents(at("one_train"), sizes, DOCUMENTS);
    write_documents(at("two_train"), other, 2);
    snprintf(list, sizeof list, " 3 %s\t1 %s ", at("one"), at("two"));
    assert_int_equal(loader_open(&l, list, "_train", S, 5, true), OK);
    for (long i = 0; i < N; i++) sample[i] = get(&l, i);
    for (long n = 0; n < N; n++) { // any order, and reopened
        long i = (n * 37 + 11) % N;
        struct sample a = get(&l, i), b;
        assert_memory_equal(&a, &sample[i], sizeof a);
        assert_int_equal(loader_open(&again, list, "_train", S, 5, true), OK);
        b = get(&again, i);
        loader_close(&again);
        assert_memory_equal(&b, &sample[i], sizeof b);
    }
    loader_close(&l);
}

static void test_few_documents(void **state)
{
    (void)state;
    static const long one[] = {9};
    struct loader l;
    write_documents(at("single"), one, 1);
    assert_int_equal(loader_open(&l, at("single"), "", 8, 1, true), OK);
    for (long i = 0; i < 30; i++) {
        struct sample a = get(&l, i);
        for (long t = 0; t < 8; t++) {
            int token = (int)((i * 8 + t) % 9);
            assert_int_equal(a.token[t], token);
            assert_int_equal(a.target[t], token == 8 ? -1 : token + 1);
        }
    }
    loader_close(&l);
}

static void test_golden_blend(void **state)
{
    (void)state;
    static const long which[] = {0, 1, 2, 0, 1, 0, 2, 0, 1, 0, 0, 1}, index[] = {0, 0, 0, 1, 1, 2, 1, 3, 2, 4, 5, 3};
    static const long ten[] = {10};
    char list[4 * PATH_LENGTH];
    struct loader l;
    write_documents(at("blend"), ten, 1);
    snprintf(list, sizeof list, ".5 %s .3 %s .2 %s", at("blend"), at("blend"), at("blend"));
    assert_int_equal(loader_open(&l, list, "", 1, 1, false), OK);
    for (long i = 0; i < 12; i++) {
        struct sample a = get(&l, i);
        assert_int_equal(a.which, which[i]);
        assert_int_equal(a.token[0], index[i] % 10);
    }
    struct loader second; // the first sample is the heavier source's
    char two[2 * PATH_LENGTH + 16];
    snprintf(two, sizeof two, "3 %s 7 %s", at("blend"), at("blend"));
    assert_int_equal(loader_open(&second, two, "", 1, 1, false), OK);
    assert_int_equal(get(&second, 0).which, 1);
    loader_close(&second);
    long count[3] = {0};
    get(&l, 1000000); // replayed from 0
    for (long s = 0; s < 3; s++) count[s] = l.blend_count[s];
    assert_int_equal(count[0] + count[1] + count[2], 1000000);
    assert_true(labs(count[0] - 500000) <= 1 && labs(count[1] - 300000) <= 1 && labs(count[2] - 200000) <= 1);
    loader_close(&l);
}

static void test_evaluation(void **state)
{
    (void)state;
    struct loader l;
    long tokens = 0, samples;
    char list[3 * PATH_LENGTH];
    write_documents(at("eval_valid"), sizes, DOCUMENTS);
    for (long d = 0; d < DOCUMENTS; d++) tokens += sizes[d];
    snprintf(list, sizeof list, "1 %s 1 %s", at("eval"), at("eval"));
    for (long S = 1; S <= 64; S += 9) {
        assert_int_equal(loader_open(&l, list, "_valid", S, 1, true), OK);
        assert_int_equal(loader_eval_count(&l, &samples), OK);
        long each = (tokens - 1 + S - 1) / S, scored = 0;
        assert_int_equal(samples, 2 * each);
        int stored[1024];
        bool first[1024];
        for (long d = 0, n = 0; d < DOCUMENTS; d++)
            for (long k = 0; k < sizes[d]; k++, n++) stored[n] = (int)(1000 * d + k), first[n] = k == 0;
        for (long i = 0; i < samples; i++) {
            struct sample a;
            assert_int_equal(loader_eval_sample(&l, i, a.token, a.target, a.position, a.start), OK);
            for (long t = 0, start = 0; t < S; t++) {
                long n = i % each * S + t;
                if (n < tokens && first[n]) start = t;
                assert_int_equal(a.start[t], start);
                assert_int_equal(a.position[t], t - start);
                assert_int_equal(a.token[t], n < tokens ? stored[n] : 0);
                assert_int_equal(a.target[t], n + 1 < tokens && !first[n + 1] ? stored[n + 1] : -1);
                scored += a.target[t] >= 0;
            }
        }
        long documents = 0;
        for (long d = 0; d < DOCUMENTS; d++) documents += sizes[d] > 0;
        assert_int_equal(scored, 2 * (tokens - documents));
        loader_close(&l);
    }
}

static void refused(const char *list, enum status expected, const char *message)
{
    struct loader l;
    assert_int_equal(loader_open(&l, list, "_train", 32, 1, true), expected);
    if (!strstr(fail_message(), message)) fail_msg("%s", fail_message());
}

static void test_refuses_lists(void **state)
{
    (void)state;
    char list[3 * PATH_LENGTH];
    static const long short_one[] = {32};
    write_documents(at("list_train"), sizes, DOCUMENTS);
    write_documents(at("short_train"), short_one, 1);
    refused("", ERR_CONFIG, "is not a list");
    refused("  ", ERR_CONFIG, "is not a list");
    snprintf(list, sizeof list, "%s %s", at("list"), at("list"));
    refused(list, ERR_CONFIG, "is not a list");
    snprintf(list, sizeof list, "1 %s 2", at("list"));
    refused(list, ERR_CONFIG, "is not a list");
    static const char *const weights[][2] = {{"0", "the weight 0 is not above 0"}, {"-1", "the weight -1 is not"},
                                             {"nan", "is not a list"}, {"inf", "is not a list"},
                                             {"1x", "is not a list"}, {"1e999", "is not a list"}};
    for (unsigned i = 0; i < sizeof weights / sizeof *weights; i++) {
        snprintf(list, sizeof list, "%s %s", weights[i][0], at("list"));
        refused(list, ERR_CONFIG, weights[i][1]);
    }
    refused(at("absent"), ERR_IO, "absent_train.idx");
    refused(at("short"), ERR_FORMAT, "has 32 tokens, fewer than one sample of 32 + 1");
    assert_int_equal(file_write(at("list_train.bin"), "ab", 2), OK);
    refused(at("list"), ERR_FORMAT, "list_train.idx: its sequences need");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_writes_golden_bytes),
        cmocka_unit_test(test_wide_tokens),
        cmocka_unit_test(test_refuses_damaged_index),
        cmocka_unit_test(test_missing_files),
        cmocka_unit_test(test_documents_of_sequences),
        cmocka_unit_test(test_failing_writes),
        cmocka_unit_test(test_order_against_naive),
        cmocka_unit_test(test_each_epoch_once_and_differently),
        cmocka_unit_test(test_sample_is_a_function_of_its_number),
        cmocka_unit_test(test_few_documents),
        cmocka_unit_test(test_golden_blend),
        cmocka_unit_test(test_evaluation),
        cmocka_unit_test(test_refuses_lists),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
