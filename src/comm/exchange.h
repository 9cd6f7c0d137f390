// Rows that change ranks inside a layer: tokens over the tensor group, rows of experts over the expert group.
//
// All ranks of the group must call each, in the same order. None returns a status: a rank that does not answer in time
// ends the job with a sentence of its own. In a group of one nothing moves, and the data stays where it is.
#ifndef SKYMOE_COMM_EXCHANGE_H
#define SKYMOE_COMM_EXCHANGE_H

#include "comm/group.h"
#include "kernels/dtype.h"

// x holds T rows, of which each rank has written its own range (partition); afterwards every rank has all of them.
void exchange_gather(struct group *g, void *x, long T, long row_bytes);

// x holds T rows, of each of which every rank has a part of the sum; afterwards a rank's own range holds the sum over
// the ranks, in rank order.
void exchange_reduce(struct group *g, void *x, long T, long columns, enum dtype dtype);

// Rows sorted by expert, first[e] .. first[e+1]-1 of expert e, go to the ranks that hold the experts, and come back.
void exchange_dispatch(struct group *g, void *rows, const long *first, long E, long row_bytes);
void exchange_return(struct group *g, void *rows, const long *first, long E, long row_bytes);

// x (host) = sum over ranks, in rank order.
void exchange_sum(struct group *g, void *x, long n, enum dtype dtype);

#endif
