// Bytes of a rank: how much a stage takes, as a sum of parts that do not depend on how many layers it has. They come
// from the layout functions that reserve a run's arenas (model/), in measuring mode.
#ifndef SKYMOE_PLAN_MEMORY_H
#define SKYMOE_PLAN_MEMORY_H

#include "model/model.h"
#include "plan/cost.h"

struct rank_bytes {
    double parameters, gradients, optimizer, saved, scratch;
};
struct memory {
    struct rank_bytes layer, first, last; // parameters, gradients, optimizer; saved and scratch are below
    double kept[2];                       // saved values of a layer and slot: of one that keeps all, that recomputes
    double shared;                        // scratch that recomputing layers share
    double scratch;                       // of any stage
};
// What was measured before, for a search that asks for thousands of layouts of one model and micro-batch; start with
// zeros.
struct memory_cache {
    struct measured {
        bool known;
        long tp, ep, etp;
        enum recompute level;
        double kept[2], shared, scratch;
    } slot[1 << 12];
};
// cache may be NULL. Fails as model_measure does.
MUST_USE enum status memory_of(struct memory *m, const struct run *r, struct memory_cache *cache);

// A stage: the layers of all its chunks, of which so many recompute; and the sums over its layers of the micro-batches
// they hold at the same time (pipeline_slots): of those that keep all, of those that recompute, and of gradients that
// wait for W.
struct stage_shape {
    long layers, recompute;
    long held[2], waiting;
    bool first, last;
};
struct rank_bytes memory_stage(const struct memory *m, const struct stage_shape *s);
double memory_total(const struct rank_bytes *b);

#endif
