#include "model/attention.h"

#include <math.h>

// Elements of a row of qkv: the heads of q, then those of k, then those of v.
static long qkv_width(const struct context *x)
{
    return (x->local.H + 2 * x->local.G) * x->c->C;
}

void attention_saved_layout(struct attention_saved *s, struct arena *a, const struct context *x, long T)
{
    long el_size = dtype_size(x->k->el), acc_size = dtype_size(x->k->acc), own = own_most(x, T);
    s->rstd = arena_take(a, own, acc_size);
    s->xn = arena_take(a, own * x->c->D, el_size);
    s->qkv = arena_take(a, T * qkv_width(x), el_size);
    s->o = arena_take(a, T * x->local.H * x->c->C, el_size);
    s->lse = arena_take(a, T * x->local.H, acc_size);
}

static struct attention_shape shape_of(const struct context *x, const struct batch *b)
{
    return (struct attention_shape){.B = b->B, .S = b->S, .H = x->local.H, .G = x->local.G, .C = x->c->C,
                                    .per_kv = x->c->H / x->c->G,
                                    .skip = x->local.first_head - x->local.first_kv * (x->c->H / x->c->G),
                                    .window = x->c->window,
                                    .scale = 1.0 / sqrt((double)x->c->C)};
}

// One of b and kv is given: the keys are those of the micro-batch itself, or those on KV pages.
static void forward(const struct context *x, const struct layer_params *p, struct attention_saved *s, el *y,
                    const el *in, const struct batch *b, const struct kv_view *kv, long T, el *scratch)
{
    const struct kernels *k = x->k;
    const struct group *g = &x->grid->tensor;
    long D = x->c->D, H = x->local.H, G = x->local.G, C = x->c->C, N = qkv_width(x), own = own_tokens(x, T).count;

    // n = norm(x); q, k, v = W n, with q and k rotated by their position.
    k->rmsnorm(s->xn, s->rstd, in, p->attn_norm.data, x->c->norm_eps, own, D);
    const el *xn = tokens_gather(g, k, s->xn, x->room.all, T, D * dtype_size(k->el));
    k->matmul_nt(s->qkv, xn, p->qkv, T, N, D);
    k->rope(s->qkv, b ? b->position : kv->position, x->angle, +1, T, H + G, C, N);

    // o = softmax(q k' / sqrt(C)) v over the keys a token sees.
    if (b) {
        k->attention(s->o, s->lse, s->qkv, b->start, shape_of(x, b));
    } else {
        k->kv_store(*kv, s->qkv, T, H, G, C);
        k->attention_paged(s->o, s->qkv, *kv, T, H, G, C, x->c->window, 1.0 / sqrt((double)C));
    }

    // y = x + Wo o.
    el *part = part_of(x, scratch);
    k->matmul_nt(part, s->o, p->o, T, D, H * C);
    tokens_reduce(g, k, scratch, part, x->room.others, T, D, k->el);
    k->add(y, in, scratch, own * D);
}

void attention_forward(const struct context *x, const struct layer_params *p, struct attention_saved *s, el *y,
                       const el *in, const struct batch *b, el *scratch)
{
    forward(x, p, s, y, in, b, NULL, b->B * b->S, scratch);
}

void attention_paged_forward(const struct context *x, const struct layer_params *p, struct attention_saved *s, el *y,
                             const el *in, const struct kv_view *kv, long T, el *scratch)
{
    forward(x, p, s, y, in, NULL, kv, T, scratch);
}

// From the last line of forward to the first; the residual joins in the norm's backward.
void attention_backward_input(const struct context *x, const struct layer_params *p, const struct attention_saved *s,
                              struct attention_saved *ds, el *dx, const el *dy, const el *in, const struct batch *b,
                              el *all)
{
    const struct kernels *k = x->k;
    const struct group *g = &x->grid->tensor;
    long T = b->B * b->S, D = x->c->D, H = x->local.H, G = x->local.G, C = x->c->C, N = qkv_width(x);
    const el *dy_all = tokens_gather(g, k, dy, all, T, D * dtype_size(k->el));
    k->matmul_nn(ds->o, dy_all, p->o, T, D, H * C);
    k->attention_backward(ds->qkv, ds->o, s->qkv, s->o, s->lse, b->start, shape_of(x, b));
    k->rope(ds->qkv, b->position, x->angle, -1, T, H + G, C, N);
    el *part = part_of(x, ds->xn);
    k->matmul_nn(part, ds->qkv, p->qkv, T, N, D);
    tokens_reduce(g, k, ds->xn, part, x->room.others, T, D, k->el);
    k->rmsnorm_backward(dx, dy, ds->xn, in, p->attn_norm.data, s->rstd, own_tokens(x, T).count, D);
}

void attention_backward_weight(const struct context *x, struct layer_params *g, const struct attention_saved *s,
                               const struct attention_saved *ds, const el *dy, const el *in, long T, const el *all)
{
    const struct kernels *k = x->k;
    long D = x->c->D, N = qkv_width(x);
    const el *xn = tokens_gather(&x->grid->tensor, k, s->xn, x->room.all, T, D * dtype_size(k->el));
    k->matmul_tn(g->o.data, all_or(x, all, dy), s->o, T, D, x->local.H * x->c->C);
    k->matmul_tn(g->qkv.data, ds->qkv, xn, T, N, D);
    k->rmsnorm_backward_weight(g->attn_norm.data, ds->xn, in, s->rstd, own_tokens(x, T).count, D);
}
