// Options that say who holds what, turned into a layout; the same for `train` and `plan`.
#ifndef SKYMOE_TRAIN_LAYOUT_H
#define SKYMOE_TRAIN_LAYOUT_H

#include "base/setting.h"
#include "model/block.h"
#include "parallel/schedule.h"

struct layout_options {
    long tp, pp, ep, etp, virtual_stages; // ep, etp 0: as expert_parallel says
    const char *expert_parallel, *layer_split, *head_split, *ffn_split, *expert_split, *device_weights;
    const char *schedule, *recompute, *recompute_layers;
    long exchange_chunks, zero;
};

// Their rows in a table of settings but for the tensor-parallel size, whose default differs; `at` gives the offset of a
// field, layout.FIELD, in the command's options.
#define LAYOUT_SETTINGS(at)                                                                                            \
    {"pipeline-parallel-size", SETTING_LONG, at(layout.pp), "1", 1, 4096, NULL,                                        \
     "stages of layers; what is left of the ranks is data-parallel"},                                                  \
    {"expert-parallel", SETTING_CHOICE, at(layout.expert_parallel), "edp", 0, 0, "edp|ep|etp",                         \
     "who shares the experts: the tensor group; all ranks of a stage; the data group, each expert cut over the tensor "\
     "group"},                                                                                                         \
    {"expert-parallel-size", SETTING_LONG, at(layout.ep), "0", 0, 1 << 20, NULL,                                       \
     "overrides that: ranks that share the experts"},                                                                  \
    {"expert-tensor-parallel-size", SETTING_LONG, at(layout.etp), "0", 0, 1 << 20, NULL,                               \
     "overrides that: slices of each expert"},                                                                         \
    {"layer-split", SETTING_TEXT, at(layout.layer_split), NULL, 0, 0, NULL,                                            \
     "layers of each stage, like 6,6,6,5; auto: the planner's choice"},                                                \
    {"head-split", SETTING_TEXT, at(layout.head_split), NULL, 0, 0, NULL, "heads of each tensor rank"},                \
    {"ffn-split", SETTING_TEXT, at(layout.ffn_split), NULL, 0, 0, NULL, "ffn columns of each (expert) tensor rank"},   \
    {"expert-split", SETTING_TEXT, at(layout.expert_split), NULL, 0, 0, NULL, "experts of each expert rank"},          \
    {"device-weights", SETTING_TEXT, at(layout.device_weights), NULL, 0, 0, NULL,                                      \
     "relative speed of each tensor rank: everything it shares is split in that proportion"},                          \
    {"pipeline-schedule", SETTING_CHOICE, at(layout.schedule), "1f1b", 0, 0, "1f1b|interleaved|zero-bubble",           \
     "order of a step"},                                                                                               \
    {"virtual-stages", SETTING_LONG, at(layout.virtual_stages), "1", 1, 64, NULL,                                      \
     "interleaved: chunks of layers of each stage"},                                                                   \
    {"recompute", SETTING_CHOICE, at(layout.recompute), "none", 0, 0, "none|moe|full",                                 \
     "what backward computes again instead of keeping it"},                                                            \
    {"recompute-layers", SETTING_TEXT, at(layout.recompute_layers), NULL, 0, 0, NULL,                                  \
     "first layers of a stage that recompute, like 4,2,0; one number for all stages; or auto; default: all"},          \
    {"exchange-chunks", SETTING_LONG, at(layout.exchange_chunks), "4", 1, MOST_CHUNKS, NULL,                           \
     "pieces in which rows go to the experts of other ranks: one travels while another is worked on"},                 \
    {"zero", SETTING_LONG, at(layout.zero), "1", 0, 1, NULL,                                                           \
     "1: the optimizer's state is spread over the ranks that hold the same"},

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
// The layout that the checkpoint `path` was stored with, for a run that is resumed without naming one (`o` has the
// defaults): ERR_CONFIG where so many ranks cannot have it, naming some that they can.
MUST_USE enum status run_layout_kept(const struct layout_options *stored, const struct layout_options *o,
                                     const struct config *c, long ranks, const char *path);
// The sizes alone, for a search that chooses the rest: expert_parallel, ep and etp applied to pp, dp and tp.
struct layout run_layout_sizes(const struct layout_options *o, const struct config *c, long ranks);

// "1,2,4" -> numbers (the caller frees); `option` names the option in messages. ERR_CONFIG.
MUST_USE enum status long_list(long **list, long *n, const char *text, const char *option, long min, long max);

#endif
