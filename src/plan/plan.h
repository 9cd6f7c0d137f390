// A plan: does a run fit, how long does a step take, and of what is that time made up. The same run may be planned with
// its own lists of layers and recomputing layers, or with the best ones (split.h).
#ifndef SKYMOE_PLAN_PLAN_H
#define SKYMOE_PLAN_PLAN_H

#include "plan/split.h"

struct stage_plan {
    long layers, recompute;
    struct rank_bytes bytes; // of the stage's fullest rank
    double forward_s, backward_s; // of one micro-batch, all chunks
    double busy_s;                // of a step's pipeline
};

struct plan {
    struct run run;
    struct split split;
    struct stage_plan *stage;  // [PP]
    long micro_batches;        // rounds of a step
    double limit;              // bytes of a rank
    bool fits;
    double over_bytes;         // of the fullest stage over the limit; negative: room that is left
    double pipeline_s, bubble; // until the last stage's end, and the share of it that stages were idle
    double step_s, tokens_per_s, mfu;
    // Of a step: mean of the stages' times for what stages do, once for what all wait for. The sum is step_s.
    struct times terms;
    struct simulator sim;      // the last run of it, with events when asked for
};

// ERR_CONFIG: what layout_check and pipeline_check refuse, and more ranks than the cluster has devices.
MUST_USE enum status run_check(const struct run *r);

struct plan_wishes {
    bool best_layers, best_recompute; // --layer-split auto, --recompute-layers auto: both at once
    double effort;                    // of split_best; 0: SPLIT_EFFORT
    bool record;                      // keep the events
    double limit;                     // bytes of a rank; 0: what a device has
};
MUST_USE enum status plan_make(struct plan *p, const struct run *r, const struct plan_wishes *w);
void plan_free(struct plan *p);

// The best lists for a trainer, which knows no cluster: FLOPs are its clock. limit 0: none. *fits as in split_best.
// recompute NULL where the run recomputes nothing.
MUST_USE enum status plan_split(struct split *s, bool *fits, const struct run *r, double limit);

// What a plan takes for granted, one sentence each; NULL after the last. Depends on the run.
enum { ASSUMPTION_TEXT = 256 };
const char *plan_assumption(char text[ASSUMPTION_TEXT], const struct run *r, long index);

#endif
