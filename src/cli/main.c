// skymoe COMMAND [options]: the table of commands, and the only place that prints errors and chooses the exit code:
// 0 ok, 1 failure, 2 wrong command line, config file or world size.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/command.h"
#include "comm/alive.h"
#include "comm/group.h"

const struct command *const commands[] = { // in the order of the life of a model
    &command_prepare,  &command_train,    &command_upcycle, &command_eval,  &command_quantize,
    &command_generate, &command_chat,     &command_inspect, &command_report, &command_bench,
    &command_plan,     &command_launch,
};
const long commands_n = sizeof commands / sizeof commands[0];

static const struct command *command_find(const char *name)
{
    for (long i = 0; i < commands_n; i++)
        if (strcmp(commands[i]->name, name) == 0) return commands[i];
    return NULL;
}

static enum status command_unknown(const char *name)
{
    enum { ROOM = 64 };
    const char *names[ROOM] = {"help"};
    long n = 1;
    for (long i = 0; i < commands_n && n < ROOM; i++) names[n++] = commands[i]->name;
    return fail(ERR_CONFIG, "%.100s: unknown command (did you mean %s?)", name, nearest_word(name, names, n));
}

static void help_all(FILE *out)
{
    fprintf(out, "skymoe: the whole life of a mixture-of-experts language model\n\n"
                 "usage: skymoe COMMAND [options]\n       skymoe help COMMAND\n\ncommands:\n");
    for (long i = 0; i < commands_n; i++)
        fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->settings->summary);
    fprintf(out, "\nFirst steps: README.md; `make demo` runs them all.\n");
}

static void help_markdown(FILE *out)
{
    for (long i = 0; i < commands_n; i++) {
        settings_markdown(out, commands[i]->settings);
        fputc('\n', out);
    }
    settings_markdown_common(out);
}

// skymoe help [COMMAND | --markdown]
static enum status help_run(int argc, char **argv)
{
    if (argc > 2) return fail(ERR_CONFIG, "%.100s: one command at a time (skymoe help %.100s)", argv[2], argv[1]);
    if (argc < 2) {
        help_all(stdout);
        return OK;
    }
    if (strcmp(argv[1], "--markdown") == 0) {
        help_markdown(stdout);
        return OK;
    }
    const struct command *command = command_find(argv[1]);
    if (!command && strcmp(argv[1], "help") != 0) return command_unknown(argv[1]);
    if (command) settings_help(stdout, command->settings);
    else printf("usage: skymoe help [COMMAND | --markdown]\n");
    return OK;
}

static enum status run(int argc, char **argv)
{
    const struct command *command = command_find(argv[0]);
    if (command && !command->ranks && transport_ranks() > 1)
        return fail(ERR_CONFIG, "it runs as one process, not as %ld ranks (start it without mpirun)",
                    transport_ranks());
    if (command) return command->run(argc, argv);
    bool help = strcmp(argv[0], "help") == 0 || strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "-h") == 0;
    return help ? help_run(argc, argv) : command_unknown(argv[0]);
}

// Results that did not arrive are a failure: a full disk, a closed pipe.
static enum status flush_results(void)
{
    errno = 0;
    bool failed = fflush(stdout) != 0 || ferror(stdout);
    return failed ? fail(ERR_IO, "standard output: cannot be written: %s", strerror(errno ? errno : EIO)) : OK;
}

// OpenMP threads that have nothing to do spin for milliseconds, so on a machine that others use too a loop waits for
// threads that cannot run: training then halves its speed. libgomp reads the environment before main, hence the exec.
static void limit_spinning(char **argv)
{
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY") || setenv("GOMP_SPINCOUNT", "10000", 1) != 0) return;
    execv("/proc/self/exe", argv); // where that fails, everything works, only slower
}

// What all ranks found together, rank 0 says, and they leave in order; what befell one alone ends the others, too.
static int end(enum status status, const char *command)
{
    int code = status == OK ? 0 : status == ERR_CONFIG ? 2 : 1;
    bool alone = transport_ranks() > 1 && !agreed();
    fflush(stdout);
    if (status != OK && (alone ? alive_first_word() : transport_rank() == 0)) {
        status = fail(status, "skymoe %.100s: %s", command, fail_message());
        log_error("%s", fail_message());
    }
    if (status != OK && alone) transport_abort(code);
    transport_close();
    return code;
}

int main(int argc, char **argv)
{
    limit_spinning(argv);
    signal(SIGPIPE, SIG_IGN); // `skymoe ... | head` ends with a sentence, and a save is never cut by it
    signal(SIGXFSZ, SIG_IGN); // a file too large for `ulimit -f` is a sentence, too
    if (argc < 2) {
        help_all(stderr);
        return 2;
    }
    log_prefix("skymoe", argv[1]);
    enum status status = transport_open();
    log_quiet(transport_rank() > 0); // one rank speaks for all
    if (status == OK) status = run(argc - 1, argv + 1);
    enum status flushed = status == OK ? flush_results() : OK;
    if (status == OK) status = flushed;
    return end(status, argv[1]);
}
