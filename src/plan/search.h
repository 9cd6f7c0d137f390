// All layouts of a number of devices: sizes of both meshes, schedules and levels of recompute, each with an even split
// of the layers; the best are planned again with their best splits.
#ifndef SKYMOE_PLAN_SEARCH_H
#define SKYMOE_PLAN_SEARCH_H

#include "plan/plan.h"

enum { SEARCH_BEST = 10 };
#define SEARCH_EFFORT 1e6 // of each of the best

struct candidate {
    struct run run;         // its lists are those of plan_make with best_layers and best_recompute
    double seconds;         // of a step
    double bytes;           // of the fullest rank
};
struct search_result {
    struct candidate best[SEARCH_BEST]; // fastest first
    long n;                 // of them
    long tried, fitting;    // layouts with schedule and recompute; those that fit
    double least_bytes;     // of the fullest rank of the layout that needs least, fitting or not
};
// base: everything but layout, schedule and recompute. Layouts of exactly `devices` ranks; bytes of a rank at most
// `limit` (0: what a device has). ERR_MEMORY.
MUST_USE enum status plan_search(struct search_result *result, const struct run *base, long devices, double limit);

#endif
