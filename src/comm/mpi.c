// The transport over MPI 3.1: nonblocking messages in pieces, tested against a deadline.
#include <mpi.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "comm/alive.h"
#include "comm/transport.h"

enum {
    HOST_LENGTH = 256,
    PIECE = 4 << 20,    // bytes of one MPI message; larger ones leave the caches between sender and receiver
    SPINS = 200,        // tests before the processor is offered to others: ranks may share one
    DOZE_AFTER_MS = 20, // of waiting; from then on a rank sleeps between tests
    DOZE_US = 50,
    MEANWHILE_US = 50,  // between looks at messages during a computation
};

static struct {
    bool started;
    long rank, ranks;
    char (*host)[HOST_LENGTH];
    double patience;
    struct traffic traffic[CHANNELS];
    struct transfer *open; // not yet waited for
} world = {.ranks = 1, .patience = 120};

struct transfer {
    enum channel channel;
    int n, done; // requests, and how many of the first ones are done
    struct transfer *next, **link; // in the list of open ones
    MPI_Request *request;
    int *peer; // of each request, for who is late
};

// ---- life ----

// What mpirun, mpiexec (Open MPI, MPICH) and srun leave in the environment of the ranks they start.
static bool launched(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (getenv(names[i])) return true;
    return false;
}

static void must(int code, const char *call)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length;
    if (code == MPI_SUCCESS) return;
    MPI_Error_string(code, text, &length);
    transport_end("%s failed: %.300s", call, text);
}

const char *transport_library(void)
{
    static char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    must(MPI_Get_library_version(text, &length), "MPI_Get_library_version"); // works before MPI_Init, too
    return text;
}

static enum status gather_hosts(void)
{
    char own[HOST_LENGTH] = "";
    if (gethostname(own, sizeof own - 1) != 0) snprintf(own, sizeof own, "unknown");
    world.host = calloc((size_t)world.ranks, sizeof *world.host);
    if (!world.host) return fail(ERR_MEMORY, "memory: the names of %ld hosts were refused", world.ranks);
    must(MPI_Allgather(own, HOST_LENGTH, MPI_CHAR, world.host, HOST_LENGTH, MPI_CHAR, MPI_COMM_WORLD), "MPI_Allgather");
    return OK;
}

enum status transport_open(void)
{
    int level, rank, ranks;
    if (world.started || !launched()) return OK;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level) != MPI_SUCCESS || level < MPI_THREAD_FUNNELED)
        return fail(ERR_COMM, "MPI: cannot be started for one thread of a threaded program (use another MPI library)");
    world.started = true;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    world.rank = rank;
    world.ranks = ranks;
    return gather_hosts();
}

void transport_close(void)
{
    if (!world.started) return;
    MPI_Finalize();
    free(world.host);
    memset(&world, 0, sizeof world);
    world.ranks = 1;
}

long transport_rank(void) { return world.rank; }
long transport_ranks(void) { return world.ranks; }
const char *transport_host(long rank) { return world.host ? world.host[rank] : "this host"; }
bool transport_near(long rank) { return !world.host || strcmp(world.host[rank], world.host[world.rank]) == 0; }
void transport_patience(double seconds) { world.patience = seconds; }

struct traffic transport_traffic(enum channel channel)
{
    return world.traffic[channel];
}

void transport_abort(int code)
{
    fflush(NULL);
    if (world.started) MPI_Abort(MPI_COMM_WORLD, code);
    _exit(code);
}

void transport_end(const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (alive_first_word()) log_error("skymoe%s%s: %s", *log_command() ? " " : "", log_command(), text);
    transport_abort(1);
}

// ---- transfers ----

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static long pieces_of(const struct message *m, long n)
{
    long pieces = 0;
    for (long i = 0; i < n; i++) pieces += (m[i].bytes + PIECE - 1) / PIECE;
    return pieces;
}

static void start_one(struct transfer *t, const struct message *m, bool send)
{
    struct traffic *count = &world.traffic[t->channel];
    int tag = (int)t->channel, peer = (int)m->peer;
    for (long at = 0; at < m->bytes; at += PIECE) {
        int bytes = (int)(m->bytes - at < PIECE ? m->bytes - at : PIECE);
        char *data = (char *)m->data + at;
        MPI_Request *r = &t->request[t->n];
        t->peer[t->n++] = peer;
        if (send) {
            *(transport_near(peer) ? &count->near_bytes : &count->far_bytes) += bytes;
            must(MPI_Isend(data, bytes, MPI_BYTE, peer, tag, MPI_COMM_WORLD, r), "MPI_Isend");
        } else {
            must(MPI_Irecv(data, bytes, MPI_BYTE, peer, tag, MPI_COMM_WORLD, r), "MPI_Irecv");
        }
    }
}

static void list_add(struct transfer *t)
{
    t->next = world.open;
    t->link = &world.open;
    if (t->next) t->next->link = &t->next;
    world.open = t;
}

static void list_remove(struct transfer *t)
{
    *t->link = t->next;
    if (t->next) t->next->link = t->link;
}

struct transfer *transfer_start(enum channel channel, const struct message *send, long sends,
                                const struct message *receive, long receives)
{
    long n = pieces_of(send, sends) + pieces_of(receive, receives);
    if (n == 0) return NULL;
    CHECK(world.started);
    struct transfer *t = malloc(sizeof *t + (size_t)n * (sizeof *t->request + sizeof *t->peer));
    if (!t) transport_end("memory: the list of %ld messages was refused", n);
    *t = (struct transfer){.channel = channel, .request = (MPI_Request *)(t + 1)};
    t->peer = (int *)(t->request + n);
    list_add(t);
    for (long i = 0; i < receives; i++) start_one(t, &receive[i], false); // receives first: nothing needs a copy then
    for (long i = 0; i < sends; i++) start_one(t, &send[i], true);
    return t;
}

bool transfer_test(struct transfer *t)
{
    int done = 1;
    // One by one: gcc takes MPICH's MPI_STATUSES_IGNORE for an array that is too short.
    for (; t && t->done < t->n && done; t->done += done)
        must(MPI_Test(&t->request[t->done], &done, MPI_STATUS_IGNORE), "MPI_Test");
    return done;
}

// A rank this transfer still waits for.
static long late_rank(const struct transfer *t)
{
    for (int i = 0; i < t->n; i++) {
        int done = 0;
        if (t->request[i] != MPI_REQUEST_NULL && MPI_Request_get_status(t->request[i], &done, MPI_STATUS_IGNORE) == 0 &&
            !done)
            return t->peer[i];
    }
    return t->peer[0];
}

void transfer_wait(struct transfer *t)
{
    if (!t) return;
    double begin = now(), look = 1; // after so many seconds at who is waited for
    for (long spins = 0; !transfer_test(t); spins++) {
        if (spins < SPINS) continue;
        double waited = now() - begin;
        if (waited * 1e3 > DOZE_AFTER_MS) usleep(DOZE_US);
        else sched_yield();
        if (waited < look) continue;
        look = waited + 1;
        alive_waits(late_rank(t)); // what others who wait for this rank will read
        alive_judge(late_rank(t), world.patience);
    }
    alive_waits(-1);
    world.traffic[t->channel].waited_s += now() - begin;
    list_remove(t);
    free(t);
}

// MPI moves everything whichever transfer is asked about.
void transport_meanwhile(void)
{
    static double next;
    double time = now();
    if (time < next) return;
    for (struct transfer *t = world.open; t && transfer_test(t);) t = t->next;
    alive_beat();
    next = time + 1e-6 * MEANWHILE_US;
}
