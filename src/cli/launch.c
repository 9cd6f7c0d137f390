// skymoe launch: starts a command on several ranks with the MPI library's own mpirun, passes a stop on to them, says
// who died when no rank could, and starts again from the last checkpoint.
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "cli/command.h"
#include "comm/alive.h"
#include "comm/transport.h"
#include "kernels/kernels.h"
#include "train/options.h"

enum {
    GRACE_MS = 5000, // between asking mpirun to end and ending it
    KEPT = 64        // bytes of what was read that the next read may continue
};

static struct options {
    long ranks, max_restarts, threads;
    const char *hosts;
} given;

#define AT(field) offsetof(struct options, field)
static const struct setting rows[] = {
    {"ranks", SETTING_LONG, AT(ranks), "0", 0, 1L << 24, NULL, "how many processes; also -n"},
    {"hosts", SETTING_TEXT, AT(hosts), NULL, 0, 0, NULL, "file with the hosts' names, one a line, as mpirun reads it"},
    {"max-restarts", SETTING_LONG, AT(max_restarts), "0", 0, 1L << 30, NULL,
     "train: how often a job that failed is started again from its last checkpoint"},
    {"threads", SETTING_LONG, AT(threads), "0", 0, 4096, NULL,
     "threads of each rank; 0: train gets the processors divided by the ranks of a host"},
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

// What a training command says of its run, its --config file read too; a wrong one leaves what its words say, and its
// ranks refuse it.
static const char *run_of(char **command, bool *config_starts)
{
    struct common_options common;
    int n = 0;
    *config_starts = false;
    if (!trains(command)) return NULL;
    while (command[n]) n++;
    if (settings_parse(&train_settings_given, &common, NULL, n, command) != OK || common.help)
        return option_of(command, "--output");
    bool starts = train_given.model || train_given.init;
    *config_starts = starts && !option_of(command, "--model") && !option_of(command, "--init");
    return train_given.output;
}

enum { MORE_WORDS = 2 }; // that resume_instead may add

// `--model X` and `--init X` become `--resume`. So does a --config file that names one: what else it says is in the
// checkpoint, and the run's folder is named anew.
static void resume_instead(char **command, bool config_starts, const char *run)
{
    static char output[PATH_LENGTH + 16];
    char **to = command;
    bool said = false;
    for (char **from = command; *from; from++) {
        bool config = config_starts && !strcmp(*from, "--config");
        bool start = config || !strcmp(*from, "--model") || !strcmp(*from, "--init") || !strcmp(*from, "--resume");
        bool joined = !strncmp(*from, "--model=", 8) || !strncmp(*from, "--init=", 7) ||
                      (config_starts && !strncmp(*from, "--config=", 9));
        bool has_value = start && strcmp(*from, "--resume") != 0 && from[1];
        if (!start && !joined) *to++ = *from;
        if ((start || joined) && !said) *to++ = (char *)(uintptr_t) "--resume";
        said = said || start || joined;
        from += has_value;
    }
    *to = NULL;
    if (!config_starts || option_of(command, "--output")) return;
    snprintf(output, sizeof output, "--output=%s", run);
    *to++ = output;
    *to = NULL;
}

// What a run without a checkpoint leaves, which another start would refuse as another run's: whether there is any, and
// away with it.
static enum status beginning(bool *found, const char *run, bool clear)
{
    static const char *const left[] = {"metrics.jsonl", "settings.conf", "config.json"};
    char path[PATH_LENGTH];
    struct path_list list;
    *found = false;
    if (!path_is_folder(run)) return OK;
    TRY(folder_list(&list, run));
    for (long i = 0; i < list.n; i++) {
        bool of_run = strncmp(list.name[i], "events.out.tfevents.", 20) == 0;
        for (size_t j = 0; j < sizeof left / sizeof *left; j++) of_run = of_run || !strcmp(list.name[i], left[j]);
        *found = *found || of_run;
        if (of_run && clear && path_join(path, run, list.name[i]) == OK) unlink(path);
    }
    path_list_free(&list);
    return OK;
}

// ---- mpirun ----

// Lines of a hosts file that name one. 0: it cannot be read.
static long hosts_of(const char *path)
{
    char *text;
    long bytes, n = 0;
    if (file_read(&text, &bytes, path, 1 << 24) != OK) return 0;
    for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line != '\0') {
        line += strspn(line, " \t\r");
        n += *line && *line != '\n' && *line != '#';
    }
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
    long hosts = given.hosts ? hosts_of(given.hosts) : 1;
    long each = hosts > 0 ? (given.ranks + hosts - 1) / hosts : given.ranks, own = kernels_threads() / each;
    add(w, self);
    for (char **c = command; *c; c++) add(w, *c);
    if (option_of(command, "--threads") || strcmp(command[0], "help") == 0) return;
    if (!given.threads && (!trains(command) || getenv("OMP_NUM_THREADS"))) return;
    snprintf(threads, sizeof threads, "%ld", given.threads ? given.threads : own > 0 ? own : 1);
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
    if (geteuid() == 0) add(w, "--allow-run-as-root");
}

// Debian names both kinds of mpirun; elsewhere there is one.
static void become_mpirun(const struct words *w, int err)
{
    int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    setpgid(0, 0);                    // the terminal's Ctrl-C reaches launch alone,
    if (isatty(0)) dup2(nothing, 0);  // and a process beside it that reads from the terminal is stopped
    prctl(PR_SET_PDEATHSIG, SIGTERM); // nobody could stop the ranks of a launch that is gone
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

// What the job's stderr told: mpirun's words about a process that died ("process rank 1 with PID 4711", "PID 4711
// RUNNING AT"), and whether a rank said why the job ends.
struct death {
    long rank, pid;
    bool said;
};

static void number_behind(long *number, const char *text, const char *word)
{
    const char *at = strstr(text, word);
    char *end;
    if (!at || *number >= 0 || !isdigit((unsigned char)at[strlen(word)])) return;
    long value = strtol(at + strlen(word), &end, 10);
    if (*end) *number = value; // else the rest of the number may still come
}

static void listen_for(struct death *d, const char *text, const char *command)
{
    char sentence[128];
    snprintf(sentence, sizeof sentence, "skymoe %.100s: ", command);
    number_behind(&d->rank, text, "process rank ");
    number_behind(&d->pid, text, "PID ");
    d->said = d->said || strstr(text, sentence) || strstr(text, "skymoe: ");
}

// What the ranks of a job work on, and who wrote rank 0's heartbeat before it.
struct job {
    const char *command, *run; // run: NULL unless it trains
    long old_pid;
};

// Before a rank catches SIGUSR1 the signal would kill it. Each has come so far when rank 0 shows its heartbeat, which a
// lone rank does not.
static bool ranks_listen(const struct job *j)
{
    struct heart h;
    if (!j->run) return true;
    if (given.ranks == 1) return has_file(j->run, "metrics.jsonl");
    return alive_read(&h, j->run, 0) && h.pid != j->old_pid;
}

// The first stop asks the ranks through mpirun to save and end, the second ends them.
static void pass_stops(const struct job *j, pid_t mpirun, int *passed, double *asked)
{
    if (stops > 1 && *passed < 2) {
        kill(mpirun, SIGTERM);
        *asked = seconds_now();
        *passed = 2;
    } else if (stops == 1 && *passed == 0 && ranks_listen(j)) {
        kill(mpirun, SIGUSR1); // Open MPI kills its ranks after its own SIGTERM
        *passed = 1;
    }
    if (*passed == 2 && (seconds_now() - *asked) * 1e3 > GRACE_MS) kill(-mpirun, SIGKILL);
}

// Passes mpirun's stderr on, and stops to its ranks, until it ends. Its exit code.
static int watch(const struct job *j, pid_t mpirun, int from, struct death *d)
{
    char text[KEPT + 8192 + 1];
    int passed = 0, code = 0;
    long kept = 0;
    bool open = true, ended = false;
    double asked = 0;
    while (!ended || open) {
        struct pollfd p = {.fd = open ? from : -1, .events = POLLIN};
        if (poll(&p, 1, 200) > 0) {
            ssize_t n = read(from, text + kept, sizeof text - 1 - (size_t)kept);
            open = n > 0 || (n < 0 && errno == EINTR);
            if (n > 0) fwrite(text + kept, 1, (size_t)n, stderr);
            long all = kept + (n > 0 ? n : 0);
            text[all] = '\0';
            listen_for(d, text, j->command);
            kept = all < KEPT ? all : KEPT;
            memmove(text, text + all - kept, (size_t)kept);
        } else if (ended) {
            break; // a process that mpirun left behind holds the other end
        }
        if (!ended) pass_stops(j, mpirun, &passed, &asked);
        if (!ended && waitpid(mpirun, &code, WNOHANG) == mpirun) ended = true;
    }
    return WIFEXITED(code) ? WEXITSTATUS(code) : 128 + WTERMSIG(code);
}

static enum status run_job(const struct job *j, const struct words *w, int *code, struct death *d)
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
    *d = (struct death){.rank = -1, .pid = -1};
    *code = watch(j, child, ends[0], d);
    close(ends[0]);
    if (*code == 127) return fail(ERR_IO, "%s: not found (install openmpi-bin, or mpich where that was built with)",
                                  w->word[0]);
    return OK;
}

// When a process was killed no rank could say so: its last heartbeat tells where it was.
static void say_who_died(struct death *d, const char *run)
{
    struct heart h;
    if (!run || has_file(run, "alive/verdict")) return;
    for (long r = 0; r < given.ranks; r++) {
        if (!alive_read(&h, run, r) || (d->rank >= 0 ? d->rank != r : d->pid != h.pid)) continue;
        log_error("skymoe launch: rank %ld on %s: process %ld died in phase %s of step %ld", r, h.host, h.pid, h.phase,
                  h.step);
        d->said = true;
        return;
    }
}

// Its exit code and what it told; starts it again as often as allowed.
static enum status run_jobs(int *code, struct death *d, struct words *w, char **command, const char *self)
{
    bool config_starts, found = false;
    const char *run = run_of(command, &config_starts);
    struct job j = {.command = command[0], .run = run};
    if (run) TRY(beginning(&found, run, false));
    bool others = found; // what stood there before is not ours to clear
    for (long restarts = 0;; restarts++) {
        struct heart h = {.pid = -1};
        w->n = 0;
        add_mpirun(w);
        add_command(w, command, self);
        j.old_pid = run && alive_read(&h, run, 0) ? h.pid : -1;
        TRY(run_job(&j, w, code, d));
        if (*code != 0) say_who_died(d, run);
        if (*code == 0 || *code == 2 || stops || !run || restarts == given.max_restarts) return OK;
        bool saved = has_file(run, "latest");
        if (saved) resume_instead(command, config_starts, run);
        else if (!others) TRY(beginning(&found, run, true));
        log_error("skymoe launch: exit code %d, starting again %s (%ld of %ld)", *code,
                  saved ? "from the last checkpoint" : "from the beginning", restarts + 1, given.max_restarts);
    }
}

static bool known(const char *name)
{
    for (long i = 0; i < commands_n; i++)
        if (strcmp(commands[i]->name, name) == 0) return true;
    return strcmp(name, "help") == 0;
}

static enum status check(char **command)
{
    if (given.ranks < 1) return fail(ERR_CONFIG, "-n: is missing or 0 (how many ranks?)");
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
    long n_words = 0;
    TRY(check(command));
    if (n < 0) return fail(ERR_IO, "/proc/self/exe: cannot be read: %s", strerror(errno));
    self[n] = '\0';
    while (command[n_words]) n_words++;
    struct words w = {.room = n_words + 32};
    char **own = calloc((size_t)n_words + 1 + MORE_WORDS, sizeof *own);
    w.word = calloc((size_t)w.room, sizeof *w.word);
    if (!own || !w.word) {
        free(own);
        free(w.word);
        return fail(ERR_MEMORY, "memory: a list of %ld words was refused", w.room);
    }
    memcpy(own, command, (size_t)n_words * sizeof *own);
    catch_signals();
    struct death d = {0};
    int code = 1;
    enum status status = run_jobs(&code, &d, &w, own, self);
    free(own);
    free(w.word);
    if (status != OK || code == 0) return status;
    if (d.said) transport_abort(code == 2 ? 2 : 1); // one sentence is enough
    return fail(code == 2 ? ERR_CONFIG : ERR_COMM, "%s: the job ended with exit code %d (see above)", command[0], code);
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
    for (int i = 1; i < own && own == argc; i++)
        if (known(argv[i]))
            return fail(ERR_CONFIG, "--: is missing before %s (like: launch -n 4 -- train ...)", argv[i]);
    if (own < argc) argv[own] = NULL;
    TRY(command_start(&settings, &common, NULL, &done, own, argv));
    return done ? OK : launch(command);
}

const struct command command_launch = {.name = "launch", .run = run, .settings = &settings};
