// One safetensors file: what is read, what is refused with which sentence, what is written.
#include "checkpoint_util.h"

// A file of a header and n bytes 0, 1, 2 ...; the caller frees it.
static uint8_t *file_of(const char *header, long data, long *bytes)
{
    long length = (long)strlen(header);
    *bytes = 8 + length + data;
    uint8_t *file = malloc((size_t)*bytes);
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)(length >> (8 * i));
    memcpy(file + 8, header, (size_t)length);
    for (long i = 0; i < data; i++) file[8 + length + i] = (uint8_t)i;
    return file;
}

static void refused(const char *header, long data, const char *sentence)
{
    long bytes;
    uint8_t *file = file_of(header, data, &bytes);
    struct safetensors s = {.n = 77};
    expect(safetensors_parse(&s, file, bytes, "x.safetensors"), ERR_FORMAT, sentence);
    assert_non_null(strstr(fail_message(), "x.safetensors: "));
    assert_int_equal(s.n, 77);
    free(file);
}

static void test_header(void **state)
{
    (void)state;
    struct safetensors s;
    long bytes;
    uint8_t *file = file_of("{\"__metadata__\":{\"format\":\"pt\"},"
                            "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,1],\"data_offsets\":[4,8]},"
                            "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
                            "\"none\":{\"dtype\":\"I64\",\"shape\":[3,0],\"data_offsets\":[8,8]},"
                            "\"c\":{\"dtype\":\"BOOL\",\"shape\":[1],\"data_offsets\":[8,9]}}   ", 9, &bytes);
    OK_OR_FAIL(safetensors_parse(&s, file, bytes, "x"));
    assert_int_equal(s.n, 4);
    const struct stored_tensor *b = safetensors_find(&s, "b");
    assert_int_equal(b->type, BF16);
    assert_int_equal(b->elements, 2);
    assert_int_equal(b->data[0], 4);
    assert_int_equal(safetensors_find(&s, "a")->rank, 0);
    assert_int_equal(safetensors_find(&s, "none")->bytes, 0);
    assert_int_equal(safetensors_find(&s, "c")->type, -1);
    assert_null(safetensors_find(&s, "d"));
    safetensors_close(&s);
    for (long cut = 0; cut < bytes; cut++) { // truncated anywhere
        uint8_t *less = malloc((size_t)cut + 1);
        memcpy(less, file, (size_t)cut);
        expect(safetensors_parse(&s, less, cut, "x"), ERR_FORMAT, "x: ");
        free(less);
    }
    free(file);
    file = file_of("{}      ", 0, &bytes);
    OK_OR_FAIL(safetensors_parse(&s, file, bytes, "x"));
    assert_null(safetensors_find(&s, "a"));
    safetensors_close(&s);
    free(file);
}

#define F32_AT(name, shape, begin, end)                                                                                \
    "\"" name "\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

static void test_bad_headers(void **state)
{
    (void)state;
    refused("{" F32_AT("a", "[2]", 0, 8) "," F32_AT("b", "[2]", 4, 12) "}", 12, "tensors a and b overlap");
    refused("{" F32_AT("a", "[2]", 0, 8) "," F32_AT("b", "[2]", 0, 8) "}", 8, "overlap");
    refused("{" F32_AT("a", "[2]", 0, 8) "," F32_AT("b", "[1]", 12, 16) "}", 16, "4 bytes before tensor b");
    refused("{" F32_AT("a", "[2]", 4, 12) "}", 12, "4 bytes before tensor a");
    refused("{" F32_AT("a", "[2]", 0, 8) "}", 9, "the last 1 bytes belong to no tensor");
    refused("{" F32_AT("a", "[2]", 0, 8) "}", 7, "there are only 7");
    refused("{" F32_AT("a", "[3]", 0, 8) "}", 8, "do not hold the 12 bytes");
    refused("{" F32_AT("a", "[2]", 8, 0) "}", 8, "data_offsets");
    refused("{" F32_AT("a", "[-1]", 0, 8) "}", 8, "not a whole number");
    refused("{" F32_AT("a", "[1.5]", 0, 8) "}", 8, "not a whole number");
    refused("{" F32_AT("a", "[1e300]", 0, 8) "}", 8, "not a whole number");
    refused("{" F32_AT("a", "[4294967296,4294967296]", 0, 8) "}", 8, "multiply to more than 2^63");
    refused("{" F32_AT("a", "[4503599627370496,1024]", 0, 8) "}", 8, "multiply to more than 2^63");
    refused("{" F32_AT("a", "[0,4503599627370496,4503599627370496,1024]", 0, 8) "}", 8, "do not hold the 0 bytes");
    refused("{" F32_AT("a", "[1,1,1,1,1,1,1,1,2]", 0, 8) "}", 8, "more than 8 dimensions");
    refused("{" F32_AT("a", "[2]", 0, 8) "," F32_AT("a", "[2]", 0, 8) "}", 8, "a twice");
    refused("{" F32_AT("", "[2]", 0, 8) "}", 8, "tensor name");
    refused("{\"a\":{\"dtype\":\"F31\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "unknown dtype \"F31\"");
    refused("{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "whole bytes");
    refused("{\"a\":{\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "no dtype");
    refused("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "no shape");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "data_offsets");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,8]}}", 8, "data_offsets");
    refused("{\"a\":3}", 0, "not described by an object");
    refused("{\"__metadata__\":{\"x\":3}}", 0, "not a text");
    refused("{\"__metadata__\":3}", 0, "not an object");
    refused("[]", 0, "does not begin with {");
    refused("{\"a\":", 0, "not JSON");
    refused("{\"\xff\":{}}", 0, "UTF-8");
    struct safetensors s;
    uint8_t huge[16] = {0x01, 0xe1, 0xf5, 0x05, 0, 0, 0, 0, '{', '}'}; // 100,000,001
    expect(safetensors_parse(&s, huge, 16, "x"), ERR_FORMAT, "more than the 100000000 allowed");
    memset(huge, 0xff, 8);
    expect(safetensors_parse(&s, huge, 16, "x"), ERR_FORMAT, "more than the 100000000 allowed");
    memset(huge, 0, 8);
    expect(safetensors_parse(&s, huge, 16, "x"), ERR_FORMAT, "does not begin with {");
    huge[0] = 9;
    expect(safetensors_parse(&s, huge, 16, "x"), ERR_FORMAT, "cut short");
    expect(safetensors_open(&s, in("nowhere")), ERR_IO, "nowhere");
    expect(safetensors_open(&s, folder), ERR_IO, NULL);
}

static void test_writer(void **state)
{
    (void)state;
    struct tensor_plan plan[] = {{"one", F32, 2, {2, 3}}, {"empty", F32, 1, {0}}, {"scale", F32, 0, {0}},
                                 {"half", BF16, 1, {3}}, {"byte", F8_E4M3, 1, {5}}};
    uint64_t hash[2], read_hash;
    float values[7] = {1, 2, 3, 4, 5, 6, 7};
    for (int run = 0; run < 2; run++) {
        struct safetensors_writer w;
        OK_OR_FAIL(safetensors_write_open(&w, in("w.safetensors"), plan, 5));
        for (int i = 0; i < 6; i++) OK_OR_FAIL(safetensors_write_data(&w, &values[i], 4)); // in pieces
        OK_OR_FAIL(safetensors_write_data(&w, &values[6], 4));
        OK_OR_FAIL(safetensors_write_data(&w, "abcdef", 6));
        OK_OR_FAIL(safetensors_write_data(&w, "ABCDE", 5));
        assert_false(path_exists(in("w.safetensors")) && run == 0);
        OK_OR_FAIL(safetensors_write_commit(&w, &hash[run]));
    }
    assert_true(hash[0] == hash[1]); // deterministic
    struct safetensors s;
    OK_OR_FAIL(safetensors_open(&s, in("w.safetensors")));
    read_hash = xxh3(s.map.data, s.map.bytes);
    assert_true(read_hash == hash[0]);
    assert_int_equal(s.n, 5);
    const struct stored_tensor *one = safetensors_find(&s, "one");
    assert_memory_equal(one->data, values, 24);
    assert_int_equal(safetensors_find(&s, "scale")->elements, 1);
    assert_memory_equal(safetensors_find(&s, "half")->data, "abcdef", 6);
    assert_memory_equal(safetensors_find(&s, "byte")->data, "ABCDE", 5);
    safetensors_close(&s);
    for (int length = 1; length <= 8; length++) { // whatever the header's length, data begin at a page's start
        struct tensor_plan plan_one = {.dtype = F32, .rank = 1, .shape = {1}};
        struct safetensors_writer w;
        memset(plan_one.name, 'x', (size_t)length);
        OK_OR_FAIL(safetensors_write_open(&w, in("w.safetensors"), &plan_one, 1));
        OK_OR_FAIL(safetensors_write_data(&w, values, 4));
        OK_OR_FAIL(safetensors_write_commit(&w, NULL));
        OK_OR_FAIL(safetensors_open(&s, in("w.safetensors")));
        assert_int_equal((s.tensor[0].data - s.map.data) % 4096, 0);
        safetensors_close(&s);
    }
}

// Nothing of a file that has no header stays behind (which LeakSanitizer would tell).
static void test_placed_cut(void **state)
{
    (void)state;
    struct placed_file f;
    const struct tensor_plan plan = {.name = "a", .dtype = F32, .rank = 1, .shape = {1}};
    OK_OR_FAIL(file_write(in("cut.part"), "abc", 3));
    expect(placed_file_open(&f, in("cut"), &plan, 1), ERR_IO, "cannot be read back");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_bad_headers),
        cmocka_unit_test(test_writer),
        cmocka_unit_test(test_placed_cut),
    };
    return cmocka_run_group_tests_name("safetensors", tests, set_up, tear_down);
}
