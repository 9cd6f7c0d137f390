// Attention half of a block: y = x + o_proj(attention(rope(qkv_proj(norm(x))))).
#ifndef SKYMOE_MODEL_ATTENTION_H
#define SKYMOE_MODEL_ATTENTION_H

#include "comm/exchange.h"
#include "comm/grid.h"
#include "model/batch.h"
#include "model/params.h"

// This rank's share of what is split (partition lists); a rank alone has everything.
struct local {
    long H, G; // heads, kv heads: tensor group
    long V;    // vocabulary rows: tensor group
    long E;    // experts: expert group
    long F;    // ffn columns: tensor group; of an expert: expert tensor group
};

// What every module's functions need and none changes.
struct context {
    const struct kernels *k;
    const struct config *c;
    struct grid *grid;
    struct local local;
    acc *angle; // rope [positions, 2, C/2]
};
struct local local_of(const struct config *c, const struct grid *g);

// Where element i of device memory is; only kernels read it.
static inline el *el_at(const struct context *x, const el *data, long i)
{
    return (char *)data + i * dtype_size(x->k->el);
}
static inline acc *acc_at(const struct context *x, const acc *data, long i)
{
    return (char *)data + i * dtype_size(x->k->acc);
}
// Element i of a copy on the host.
static inline double acc_get(const struct context *x, const acc *host, long i)
{
    return x->k->acc == F64 ? ((const double *)host)[i] : (double)((const float *)host)[i];
}
static inline void acc_set(const struct context *x, acc *host, long i, double value)
{
    if (x->k->acc == F64)
        ((double *)host)[i] = value;
    else
        ((float *)host)[i] = (float)value;
}

// Kept by forward for backward. A second instance holds the gradients of the same values (scratch of backward).
struct attention_saved {
    acc *rstd; // [T]
    el *xn;    // [T, D] normalised input
    el *qkv;   // [T, (H+2G) C] after rope
    el *o;     // [T, H C]
    acc *lse;  // [T, H]
};
void attention_saved_layout(struct attention_saved *s, struct arena *a, const struct context *x, long T);

// Scratch: el [T, D] for the projected output.
void attention_forward(const struct context *x, const struct layer_params *p, struct attention_saved *s, el *y,
                       const el *in, const struct batch *b, el *scratch);

// dx = gradient of the input (residual included). ds is scratch of the same layout; what it holds is read by
// backward_weight, which adds to the gradients in g (+=).
void attention_backward_input(const struct context *x, const struct layer_params *p, const struct attention_saved *s,
                              struct attention_saved *ds, el *dx, const el *dy, const el *in, const struct batch *b);
void attention_backward_weight(const struct context *x, struct layer_params *g, const struct attention_saved *s,
                               const struct attention_saved *ds, const el *dy, const el *in, long T);

// Inference: T rows of any sequences, whose keys and values go to and come from KV pages. Saved fields serve as scratch.
void attention_paged_forward(const struct context *x, const struct layer_params *p, struct attention_saved *s, el *y,
                             const el *in, const struct kv_view *kv, long T, el *scratch);

#endif
