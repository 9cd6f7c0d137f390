// One transformer layer: attention, then dense ffn or mixture of experts, each with its residual.
//
// Recompute is a property of where saved values lie: those that a level drops share one place among all recomputing
// layers, and backward first fills it again for its layer by the same forward functions. Routing decisions are always
// kept, so what is recomputed is the same bit for bit.
#ifndef SKYMOE_MODEL_BLOCK_H
#define SKYMOE_MODEL_BLOCK_H

#include "model/ffn.h"
#include "model/moe.h"

enum recompute {
    RECOMPUTE_NONE,
    RECOMPUTE_MOE,  // what the experts (or the dense ffn) need
    RECOMPUTE_FULL, // everything but the layer's input and its routing decisions
};

// What one (layer, slot) keeps; slot = micro-batch in flight.
struct block_saved {
    el *in;                       // [own, D] the block's input
    el *mid;                      // [own, D] after attention
    struct attention_saved attn;
    struct ffn_saved ffn;         // dense
    struct moe_saved moe;         // E > 0
};
// shared: where dropped values lie.
void block_saved_layout(struct block_saved *s, enum recompute level, struct arena *saved, struct arena *shared,
                        struct arena *host, const struct context *x, long T, long groups);

// Gradients of what a layer keeps. Where backward is parted in two, the weights' half reads them later, so each (layer,
// slot) that waits has its own; else all layers share one.
struct block_gradients {
    el *dy;               // [own, D] of the block's output
    struct block_saved d; // of saved values; d.in is that of the block's input
    el *rows;             // [rows here, D] of the experts' results
    el *dy_all, *mid_all; // [T, D] gathered dy and d.mid; NULL in groups of one
};
void block_gradients_layout(struct block_gradients *g, struct arena *a, struct arena *host, const struct context *x,
                            long T);

// What the layers use in turn.
struct block_scratch {
    el *out;   // [own, D] a half's result before the residual
    el *rows;  // [rows here, D] the experts' results
    acc *dxn;  // [own, D] for backward
};
void block_scratch_layout(struct block_scratch *s, struct arena *a, const struct context *x, long T, bool backward);

// From s->in to y. balance NULL: no statistics, no auxiliary loss.
void block_forward(const struct context *x, const struct layer_params *p, const struct moe_rule *rule,
                   struct moe_balance *balance, struct block_saved *s, el *y, const struct batch *b,
                   struct block_scratch *scratch);
void block_recompute(const struct context *x, const struct layer_params *p, enum recompute level, struct block_saved *s,
                     const struct batch *b, struct block_scratch *scratch);
// From d->dy to dx, the gradient of the block's input; the rest of d is read by the weights' half, which adds to the
// gradients in g (+=). With g both halves are done, the experts' second one while their rows return; NULL: the weights'
// half comes later.
void block_backward_input(const struct context *x, const struct layer_params *p, const struct moe_rule *rule,
                          const struct block_saved *s, struct block_gradients *d, el *dx, const struct batch *b,
                          struct block_scratch *scratch, struct layer_params *g);
void block_backward_weight(const struct context *x, struct layer_params *g, const struct block_saved *s,
                           const struct block_gradients *d, const struct batch *b);

// Inference over KV pages; dropless. Rows before `first` leave their keys and values only: their y is not computed.
void block_paged_forward(const struct context *x, const struct layer_params *p, struct block_saved *s, el *y,
                         const struct kv_view *kv, long T, long first, struct block_scratch *scratch);

#endif
