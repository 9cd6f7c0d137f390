// The program as a whole: help, exit codes, what happens when its output cannot be written.
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "program_path.h"
#include <cmocka.h> // last: it defines fail()

static char folder[PATH_LENGTH];
static char *out_text, *err_text; // of the last run
static const char *stdout_path;   // instead of a file; "|": a pipe that nobody reads

static const char *at(const char *name)
{
    static char path[2][PATH_LENGTH];
    static int next;
    char *p = path[next++ % 2];
    assert_int_equal(path_join(p, folder, name), OK);
    return p;
}

static int start(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/skymoe-cli-XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(folder) && find_program() ? 0 : -1;
}

static int end(void **state)
{
    (void)state;
    free(out_text);
    free(err_text);
    return folder_remove(folder) == OK ? 0 : -1;
}

static void become(const char *const *word) // in the child
{
    const char *argv[16] = {program};
    for (int i = 0; word[i]; i++) argv[i + 1] = word[i];
    int ends[2] = {-1, -1};
    if (stdout_path && *stdout_path == '|') {
        if (pipe(ends) != 0) _exit(99);
        close(ends[0]);
    }
    int out = ends[1] >= 0 ? ends[1] : open(stdout_path ? stdout_path : at("out"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int err = open(at("err"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(open("/dev/null", O_RDONLY), 0);
    dup2(out, 1);
    dup2(err, 2);
    execv(program, (char *const *)(uintptr_t)argv);
    _exit(99);
}

static int run(const char *const *word)
{
    long bytes;
    int code;
    assert_int_equal(file_write(at("out"), NULL, 0), OK);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) become(word);
    assert_int_equal(waitpid(child, &code, 0), child);
    free(out_text);
    free(err_text);
    assert_int_equal(file_read(&out_text, &bytes, at("out"), 1 << 20), OK);
    assert_int_equal(file_read(&err_text, &bytes, at("err"), 1 << 20), OK);
    return WIFEXITED(code) ? WEXITSTATUS(code) : 1000 + WTERMSIG(code);
}
#define RUN(...) run((const char *const[]){__VA_ARGS__, NULL})

static void assert_contains(const char *text, const char *part)
{
    if (!strstr(text, part)) fail_msg("'%s' does not contain '%s'", text, part);
}

static const char *const names[] = {"prepare",  "train",   "upcycle", "eval", "quantize",
                                    "generate", "chat",    "inspect", "report", "bench"};
enum { NAMES = sizeof names / sizeof names[0] };

static void test_help(void **state)
{
    (void)state;
    assert_int_equal(RUN("help"), 0);
    assert_string_equal(err_text, "");
    for (int i = 0; i < NAMES; i++) {
        char part[64];
        assert_int_equal(RUN("help"), 0);
        snprintf(part, sizeof part, "\n  %s ", names[i]);
        assert_contains(out_text, part);
        assert_int_equal(RUN("help", names[i]), 0);
        snprintf(part, sizeof part, "usage: skymoe %s ", names[i]);
        assert_contains(out_text, part);
        assert_contains(out_text, "--threads N");
        assert_int_equal(RUN(names[i], "--help"), 0);
        assert_contains(out_text, part);
        assert_string_equal(err_text, "");
    }
    assert_int_equal(RUN("--help"), 0);
    assert_contains(out_text, "usage: skymoe COMMAND");
    assert_int_equal(RUN("help", "--markdown"), 0);
    for (int i = 0; i < NAMES; i++) {
        char part[64];
        snprintf(part, sizeof part, "### skymoe %s\n", names[i]);
        assert_contains(out_text, part);
    }
    assert_contains(out_text, "### Every command");
}

static void test_wrong_command_line(void **state)
{
    (void)state;
    assert_int_equal(run((const char *const[]){NULL}), 2);
    assert_contains(err_text, "usage: skymoe COMMAND");
    assert_string_equal(out_text, "");
    assert_int_equal(RUN("tarin"), 2);
    assert_string_equal(err_text, "skymoe tarin: tarin: unknown command (did you mean train?)\n");
    assert_int_equal(RUN("help", "evil"), 2);
    assert_string_equal(err_text, "skymoe help: evil: unknown command (did you mean eval?)\n");
    assert_int_equal(RUN("help", "eval", "train"), 2);
    assert_int_equal(RUN("ev\n\033al"), 2); // cannot break the line or colour the terminal
    assert_string_equal(err_text, "skymoe ev??al: ev??al: unknown command (did you mean eval?)\n");
    for (int i = 0; i < NAMES; i++) {
        char expected[128];
        assert_int_equal(RUN(names[i], "--thread", "1"), 2);
        snprintf(expected, sizeof expected, "skymoe %s: --thread: unknown option (did you mean --threads?)\n",
                 names[i]);
        assert_string_equal(err_text, expected);
        assert_int_equal(RUN(names[i], "--config", "/no/such.conf"), 2);
        assert_contains(err_text, "/no/such.conf: cannot be opened: No such file or directory");
    }
}

// What only some choices of another option give a meaning.
static void test_options_of_upcycling(void **state)
{
    (void)state;
    const char *const refused[][2] = {{"--granular", "2"}, {"--granular-scale", "nvidia"}, {"--noise-scale", "0.1"},
                                      {"--drop-ratio", "0.5"}};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(RUN("upcycle", "--dry-run", "--model", "configs/tiny.json", refused[i][0], refused[i][1]), 2);
        assert_contains(err_text, refused[i][0]);
        assert_contains(err_text, ": has no meaning with --method copy");
    }
    // tiny.json: intermediate_size 256; as many parameters in 16 experts of a quarter as in 4 whole ones, but routers
    assert_int_equal(RUN("upcycle", "--dry-run", "--model", "configs/tiny.json", "--method", "granular", "--granular",
                         "4", "--num-experts", "16", "--moe-router-topk", "4", "--json"), 0);
    char total[64];
    snprintf(total, sizeof total, "\"params_total\":%d", 8192 * 96 + 96 + 2 * (96 * (48 + 144 + 96) + 2 * 96) +
             2 * (4 * 3 * 256 * 96 + 16 * 96));
    assert_contains(out_text, total);
    assert_int_equal(RUN("upcycle", "--dry-run", "--model", "configs/tiny.json", "--method", "granular", "--granular",
                         "3", "--num-experts", "6", "--moe-router-topk", "3"), 2);
    assert_contains(err_text, "--granular 3: does not divide intermediate_size 256 of configs/tiny.json");
    assert_int_equal(RUN("upcycle", "--dry-run", "--model", "tiny", "--json"), 0); // configs/tiny.json
    assert_int_equal(RUN("upcycle", "--dry-run", "--model", "teeny"), 1);
    assert_contains(err_text, "teeny: no such folder");
    assert_int_equal(RUN("upcycle", "--model", "tiny", "--output", at("x")), 1); // a shape is no model
    assert_contains(err_text, "tiny: no such folder");
    assert_int_equal(RUN("quantize", "--model", "configs", "--output", at("x"), "--scale", "row"), 2);
    assert_contains(err_text, "tensor");
}

static void test_output_cannot_be_written(void **state)
{
    (void)state;
    if (path_exists("/dev/full")) {
        stdout_path = "/dev/full";
        assert_int_equal(RUN("help", "--markdown"), 1);
        assert_string_equal(err_text, "skymoe help: standard output: cannot be written: No space left on device\n");
    }
    stdout_path = "|";
    assert_int_equal(RUN("help"), 1); // not killed by SIGPIPE
    assert_string_equal(err_text, "skymoe help: standard output: cannot be written: Broken pipe\n");
    stdout_path = NULL;
}

static void test_wrong_kernels(void **state)
{
    (void)state;
    const char *before = getenv("SKYMOE_KERNELS");
    char kept[64];
    snprintf(kept, sizeof kept, "%s", before ? before : "");
    setenv("SKYMOE_KERNELS", "fast", 1);
    assert_int_equal(RUN("inspect", "configs/tiny.json"), 2);
    assert_contains(err_text, "skymoe inspect: SKYMOE_KERNELS");
    if (before) setenv("SKYMOE_KERNELS", kept, 1);
    else unsetenv("SKYMOE_KERNELS");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_wrong_command_line),
        cmocka_unit_test(test_options_of_upcycling),
        cmocka_unit_test(test_output_cannot_be_written),
        cmocka_unit_test(test_wrong_kernels),
    };
    return cmocka_run_group_tests_name("cli", tests, start, end);
}
