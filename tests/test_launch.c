// skymoe launch: what it asks of mpirun, what comes back, when it starts a job again, what it says. A script in the
// place of mpirun tells what it was asked; with the real one, ranks start. test_ranks.c has ranks that die at work.
#include "program_util.h"

#include "comm/transport.h"

#include <signal.h>
#include <sys/stat.h>

#define TRAIN "--data", at("text"), "--seq-length", "16", "--micro-batch-size", "2", "--global-batch-size", "4"

static bool real; // an mpirun is installed
static char *path_before;

// Writes the script that stands for mpirun, under all names it is called by, and puts it first in PATH.
static void fake_mpirun(const char *body)
{
    static const char *const names[] = {"mpirun.openmpi", "mpiexec.mpich", "mpirun", "mpiexec"};
    char text[4096], path[PATH_LENGTH + 4096];
    snprintf(text, sizeof text, "#!/bin/sh\necho \"$*\" >> '%s'\n%s\n", at("asked"), body);
    OK_OR_FAIL(folder_make(at("bin")));
    unlink(at("asked"));
    for (int i = 0; i < 4; i++) {
        char name[64];
        snprintf(name, sizeof name, "bin/%s", names[i]);
        OK_OR_FAIL(file_write(at(name), text, (long)strlen(text)));
        assert_int_equal(chmod(at(name), 0755), 0);
    }
    snprintf(path, sizeof path, "%s:%s", at("bin"), path_before);
    setenv("PATH", path, 1);
}

static int real_mpirun(void **state)
{
    (void)state;
    setenv("PATH", path_before, 1);
    return 0;
}

static char *read_text(const char *name) // lives until the next call
{
    static char *text;
    long bytes;
    free(text);
    text = NULL;
    OK_OR_FAIL(file_read(&text, &bytes, at(name), 1 << 20));
    return text;
}

static long count(const char *text, const char *part)
{
    long n = 0;
    for (const char *c = text; (c = strstr(c, part)); c++) n++;
    return n;
}

static void contains(const char *text, const char *part)
{
    if (!strstr(text, part)) fail_msg("'%s' is missing in: %s", part, text);
}

static void put(const char *name)
{
    OK_OR_FAIL(file_write(at(name), "x\n", 2));
}

static void test_refuses(void **state)
{
    (void)state;
    fake_mpirun("exit 0");
    FAILS(2, "-n: is missing", "launch", "--", "help");
    FAILS(2, "-n: is missing or 0", "launch", "-n", "0", "--", "help");
    FAILS(2, "--ranks: '-1' is not in range", "launch", "-n", "-1", "--", "help");
    FAILS(2, "'two' is not a whole number", "launch", "-n", "two", "--", "help");
    FAILS(2, "--: is missing before train", "launch", "-n", "2", "train", "--data", "x");
    FAILS(2, "no command", "launch", "-n", "2");
    FAILS(2, "no command", "launch", "-n", "2", "--");
    FAILS(2, "tarin: unknown command", "launch", "-n", "2", "--", "tarin");
    FAILS(2, "unknown option", "launch", "-n", "2", "--host", "x", "--", "help");
    FAILS(1, "/nowhere: no such file", "launch", "-n", "2", "--hosts", "/nowhere", "--", "help");
    assert_false(path_exists(at("asked")));
    setenv("PATH", "/nowhere", 1);
    FAILS(1, "not found (install", "launch", "-n", "2", "--", "help");
    WORKS("help", "launch");
    contains(out_text, "usage: skymoe launch -n N [--hosts FILE] [--max-restarts K] -- COMMAND");
    WORKS("help", "--markdown");
    contains(out_text, "### skymoe launch\n");
}

static void test_what_mpirun_is_asked(void **state)
{
    (void)state;
    fake_mpirun("echo out; echo err >&2");
    put("hosts");
    WORKS("launch", "-n", "3", "--hosts", at("hosts"), "--threads", "5", "--", "train", "--lr", "1 e");
    assert_string_equal(out_text, "out\n");
    contains(err_text, "err\n");
    char *asked = read_text("asked");
    contains(asked, "-n 3 ");
    contains(asked, at("hosts"));
    contains(asked, program);
    contains(asked, " train --lr 1 e --threads 5\n");
    if (strstr(transport_library(), "Open MPI")) {
        contains(asked, "--oversubscribe --bind-to none");
        assert_true((geteuid() == 0) == (strstr(asked, " --allow-run-as-root ") != NULL));
    }
    assert_int_equal(unlink(at("asked")), 0);
    WORKS("launch", "-n", "3", "--", "train", "--threads", "2");
    contains(read_text("asked"), " train --threads 2\n");

    // Two ranks on the one host that the file names: each gets half of the threads.
    char expected[64];
    long half = sysconf(_SC_NPROCESSORS_ONLN) / 2;
    const char hosts[] = "# comment\n\n  # another\nnode1 slots=2";
    OK_OR_FAIL(file_write(at("hosts"), hosts, sizeof hosts - 1));
    program_threads = NULL;
    assert_int_equal(unlink(at("asked")), 0);
    WORKS("launch", "-n", "2", "--hosts", at("hosts"), "--", "train");
    program_threads = "1";
    snprintf(expected, sizeof expected, " train --threads %ld\n", half > 0 ? half : 1);
    contains(read_text("asked"), expected);
}

// A job that failed starts again: from its checkpoint if there is one, else as before.
static void test_restarts(void **state)
{
    (void)state;
    fake_mpirun("exit 3");
    OK_OR_FAIL(folder_make(at("r")));
    put("r/latest");
    FAILS(1, "exit code 3", "launch", "-n", "2", "--max-restarts", "2", "--", "train", TRAIN, "--model", "m.json",
          "--output", at("r"));
    assert_int_equal(count(err_text, ", starting again from the last checkpoint ("), 2);
    char *asked = read_text("asked");
    assert_int_equal(count(asked, "\n"), 3);
    assert_int_equal(count(asked, "--model m.json"), 1);
    assert_int_equal(count(asked, " --resume"), 2);

    fake_mpirun("exit 2"); // a wrong command line does not get better
    assert_int_equal(RUN("launch", "-n", "2", "--max-restarts", "2", "--", "train", "--output", at("r")), 2);
    assert_int_equal(count(read_text("asked"), "\n"), 1);
    fake_mpirun("exit 1"); // not training
    assert_int_equal(RUN("launch", "-n", "2", "--max-restarts", "2", "--", "bench"), 1);
    assert_int_equal(count(read_text("asked"), "\n"), 1);

    char config[2 * PATH_LENGTH]; // the same from a --config file
    snprintf(config, sizeof config, "model = m.json\noutput = %s\n", at("r"));
    OK_OR_FAIL(file_write(at("run.conf"), config, (long)strlen(config)));
    snprintf(config, sizeof config, "--config=%s", at("run.conf"));
    fake_mpirun("exit 1");
    assert_int_equal(RUN("launch", "-n", "2", "--max-restarts", "1", "--", "train", config), 1);
    asked = strchr(read_text("asked"), '\n') + 1;
    snprintf(config, sizeof config, " train --resume --output=%s", at("r"));
    contains(asked, config);
}

// What a run without a checkpoint left is cleared away before it starts again; what was there before is not.
static void test_clears_only_its_own(void **state)
{
    (void)state;
    char body[2 * PATH_LENGTH];
    snprintf(body, sizeof body, "cd '%s' || exit 9; [ -e config.json ] && echo seen >&2; touch config.json "
             "settings.conf metrics.jsonl events.out.tfevents.1 notes; exit 1", at("n"));
    fake_mpirun(body);
    OK_OR_FAIL(folder_make(at("n")));
    assert_int_equal(RUN("launch", "-n", "2", "--max-restarts", "1", "--", "train", "--output", at("n")), 1);
    contains(err_text, "starting again from the beginning (1 of 1)");
    assert_null(strstr(err_text, "seen"));
    assert_true(path_exists(at("n/notes")));

    fake_mpirun("exit 1"); // another's folder, and mpirun itself fails
    assert_int_equal(RUN("launch", "-n", "2", "--max-restarts", "1", "--", "train", "--output", at("n")), 1);
    static const char *const kept[] = {"n/config.json", "n/settings.conf", "n/metrics.jsonl",
                                       "n/events.out.tfevents.1"};
    for (int i = 0; i < 4; i++) assert_true(path_exists(at(kept[i])));
}

static void wait_for(const char *name)
{
    for (int i = 0; i < 600 && !path_exists(at(name)); i++) usleep(20000);
    assert_true(path_exists(at(name)));
}

// SIGTERM becomes SIGUSR1 to mpirun, and a job that was asked to stop is not started again.
static void test_stop(void **state)
{
    (void)state;
    char body[PATH_LENGTH + 256];
    for (int number = 0; number < 2; number++) {
        snprintf(body, sizeof body, "trap 'echo usr1 >&2; exit 1' USR1; trap 'echo term >&2; exit 1' TERM; : > '%s'; "
                 "while :; do sleep 0.05; done", at("up"));
        unlink(at("up"));
        fake_mpirun(body);
        pid_t child = start((const char *const[]){"launch", "-n", "2", "--max-restarts", "3", "--", "bench", NULL});
        wait_for("up");
        kill(child, number ? SIGINT : SIGTERM);
        assert_int_equal(finish(child), 1);
        contains(err_text, "usr1\n");
        assert_null(strstr(err_text, "term"));
        assert_int_equal(count(read_text("asked"), "\n"), 1);
    }
}

// Twice Ctrl-C, both before launch looks: the job ends at once, though mpirun ignores the first.
static void test_stop_at_once(void **state)
{
    (void)state;
    char body[PATH_LENGTH + 256];
    snprintf(body, sizeof body, "trap : USR1; trap 'echo term >&2; exit 1' TERM; : > '%s'; "
             "while :; do sleep 0.05; done", at("up"));
    unlink(at("up"));
    fake_mpirun(body);
    pid_t child = start((const char *const[]){"launch", "-n", "2", "--", "bench", NULL});
    wait_for("up");
    kill(child, SIGSTOP);
    kill(child, SIGINT);
    kill(child, SIGTERM);
    kill(child, SIGCONT);
    assert_int_equal(finish(child), 1);
    contains(err_text, "term\n");
}

// ---- with the real one ----

static bool skipped(void)
{
    if (!real) printf("  skipped: no mpirun is installed\n");
    return !real;
}

static void test_starts_ranks(void **state)
{
    (void)state;
    if (skipped()) return;
    WORKS("launch", "-n", "3", "--", "help");
    assert_int_equal(count(out_text, "usage: skymoe COMMAND"), 3);
    WORKS("launch", "-n", "3", "--", "train", TRAIN, "--model", at("moe.json"), "--output", at("g"), "--print-grid",
          "--global-batch-size", "6");
    contains(out_text, "3 ranks");
    assert_int_equal(RUN("launch", "-n", "2", "--", "train", "--lr", "fast"), 2);
    assert_int_equal(count(err_text, "skymoe "), 1); // the rank's sentence is enough
    assert_int_equal(RUN("launch", "-n", "2", "--max-restarts", "1", "--", "train", TRAIN, "--model", at("absent"),
                         "--output", at("g")), 1);
    contains(err_text, "absent");
    assert_int_equal(count(err_text, "starting again from the beginning (1 of 1)"), 1);
    assert_false(path_exists(at("g")));
}

// Before a rank catches SIGUSR1 it would die of it: the stop waits until all can.
static void test_early_stop(void **state)
{
    (void)state;
    if (skipped()) return;
    static const char *const ranks[] = {"1", "2"};
    for (int i = 0; i < 2; i++) {
        OK_OR_FAIL(folder_remove(at("early")));
        pid_t child = start((const char *const[]){"launch", "-n", ranks[i], "--", "train", TRAIN, "--model",
                                                  at("moe.json"), "--output", at("early"), "--train-steps", "1000000",
                                                  "--save-interval", "0", "--eval-interval", "0", NULL});
        usleep(150000);
        kill(child, SIGTERM);
        int code = finish(child);
        if (code != 0) fail_msg("exit code %d: %s", code, err_text);
        assert_true(path_exists(at("early/latest")));
    }
}

static int set_up(void **state)
{
    path_before = strdup(getenv("PATH") ? getenv("PATH") : "/usr/bin:/bin");
    if (!path_before || !find_program() || training_set_up(state) != 0) return -1;
    unsetenv("OMPI_ALLOW_RUN_AS_ROOT");
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1); // the MPI library keeps what it has until the end
    char *copy = strdup(path_before);
    for (char *folder = copy, *next; folder && *folder; folder = next) {
        char path[PATH_LENGTH];
        next = strchr(folder, ':');
        if (next) *next++ = '\0';
        real = real || (path_join(path, folder, "mpirun") == OK && access(path, X_OK) == 0);
    }
    free(copy);
    return 0;
}

static int tear_down(void **state)
{
    free(path_before);
    return remove_temporary(state);
}

#define WITH(test) cmocka_unit_test_setup(test, real_mpirun)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(test_refuses),     WITH(test_what_mpirun_is_asked), WITH(test_restarts), WITH(test_clears_only_its_own),
        WITH(test_stop),        WITH(test_stop_at_once),         WITH(test_starts_ranks),
        WITH(test_early_stop),
    };
    return cmocka_run_group_tests_name("launch", tests, set_up, tear_down);
}
