// Attention half of a block: y = x + o_proj(attention(rope(qkv_proj(norm(x))))).
#ifndef SKYMOE_MODEL_ATTENTION_H
#define SKYMOE_MODEL_ATTENTION_H

#include "model/batch.h"
#include "model/context.h"
#include "model/params.h"

// Kept by forward for backward. A second instance holds the gradients of the same values (scratch of backward).
struct attention_saved {
    acc *rstd; // [own]
    el *xn;    // [own, D] normalised input
    el *qkv;   // [T, (H+2G) C] after rope
    el *o;     // [T, H C]
    acc *lse;  // [T, H]
};
// Rows of `own` tokens are this rank's (sequence parallel), those of T a micro-batch's; H and G are this rank's heads.
void attention_saved_layout(struct attention_saved *s, struct arena *a, const struct context *x, long T);

// y, in [own, D]. Scratch: el [own, D] for the projected output.
void attention_forward(const struct context *x, const struct layer_params *p, struct attention_saved *s, el *y,
                       const el *in, const struct batch *b, el *scratch);

// dx = gradient of the input (residual included). ds is scratch of the same layout; what it holds is read by
// backward_weight, which adds to the gradients in g (+=). all: room for the gathered dy [T, D], which backward_weight
// reads, too; unused in a group of one.
void attention_backward_input(const struct context *x, const struct layer_params *p, const struct attention_saved *s,
                              struct attention_saved *ds, el *dx, const el *dy, const el *in, const struct batch *b,
                              el *all);
void attention_backward_weight(const struct context *x, struct layer_params *g, const struct attention_saved *s,
                               const struct attention_saved *ds, const el *dy, const el *in, long T, const el *all);

// Inference: T rows of any sequences, whose keys and values go to and come from KV pages. s serves as scratch.
void attention_paged_forward(const struct context *x, const struct layer_params *p, struct attention_saved *s, el *y,
                             const el *in, const struct kv_view *kv, long T, el *scratch);

#endif
