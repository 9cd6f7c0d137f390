// ZeRO-1 [Rajbhandari et al., 2020]: gradients are summed over the ranks that hold the same part of the model, each
// element by the one rank of the world that owns it; the owner has its master weight and moments, updates it and tells
// the others. The ranks that hold a part: dense slices the data group, norms and router the whole stage, experts their
// replicas, a tied embedding the data groups of first and last stage.
//
// Tensors of one layer and one such group form buckets, whose elements are divided evenly by position; the buckets of a
// layer start to travel when backward has finished it. Sums are in rank order, so they do not depend on time. A rank
// alone has whole tensors and nothing travels.
#ifndef SKYMOE_PARALLEL_ZERO_H
#define SKYMOE_PARALLEL_ZERO_H

#include "model/model.h"

// A run of elements of one tensor: who has optimizer state for it here, and where.
struct zero_piece {
    const struct param *param;
    long from, n;     // elements [from, from + n) of what this rank holds of it
    bool owned;       // by this rank (--zero 0: state of all is here, but each piece is owned once)
    acc *master;      // NULL where the value itself is acc
    acc *m, *v;
};

struct zero_options {
    bool spread;      // false: every holder keeps all optimizer state (--zero 0)
};

struct zero {
    struct model *m;
    struct zero_options o;
    struct bucket *bucket;
    long buckets;
    struct zero_piece *piece; // in the order of buckets
    long pieces;
    long *of_layer;           // [local layers + 1] first bucket of each layer; those after are model-wide
    double *squares;          // [tensors of the whole model]
    struct arena optimizer, room;
    struct reduction *flying; // started and not yet summed
    long flying_n;
};

// For a model made for training. ERR_MEMORY.
MUST_USE enum status zero_init(struct zero *z, struct model *m, const struct zero_options *o);
void zero_free(struct zero *z);
struct zero_bytes {
    long optimizer, room;
};
// What zero_init would reserve for that model (its layout is enough: nothing of it need be reserved).
MUST_USE enum status zero_measure(struct zero_bytes *bytes, struct model *m, const struct zero_options *o);

// Masters from the same draw as the values (model_init_weights), before rounding.
void zero_init_masters(struct zero *z, const struct init_rule *rule);

// The gradients of that layer are complete (model.layer_done). Then all the others'.
void zero_layer(struct zero *z, long local_layer);
void zero_reduce(struct zero *z);

// After zero_reduce: norm of all gradients of the model, the same on every rank: f64 sums over fixed blocks of each
// piece, added in the order of the table. Not finite exactly when some gradient is not.
double zero_norm(struct zero *z);
// Index (of the whole model's list) of the first tensor with a NaN or infinity; -1: none.
long zero_not_finite(const struct zero *z);

// One AdamW step on what is here, with s.weight_decay for tensors that decay; then values go to all holders.
void zero_update(struct zero *z, struct adamw_step s);
// --dump-gradients, checkpoints: summed gradients are whole on their owner only. The gradient of a piece.
acc *zero_gradient(const struct zero *z, const struct zero_piece *p);

#endif
