#include "model/ffn.h"

void ffn_saved_layout(struct ffn_saved *s, struct arena *droppable, const struct context *x, long T)
{
    long el_size = dtype_size(x->k->el), F = x->local.F, own = own_most(x, T);
    s->rstd = arena_take(droppable, own, dtype_size(x->k->acc));
    s->xn = arena_take(droppable, own * x->c->D, el_size);
    s->ab = arena_take(droppable, T * 2 * F, el_size);
    s->h = arena_take(droppable, T * F, el_size);
}

// The part of forward whose results backward needs: h = silu(w1 n) * w3 n, n = norm(in).
static void hidden(const struct context *x, const struct layer_params *p, struct ffn_saved *s, const el *in, long T)
{
    const struct kernels *k = x->k;
    long D = x->c->D, F = x->local.F;
    k->rmsnorm(s->xn, s->rstd, in, p->ffn_norm.data, x->c->norm_eps, own_tokens(x, T).count, D);
    const el *xn = tokens_gather(&x->grid->tensor, k, s->xn, x->room.all, T, D * dtype_size(k->el));
    k->matmul_nt(s->ab, xn, p->w13, T, 2 * F, D);
    k->swiglu(s->h, s->ab, NULL, T, F);
}

void ffn_forward(const struct context *x, const struct layer_params *p, struct ffn_saved *s, el *y, const el *in,
                 long T, el *scratch)
{
    const struct kernels *k = x->k;
    long D = x->c->D, F = x->local.F;
    hidden(x, p, s, in, T);
    el *part = part_of(x, scratch);
    k->matmul_nt(part, s->h, p->w2, T, D, F);
    tokens_reduce(&x->grid->tensor, k, scratch, part, x->room.others, T, D, k->el);
    k->add(y, in, scratch, own_tokens(x, T).count * D);
}

void ffn_recompute(const struct context *x, const struct layer_params *p, struct ffn_saved *s, const el *in, long T)
{
    hidden(x, p, s, in, T);
}

void ffn_backward_input(const struct context *x, const struct layer_params *p, const struct ffn_saved *s,
                        struct ffn_saved *ds, el *dx, const el *dy, const el *in, long T, el *all)
{
    const struct kernels *k = x->k;
    const struct group *g = &x->grid->tensor;
    long D = x->c->D, F = x->local.F;
    const el *dy_all = tokens_gather(g, k, dy, all, T, D * dtype_size(k->el));
    k->matmul_nn(ds->h, dy_all, p->w2, T, D, F);
    k->swiglu_backward(ds->ab, NULL, ds->h, s->ab, NULL, T, F);
    el *part = part_of(x, ds->xn);
    k->matmul_nn(part, ds->ab, p->w13, T, 2 * F, D);
    tokens_reduce(g, k, ds->xn, part, x->room.others, T, D, k->el);
    k->rmsnorm_backward(dx, dy, ds->xn, in, p->ffn_norm.data, s->rstd, own_tokens(x, T).count, D);
}

void ffn_backward_weight(const struct context *x, struct layer_params *g, const struct ffn_saved *s,
                         const struct ffn_saved *ds, const el *dy, const el *in, long T, const el *all)
{
    const struct kernels *k = x->k;
    long D = x->c->D, F = x->local.F;
    const el *xn = tokens_gather(&x->grid->tensor, k, s->xn, x->room.all, T, D * dtype_size(k->el));
    k->matmul_tn(g->w2.data, all_or(x, all, dy), s->h, T, D, F);
    k->matmul_tn(g->w13.data, ds->ab, xn, T, 2 * F, D);
    k->rmsnorm_backward_weight(g->ffn_norm.data, ds->xn, in, s->rstd, own_tokens(x, T).count, D);
}
