// skymoe launch: starts a command on several ranks with the MPI library's own mpirun, passes a stop on to them, says
// who died when no rank could, and starts again from the last checkpoint.
#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "cli/command.h"
#include "comm/alive.h"
#include "comm/transport.h"

enum { GRACE_MS = 5000 }; // between asking mpirun to end and ending it

static struct options {
    long ranks, max_restarts;
    const char *hosts;
} given;

#define AT(field) offsetof(struct options, field)
static const struct setting rows[] = {
    {"ranks", SETTING_LONG, AT(ranks), "0", 0, 1L << 24, NULL, "how many processes; also -n"},
    {"hosts", SETTING_TEXT, AT(hosts), NULL, 0, 0, NULL, "file with the hosts' names, one a line, as mpirun reads it"},
    {"max-restarts", SETTING_LONG, AT(max_restarts), "0", 0, 1L << 30, NULL,
     "train: how often a job that failed is started again from its last checkpoint"},
};
static const struct settings settings = {
    .command = "launch",
    .summary = "starts a command on several ranks",
    .usage = "-n N [--hosts FILE] [--max-restarts K] -- COMMAND ...",
    .row = rows,
    .n = sizeof rows / sizeof *rows,
    .options = &given,
};

// ---- the command that ranks run ----

static const char *option_of(char **word, const char *name) // of "--name value" or "--name=value"; NULL when absent
{
    size_t n = strlen(name);
    for (; *word; word++) {
        if (strcmp(*word, name) == 0) return word[1];
        if (strncmp(*word, name, n) == 0 && (*word)[n] == '=') return *word + n + 1;
    }
    return NULL;
}

static bool trains(char **command)
{
    return strcmp(command[0], "train") == 0;
}

static bool has_file(const char *run, const char *name)
{
    char path[PATH_LENGTH];
    return run && path_join(path, run, name) == OK && path_exists(path);
}

// `--model X` and `--init X` become `--resume`.
static void resume_instead(char **command)
{
    char **to = command;
    bool said = false;
    for (char **from = command; *from; from++) {
        bool start = !strcmp(*from, "--model") || !strcmp(*from, "--init") || !strcmp(*from, "--resume");
        bool joined = !strncmp(*from, "--model=", 8) || !strncmp(*from, "--init=", 7);
        bool has_value = start && strcmp(*from, "--resume") != 0 && from[1];
        if (!start && !joined) *to++ = *from;
        if ((start || joined) && !said) *to++ = (char *)(uintptr_t) "--resume";
        said = said || start || joined;
        from += has_value;
    }
    *to = NULL;
}

// What a run without a checkpoint leaves would be refused as another run's.
static enum status clear_beginning(const char *run)
{
    static const char *const left[] = {"metrics.jsonl", "settings.conf", "config.json"};
    char path[PATH_LENGTH];
    struct path_list list;
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) {
        TRY(path_join(path, run, left[i]));
        unlink(path);
    }
    TRY(folder_list(&list, run));
    for (long i = 0; i < list.n; i++)
        if (strncmp(list.name[i], "events.out.tfevents.", 20) == 0 && path_join(path, run, list.name[i]) == OK)
            unlink(path);
    path_list_free(&list);
    return OK;
}

// ---- mpirun ----

static long lines_of(const char *path)
{
    char *text;
    long bytes, n = 0;
    if (file_read(&text, &bytes, path, 1 << 24) != OK) return 0;
    for (const char *c = text; *c; c++) n += *c == '\n' && c > text && c[-1] != '\n';
    free(text);
    return n;
}

// The words of mpirun's command line.
struct words {
    const char **word;
    long n, room;
};
static void add(struct words *w, const char *word)
{
    CHECK(w->n + 1 < w->room);
    w->word[w->n++] = word;
    w->word[w->n] = NULL;
}

static void add_command(struct words *w, char **command, const char *self)
{
    static char threads[32];
    long hosts = given.hosts ? lines_of(given.hosts) : 1, processors = sysconf(_SC_NPROCESSORS_ONLN);
    long each = hosts > 0 ? (given.ranks + hosts - 1) / hosts : given.ranks, own = processors / (each ? each : 1);
    add(w, self);
    for (char **c = command; *c; c++) add(w, *c);
    if (!trains(command) || option_of(command, "--threads") || getenv("OMP_NUM_THREADS")) return;
    snprintf(threads, sizeof threads, "%ld", own > 0 ? own : 1);
    add(w, "--threads");
    add(w, threads);
}

static void add_mpirun(struct words *w)
{
    static char ranks[32];
    bool open_mpi = strncmp(transport_library(), "Open MPI", 8) == 0;
    snprintf(ranks, sizeof ranks, "%ld", given.ranks);
    add(w, open_mpi ? "mpirun.openmpi" : "mpiexec.mpich");
    add(w, "-n");
    add(w, ranks);
    if (given.hosts) add(w, open_mpi ? "--hostfile" : "-f");
    if (given.hosts) add(w, given.hosts);
    if (!open_mpi) return;
    static const char *const shared[] = {"--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"};
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++) add(w, shared[i]);
    if (geteuid() != 0) return;
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
}

// Debian names both kinds of mpirun; elsewhere there is one.
static void become_mpirun(const struct words *w, int err)
{
    setpgid(0, 0); // the terminal's Ctrl-C reaches launch alone
    dup2(err, 2);
    close(err);
    execvp(w->word[0], (char *const *)(uintptr_t)w->word);
    w->word[0] = strncmp(w->word[0], "mpirun", 6) ? "mpiexec" : "mpirun";
    execvp(w->word[0], (char *const *)(uintptr_t)w->word);
    _exit(127);
}

// ---- a job ----

static volatile sig_atomic_t stops; // how often someone asked to stop
static void on_stop(int number)
{
    (void)number;
    stops++;
}

static void on_child(int number) // only to end a poll
{
    (void)number;
}

static void catch_signals(void)
{
    struct sigaction stop = {.sa_handler = on_stop}, child = {.sa_handler = on_child};
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    sigaction(SIGUSR1, &stop, NULL);
    sigaction(SIGCHLD, &child, NULL);
}

// mpirun's words about a process that died: "process rank 1 with PID 4711", "PID 4711 RUNNING AT".
struct death {
    long rank, pid;
};
static void listen_for(struct death *d, const char *text)
{
    const char *rank = strstr(text, "process rank "), *pid = strstr(text, "PID ");
    if (rank && isdigit((unsigned char)rank[13]) && d->rank < 0) d->rank = strtol(rank + 13, NULL, 10);
    if (pid && isdigit((unsigned char)pid[4]) && d->pid < 0) d->pid = strtol(pid + 4, NULL, 10);
}

// Passes mpirun's stderr on, and stops to its ranks, until it ends. Its exit code.
static int watch(pid_t mpirun, int from, struct death *d)
{
    char text[8192];
    int passed = 0, code = 0;
    bool open = true, ended = false;
    double asked = 0;
    while (!ended || open) {
        struct pollfd p = {.fd = open ? from : -1, .events = POLLIN};
        if (poll(&p, 1, 200) > 0) {
            ssize_t n = read(from, text, sizeof text - 1);
            open = n > 0;
            text[n > 0 ? n : 0] = '\0';
            listen_for(d, text);
            fputs(text, stderr);
        } else if (ended) {
            break; // a process that mpirun left behind holds the other end
        }
        if (stops > passed) {
            kill(mpirun, passed == 0 ? SIGUSR1 : SIGTERM); // Open MPI kills its ranks after its own SIGTERM
            if (passed > 0 && asked == 0) asked = seconds_now();
            passed = stops;
        }
        if (asked > 0 && (seconds_now() - asked) * 1e3 > GRACE_MS) kill(-mpirun, SIGKILL);
        if (!ended && waitpid(mpirun, &code, WNOHANG) == mpirun) ended = true;
    }
    return WIFEXITED(code) ? WEXITSTATUS(code) : 128 + WTERMSIG(code);
}

static enum status run_job(const struct words *w, int *code, struct death *d)
{
    int ends[2];
    if (pipe(ends) != 0) return fail(ERR_IO, "mpirun: no pipe to it: %s", strerror(errno));
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        become_mpirun(w, ends[1]);
    }
    close(ends[1]);
    if (child < 0) {
        close(ends[0]);
        return fail(ERR_IO, "mpirun: cannot be started: %s", strerror(errno));
    }
    *d = (struct death){-1, -1};
    *code = watch(child, ends[0], d);
    close(ends[0]);
    if (*code == 127) return fail(ERR_IO, "%s: not found (install openmpi-bin, or mpich where that was built with)",
                                  w->word[0]);
    return OK;
}

// When a process was killed no rank could say so: its last heartbeat tells where it was.
static void say_who_died(const struct death *d, const char *run)
{
    struct heart h;
    if (!run || has_file(run, "alive/verdict")) return;
    for (long r = 0; r < given.ranks; r++) {
        if (!alive_read(&h, run, r) || (d->rank >= 0 ? d->rank != r : d->pid != h.pid)) continue;
        log_error("skymoe launch: rank %ld on %s: process %ld died in phase %s of step %ld", r, h.host, h.pid, h.phase,
                  h.step);
        return;
    }
}

static enum status run_jobs(struct words *w, char **command, const char *self)
{
    const char *run = trains(command) ? option_of(command, "--output") : NULL;
    struct death d;
    int code = 1;
    for (long restarts = 0;; restarts++) {
        w->n = 0;
        add_mpirun(w);
        add_command(w, command, self);
        TRY(run_job(w, &code, &d));
        if (code != 0) say_who_died(&d, run);
        if (code == 0 || code == 2 || stops || !run || restarts == given.max_restarts) break;
        if (has_file(run, "latest")) resume_instead(command);
        else if (path_exists(run)) TRY(clear_beginning(run));
        log_error("skymoe launch: exit code %d, starting again %s (%ld of %ld)", code,
                  has_file(run, "latest") ? "from the last checkpoint" : "from the beginning", restarts + 1,
                  given.max_restarts);
    }
    if (code == 0) return OK;
    return fail(code == 2 ? ERR_CONFIG : ERR_COMM, "%s: the job ended with exit code %d", command[0], code);
}

static bool known(const char *name)
{
    for (long i = 0; i < commands_n; i++)
        if (strcmp(commands[i]->name, name) == 0) return true;
    return strcmp(name, "help") == 0;
}

static enum status check(char **command)
{
    if (given.ranks < 1) return fail(ERR_CONFIG, "-n: is missing (how many ranks?)");
    if (!command[0]) return fail(ERR_CONFIG, "--: no command behind it (like: launch -n 4 -- train ...)");
    if (!known(command[0]))
        return fail(ERR_CONFIG, "%.100s: unknown command (skymoe help lists them)", command[0]);
    if (given.hosts && !path_exists(given.hosts)) return fail(ERR_IO, "--hosts %s: no such file", given.hosts);
    return OK;
}

static enum status launch(char **command)
{
    static char self[PATH_LENGTH];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    long room = 32;
    TRY(check(command));
    if (n < 0) return fail(ERR_IO, "/proc/self/exe: cannot be read: %s", strerror(errno));
    self[n] = '\0';
    for (char **c = command; *c; c++) room++;
    struct words w = {.word = calloc((size_t)room, sizeof *w.word), .room = room};
    if (!w.word) return fail(ERR_MEMORY, "memory: a list of %ld words was refused", room);
    catch_signals();
    enum status status = run_jobs(&w, command, self);
    free(w.word);
    return status;
}

// Its own options end at `--`; what is behind goes to the ranks as it is.
static enum status run(int argc, char **argv)
{
    struct common_options common;
    char *none[] = {NULL}, **command = none;
    int own = 0;
    bool done;
    for (; own < argc && strcmp(argv[own], "--") != 0; own++)
        if (strcmp(argv[own], "-n") == 0) argv[own] = (char *)(uintptr_t) "--ranks";
    if (own < argc) command = argv + own + 1;
    if (own < argc) argv[own] = NULL;
    TRY(command_start(&settings, &common, NULL, &done, own, argv));
    return done ? OK : launch(command);
}

const struct command command_launch = {.name = "launch", .run = run, .settings = &settings};
