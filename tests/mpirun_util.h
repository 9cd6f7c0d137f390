// A test program that starts itself under mpirun: alone it prepares and starts, under mpirun it is one of the ranks.
#ifndef SKYMOE_TESTS_MPIRUN_UTIL_H
#define SKYMOE_TESTS_MPIRUN_UTIL_H

#include "train_util.h"

#include <sys/wait.h>
#include <unistd.h>

// Exit code of a line for the shell.
static UNUSED int shell(const char *line)
{
    int code;
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        execl("/bin/sh", "sh", "-c", line, (char *)NULL);
        _exit(99);
    }
    assert_true(waitpid(child, &code, 0) == child);
    return WIFEXITED(code) ? WEXITSTATUS(code) : 1000 + WTERMSIG(code);
}

// Runs this program on n ranks, with SKYMOE_RANKS = the temporary folder. MPIRUN names another mpirun and its options.
static UNUSED void start_ranks(long n)
{
    char self[PATH_LENGTH], command[2 * PATH_LENGTH];
    const char *mpirun = getenv("MPIRUN");
    if (!mpirun) mpirun = "mpirun.openmpi --oversubscribe --bind-to none --mca mpi_yield_when_idle 1";
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(length > 0);
    self[length] = '\0';
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    setenv("SKYMOE_RANKS", temporary, 1);
    setenv("OMP_NUM_THREADS", "1", 1);
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1); // the MPI library keeps what it has until the end
    snprintf(command, sizeof command, "%s -n %ld %s", mpirun, n, self);
    fflush(stdout);
    int code = shell(command);
    if (code != 0) fail_msg("%ld ranks: exit code %d", n, code);
}

static UNUSED int ranks_or_tests(const char *name, const struct CMUnitTest *ranks, size_t ranks_n,
                                 const struct CMUnitTest *tests, size_t tests_n, CMFixtureFunction set_up,
                                 CMFixtureFunction tear_down)
{
    if (transport_open() != OK) return 1;
    if (!getenv("SKYMOE_RANKS")) return _cmocka_run_group_tests(name, tests, tests_n, set_up, tear_down);
    cmocka_set_message_output(CM_OUTPUT_TAP); // its words must not be counted as tests
    if (_cmocka_run_group_tests(name, ranks, ranks_n, NULL, NULL)) transport_abort(1);
    transport_close();
    return 0;
}

#endif
