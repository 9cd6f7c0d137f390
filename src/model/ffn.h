// Dense feed-forward half of a block: y = x + w2(silu(w1 n) * w3 n), n = norm(x).
#ifndef SKYMOE_MODEL_FFN_H
#define SKYMOE_MODEL_FFN_H

#include "model/attention.h"

struct ffn_saved {
    acc *rstd; // [own]
    el *xn;    // [own, D]
    el *ab;    // [T, 2F] w1 n, w3 n
    el *h;     // [T, F]
};
// All of it can be computed again from the input, so a recomputing layer places it in shared scratch (see block.h).
void ffn_saved_layout(struct ffn_saved *s, struct arena *droppable, const struct context *x, long T);

void ffn_forward(const struct context *x, const struct layer_params *p, struct ffn_saved *s, el *y, const el *in,
                 long T, el *scratch);
void ffn_recompute(const struct context *x, const struct layer_params *p, struct ffn_saved *s, const el *in, long T);
void ffn_backward_input(const struct context *x, const struct layer_params *p, const struct ffn_saved *s,
                        struct ffn_saved *ds, el *dx, const el *dy, const el *in, long T, el *all);
void ffn_backward_weight(const struct context *x, struct layer_params *g, const struct ffn_saved *s,
                         const struct ffn_saved *ds, const el *dy, const el *in, long T, const el *all);

#endif
