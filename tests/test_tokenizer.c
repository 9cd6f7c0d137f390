// Text to ids and back, trained tokenizers, damaged model files.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/json.h"
#include "base/rng.h"
#include "data/tokenizer.h"
#include <cmocka.h> // last: it defines fail()

static char folder[PATH_LENGTH - 64];
static struct tokenizer trained;

static const char *at(const char *name)
{
    static char path[4][PATH_LENGTH];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], PATH_LENGTH, "%s/%s", folder, name);
    return path[next];
}

static const char *const words[] = {
    "the", "kernel", "schedules", "every", "process", "fairly", "and", "packages", "depend", "upon", "each", "other",
    "内核", "调度", "每个", "进程", "软件包", "互相", "依赖", "系统管理员", "le", "noyau", "où", "système", "déjà",
    "ядро", "системы", "пакеты", "2024", "3.14", "don't", "foo_bar()", "“quoted”", "—", "naïve", "größer",
};
enum { WORDS = sizeof words / sizeof *words };

// Sentences drawn from the words: enough different pairs for a vocabulary of 700.
static char *make_text(long sentences, uint64_t seed)
{
    char *text = malloc((size_t)sentences * 400);
    long used = 0, counter = 0;
    for (long i = 0; i < sentences; i++) {
        long n = 3 + (long)(rng_bits(seed, 0, (uint64_t)counter++) % 12);
        for (long k = 0; k < n; k++) {
            const char *word = words[rng_bits(seed, 0, (uint64_t)counter++) % WORDS];
            bool space = k + 1 < n && rng_bits(seed, 1, (uint64_t)counter) % 5;
            used += snprintf(text + used, 40, "%s%s", word, space ? " " : "");
        }
        used += snprintf(text + used, 4, i % 7 == 6 ? ".\n\n" : ".\n");
    }
    return text;
}

static enum status train(const char *path, const char *const *text, long texts, long vocab_size)
{
    struct text t[4];
    for (long i = 0; i < texts; i++) t[i] = (struct text){text[i], (long)strlen(text[i])};
    struct tokenizer_training training = {
        .text = t, .texts = texts, .vocab_size = vocab_size, .threads = 2, .path = path};
    return tokenizer_train(&training);
}

static int set_up(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/skymoe-tokenizer-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(folder)) return -1;
    char *text = make_text(2000, 1);
    enum status status = train(at("trained.model"), (const char *const *)&text, 1, 700);
    free(text);
    if (status != OK || tokenizer_open(&trained, at("trained.model")) != OK) {
        print_error("%s\n", fail_message());
        return -1;
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    tokenizer_close(&trained);
    return folder_remove(folder) == OK ? 0 : -1;
}

// ---- round trips ----

static const char *const samples[] = {
    "", "a", " ", "  ", "\n", "\n\n a", " leading", "trailing ", "two  spaces   three", "tab\tand\r\nline",
    "the kernel schedules every process", "系统管理员 调度 每个进程。", "emoji 😀👩‍👩‍👧 and 𝔘𝔫𝔦", "Ж ё ﷽ ꙮ",
    "<s> </s> <unk> <0x41>", "0123456789", "a\nb\n\n\nc", "▅ U+2585", "\x01\x7F",
};

static void round_trip(const struct tokenizer *t, const char *text, long bytes)
{
    int *ids;
    char *back;
    long n, back_bytes, sum = 0;
    assert_int_equal(tokenizer_encode(&ids, &n, t, text, bytes), OK);
    for (long i = 0; i < n; i++) {
        assert_in_range(ids[i], 3, t->pieces - 1); // never unk, bos or eos
        sum += t->piece_bytes[ids[i]];
    }
    assert_int_equal(sum, bytes > 0 ? bytes + 1 : 0); // one for the dummy prefix
    assert_int_equal(tokenizer_decode(&back, &back_bytes, t, ids, n), OK);
    assert_int_equal(back_bytes, bytes);
    assert_memory_equal(back, text, (size_t)bytes);
    assert_int_equal(back[back_bytes], 0);
    free(ids);
    free(back);
}

static void test_round_trips(void **state)
{
    (void)state;
    for (unsigned i = 0; i < sizeof samples / sizeof *samples; i++)
        round_trip(&trained, samples[i], (long)strlen(samples[i]));
    round_trip(&trained, "NUL \0 inside", 12);
    char *text = make_text(300, 2);
    round_trip(&trained, text, (long)strlen(text));
    free(text);
}

static void test_conventions(void **state)
{
    (void)state;
    int *ids;
    long n;
    assert_int_equal(trained.pieces, 700);
    assert_int_equal(trained.unk, 0);
    assert_int_equal(trained.bos, 1);
    assert_int_equal(trained.eos, 2);
    assert_int_equal(trained.pad, -1);
    assert_int_equal(trained.piece_bytes[1], 0);
    assert_true(trained.dummy_prefix);
    assert_int_equal(tokenizer_encode(&ids, &n, &trained, "2024", 4), OK);
    assert_true(n >= 4); // digits stand alone
    free(ids);
    assert_int_equal(tokenizer_encode(&ids, &n, &trained, "the kernel", 10), OK);
    assert_true(n <= 3); // words that were seen often are one piece
    free(ids);
    assert_int_equal(tokenizer_encode(&ids, &n, &trained, "\xF0\x9F\x98\x80", 4), OK);
    assert_int_equal(n, 5); // the space, four bytes
    free(ids);
}

// A long text is encoded in parts: the same ids as at once.
static void test_parts(void **state)
{
    (void)state;
    struct tokenizer whole = trained;
    assert_true(trained.parts);
    whole.parts = false;
    for (uint64_t seed = 10; seed < 14; seed++) {
        char *text = make_text(400, seed);
        long bytes = (long)strlen(text);
        for (long i = 0; i < bytes; i++) // rows of spaces, U+2581 itself and line ends beside possible ends of parts
            if (text[i] == ' ' && rng_bits(seed, 2, (uint64_t)i) % 3 == 0) text[i] = '\n';
        char *spaced = malloc((size_t)bytes * 4 + 1);
        long used = 0;
        for (long i = 0; i < bytes; i++) {
            spaced[used++] = text[i];
            if (text[i] == ' ' && rng_bits(seed, 3, (uint64_t)i) % 2 == 0)
                used += snprintf(spaced + used, 4, "%s", rng_bits(seed, 4, (uint64_t)i) % 2 ? " " : "▁");
        }
        int *a, *b;
        long n, m;
        assert_int_equal(tokenizer_encode(&a, &n, &trained, spaced, used), OK);
        assert_int_equal(tokenizer_encode(&b, &m, &whole, spaced, used), OK);
        assert_true(used > 8000);
        assert_int_equal(n, m);
        assert_memory_equal(a, b, (size_t)n * sizeof *a);
        free(a);
        free(b);
        free(text);
        free(spaced);
    }
}

static void test_streaming(void **state)
{
    (void)state;
    static const char text[] = "where 进程 and 😀 meet\n  ﷽ é";
    int *ids;
    long n, shown = 0, used = 0;
    char out[256] = "", *more;
    assert_int_equal(tokenizer_encode(&ids, &n, &trained, text, (long)strlen(text)), OK);
    for (long i = 1; i <= n; i++) {
        assert_int_equal(tokenizer_decode_next(&more, &shown, &trained, ids, i), OK);
        assert_true(utf8_valid(more, (long)strlen(more)));
        assert_null(strstr(more, "\xEF\xBF\xBD")); // nothing is shown before it is whole
        used += snprintf(out + used, sizeof out - (size_t)used, "%s", more);
        assert_int_equal(shown, used);
        free(more);
    }
    assert_string_equal(out, text);

    // Bytes that never become a character are shown once that is certain.
    int byte_e4 = -1, byte_b8 = -1, letter;
    free(ids);
    assert_int_equal(tokenizer_encode(&ids, &n, &trained, "\xE4\xB8\x80\xF4\x8F\xBF\xBF", 7), OK); // U+4E00, U+10FFFF
    for (long i = 0; i < n; i++) {
        if (n - i == 7) byte_e4 = ids[i], byte_b8 = ids[i + 1];
    }
    free(ids);
    assert_int_equal(tokenizer_encode(&ids, &n, &trained, "a", 1), OK);
    letter = ids[n - 1];
    free(ids);
    assert_true(byte_e4 > 0);
    int broken[] = {letter, byte_e4, byte_b8, letter, byte_b8};
    static const char *const expected[] = {"", "", "\xEF\xBF\xBD\xEF\xBF\xBD", "\xEF\xBF\xBD"};
    assert_int_equal(tokenizer_decode_next(&more, &shown, &trained, broken, 1), OK);
    free(more);
    shown = 1;
    for (long i = 0; i < 4; i++) {
        assert_int_equal(tokenizer_decode_next(&more, &shown, &trained, broken, i + 2), OK);
        assert_int_equal(strncmp(more, expected[i], strlen(expected[i])), 0);
        free(more);
    }
}

static void test_refuses_ids_and_text(void **state)
{
    (void)state;
    static const int beyond[] = {5, 700}, negative[] = {-1};
    char *text;
    int *ids;
    long n, shown = 0;
    assert_int_equal(tokenizer_decode(&text, &n, &trained, beyond, 2), ERR_FORMAT);
    assert_string_equal(fail_message(), "token 700: is not one of the tokenizer's 700 pieces");
    assert_int_equal(tokenizer_decode_next(&text, &shown, &trained, negative, 1), ERR_FORMAT);
    assert_int_equal(tokenizer_encode(&ids, &n, &trained, "\xC3", 1), ERR_FORMAT);
    assert_int_equal(tokenizer_encode(&ids, &n, &trained, "\xED\xA0\x80", 3), ERR_FORMAT);
}

// ---- training ----

static void test_training_repeats(void **state)
{
    (void)state;
    char *a, *b, *text[2] = {make_text(700, 5), make_text(700, 6)};
    long a_bytes, b_bytes;
    assert_int_equal(train(at("a.model"), (const char *const *)text, 2, 600), OK);
    assert_int_equal(train(at("b.model"), (const char *const *)text, 2, 600), OK);
    assert_int_equal(file_read(&a, &a_bytes, at("a.model"), 1 << 20), OK);
    assert_int_equal(file_read(&b, &b_bytes, at("b.model"), 1 << 20), OK);
    assert_int_equal(a_bytes, b_bytes);
    assert_memory_equal(a, b, (size_t)a_bytes);
    free(a);
    free(b);
    free(text[0]);
    free(text[1]);
}

static void test_training_limits(void **state)
{
    (void)state;
    const char *few = "one line only", *none = "\n\n\n";
    assert_int_equal(train(at("few.model"), &few, 1, 8192), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "--vocab-size 8192: the text has pieces for only"));
    assert_int_equal(train(at("few.model"), &none, 1, 400), ERR_FORMAT);
    assert_false(path_exists(at("few.model")));
    // A line without a space longer than SentencePiece takes, and more different characters than pieces.
    char *line = malloc(400000), *to = line;
    for (long i = 0; i < 100000; i++) {
        long code = 0x4E00 + (long)(rng_bits(3, 0, (uint64_t)i) % 9000);
        *to++ = (char)(0xE0 | code >> 12);
        *to++ = (char)(0x80 | (code >> 6 & 0x3F));
        *to++ = (char)(0x80 | (code & 0x3F));
    }
    *to = '\0';
    if (train(at("long.model"), (const char *const *)&line, 1, 4000) != OK) fail_msg("%s", fail_message());
    struct tokenizer t;
    assert_int_equal(tokenizer_open(&t, at("long.model")), OK);
    assert_int_equal(t.pieces, 4000);
    line[3000] = '\0';
    round_trip(&t, line, 3000);
    tokenizer_close(&t);
    free(line);
}

// ---- files ----

static void test_folders(void **state)
{
    (void)state;
    struct tokenizer t;
    char *text;
    long bytes;
    assert_int_equal(tokenizer_write_folder(at("model"), at("trained.model"), &trained), OK);
    assert_int_equal(tokenizer_copy_folder(at("copy"), at("model")), OK);
    assert_int_equal(tokenizer_open(&t, at("copy")), OK);
    assert_int_equal(t.pieces, trained.pieces);
    tokenizer_close(&t);
    assert_int_equal(file_read(&text, &bytes, at("copy/tokenizer_config.json"), 1 << 20), OK);
    assert_non_null(strstr(text, "\"add_bos_token\":true"));
    assert_non_null(strstr(text, "\"bos_token\":\"<s>\""));
    free(text);
    assert_int_equal(file_read(&text, &bytes, at("copy/generation_config.json"), 1 << 20), OK);
    assert_string_equal(text, "{\"bos_token_id\":1,\"eos_token_id\":2}");
    free(text);

    assert_int_equal(folder_make(at("fast")), OK);
    assert_int_equal(tokenizer_open(&t, at("fast")), ERR_IO);
    assert_non_null(strstr(fail_message(), "has no tokenizer.model"));
    assert_int_equal(file_write(at("fast/tokenizer.json"), "{}", 2), OK);
    assert_int_equal(tokenizer_open(&t, at("fast")), ERR_FORMAT);
    assert_non_null(strstr(fail_message(), "holds tokenizer.json without tokenizer.model, which is not supported"));
    assert_int_equal(tokenizer_open(&t, at("absent.model")), ERR_IO);
}

// ---- damaged models: protobuf written by hand ----

struct proto {
    uint8_t data[1 << 16];
    long n;
};

static void put_bytes(struct proto *p, int field, const void *data, long bytes)
{
    p->data[p->n++] = (uint8_t)(field << 3 | 2);
    long left = bytes;
    for (; left > 127; left >>= 7) p->data[p->n++] = (uint8_t)(left | 128);
    p->data[p->n++] = (uint8_t)left;
    memcpy(p->data + p->n, data, (size_t)bytes);
    p->n += bytes;
}

static void put_number(struct proto *p, int field, int value)
{
    if (field > 15) p->data[p->n++] = (uint8_t)((field << 3 | 128) & 255);
    p->data[p->n++] = (uint8_t)(field > 15 ? field >> 4 : field << 3);
    p->data[p->n++] = (uint8_t)value;
}

static void put_piece(struct proto *p, const char *text, long bytes, float score, int type)
{
    struct proto *piece = calloc(1, sizeof *piece);
    put_bytes(piece, 1, text, bytes);
    piece->data[piece->n++] = 2 << 3 | 5;
    memcpy(piece->data + piece->n, &score, 4);
    piece->n += 4;
    if (type) put_number(piece, 3, type);
    put_bytes(p, 1, piece->data, piece->n);
    free(piece);
}

static void put_trainer(struct proto *p, int type)
{
    struct proto *trainer = calloc(1, sizeof *trainer);
    put_number(trainer, 3, type);
    put_bytes(p, 2, trainer->data, trainer->n);
    free(trainer);
}

static struct proto *small_model(int type)
{
    struct proto *p = calloc(1, sizeof *p);
    put_piece(p, "<unk>", 5, 0, 2);
    put_piece(p, "<s>", 3, 0, 3);
    put_piece(p, "a", 1, -1, 0);
    put_piece(p, "▁a", 4, -2, 0);
    put_trainer(p, type);
    return p;
}

// Opens the model and frees it; the sentence, or "" when it is accepted (and can be used).
static const char *open_proto(struct proto *p)
{
    struct tokenizer t;
    assert_int_equal(file_write(at("damaged.model"), p->data, p->n), OK);
    free(p);
    enum status status = tokenizer_open(&t, at("damaged.model"));
    if (status == OK) {
        int *ids;
        long n;
        assert_int_equal(tokenizer_encode(&ids, &n, &t, "a aa b", 6), OK);
        free(ids);
        tokenizer_close(&t);
        return "";
    }
    assert_int_equal(status, ERR_FORMAT);
    assert_non_null(strstr(fail_message(), "damaged.model: "));
    return fail_message();
}

// The normaliser's table with one rule, "b" -> "a", in Darts' form: root, its child at 'b', the leaf.
static void put_rules(struct proto *p, uint32_t root, uint32_t child, uint32_t leaf, long text_bytes)
{
    struct proto *spec = calloc(1, sizeof *spec);
    static uint32_t units[512];
    uint8_t table[4 + sizeof units + 2];
    uint32_t bytes = sizeof units;
    memset(units, 0, sizeof units);
    for (int i = 0; i < 512; i++) units[i] = 0x80000000u | 255; // no label
    units[0] = root;
    units[256 ^ 'b'] = child;
    units[256 ^ 'b' ^ 1] = leaf;
    memcpy(table, &bytes, 4);
    memcpy(table + 4, units, sizeof units);
    memcpy(table + 4 + sizeof units, "a", 2);
    put_bytes(spec, 2, table, 4 + (long)sizeof units + text_bytes);
    put_bytes(p, 3, spec->data, spec->n);
    free(spec);
}

static void test_refuses_damaged_models(void **state)
{
    (void)state;
    struct proto *p;
    float infinite = 1.0f / 0.0f;
    char longest[2000];
    memset(longest, 'x', sizeof longest);
    assert_string_equal(open_proto(small_model(2)), "");
    assert_string_equal(open_proto(small_model(1)), "");
    assert_non_null(strstr(open_proto(small_model(3)), "of whole words"));
    p = small_model(2);
    for (long n = p->n - 1; n > 0; n--) { // cut anywhere but between two fields
        struct proto *cut = small_model(2);
        cut->n = n;
        const char *message = open_proto(cut);
        if (!*message) print_message("the first %ld bytes of %ld are a model too\n", n, p->n);
        assert_true(*message || n > p->n - 20);
    }
    free(p);
    p = calloc(1, sizeof *p);
    assert_non_null(strstr(open_proto(p), "is not a SentencePiece model"));
    p = calloc(1, sizeof *p);
    p->n = snprintf((char *)p->data, sizeof p->data, "any text that is no model");
    assert_non_null(strstr(open_proto(p), "is not a SentencePiece model"));
    p = small_model(2), put_piece(p, "b", 1, infinite, 0);
    assert_non_null(strstr(open_proto(p), "the score of piece 4 is not a number"));
    p = small_model(2), put_piece(p, "", 0, 0, 0);
    assert_non_null(strstr(open_proto(p), "piece 4 has 0 bytes"));
    p = small_model(2), put_piece(p, longest, 1025, 0, 0);
    assert_non_null(strstr(open_proto(p), "piece 4 has 1025 bytes, expected 1 to 1024"));
    p = small_model(2), put_piece(p, longest, 65, 0, 4);
    assert_non_null(strstr(open_proto(p), "piece 4 has 65 bytes, expected 1 to 64"));
    p = small_model(2), put_piece(p, "a\0b", 3, 0, 4);
    assert_non_null(strstr(open_proto(p), "has a NUL"));
    p = small_model(2), put_piece(p, "a", 1, 0, 0);
    assert_non_null(strstr(open_proto(p), "a is already defined"));
    p = small_model(2), put_trainer(p, 1);
    assert_non_null(strstr(open_proto(p), "is not a SentencePiece model"));
    p = small_model(2);
    for (int i = 0; i < 64; i++) put_piece(p, longest, i + 1, 0, 4); // 64 nested pieces: the most
    assert_string_equal(open_proto(p), "");
    p = small_model(2), put_bytes(p, 4, "\x0A\x06\x0A\x01" "a" "\x12\x01" "z", 8); // a self test that fails
    assert_string_equal(open_proto(p), "");
}

// A piece of two spaces: a text must not be parted between them.
static void test_parts_keep_rows_of_spaces(void **state)
{
    (void)state;
    struct proto *p = calloc(1, sizeof *p), *trainer = calloc(1, sizeof *trainer), *normalizer = calloc(1, sizeof *p);
    char byte[8], text[6000];
    struct tokenizer t, whole;
    put_piece(p, "<unk>", 5, 0, 2);
    for (int i = 0; i < 256; i++) put_piece(p, byte, snprintf(byte, sizeof byte, "<0x%02X>", i), 0, 6);
    static const char *const pieces[] = {"▁▁", "▁▁▁▁", "▁a", "▁", "a"};
    for (int i = 0; i < 5; i++) put_piece(p, pieces[i], (long)strlen(pieces[i]), (float)-i, 0);
    put_number(trainer, 3, 2);
    put_number(trainer, 35, 1);
    put_number(normalizer, 4, 0);
    put_bytes(p, 2, trainer->data, trainer->n);
    put_bytes(p, 3, normalizer->data, normalizer->n);
    assert_int_equal(file_write(at("spaces.model"), p->data, p->n), OK);
    if (tokenizer_open(&t, at("spaces.model")) != OK) fail_msg("%s", fail_message());
    assert_true(t.parts);
    whole = t;
    whole.parts = false;
    for (long shift = 0; shift < 12; shift++) {
        int *a, *b;
        long n, m;
        for (long i = 0; i < (long)sizeof text; i++) text[i] = (i + shift) % 3 && i % 301 ? ' ' : 'a';
        assert_int_equal(tokenizer_encode(&a, &n, &t, text, sizeof text), OK);
        assert_int_equal(tokenizer_encode(&b, &m, &whole, text, sizeof text), OK);
        assert_int_equal(n, m);
        assert_memory_equal(a, b, (size_t)n * sizeof *a);
        free(a);
        free(b);
    }
    tokenizer_close(&t);
    free(p);
    free(trainer);
    free(normalizer);
}

static void test_refuses_damaged_rules(void **state)
{
    (void)state;
    const uint32_t to_256 = 256 << 10, child = 'b' | 1 << 8 | 1 << 10, leaf = 0x80000000u;
    struct proto *p;
    p = small_model(2), put_rules(p, to_256, child, leaf, 2);
    assert_string_equal(open_proto(p), "");
    p = small_model(2), put_rules(p, 1024 << 10, child, leaf, 2);
    assert_non_null(strstr(open_proto(p), "points outside its table"));
    p = small_model(2), put_rules(p, to_256, 'b' | 1 << 8 | 1023u << 10, leaf, 2);
    assert_non_null(strstr(open_proto(p), "points outside its table"));
    p = small_model(2), put_rules(p, to_256, child, leaf | 2, 2);
    assert_non_null(strstr(open_proto(p), "points outside its text"));
    p = small_model(2), put_rules(p, to_256, child, leaf, 1);
    assert_non_null(strstr(open_proto(p), "text has no end"));
    p = small_model(2), put_rules(p, to_256, child, leaf, 0);
    assert_non_null(strstr(open_proto(p), "is cut off"));
    p = small_model(2), put_rules(p, to_256, 'b' | 'b' << 10, leaf, 2); // its children are its own block
    assert_non_null(strstr(open_proto(p), "runs in circles"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_conventions),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_streaming),
        cmocka_unit_test(test_refuses_ids_and_text),
        cmocka_unit_test(test_training_repeats),
        cmocka_unit_test(test_training_limits),
        cmocka_unit_test(test_folders),
        cmocka_unit_test(test_refuses_damaged_models),
        cmocka_unit_test(test_parts_keep_rows_of_spaces),
        cmocka_unit_test(test_refuses_damaged_rules),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
