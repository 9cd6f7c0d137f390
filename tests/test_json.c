// JSON: what is refused, fields, large objects, writing.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/decimal.h"
#include "base/json.h"
#include <cmocka.h> // last: it defines fail()

// From memory of exactly the size, so that a sanitizer sees a byte too far.
static enum status parse_bytes(cJSON **json, const char *text, long bytes)
{
    char *copy = malloc(bytes ? (size_t)bytes : 1);
    memcpy(copy, text, (size_t)bytes);
    enum status status = json_parse(json, copy, bytes, "file");
    free(copy);
    return status;
}

static enum status parse(cJSON **json, const char *text)
{
    return parse_bytes(json, text, (long)strlen(text));
}

static void test_good(void **state)
{
    (void)state;
    static const char *const good[] = {
        "{}", "[]", " [ ] ", "null", "true", "-0", "0.5e-3", "1E+2", "\"\"", "[1,2,[3,{\"a\":null}]]",
        "\t\r\n{\"a\" : 1}\n",
        "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e4\\ud83d\\ude00\"", "\"\xe4\xb8\xad\xf0\x9f\x98\x80\x7f\"",
        "{\"a\":1,\"A\":2}", "{\"\":1}",
        "123456789012345678901234567890", "1e-999", "[[[[[[[[[[]]]]]]]]]]",
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        cJSON *json;
        if (parse(&json, good[i]) != OK) fail_msg("%s: %s", good[i], fail_message());
        cJSON_Delete(json);
    }
}

static void test_bad(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } bad[] = {
        {"", "line 1, column 1: the end comes too early"},
        {" \n ", "line 2, column 2: the end comes too early"},
        {"{", "expected a text in quotes"},
        {"[", "the end comes too early"},
        {"[1", "expected ',' or ']'"},
        {"{\"a\"", "expected ':'"},
        {"{\"a\":", "the end comes too early"},
        {"{\"a\":1", "expected ',' or '}'"},
        {"{\"a\":1,}", "column 8: expected a text in quotes"},
        {"[1,]", "column 4: expected a value"},
        {"[1 2]", "expected ',' or ']'"},
        {"[1}", "expected ',' or ']'"},
        {"{a:1}", "expected a text in quotes"},
        {"{1:1}", "expected a text in quotes"},
        {"1 2", "text follows the value"},
        {"{}{}", "text follows the value"},
        {"[],", "text follows the value"},
        {"01", "text follows the value"},
        {"[01]", "expected ',' or ']'"},
        {"+1", "expected a value"},
        {"-", "expected a value"},
        {"1.", "expected a digit"},
        {".5", "expected a value"},
        {"1e", "expected a digit"},
        {"1e+", "expected a digit"},
        {"0x10", "text follows the value"},
        {"1e999", "a number too large for double"},
        {"[-1e309]", "a number too large for double"},
        {"1234567890123456789012345678901234567890123456789012345678901", "a number of more than 60 characters"},
        {"NaN", "expected a value"},
        {"Infinity", "expected a value"},
        {"nul", "expected a value"},
        {"truex", "text follows the value"},
        {"'a'", "expected a value"},
        {"\"a", "the text is not closed"},
        {"\"a\\", "the text is not closed"},
        {"\"\\x\"", "an unknown escape"},
        {"\"\\u12\"", "\\u needs four hexadecimal digits"},
        {"\"\\u12g4\"", "\\u needs four hexadecimal digits"},
        {"\"\\u0000\"", "\\u0000 is not supported"},
        {"\"\\ud800\"", "half a surrogate pair"},
        {"\"\\ud800\\u0041\"", "half a surrogate pair"},
        {"\"\\udc00\"", "half a surrogate pair"},
        {"\"a\nb\"", "a control character in a text"},
        {"\"a\x01\"", "a control character in a text"},
        {"[1,\v2]", "expected a value"},
        {"// x\n1", "expected a value"},
        {"\xEF\xBB\xBF{}", "file: begins with a byte-order mark (save it without)"},
        {"\"\xff\"", "file: is not UTF-8 text"},
        {"\"\xc0\x80\"", "file: is not UTF-8 text"},
        {"\"\xed\xa0\x80\"", "file: is not UTF-8 text"},
        {"\"\xf4\x90\x80\x80\"", "file: is not UTF-8 text"},
        {"\"\xe4\xb8", "file: is not UTF-8 text"},
        {"{\"a\":1,\"a\":2}", "file: has the field a twice in one object"},
        {"{\"a\":1,\"\\u0061\":2}", "file: has the field a twice in one object"},
        {"[{\"x\":{\"k\":1,\"l\":[],\"k\":1}}]", "file: has the field k twice in one object"},
        {"{\"a\":1,\"b\":1,\"c\":1,\"d\":1,\"e\":1,\"f\":1,\"g\":1,\"h\":1,\"i\":1,\"c\":1}", "has the field c twice"},
        {"{\"a\":1,\"b\":1,\"c\":1,\"d\":1,\"e\":1,\"f\":1,\"g\":1,\"h\":1,\"i\":1,\"a\":1}", "has the field a twice"},
        {"{\"a\":1,\"b\":1,\"c\":1,\"d\":1,\"e\":1,\"f\":1,\"g\":1,\"h\":1,\"i\":1,\"i\":1}", "has the field i twice"},
        {"[[1],{\"a\":1,\"b\":2},{\"a\":1,\"a\":2}]", "file: has the field a twice in one object"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cJSON *json = NULL;
        if (parse(&json, bad[i].text) != ERR_FORMAT) fail_msg("%s was taken", bad[i].text);
        assert_null(json);
        if (!strstr(fail_message(), bad[i].message)) fail_msg("%s: %s", bad[i].text, fail_message());
    }
    cJSON *json;
    for (int c = 0; c < 0x20; c++) {
        char text[] = {'"', (char)c, '"'};
        assert_int_equal(parse_bytes(&json, text, 3), ERR_FORMAT);
    }
    assert_int_equal(parse_bytes(&json, "[1]\0", 4), ERR_FORMAT); // a NUL is not the end
    assert_int_equal(parse_bytes(&json, "\"a\0b\"", 5), ERR_FORMAT);
}

static void test_depth(void **state)
{
    (void)state;
    char text[200];
    cJSON *json;
    for (int depth = 63; depth <= 66; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        assert_int_equal(parse_bytes(&json, text, 2 * depth), depth <= 64 ? OK : ERR_FORMAT);
        if (depth <= 64) cJSON_Delete(json);
        else assert_non_null(strstr(fail_message(), "nested deeper than 64 levels"));
    }
    long bytes = 1 << 20;
    char *deep = malloc((size_t)bytes);
    memset(deep, '[', (size_t)bytes);
    assert_int_equal(parse_bytes(&json, deep, bytes), ERR_FORMAT); // and no deep recursion
    free(deep);
}

// Every prefix and every changed byte of a text with everything in it: refused or taken, never a crash.
static void test_damage(void **state)
{
    (void)state;
    const char *text = "{\"a\":[1,-2.5e3,true,false,null],"
                       "\"b\":{\"c\":\"x\\u00e4\\ud83d\\ude00\\n\xe4\xb8\xad\"},\"d\":[]}";
    long bytes = (long)strlen(text);
    cJSON *json;
    for (long n = 0; n < bytes; n++) assert_int_equal(parse_bytes(&json, text, n), ERR_FORMAT);
    char copy[200];
    for (long i = 0; i < bytes; i++)
        for (int byte = 0; byte < 256; byte++) {
            memcpy(copy, text, (size_t)bytes);
            copy[i] = (char)byte;
            if (parse_bytes(&json, copy, bytes) == OK) cJSON_Delete(json);
        }
}

static void test_large_object(void **state)
{
    (void)state;
    enum { N = 100000 };
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    for (long i = 0; i < N; i++) {
        char key[32];
        snprintf(key, sizeof key, "k%ld", i * 7919 % N);
        json_put_long(&o, key, i);
    }
    json_end(&o, '}');
    assert_int_equal(json_out_status(&o), OK);
    cJSON *json;
    assert_int_equal(parse(&json, o.text), OK);
    struct json_index index;
    assert_int_equal(json_index_make(&index, json), OK);
    assert_int_equal(index.n, N);
    for (long i = 0; i < N; i++) {
        char key[32];
        snprintf(key, sizeof key, "k%ld", i * 7919 % N);
        const cJSON *found = json_index_find(&index, key);
        assert_non_null(found);
        assert_true(found->valuedouble == (double)i);
    }
    assert_null(json_index_find(&index, "k"));
    assert_null(json_index_find(&index, "K1"));
    json_index_free(&index);
    cJSON_Delete(json);
    char *twice = strstr(o.text, "\"k99999\""); // now one key a second time
    memcpy(twice, "\"k12345\"", 8);
    assert_int_equal(parse(&json, o.text), ERR_FORMAT);
    assert_string_equal(fail_message(), "file: has the field k12345 twice in one object");
    json_out_free(&o);
}

static void test_index_of_array(void **state)
{
    (void)state;
    cJSON *json;
    struct json_index index;
    assert_int_equal(parse(&json, "[3,1,2]"), OK);
    assert_int_equal(json_index_make(&index, json), OK);
    assert_int_equal(index.n, 3);
    assert_true(index.item[0]->valuedouble == 3 && index.item[2]->valuedouble == 2);
    json_index_free(&index);
    cJSON_Delete(json);
    assert_int_equal(parse(&json, "{}"), OK);
    assert_int_equal(json_index_make(&index, json), OK);
    assert_null(json_index_find(&index, "a"));
    json_index_free(&index);
    cJSON_Delete(json);
}

#define ASSERT_FIELD(call, message)                                                                                    \
    do {                                                                                                               \
        assert_int_equal(call, ERR_FORMAT);                                                                            \
        assert_string_equal(fail_message(), message);                                                                  \
    } while (0)

static void test_fields(void **state)
{
    (void)state;
    cJSON *j;
    long n = -7;
    double x = -7;
    bool b = false;
    const char *t = NULL;
    assert_int_equal(parse(&j, "{\"n\":12,\"whole\":2.0,\"half\":2.5,\"huge\":1e300,\"text\":\"hi\",\"yes\":true,"
                               "\"null\":null,\"list\":[],\"big\":9007199254740993000}"), OK);
    assert_int_equal(json_long(&n, j, "n", 5, 0, 100, "f"), OK);
    assert_int_equal(n, 12);
    assert_int_equal(json_long(&n, j, "whole", 5, 0, 100, "f"), OK);
    assert_int_equal(n, 2);
    assert_int_equal(json_long(&n, j, "N", 5, 10, 100, "f"), OK); // another name; the fallback is not checked
    assert_int_equal(n, 5);
    assert_int_equal(json_long(&n, j, "null", 6, 10, 100, "f"), OK);
    assert_int_equal(n, 6);
    ASSERT_FIELD(json_long(&n, j, "half", 5, 0, 9, "f"), "f: half is 2.5, expected a whole number from 0 to 9");
    ASSERT_FIELD(json_long(&n, j, "n", 5, 0, 11, "f"), "f: n is 12, expected a whole number from 0 to 11");
    ASSERT_FIELD(json_long(&n, j, "n", 5, 13, 20, "f"), "f: n is 12, expected a whole number from 13 to 20");
    ASSERT_FIELD(json_long(&n, j, "huge", 5, 0, 9, "f"), "f: huge is 1e+300, expected a whole number from 0 to 9");
    assert_int_equal(json_long(&n, j, "big", 5, 0, INT64_MAX, "f"), ERR_FORMAT); // not exact in a double
    ASSERT_FIELD(json_long(&n, j, "text", 5, 0, 9, "f"), "f: text is \"hi\", expected a whole number from 0 to 9");
    ASSERT_FIELD(json_long(&n, j, "list", 5, 0, 9, "f"), "f: list is a list, expected a whole number from 0 to 9");
    assert_int_equal(n, 6); // unchanged by failures
    assert_int_equal(json_real(&x, j, "half", 1, 0, 9, "f"), OK);
    assert_true(x == 2.5);
    ASSERT_FIELD(json_real(&x, j, "half", 1, 3, 9, "f"), "f: half is 2.5, expected a number from 3 to 9");
    ASSERT_FIELD(json_real(&x, j, "yes", 1, 3, 9, "f"), "f: yes is true, expected a number from 3 to 9");
    assert_int_equal(json_bool(&b, j, "yes", false, "f"), OK);
    assert_true(b);
    ASSERT_FIELD(json_bool(&b, j, "n", false, "f"), "f: n is 12, expected true or false");
    assert_int_equal(json_text(&t, j, "text", NULL, "f"), OK);
    assert_string_equal(t, "hi");
    assert_int_equal(json_text(&t, j, "none", "else", "f"), OK);
    assert_string_equal(t, "else");
    ASSERT_FIELD(json_text(&t, j, "n", NULL, "f"), "f: n is 12, expected a text");
    assert_null(json_field(j, "none"));
    assert_null(json_field(json_field(j, "list"), "n"));
    cJSON_Delete(j);
}

static void test_write(void **state)
{
    (void)state;
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_put_text(&o, "t", "a\"\\\n\t\x01\xe4\xb8\xad\xff!");
    json_put_text(&o, "none", NULL);
    json_put_long(&o, "n", INT64_MIN);
    json_put_real(&o, "x", 0.1);
    json_put_real(&o, "nan", NAN);
    json_put_real(&o, "inf", -INFINITY);
    json_put_bool(&o, "b", true);
    json_begin(&o, "list", '[');
    json_put_long(&o, NULL, 1);
    json_begin(&o, NULL, '[');
    json_end(&o, ']');
    json_begin(&o, NULL, '{');
    json_put_null(&o, "z");
    json_end(&o, '}');
    json_end(&o, ']');
    json_put_bool(&o, "c", false);
    json_end(&o, '}');
    assert_int_equal(json_out_status(&o), OK);
    assert_string_equal(o.text, "{\"t\":\"a\\\"\\\\\\n\\t\\u0001\xe4\xb8\xad\xef\xbf\xbd!\",\"none\":null,"
                                "\"n\":-9223372036854775808,\"x\":0.1,\"nan\":null,\"inf\":null,\"b\":true,"
                                "\"list\":[1,[],{\"z\":null}],\"c\":false}");
    cJSON *json;
    assert_int_equal(parse(&json, o.text), OK); // what we write we can read
    cJSON_Delete(json);
    json_out_free(&o);
}

static void test_reals(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *text;
    } row[] = {
        {0, "0"},          {100, "100"}, {1e15, "1000000000000000"},         {1e16, "1e+16"},
        {0.3, "0.3"},      {-2.5, "-2.5"}, {1.0 / 3, "0.3333333333333333"},  {1e-5, "1e-05"},
        {5e-324, "5e-324"}, {1.7976931348623157e308, "1.7976931348623157e+308"},
    };
    char text[NUMBER_TEXT];
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        real_text(text, row[i].value);
        assert_string_equal(text, row[i].text);
        double back;
        assert_true(real_parse(&back, text) && back == row[i].value);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),   cmocka_unit_test(test_bad),          cmocka_unit_test(test_depth),
        cmocka_unit_test(test_damage), cmocka_unit_test(test_large_object), cmocka_unit_test(test_index_of_array),
        cmocka_unit_test(test_fields), cmocka_unit_test(test_write),        cmocka_unit_test(test_reals),
    };
    return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
