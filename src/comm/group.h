// A group of ranks and what they do together. One process is a group of one rank, for which every collective is the
// identity: the single-process program is the parallel program.
#ifndef SKYMOE_COMM_GROUP_H
#define SKYMOE_COMM_GROUP_H

#include "comm/transport.h"

// Members are the world ranks first, first + stride, ... and, from member `run` on, the same again `jump` further.
struct group {
    const char *name; // "tensor", "data", "expert" ... for messages
    enum channel channel;
    long size;
    long rank;        // this process within the group
    long first, stride, run, jump;
};

struct group group_of(const char *name, enum channel channel, long first, long stride, long size, long rank);
long group_world_rank(const struct group *g, long member);

// All ranks of g must call each of these, in the same order; data is host memory. A rank that does not answer in time
// ends the job (transport.h).

// x = sum over ranks, in rank order on every rank.
void group_sum_f32(const struct group *g, float *x, long n);
void group_sum_f64(const struct group *g, double *x, long n);
void group_sum_long(const struct group *g, long *x, long n);
void group_max_long(const struct group *g, long *x, long n);

// parts [size][bytes]: each rank has written its own part; afterwards every rank has all.
void group_gather(const struct group *g, void *parts, long bytes);
void group_broadcast(const struct group *g, void *data, long bytes); // from member 0
void group_barrier(const struct group *g);

// What any rank of the world failed with, all ranks fail with: the status of the lowest one, and its sentence. Rank 0
// prints it (agreed() tells main that it need not end the others).
MUST_USE enum status agree(enum status own);
bool agreed(void);

#endif
