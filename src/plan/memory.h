// Bytes of a rank: how much a stage takes, as a sum of parts that do not depend on how many layers it has. They come
// from the layout functions that reserve a run's arenas (model/, parallel/), in measuring mode: a few small stages are
// measured, and differences say what a layer, a micro-batch in flight and so on add.
#ifndef SKYMOE_PLAN_MEMORY_H
#define SKYMOE_PLAN_MEMORY_H

#include "parallel/schedule.h"
#include "plan/cost.h"

struct rank_bytes {
    double parameters, gradients, optimizer, saved, scratch;
};

// What one rank of a stage needs. Scratch is everything that comes and goes: the model's, the room in which gradients
// of other ranks arrive, and messages.
struct rank_memory {
    struct rank_bytes layer;       // that a layer adds, but for saved values
    struct rank_bytes place[2][2]; // [first stage][last stage]: the rest, with one batch
    double kept[RECOMPUTE_FULL + 1];   // saved values of a layer and slot that recomputes so much
    double shared[RECOMPUTE_FULL + 1]; // scratch that such layers share
    double waiting;                // gradients of a layer and slot between the halves of backward
    double batch;                  // scratch of each further batch
};
// A stage needs what its fullest rank does, and that may depend on the stage; here are all that no other outdoes in
// everything. Where there is no room for them, the last one stands for several and has the most of each.
enum { MEMORY_RANKS = 8 };
struct memory {
    enum recompute level; // of the layers that recompute
    long n;
    struct rank_memory rank[MEMORY_RANKS];
};
// What was measured before, for a search that asks for thousands of layouts of one model and micro-batch; start with
// zeros.
struct memory_cache {
    struct measured {
        bool known, alone; // alone: one stage
        long dp, tp, ep, etp;
        struct memory memory;
    } slot[1 << 12];
};
// cache may be NULL. Fails as model_measure does.
MUST_USE enum status memory_of(struct memory *m, const struct run *r, struct memory_cache *cache);

// A stage: the layers of all its chunks, of which so many recompute; the sums over its layers of the micro-batches they
// hold at the same time (pipeline_slots): of those that keep all, of those that recompute, and of gradients that wait
// for W; its batches; and bytes of messages.
struct stage_shape {
    long layers, recompute;
    long held[2], waiting;
    long batches, messages;
    bool first, last;
};
struct rank_bytes memory_stage(const struct memory *m, const struct stage_shape *s);
double memory_total(const struct rank_bytes *b);
// Of a stage's messages: for its shape.
long memory_messages(const struct run *r, const struct pipeline_schedule *s);

#endif
