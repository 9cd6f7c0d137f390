// Bytes between the processes of a job. MPI is behind it (mpi.c, the only file that knows); a program that was not
// started by mpirun, srun or `skymoe launch` is a world of one and never starts MPI.
//
// There is no status to handle: a peer that neither answers nor shows progress in its heartbeat (alive.h) within the
// patience ends the job with a sentence naming rank, host and phase. Everything here is called by one thread.
#ifndef SKYMOE_COMM_TRANSPORT_H
#define SKYMOE_COMM_TRANSPORT_H

#include <stdbool.h>

#include "base/status.h"

// Messages of different channels do not overtake one another; of one channel, they arrive in the order they were
// started. What is in flight at the same time between the same two ranks goes by different channels.
enum channel {
    CHANNEL_WORLD, CHANNEL_PIPELINE, CHANNEL_PIPELINE_BACK, CHANNEL_DATA, CHANNEL_TENSOR, CHANNEL_EXPERT,
    CHANNEL_EXPERT_TENSOR, CHANNEL_REPLICA, CHANNEL_PLANE, CHANNEL_TIED, CHANNELS
};

MUST_USE enum status transport_open(void);
void transport_close(void);
const char *transport_library(void); // "Open MPI v4.1.4 ...": whose mpirun starts this program
long transport_rank(void);
long transport_ranks(void);
const char *transport_host(long rank);       // its name
bool transport_near(long rank);              // on this host
void transport_patience(double seconds);     // --comm-timeout

struct message {
    long peer;  // world rank
    void *data; // device memory the transport can reach (CPU: any)
    long bytes; // 0: nothing is sent
};

// Starts everything; data stays untouched until the transfer is done. The two lists name each message of this rank and
// need not outlive the call. transfer_wait releases.
struct transfer;
struct transfer *transfer_start(enum channel channel, const struct message *send, long sends,
                                const struct message *receive, long receives);
bool transfer_test(struct transfer *t); // makes progress; true when done
void transfer_wait(struct transfer *t);
// Progress of all that is under way, and a sign of life: what kernels call meanwhile (kernels.h). Cheap when called
// often.
void transport_meanwhile(void);

// What this rank has sent since the start, and how long it waited in transfer_wait.
struct traffic {
    long near_bytes, far_bytes; // to ranks of this host, to others
    double waited_s;
};
struct traffic transport_traffic(enum channel channel);

// Ends every rank of the job; `end` first says why, unless another rank has said so already.
_Noreturn void transport_abort(int code);
_Noreturn void transport_end(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
