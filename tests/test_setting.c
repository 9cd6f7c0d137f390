// Settings: command line, config file, dump, messages.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "base/setting.h"
#include <cmocka.h> // last: it defines fail()

struct options {
    bool mask, extra;
    long steps, free_count;
    double lr;
    struct decimal capacity;
    const char *model, *dtype;
    struct text_list input, split;
};
static struct options o;
static const struct setting rows[] = {
    {"document-mask", SETTING_SWITCH, offsetof(struct options, mask), "on", 0, 0, NULL, "see one document only"},
    {"extra", SETTING_SWITCH, offsetof(struct options, extra), NULL, 0, 0, NULL, "something more"},
    {"train-steps", SETTING_LONG, offsetof(struct options, steps), "100", 1, 1e18, NULL, "steps"},
    {"num-experts", SETTING_LONG, offsetof(struct options, free_count), NULL, 2, 64, NULL, "experts"},
    {"lr", SETTING_REAL, offsetof(struct options, lr), "3e-4", 0, 1, NULL, "learning rate"},
    {"capacity", SETTING_DECIMAL, offsetof(struct options, capacity), "1.1", 0, 100, NULL, "capacity factor"},
    {"model", SETTING_TEXT, offsetof(struct options, model), NULL, 0, 0, NULL, "model folder"},
    {"dtype", SETTING_CHOICE, offsetof(struct options, dtype), "bf16", 0, 0, "f32|bf16", "element type"},
    {"input", SETTING_LIST, offsetof(struct options, input), NULL, 0, 0, NULL, "files | folders"},
    {"split", SETTING_LIST, offsetof(struct options, split), "98 1 1", 0, 0, NULL, "shares"},
};
enum { ROWS = sizeof rows / sizeof rows[0] };
static const struct settings table = {"try", "tries things", "--model DIR", rows, ROWS, &o};
static struct common_options common;
static bool set[ROWS];
static char config_path[64];

static enum status parse(const char *first, ...)
{
    char *argv[40] = {(char *)"try"};
    int argc = 1;
    va_list args;
    va_start(args, first);
    for (const char *a = first; a; a = va_arg(args, const char *)) argv[argc++] = (char *)(uintptr_t)a;
    va_end(args);
    return settings_parse(&table, &common, set, argc, argv);
}

#define PARSE(...) parse(__VA_ARGS__, NULL)
#define ASSERT_REFUSED(message, ...)                                                                                   \
    do {                                                                                                               \
        assert_int_equal(PARSE(__VA_ARGS__), ERR_CONFIG);                                                              \
        assert_string_equal(fail_message(), message);                                                                  \
    } while (0)

static void write_config(const char *text)
{
    snprintf(config_path, sizeof config_path, "/tmp/skymoe-setting-%ld.conf", (long)getpid());
    assert_int_equal(file_write(config_path, text, (long)strlen(text)), OK);
}

static void assert_config_refused(const char *text, const char *message)
{
    char expected[256];
    write_config(text);
    assert_int_equal(PARSE("--config", config_path), ERR_CONFIG);
    snprintf(expected, sizeof expected, "%s%s", config_path, message);
    assert_string_equal(fail_message(), expected);
    unlink(config_path);
}

static void test_defaults(void **state)
{
    (void)state;
    assert_int_equal(parse(NULL), OK);
    assert_true(o.mask);
    assert_false(o.extra);
    assert_int_equal(o.steps, 100);
    assert_int_equal(o.free_count, 0);
    assert_true(o.lr == 3e-4);
    assert_int_equal(o.capacity.numerator, 11);
    assert_int_equal(o.capacity.denominator, 10);
    assert_null(o.model);
    assert_string_equal(o.dtype, "bf16");
    assert_int_equal(o.input.n, 0);
    assert_int_equal(o.split.n, 3);
    assert_string_equal(o.split.item[0], "98");
    assert_int_equal(common.threads, 0);
    assert_int_equal(common.seed, 1);
    assert_false(common.quiet || common.json || common.help);
    for (int i = 0; i < ROWS; i++) assert_false(set[i]);
}

static void test_command_line(void **state)
{
    (void)state;
    assert_int_equal(PARSE("a", "--lr", "0.5", "b c", "--input=d", "--no-document-mask", "--extra", "--threads=2",
                           "--quiet", "--model", "my dir", "--split", "1", "--", "--e"), OK);
    assert_true(o.lr == 0.5);
    assert_false(o.mask);
    assert_true(o.extra);
    assert_int_equal(common.threads, 2);
    assert_true(common.quiet);
    assert_string_equal(o.model, "my dir");
    assert_int_equal(o.input.n, 4);
    assert_string_equal(o.input.item[0], "a");
    assert_string_equal(o.input.item[1], "b c");
    assert_string_equal(o.input.item[2], "d");
    assert_string_equal(o.input.item[3], "--e");
    assert_int_equal(o.split.n, 1); // replaces the default
    const bool expected[ROWS] = {true, true, false, false, true, false, true, false, true, true};
    assert_memory_equal(set, expected, sizeof set);
    assert_int_equal(PARSE("--document-mask=off", "--extra=on", "--lr", "1", "--lr", "0.25"), OK);
    assert_false(o.mask);
    assert_true(o.extra);
    assert_true(o.lr == 0.25); // later wins
    assert_int_equal(PARSE("--model=--lr"), OK);
    assert_string_equal(o.model, "--lr");
    assert_int_equal(PARSE("--model="), OK);
    assert_string_equal(o.model, "");
    assert_int_equal(PARSE("--help", "--train-steps", "0"), OK); // help before anything is complained about
    assert_true(common.help);
    assert_int_equal(PARSE("-h"), OK);
    assert_true(common.help);
    assert_int_equal(PARSE("-"), OK);
    assert_string_equal(o.input.item[0], "-");
}

static void test_refused(void **state)
{
    (void)state;
    ASSERT_REFUSED("--lrr: unknown option (did you mean --lr?)", "--lrr", "1");
    ASSERT_REFUSED("--train-step: unknown option (did you mean --train-steps?)", "--train-step", "1");
    ASSERT_REFUSED("--no-extras: unknown option (did you mean --no-extra?)", "--no-extras");
    ASSERT_REFUSED("--no-lr: unknown option (did you mean --lr?)", "--no-lr");
    ASSERT_REFUSED("-x: unknown option (did you mean --lr?)", "-x");
    ASSERT_REFUSED("--lr: needs a value", "--lr");
    ASSERT_REFUSED("--model: needs a value, but --lr follows (write --model=--lr if that is meant)", "--model", "--lr");
    ASSERT_REFUSED("--no-extra: takes no value", "--no-extra=on");
    ASSERT_REFUSED("--extra: 'yes' is not a switch position (allowed: on, off)", "--extra=yes");
    ASSERT_REFUSED("--lr: '2' is not in range (allowed: 0 to 1)", "--lr", "2");
    ASSERT_REFUSED("--lr: '1.0000001' is not in range (allowed: 0 to 1)", "--lr", "1.0000001");
    ASSERT_REFUSED("--lr: '-1e-300' is not in range (allowed: 0 to 1)", "--lr", "-1e-300");
    ASSERT_REFUSED("--lr: 'nan' is not a number (allowed: 0 to 1)", "--lr=nan");
    ASSERT_REFUSED("--lr: '1e999' is not a number (allowed: 0 to 1)", "--lr=1e999");
    ASSERT_REFUSED("--lr: '0x1' is not a number (allowed: 0 to 1)", "--lr=0x1");
    ASSERT_REFUSED("--lr: ' 1' is not a number (allowed: 0 to 1)", "--lr", " 1");
    ASSERT_REFUSED("--lr: '' is not a number (allowed: 0 to 1)", "--lr=");
    ASSERT_REFUSED("--train-steps: '0' is not in range (allowed: at least 1)", "--train-steps", "0");
    ASSERT_REFUSED("--train-steps: '1.5' is not a whole number (allowed: at least 1)", "--train-steps", "1.5");
    ASSERT_REFUSED("--train-steps: '9223372036854775808' is not a whole number (allowed: at least 1)", "--train-steps",
                   "9223372036854775808");
    ASSERT_REFUSED("--num-experts: '65' is not in range (allowed: 2 to 64)", "--num-experts", "65");
    ASSERT_REFUSED("--capacity: '1.0123456789' is not a number with at most 9 decimals (allowed: 0 to 100)",
                   "--capacity", "1.0123456789");
    ASSERT_REFUSED("--dtype: 'f16' is not a choice (allowed: f32, bf16)", "--dtype", "f16");
    ASSERT_REFUSED("--dtype: 'f32|bf16' is not a choice (allowed: f32, bf16)", "--dtype", "f32|bf16");
    ASSERT_REFUSED("--threads: '-1' is not in range (allowed: 0 to 4096)", "--threads", "-1");
    ASSERT_REFUSED("--config: is given twice (join the files)", "--config", "/dev/null", "--config", "/dev/null");
    ASSERT_REFUSED("/no/such: cannot be opened: No such file or directory", "--config", "/no/such");
}

static void test_words(void **state)
{
    (void)state;
    static struct options other;
    const struct settings without_list = {"try", "", "", rows, 8, &other};
    struct common_options c;
    char *argv[] = {(char *)"try", (char *)"modle", NULL};
    assert_int_equal(settings_parse(&without_list, &c, NULL, 2, argv), ERR_CONFIG);
    assert_string_equal(fail_message(), "modle: a word without an option (did you mean --model?)");
}

static void test_decimals(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        long numerator, denominator;
        const char *dumped;
    } good[] = {
        {"1.1", 11, 10, "1.1"},     {"1.10", 11, 10, "1.1"},   {"0.000000001", 1, 1000000000, "0.000000001"},
        {"2", 2, 1, "2"},           {"2.", 2, 1, "2"},         {".5", 5, 10, "0.5"},
        {"00.125", 125, 1000, "0.125"}, {"100", 100, 1, "100"}, {"0.0", 0, 1, "0"},
        {"-1.5", -15, 10, "-1.5"},  {"-0.25", -25, 100, "-0.25"}, {"1.1000000000000", 11, 10, "1.1"},
        {"9223372036.854775807", 9223372036854775807, 1000000000, "9223372036.854775807"},
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        struct decimal d;
        char text[NUMBER_TEXT];
        assert_true(decimal_parse(&d, good[i].text));
        assert_int_equal(d.numerator, good[i].numerator);
        assert_int_equal(d.denominator, good[i].denominator);
        decimal_text(text, d);
        assert_string_equal(text, good[i].dumped);
    }
    static const char *const bad[] = {"", ".", "-", "1.2.3", "1..2", "1e3", "1,5", " 1", "1 ", "0.0000000001", "..",
                                      "9223372036854775808", "9223372036.854775808", "1.-2", "--1", "1.2.",
                                      "99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct decimal d;
        if (decimal_parse(&d, bad[i])) fail_msg("'%s' was taken", bad[i]);
    }
}

static void test_config_file(void **state)
{
    (void)state;
    write_config("# a recipe\r\n\n  lr = 0.5 # fast\ninput = a \"b c\" d#e # f\nmodel = my dir/x  \nthreads=3\n"
                 "document-mask = off\r\ninput = last\n");
    assert_int_equal(PARSE("--config", config_path), OK);
    assert_true(o.lr == 0.5);
    assert_string_equal(o.model, "my dir/x");
    assert_int_equal(common.threads, 3);
    assert_false(o.mask);
    assert_int_equal(o.input.n, 4);
    assert_string_equal(o.input.item[1], "b c");
    assert_string_equal(o.input.item[2], "d#e");
    assert_string_equal(o.input.item[3], "last");
    assert_true(set[4]);
    // The command line wins.
    assert_int_equal(PARSE("z", "--lr", "0.25", "--config", config_path, "--threads", "1"), OK);
    assert_true(o.lr == 0.25);
    assert_int_equal(common.threads, 1);
    assert_int_equal(o.input.n, 1);
    unlink(config_path);
    assert_config_refused("lr=1\n\nlr=1\n", ":3: lr: is set twice in this file (keep one)");
    assert_config_refused("lr 1", ":1: expected `name = value`");
    assert_config_refused("= 1", ":1: expected `name = value`");
    assert_config_refused("\ntrain_steps = 1", ":2: unknown setting train_steps (did you mean train-steps?)");
    assert_config_refused("model = \"a", ":1: model: the quote is not closed");
    assert_config_refused("model = \"a\" b", ":1: model: text follows the closing quote");
    assert_config_refused("model = \"a\"b", ":1: model: text follows the closing quote");
    assert_config_refused("help = on", ":1: help belongs on the command line");
    assert_config_refused("config = x", ":1: config belongs on the command line");
    assert_config_refused("lr = # none", ":1: lr: has no value");
    assert_config_refused("lr = 7", ":1: lr: '7' is not in range (allowed: 0 to 1)");
}

static void assert_dump(const char *expected)
{
    char *text, *again;
    assert_int_equal(settings_dump(&text, &table), OK);
    if (expected) assert_string_equal(text, expected);
    memset(&o, 0, sizeof o); // as if nothing had been set
    assert_int_equal(settings_read(&table, NULL, text, "dump"), OK);
    assert_int_equal(settings_dump(&again, &table), OK);
    assert_string_equal(text, again);
    free(text);
    free(again);
}

static void test_dump(void **state)
{
    (void)state;
    assert_int_equal(parse(NULL), OK);
    assert_dump("document-mask = on\nextra = off\ntrain-steps = 100\nnum-experts = \nlr = 0.0003\ncapacity = 1.1\n"
                "model = \ndtype = bf16\ninput = \nsplit = 98 1 1\n");
    assert_int_equal(PARSE("--model", "a \"b\" # \\n c\n\td\r \xe4\xb8\xad\x01", "", "x y", "#z", "--lr=0.1",
                           "--num-experts=8", "--capacity=0.000000001", "--train-steps=9007199254740993"), OK);
    char model[64];
    snprintf(model, sizeof model, "%s", o.model);
    assert_dump(NULL);
    assert_string_equal(o.model, model);
    assert_int_equal(o.input.n, 3);
    assert_string_equal(o.input.item[0], "");
    assert_string_equal(o.input.item[1], "x y");
    assert_string_equal(o.input.item[2], "#z");
    assert_true(o.lr == 0.1);
    assert_int_equal(o.steps, 9007199254740993);
    assert_int_equal(PARSE("--model="), OK);
    assert_dump(NULL);
    assert_string_equal(o.model, ""); // empty is not unset
    assert_int_equal(settings_read(&table, set, "lr = 9", "step-000001/settings.conf"), ERR_FORMAT);
    assert_string_equal(fail_message(), "step-000001/settings.conf:1: lr: '9' is not in range (allowed: 0 to 1)");
    assert_int_equal(settings_read(&table, set, "threads = 9", "s"), ERR_FORMAT); // not one of the table's
}

static void test_many_words(void **state)
{
    (void)state;
    enum { N = 1000 };
    char *argv[N + 1], word[N][16];
    argv[0] = (char *)"try";
    for (int i = 0; i < N; i++) {
        snprintf(word[i], sizeof word[i], "w%d", i);
        argv[i + 1] = word[i];
    }
    assert_int_equal(settings_parse(&table, &common, set, N + 1, argv), OK);
    assert_int_equal(o.input.n, N);
    for (int i = 0; i < N; i++) assert_string_equal(o.input.item[i], word[i]);
}

static void test_help(void **state)
{
    (void)state;
    char *text;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    settings_help(out, &table);
    settings_markdown(out, &table);
    fclose(out);
    assert_non_null(strstr(text, "usage: skymoe try --model DIR\n"));
    assert_non_null(strstr(text, "--no-document-mask"));
    assert_non_null(strstr(text, "learning rate (0 to 1; default 3e-4)"));
    assert_non_null(strstr(text, "element type (f32, bf16; default bf16)"));
    assert_non_null(strstr(text, "| `--dtype WORD` | f32, bf16 | bf16 | element type |\n"));
    assert_non_null(strstr(text, "files \\| folders"));
    free(text);
}

static void test_own_seed(void **state)
{
    (void)state;
    static long seed;
    const struct setting own[] = {{"seed", SETTING_LONG, 0, "7", 0, 100, NULL, "own seed"}};
    const struct settings s = {"try", "", "", own, 1, &seed};
    struct common_options c;
    char *argv[] = {(char *)"try", (char *)"--seed", (char *)"9", NULL};
    assert_int_equal(settings_parse(&s, &c, NULL, 3, argv), OK);
    assert_int_equal(seed, 9);
}

static void test_nearest(void **state)
{
    (void)state;
    const char *const words[] = {"prepare", "train", "upcycle", "eval"};
    assert_string_equal(nearest_word("tarin", words, 4), "train");
    assert_string_equal(nearest_word("upcyle", words, 4), "upcycle");
    assert_string_equal(nearest_word("prep", words, 4), "prepare");
    assert_string_equal(nearest_word("", words, 4), "eval");
    char endless[5000];
    memset(endless, 'e', sizeof endless - 1);
    endless[sizeof endless - 1] = '\0';
    assert_non_null(nearest_word(endless, words, 4));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),    cmocka_unit_test(test_command_line), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_words),       cmocka_unit_test(test_decimals),     cmocka_unit_test(test_config_file),
        cmocka_unit_test(test_dump),        cmocka_unit_test(test_many_words),   cmocka_unit_test(test_help),
        cmocka_unit_test(test_own_seed),    cmocka_unit_test(test_nearest),
    };
    return cmocka_run_group_tests_name("settings", tests, NULL, NULL);
}
