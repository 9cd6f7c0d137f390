#include "comm/alive.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "comm/group.h"

enum { ROW = 384 }; // bytes of a file: always the same, so a reader never sees half of a shorter one

static const char *const phase_names[PHASES] = {
    "start", "load", "forward", "exchange", "backward", "reduce", "optimizer", "save", "evaluate"};

static struct {
    char folder[PATH_LENGTH];
    int file;
    enum phase phase;
    long step, counter, waits;
    bool stale;     // the file names an earlier phase
    double written;
    long judged_rank, judged_counter; // what the last judgement of this wait saw, and since when it is so
    double judged_since, looked;
} own = {.file = -1, .waits = -1, .judged_rank = -1};

// Phases change many times a second, and the file may be on a network: what changed waits a moment for more.
static const double write_after[2] = {1, 0.1}; // seconds since the last time; if the phase is another one

static void write_row(bool now)
{
    if (own.file < 0) return;
    double time = seconds_now();
    if (!now && time - own.written < write_after[own.stale]) return;
    char row[ROW];
    int n = snprintf(row, sizeof row, "host %s pid %ld step %ld phase %s counter %ld waits %ld",
                     transport_host(transport_rank()), (long)getpid(), own.step, phase_names[own.phase], own.counter,
                     own.waits);
    if (n < 0 || n >= ROW) return;
    memset(row + n, ' ', (size_t)(ROW - n));
    row[ROW - 1] = '\n';
    own.written = time;
    own.stale = false;
    // A heartbeat that cannot be written must not end a run whose work goes well: at worst others judge it too soon.
    if (pwrite(own.file, row, ROW, 0) != ROW) return;
}

static void beat(bool now)
{
    own.counter++;
    write_row(now);
}

// ---- life ----

static enum status path_of(char path[PATH_LENGTH], long rank)
{
    char name[32];
    snprintf(name, sizeof name, "%ld", rank);
    return path_join(path, own.folder, name);
}

static enum status make_folder(const char *run)
{
    TRY(path_join(own.folder, run, "alive"));
    if (transport_rank() == 0) {
        TRY(folder_remove(own.folder)); // of an earlier job that was killed
        TRY(folder_make(own.folder));
    }
    return OK;
}

enum status alive_open(const char *run)
{
    if (transport_ranks() == 1) return OK;
    char path[PATH_LENGTH];
    TRY(agree(make_folder(run)));
    TRY(path_of(path, transport_rank()));
    own.file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (own.file < 0)
        return fail(ERR_IO, "%s: cannot be made: %s (every host must see --output)", path, strerror(errno));
    beat(true);
    return OK;
}

void alive_close(void)
{
    char path[PATH_LENGTH];
    if (own.file < 0) return;
    close(own.file);
    own.file = -1;
    if (path_of(path, transport_rank()) == OK) unlink(path);
    rmdir(own.folder); // the last one succeeds
}

// ---- work ----

#ifdef SKYMOE_TEST_FAULTS
// SKYMOE_FAULT=phase:step:rank:kill|stop|sleep[:n], once: at the n-th sign of life in that phase.
static void fault(void)
{
    static long seen;
    char phase[16], what[16];
    long step, rank, n = 1;
    const char *wanted = getenv("SKYMOE_FAULT");
    if (!wanted || sscanf(wanted, "%15[^:]:%ld:%ld:%15[a-z]:%ld", phase, &step, &rank, what, &n) < 4) return;
    if (strcmp(phase, phase_names[own.phase]) != 0 || step != own.step || rank != transport_rank()) return;
    if (++seen < n) return;
    unsetenv("SKYMOE_FAULT");
    write_row(true);
    if (strcmp(what, "kill") == 0) raise(SIGKILL);
    if (strcmp(what, "stop") == 0) raise(SIGSTOP);
    if (strcmp(what, "sleep") == 0) sleep(5);
}
#else
static void fault(void)
{
}
#endif

void alive_phase(enum phase p)
{
    if (own.phase != p) own.stale = true;
    own.phase = p;
    beat(false);
    fault();
}

enum phase alive_phase_now(void)
{
    return own.phase;
}

void alive_step(long step)
{
    own.step = step;
    beat(true);
}

void alive_beat(void)
{
    beat(false);
    fault();
}

void alive_waits(long rank)
{
    bool waited = own.waits >= 0;
    own.waits = rank;
    if (rank < 0) own.judged_rank = -1;
    if (rank >= 0 || waited) write_row(rank < 0);
}

// ---- judging ----

static const double look_most = 1.5; // seconds between two looks that count as waiting

static bool read_file(struct heart *h, const char *path)
{
    char row[ROW];
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    ssize_t n = pread(file, row, ROW, 0);
    close(file);
    row[ROW - 1] = '\0';
    return n == ROW && sscanf(row, "host %255s pid %ld step %ld phase %15s counter %ld waits %ld", h->host, &h->pid,
                              &h->step, h->phase, &h->counter, &h->waits) == 6;
}

static bool read_heart(struct heart *h, long rank)
{
    char path[PATH_LENGTH];
    return own.file >= 0 && path_of(path, rank) == OK && read_file(h, path);
}

bool alive_read(struct heart *h, const char *run, long rank)
{
    char folder[PATH_LENGTH], name[32], path[PATH_LENGTH];
    snprintf(name, sizeof name, "%ld", rank);
    return path_join(folder, run, "alive") == OK && path_join(path, folder, name) == OK && read_file(h, path);
}

void alive_judge(long rank, double patience)
{
    struct heart h = {.counter = -1};
    bool known = read_heart(&h, rank);
    // Along the waits to their end; in a circle, which only a mistake of ours can make, to its last new member.
    for (long hops = 0; known && h.waits >= 0 && h.waits != transport_rank() && hops < transport_ranks(); hops++) {
        struct heart next;
        if (!read_heart(&next, h.waits)) break;
        rank = h.waits;
        h = next;
    }
    // Looks are a second apart. A longer pause was this process's own, and a machine that slept paused all of them.
    double time = seconds_now(), pause = time - own.looked - look_most;
    if (pause > 0) own.judged_since += pause;
    own.looked = time;
    if (rank != own.judged_rank || h.counter != own.judged_counter) {
        own.judged_rank = rank;
        own.judged_counter = h.counter;
        own.judged_since = time;
    }
    if (time - own.judged_since < patience) return;
    if (known)
        transport_end("rank %ld on %s: no progress for %.0f s in phase %s of step %ld, process %ld (raise "
                      "--comm-timeout if it is only slow)", rank, h.host, patience, h.phase, h.step, h.pid);
    transport_end("rank %ld on %s: no answer for %.0f s in phase %s of step %ld (raise --comm-timeout if it is only "
                  "slow)", rank, transport_host(rank), patience, phase_names[own.phase], own.step);
}

bool alive_first_word(void)
{
    char path[PATH_LENGTH];
    if (own.file < 0 || path_join(path, own.folder, "verdict") != OK) return true;
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file >= 0) close(file);
    return file >= 0 || errno != EEXIST;
}
