// Who holds what. Two meshes over the same ranks [Skywork-MoE report, App. B]:
//
//     attention, norms, embedding, head    [pipeline, data, tensor]
//     experts                              [pipeline, replica, expert, expert tensor]
//
// Rank = (pp * DP + dp) * TP + tp; within a stage q = dp * TP + tp = (replica * EP + ep) * ETP + etp. Whatever is split
// is split by a partition list, never by an integer division: nothing has to divide.
#ifndef SKYMOE_COMM_GRID_H
#define SKYMOE_COMM_GRID_H

#include <stdbool.h>

#include "comm/group.h"

struct range {
    long first, count;
};

// n items over `parts`: n divmod parts, the first n % parts get one more.
struct range partition(long n, long parts, long index);

// What is split, and over which ranks.
enum axis {
    AXIS_LAYER,      // over stages; with virtual stages part v * PP + pp is chunk v of stage pp
    AXIS_HEAD,       // query heads: tensor group (kv heads follow, see local_of)
    AXIS_FFN,        // columns of the dense ffn: tensor group
    AXIS_VOCAB,      // rows of embedding and head: tensor group
    AXIS_EXPERT,     // expert group
    AXIS_EXPERT_FFN, // columns of an expert: expert tensor group
    AXES
};

// The sizes of both meshes. Plain numbers: copied freely; `given` lists are not owned.
struct layout {
    long pp, dp, tp;     // attention mesh
    long ep, etp;        // expert mesh; dp * tp / (ep * etp) replicas
    long virtual_stages; // layer chunks of each stage; 1 unless interleaved
    const long *given[AXES]; // items of each part (layout_parts of them); NULL: partition()
};
extern const struct layout layout_of_one;

long layout_ranks(const struct layout *l);                 // PP * DP * TP
long layout_parts(const struct layout *l, enum axis axis); // how many parts an axis has
// Part `index` of `items` items along an axis.
struct range layout_range(const struct layout *l, enum axis axis, long items, long index);

// Refuses what cannot be: sizes that contradict each other or `ranks`, lists that do not add up, more stages than
// layers, more expert ranks than experts. ERR_CONFIG names the option and the allowed values.
MUST_USE enum status layout_check(const struct layout *l, const long items[AXES], long ranks);

struct grid {
    struct layout layout;
    long pp, dp, tp, ep, etp, replica; // this rank's coordinates
    struct group world, pipeline, data, tensor, expert, expert_tensor, replicas;
    struct group plane; // DP x TP of this stage: norms and router are the same on all of them
    struct group tied;  // DP x {first, last stage}: who holds a tied embedding's rows; this rank alone elsewhere
};
struct grid grid_of_one(void);
// The grid seen from `rank` (any rank: the planner looks from each). The layout has passed layout_check.
struct grid grid_of(const struct layout *l, long rank);

#endif
