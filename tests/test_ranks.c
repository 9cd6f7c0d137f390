// FAULT_RUNS=0: every place, which takes minutes; else a selection.
//
// Ranks that die, stop or are told to stop, in every phase; jobs that cannot start. The job ends in time, says one
// sentence, leaves the last checkpoint whole, and `skymoe launch` goes on from it.
#include "program_util.h"

#include "comm/alive.h"

#include <signal.h>

enum { LIMIT_S = 40 }; // no job may take longer to end

#define JOB                                                                                                            \
    "--data", at("text"), "--model", at("moe.json"), "--micro-batch-size", "2", "--global-batch-size", "6",            \
        "--seq-length", "16", "--eval-interval", "0", "--lr", "3e-3", "--threads", "1", "--comm-timeout", "2",         \
        "--log-interval", "1"

static double seconds_of(double since)
{
    return seconds_now() - since;
}

// How often a sentence of ours stands in what was printed.
static long sentences(void)
{
    long n = 0;
    for (const char *at_line = err_text; at_line; at_line = strchr(at_line, '\n') ? strchr(at_line, '\n') + 1 : NULL)
        n += !strncmp(at_line, "skymoe train: ", 14) || !strncmp(at_line, "skymoe launch: rank", 19);
    return n;
}

// The newest checkpoint is whole, and one process goes on from it.
static void checkpoint_loads(const char *run, long least)
{
    static struct trainer t;
    char path[PATH_LENGTH];
    OK_OR_FAIL(checkpoint_latest(path, at(run)));
    OK_OR_FAIL(folder_verify(path));
    OK_OR_FAIL(OPEN(&t, "--resume", "--output", at(run), "--tensor-parallel-size", "1"));
    assert_true(t.state.step >= least);
    OK_OR_FAIL(trainer_step(&t));
    trainer_close(&t);
}

static int launch_fault(const char *fault, const char *run, const char *size, const char *value)
{
    OK_OR_FAIL(folder_remove(at(run)));
    setenv("SKYMOE_FAULT", fault, 1);
    int code = RUN("launch", "-n", "2", "--", "train", JOB, "--output", at(run), "--train-steps", "4",
                   "--save-interval", "1", "--keep", "2", size, value);
    unsetenv("SKYMOE_FAULT");
    return code;
}

static void try_phase(const char *phase, const char *what, const char *size, const char *value)
{
    char fault[64];
    double begin = seconds_now();
    snprintf(fault, sizeof fault, "%s:3:1:%s", phase, what);
    int code = launch_fault(fault, "job", size, value);
    printf("  %-10s %s: exit code %d after %.1f s, %ld sentence\n", phase, what, code, seconds_of(begin), sentences());
    if (code != 1 || seconds_of(begin) > LIMIT_S) fail_msg("%s: exit code %d: %s", fault, code, err_text);
    if (sentences() != 1 || !strstr(err_text, "rank 1 on ") || !strstr(err_text, phase))
        fail_msg("%s: one sentence naming rank, host and phase was expected: %s", fault, err_text);
    checkpoint_loads("job", 2);
}

static const char *const phases[] = {"load", "forward", "exchange", "backward", "reduce", "optimizer", "save"};

static void test_killed(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof phases / sizeof *phases; i++)
        try_phase(phases[i], "kill", "--pipeline-parallel-size", "2");
}

static void test_stopped(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof phases / sizeof *phases; i += getenv("FAULT_RUNS") ? 1 : 2) {
        bool exchange = !strcmp(phases[i], "exchange"); // between stages; others wait within one
        try_phase(phases[i], "stop", exchange ? "--pipeline-parallel-size" : "--tensor-parallel-size", "2");
    }
}

// Killed at every sign of life of a save: rank 0 has the most to do.
static void test_killed_while_saving(void **state)
{
    (void)state;
    long n = 1, step = getenv("FAULT_RUNS") ? 1 : 7;
    for (;; n += step) {
        char fault[64];
        snprintf(fault, sizeof fault, "save:3:0:kill:%ld", n);
        int code = launch_fault(fault, "saved", "--tensor-parallel-size", "2");
        if (code == 0) break; // there were fewer
        assert_int_equal(code, 1);
        checkpoint_loads("saved", 2);
    }
    printf("  %ld places of a save\n", n - 1);
    assert_true(n > 20);
}

static bool killed_while_loading(const char *run, long n)
{
    char fault[64];
    snprintf(fault, sizeof fault, "load:0:1:kill:%ld", n);
    setenv("SKYMOE_FAULT", fault, 1);
    int code = RUN("launch", "-n", "2", "--", "train", "--resume", "--output", at(run));
    unsetenv("SKYMOE_FAULT");
    if (code == 0) return false; // there were fewer signs of life
    if (code != 1 || sentences() != 1 || !strstr(err_text, "rank 1 on "))
        fail_msg("%s: exit code %d: %s", fault, code, err_text);
    return true;
}

// Killed at signs of life of a resume: there are some for every file that is verified and every tensor that is read.
static void test_killed_while_loading(void **state)
{
    (void)state;
    char path[PATH_LENGTH], file[PATH_LENGTH];
    long n = 2, step = getenv("FAULT_RUNS") ? 1 : 25;
    while (killed_while_loading("saved", n)) n += step;
    printf("  %ld places of a resume\n", n - 1);
    assert_true(n > 60);
    OK_OR_FAIL(checkpoint_latest(path, at("saved")));
    OK_OR_FAIL(path_join(file, path, "training/state.json")); // the last file: nothing is read after it was looked at
    OK_OR_FAIL(file_write(file, "{}", 2));
    assert_true(killed_while_loading("saved", 3));
}

static double loss_at(const char *run, long step)
{
    struct rows r = read_rows(at(run), "loss");
    double loss = NAN;
    for (long i = 0; i < r.n; i++)
        if ((long)number(r.row[i], "step") == step) loss = number(r.row[i], "loss");
    free_rows(&r);
    return loss;
}

static void test_restarts(void **state)
{
    (void)state;
    OK_OR_FAIL(folder_remove(at("again")));
    OK_OR_FAIL(folder_remove(at("whole")));
    WORKS("launch", "-n", "2", "--", "train", JOB, "--output", at("whole"), "--train-steps", "5");
    setenv("SKYMOE_FAULT", "backward:4:1:kill", 1); // step 4 is done again by the second job, which is killed, too
    int code = RUN("launch", "-n", "2", "--max-restarts", "1", "--", "train", JOB, "--output", at("again"),
                   "--train-steps", "5", "--save-interval", "1");
    unsetenv("SKYMOE_FAULT");
    assert_int_equal(code, 1);
    assert_non_null(strstr(err_text, "starting again from the last checkpoint (1 of 1)"));
    checkpoint_loads("again", 3);
    WORKS("launch", "-n", "2", "--", "train", "--resume", "--output", at("again"), "--train-steps", "5");
    assert_true(fabs(loss_at("again", 5) / loss_at("whole", 5) - 1) < 1e-5);
}

// Asked to stop, all ranks save after the same step and leave with 0.
static void test_told_to_stop(void **state)
{
    (void)state;
    char path[PATH_LENGTH];
    OK_OR_FAIL(folder_remove(at("told")));
    pid_t child = start((const char *const[]){"launch", "-n", "2", "--", "train", JOB, "--output", at("told"),
                                              "--train-steps", "1000000", "--save-interval", "0", NULL});
    for (int i = 0; i < 400 && !path_exists(at("told/alive/1")); i++) usleep(50000);
    usleep(300000);
    kill(child, SIGTERM);
    assert_int_equal(finish(child), 0);
    OK_OR_FAIL(checkpoint_latest(path, at("told")));
    assert_non_null(strstr(err_text, "as asked"));
    checkpoint_loads("told", 1);
}

// A machine that slept for longer than --comm-timeout woke all of its ranks: none is to blame. Rank 0 waits for rank 1,
// and judges it, when the whole job stops.
static void test_slept(void **state)
{
    (void)state;
    struct heart heart[2];
    OK_OR_FAIL(folder_remove(at("slept")));
    pid_t child = start((const char *const[]){"launch", "-n", "2", "--", "train", JOB, "--output", at("slept"),
                                              "--train-steps", "1000000", "--save-interval", "0",
                                              "--tensor-parallel-size", "2", "--comm-timeout", "4", NULL});
    long working = 0;
    for (int i = 0; i < 400 && working < 2; i++, usleep(50000))
        for (long r = working = 0; r < 2; r++) working += alive_read(&heart[r], at("slept"), r) && heart[r].step > 1;
    assert_int_equal(working, 2);
    kill((pid_t)heart[1].pid, SIGSTOP);
    usleep(2200000);
    kill((pid_t)heart[0].pid, SIGSTOP);
    usleep(6000000);
    for (long r = 0; r < 2; r++) kill((pid_t)heart[r].pid, SIGCONT);
    usleep(1500000);
    kill(child, SIGTERM);
    int code = finish(child);
    if (code != 0) fail_msg("exit code %d: %s", code, err_text);
    checkpoint_loads("slept", 1);
}

// The planner's lists are those that both stages then have.
static void test_planned_split(void **state)
{
    (void)state;
    OK_OR_FAIL(folder_remove(at("planned")));
    WORKS("launch", "-n", "2", "--", "train", JOB, "--output", at("planned"), "--train-steps", "2",
          "--pipeline-parallel-size", "2", "--layer-split", "auto", "--recompute", "full", "--recompute-layers",
          "auto", "--peak-tflops", "0.5");
    assert_non_null(strstr(err_text, "planner: --layer-split "));
    struct rows r = read_rows(at("planned"), "loss");
    assert_true(fabs(number(r.row[0], "mfu") / number(r.row[0], "tflops") - 1) < 1e-9); // the peak of two ranks
    free_rows(&r);
    checkpoint_loads("planned", 2);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        int code;
        const char *part, *option[6];
    } bad[] = {
        {2, "--pipeline-parallel-size 3", {"--pipeline-parallel-size", "3", NULL}},
        {2, "--expert-parallel-size 5", {"--expert-parallel-size", "5", NULL}},
        {2, "--layer-split", {"--pipeline-parallel-size", "2", "--layer-split", "1,2", NULL}},
        {2, "--head-split", {"--tensor-parallel-size", "2", "--head-split", "1,2,1", NULL}},
        {2, "--virtual-stages", {"--virtual-stages", "2", "--pipeline-schedule", "interleaved", NULL}},
        {2, "--memory-limit-gib", {"--memory-limit-gib", "1e-6", NULL}},
        {1, "nowhere", {"--data", "/nowhere/data", NULL}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *word[48] = {"launch", "-n", "2", "--", "train", JOB, "--output", at("refused")};
        int n = 0;
        while (word[n]) n++;
        for (int j = 0; bad[i].option[j]; j++) word[n++] = bad[i].option[j];
        int code = finish(start(word));
        if (code != bad[i].code || sentences() != 1 || !strstr(err_text, bad[i].part))
            fail_msg("exit code %d, expected %d and one sentence with %s: %s", code, bad[i].code, bad[i].part,
                     err_text);
        assert_false(path_exists(at("refused")));
    }
    FAILS(2, "-n: is missing", "launch", "--", "train");
    FAILS(2, "no command", "launch", "-n", "2");
    FAILS(2, "unknown command", "launch", "-n", "2", "--", "trian");
    FAILS(1, "no such file", "launch", "-n", "2", "--hosts", "/nowhere/hosts", "--", "train");
    assert_int_equal(RUN("launch", "-n", "2", "--", "eval", "--model", at("nothing")), 2); // one process' business
}

// Resumed on other numbers of ranks without a word about the layout: what is left for data parallelism adapts; a layout
// that cannot be is refused, and the sizes named in the sentence work.
static void test_other_ranks(void **state)
{
    (void)state;
    static const struct {
        const char *option[4], *stored, *ranks, *works; // works: how many ranks may go on as they are
    } runs[] = {
        {{"--tensor-parallel-size", "2"}, "--pipeline-parallel-size 1 --tensor-parallel-size 2, but", "3", "4"},
        {{"--pipeline-parallel-size", "2"}, "--pipeline-parallel-size 2 --tensor-parallel-size 1, but", "3", "4"},
        {{"--expert-parallel", "ep", "--expert-split", "1,3"}, "1 --expert-parallel ep --expert-split 1,3, but", "3",
         "2"},
        {{"--expert-parallel-size", "2"}, "size 1 --expert-parallel-size 2, but", "3", "4"},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        OK_OR_FAIL(folder_remove(at("laid")));
        const char *word[48] = {"launch", "-n", "2", "--", "train", JOB, "--output", at("laid"), "--train-steps", "1"};
        int n = 0;
        while (word[n]) n++;
        for (int j = 0; j < 4 && runs[i].option[j]; j++) word[n++] = runs[i].option[j];
        int code = finish(start(word));
        if (code != 0) fail_msg("exit code %d: %s", code, err_text);
        code = RUN("launch", "-n", runs[i].ranks, "--", "train", "--resume", "--output", at("laid"));
        if (code != 2 || sentences() != 1 || !strstr(err_text, runs[i].stored) ||
            !strstr(err_text, "laid/step-000001: was stored with") ||
            !strstr(err_text, "there are 3 ranks now (give another layout, like --tensor-parallel-size 1 or 3)"))
            fail_msg("exit code %d: %s", code, err_text);
        FAILS(2, "but there is 1 rank now (give another layout, like --tensor-parallel-size 1)", "train", "--resume",
              "--output", at("laid"));
        code = RUN("launch", "-n", "3", "--", "train", "--resume", "--output", at("laid"), "--tensor-parallel-size",
                   "2"); // of the command line, not the stored one
        if (code != 2 || sentences() != 1 || !strstr(err_text, "2: do not divide 3 ranks"))
            fail_msg("exit code %d: %s", code, err_text);
        WORKS("launch", "-n", runs[i].works, "--", "train", "--resume", "--output", at("laid"), "--train-steps", "2");
        WORKS("launch", "-n", "3", "--", "train", "--resume", "--output", at("laid"), "--train-steps", "3",
              "--tensor-parallel-size", i % 2 ? "1" : "3");
    }
}

static int set_up(void **state)
{
    if (training_set_up(state) != 0 || !find_program()) return -1;
    memcpy(program + strlen(program), "-faulty", sizeof "-faulty");
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1); // the MPI library keeps what it has until the end
    return access(program, X_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_killed),   cmocka_unit_test(test_stopped),
        cmocka_unit_test(test_restarts), cmocka_unit_test(test_killed_while_saving),
        cmocka_unit_test(test_killed_while_loading), cmocka_unit_test(test_other_ranks),
        cmocka_unit_test(test_refused),  cmocka_unit_test(test_told_to_stop),
        cmocka_unit_test(test_planned_split), cmocka_unit_test(test_slept),
    };
    return cmocka_run_group_tests_name("ranks", tests, set_up, remove_temporary);
}
