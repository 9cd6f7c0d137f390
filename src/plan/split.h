// How many layers each stage takes and how many of them it recomputes: given lists turned into times and bytes of
// stages, and the best lists under a memory limit.
//
// A step never gets faster when a part gets slower (simulate.h), so for given layers each stage recomputes as few as
// fit. Up to EXHAUSTIVE_LAYERS layers every list is simulated. Above, the list that minimises sum t + (m - 1) max t
// (what 1f1b takes at most, and just that when its last stage is among the slowest) is improved by moving single
// layers as long as a simulation agrees.
#ifndef SKYMOE_PLAN_SPLIT_H
#define SKYMOE_PLAN_SPLIT_H

#include "plan/memory.h"
#include "plan/simulate.h"

enum { EXHAUSTIVE_LAYERS = 12, MOST_PARTS = 4096 };

struct split {
    long layers[MOST_PARTS];    // of each virtual stage, chunk * stages + stage
    long recompute[MOST_PARTS]; // of each stage: its first so many
};

// What lists are judged by.
struct split_task {
    struct pipeline p;
    long layers;
    struct part_times layer, again, first, last; // again: joins `input` of a layer that recomputes
    const double *message;                       // [stages]
    const struct run *run;
    bool keep_layers;                            // only the recomputing layers are free
    bool may_recompute;
    struct memory memory;
    double limit;                                // bytes of a rank; 0: none
};
// Fails as memory_of does; cache as there.
MUST_USE enum status split_task_of(struct split_task *t, const struct run *r, const struct costs *costs,
                                   const double *message, double limit, struct memory_cache *cache);

// The split that a run's own lists say.
void split_given(struct split *s, const struct run *r);
// Times of the virtual stages [stages * chunks]; what a stage holds whose schedule that is.
void split_times(struct part_times *part, const struct split_task *t, const struct split *s);
struct stage_shape split_shape(const struct split_task *t, const struct split *s, const struct pipeline_schedule *list);

// *fits is false where no list fits: then s has as few recomputing layers as the even split needs, or all of them.
// effort: actions that may be simulated to improve the estimate (SPLIT_EFFORT: about two seconds). ERR_MEMORY.
#define SPLIT_EFFORT 1e8
MUST_USE enum status split_best(struct split *s, bool *fits, const struct split_task *t, double effort);

#endif
