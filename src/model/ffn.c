#include "model/ffn.h"

void ffn_saved_layout(struct ffn_saved *s, struct arena *droppable, const struct context *x, long T)
{
    long el_size = dtype_size(x->k->el), D = x->c->D, F = x->local.F;
    s->rstd = arena_take(droppable, T, dtype_size(x->k->acc));
    s->xn = arena_take(droppable, T * D, el_size);
    s->ab = arena_take(droppable, T * 2 * F, el_size);
    s->h = arena_take(droppable, T * F, el_size);
}

// The part of forward whose results backward needs: h = silu(w1 n) * w3 n, n = norm(in).
static void hidden(const struct context *x, const struct layer_params *p, struct ffn_saved *s, const el *in, long T)
{
    const struct kernels *k = x->k;
    long D = x->c->D, F = x->local.F;
    k->rmsnorm(s->xn, s->rstd, in, p->ffn_norm.data, x->c->norm_eps, T, D);
    exchange_gather(&x->grid->tensor, s->xn, T, D * dtype_size(k->el));
    k->matmul_nt(s->ab, s->xn, p->w13, T, 2 * F, D);
    k->swiglu(s->h, s->ab, NULL, T, F);
}

void ffn_forward(const struct context *x, const struct layer_params *p, struct ffn_saved *s, el *y, const el *in,
                 long T, el *scratch)
{
    const struct kernels *k = x->k;
    long D = x->c->D, F = x->local.F;
    hidden(x, p, s, in, T);
    k->matmul_nt(scratch, s->h, p->w2, T, D, F);
    exchange_reduce(&x->grid->tensor, scratch, T, D, k->el);
    k->add(y, in, scratch, T * D);
}

void ffn_recompute(const struct context *x, const struct layer_params *p, struct ffn_saved *s, const el *in, long T)
{
    hidden(x, p, s, in, T);
}

void ffn_backward_input(const struct context *x, const struct layer_params *p, const struct ffn_saved *s,
                        struct ffn_saved *ds, el *dx, const el *dy, const el *in, long T)
{
    const struct kernels *k = x->k;
    long D = x->c->D, F = x->local.F;
    k->matmul_nn(ds->h, dy, p->w2, T, D, F);
    k->swiglu_backward(ds->ab, NULL, ds->h, s->ab, NULL, T, F);
    k->matmul_nn(ds->xn, ds->ab, p->w13, T, 2 * F, D);
    exchange_reduce(&x->grid->tensor, ds->xn, T, D, k->el);
    k->rmsnorm_backward(dx, dy, ds->xn, in, p->ffn_norm.data, s->rstd, T, D);
}

void ffn_backward_weight(const struct context *x, struct layer_params *g, const struct ffn_saved *s,
                         const struct ffn_saved *ds, const el *dy, const el *in, long T)
{
    const struct kernels *k = x->k;
    long D = x->c->D, F = x->local.F;
    k->matmul_tn(g->w2.data, dy, s->h, T, D, F);
    k->matmul_tn(g->w13.data, ds->ab, s->xn, T, 2 * F, D);
    k->rmsnorm_backward_weight(g->ffn_norm.data, ds->xn, in, s->rstd, T, D);
}
