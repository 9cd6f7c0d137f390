// Options that say who holds what, turned into a layout; the same for `train` and `plan`.
#ifndef SKYMOE_TRAIN_LAYOUT_H
#define SKYMOE_TRAIN_LAYOUT_H

#include "model/block.h"
#include "parallel/schedule.h"

struct layout_options {
    long tp, pp, ep, etp, virtual_stages; // ep, etp 0: as expert_parallel says
    const char *expert_parallel, *layer_split, *head_split, *ffn_split, *expert_split, *device_weights;
    const char *schedule, *recompute, *recompute_layers;
    long exchange_chunks, zero;
};

// With the lists that it points to. Must stay where it is.
struct run_layout {
    struct layout layout;
    enum pipeline_kind schedule;
    enum recompute recompute;
    long *list[AXES];    // given splits
    long *recompute_layers; // [PP], first layers of each stage that recompute; NULL: all of them
    bool best_layers, best_recompute; // auto: the planner's choice is still to come
};
// ERR_CONFIG names the option: what layout_check refuses, lists of another length than the axis has parts.
MUST_USE enum status run_layout_make(struct run_layout *r, const struct layout_options *o, const struct config *c,
                                     long ranks);
void run_layout_free(struct run_layout *r);
// The sizes alone, for a search that chooses the rest: expert_parallel, ep and etp applied to pp, dp and tp.
struct layout run_layout_sizes(const struct layout_options *o, const struct config *c, long ranks);

// "1,2,4" -> numbers (the caller frees); `option` names the option in messages. ERR_CONFIG.
MUST_USE enum status long_list(long **list, long *n, const char *text, const char *option, long min, long max);

#endif
