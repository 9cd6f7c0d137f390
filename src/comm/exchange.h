// Rows that change ranks inside a layer: tokens over the tensor group, rows of experts over the expert group and the
// expert tensor group.
//
// All ranks of the group must call each, in the same order. None returns a status: a rank that does not answer in time
// ends the job with a sentence of its own (transport.h). In a group of one nothing moves and no room is needed.
#ifndef SKYMOE_COMM_EXCHANGE_H
#define SKYMOE_COMM_EXCHANGE_H

#include "comm/grid.h"
#include "kernels/kernels.h"

// ---- tokens ----

// A micro-batch's T rows, of which each rank has its own range (partition): all of them in `room` [T rows]. Returns
// where they are: `own` itself in a group of one. own may lie at its place in room.
void *tokens_gather(const struct group *g, const struct kernels *k, const void *own, void *room, long T,
                    long row_bytes);

// The other way: every rank has a part of the sum of all T rows [T, columns]. own (its range) = the sum over the ranks,
// in rank order. others: room for the other ranks' parts of it [(ranks - 1) own, columns]. In a group of one own is
// part already.
void tokens_reduce(const struct group *g, const struct kernels *k, void *own, void *part, void *others, long T,
                   long columns, enum dtype dtype);

// ---- rows of experts ----

enum { MOST_CHUNKS = 8 };

// Who sends how many rows of which expert. A rank's own rows lie sorted by expert; those that came to it lie sorted by
// its expert, then by the expert tensor rank that gathered them, then by the sender: `bounds` delimits them.
struct row_plan {
    const struct group *expert, *slices;
    long E, local;        // experts of the model, and of this rank
    long chunks;          // by ranges of local experts
    long *own;            // [E + 1] first own row of each expert
    long *first_of;       // [expert ranks + 1] first expert of each rank
    long *bounds;         // [local, expert tensor ranks, expert ranks + 1] first row of each block here, and its end
    long *first;          // [local + 1] first row of each local expert
    long rows;            // here, all of them
    long *sent, *counts;  // [E], [expert tensor ranks, expert ranks, local]: work space of row_plan_make
};
// Two-pass layout (arena.h) of the lists.
void row_plan_layout(struct row_plan *p, struct arena *host, const struct grid *g, long E, long local);
// Tells the others this rank's counts (own first rows [E + 1]) and learns theirs.
void row_plan_make(struct row_plan *p, const struct grid *g, const long *first, long E, long chunks);
// Local experts of a chunk, and its rows.
struct range row_chunk_experts(const struct row_plan *p, long chunk);
struct range row_chunk_rows(const struct row_plan *p, long chunk);

// Own rows [own rows, row bytes] of the chunk's experts travel to `here`, or (back) from there. Then the ranks that
// hold slices of the same experts share what came: rows_share; and before returning they add up their parts: rows_sum.
struct transfer *rows_start(const struct row_plan *p, const struct kernels *k, const void *own, void *here,
                            long row_bytes, long chunk);
struct transfer *rows_return_start(const struct row_plan *p, const struct kernels *k, void *own, const void *here,
                                   long row_bytes, long chunk);
void rows_share(const struct row_plan *p, void *here, long row_bytes, long chunk);
// room: [expert tensor ranks - 1] times the chunk's rows.
void rows_sum(const struct row_plan *p, const struct kernels *k, void *here, void *room, long columns,
              enum dtype dtype, long chunk);

#endif
