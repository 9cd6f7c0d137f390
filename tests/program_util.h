// The program as a user calls it: what it prints, its exit code. Standard input is the file `stdin` in the temporary
// folder, if there is one.
#ifndef SKYMOE_TESTS_PROGRAM_UTIL_H
#define SKYMOE_TESTS_PROGRAM_UTIL_H

#include "program_path.h"
#include "train_util.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

static char *out_text, *err_text; // of the last call

static const char *program_threads = "1"; // NULL: as many as there are processors
static bool program_joined;                // standard error goes where standard output goes

static UNUSED pid_t start(const char *const *word)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child) return child;
    const char *argv[64] = {program};
    for (int i = 0; word[i]; i++) argv[i + 1] = word[i];
    int out = open(at("stdout"), O_WRONLY | O_CREAT | O_TRUNC, 0600), in = open("/dev/null", O_RDONLY);
    int err = open(at("stderr"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (path_exists(at("stdin"))) in = open(at("stdin"), O_RDONLY);
    dup2(in, 0);
    dup2(out, 1);
    dup2(program_joined ? out : err, 2);
    if (program_threads) setenv("OMP_NUM_THREADS", program_threads, 1);
    else unsetenv("OMP_NUM_THREADS");
    execv(program, (char *const *)argv);
    _exit(99);
}

// Exit code, and what was printed.
static UNUSED int finish(pid_t child)
{
    int code;
    long bytes;
    assert_true(waitpid(child, &code, 0) == child);
    free(out_text);
    free(err_text);
    OK_OR_FAIL(file_read(&out_text, &bytes, at("stdout"), 1 << 26));
    OK_OR_FAIL(file_read(&err_text, &bytes, at("stderr"), 1 << 26));
    return WIFEXITED(code) ? WEXITSTATUS(code) : 1000 + WTERMSIG(code);
}

#define RUN(...) finish(start((const char *const[]){__VA_ARGS__, NULL}))

// That code and, as the last line on stderr, a sentence with that part in it.
static UNUSED void failed(int code, int wanted, const char *part)
{
    if (code != wanted) fail_msg("exit code %d, expected %d: %s", code, wanted, err_text);
    size_t n = strlen(err_text);
    assert_true(n > 1 && err_text[n - 1] == '\n');
    err_text[n - 1] = '\0';
    const char *last = strrchr(err_text, '\n') ? strrchr(err_text, '\n') + 1 : err_text;
    if (strncmp(last, "skymoe ", 7) || !strstr(last, part)) fail_msg("stderr is '%s', expected '%s' in it", last, part);
}
#define FAILS(code, part, ...) failed(RUN(__VA_ARGS__), code, part)
#define WORKS(...)                                                                                                     \
    do {                                                                                                               \
        int code_ = RUN(__VA_ARGS__);                                                                                  \
        if (code_ != 0) fail_msg("exit code %d: %s", code_, err_text);                                                 \
    } while (0)

static UNUSED cJSON *printed_json(void)
{
    cJSON *json;
    OK_OR_FAIL(json_parse(&json, out_text, (long)strlen(out_text), "stdout"));
    return json;
}

#endif
