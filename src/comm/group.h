// A group of ranks and what they do together. One process is a group of one rank, for which every collective is the
// identity: the single-process program is the parallel program.
#ifndef SKYMOE_COMM_GROUP_H
#define SKYMOE_COMM_GROUP_H

#include "base/status.h"

struct group {
    const char *name; // "tensor", "data", "expert" ... for messages
    long size;
    long rank;        // this process within the group
};

struct group group_of_one(const char *name);

// All ranks of g must call each of these, in the same order.
MUST_USE enum status group_sum_f32(struct group *g, float *x, long n);   // x = sum over ranks, in rank order
MUST_USE enum status group_sum_f64(struct group *g, double *x, long n);
MUST_USE enum status group_sum_long(struct group *g, long *x, long n);

#endif
