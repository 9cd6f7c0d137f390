#include "model/head.h"

static long chunk_rows(long T)
{
    return T < HEAD_CHUNK ? T : HEAD_CHUNK;
}

void head_scratch_layout(struct head_scratch *s, struct arena *a, const struct context *x, long T, bool backward)
{
    long el_size = dtype_size(x->k->el), acc_size = dtype_size(x->k->acc);
    long D = x->c->D, V = x->local.V, own = own_most(x, T);
    s->rstd = arena_take(a, own, acc_size);
    s->xn = arena_take(a, own * D, el_size);
    s->dxn = arena_take(a, backward ? own * D : 0, el_size);
    s->logits = arena_take(a, chunk_rows(T) * V, acc_size);
    s->dlogits = arena_take(a, backward ? chunk_rows(T) * V : 0, el_size);
    s->loss = arena_take(a, T, acc_size);
}

// What each rank knows of the softmax over its columns, [ranks, n, 3] in rank order.
static const acc *gathered_parts(const struct context *x, const struct head_scratch *s, const int *target, long n)
{
    const struct group *g = &x->grid->tensor;
    if (g->size == 1) return NULL;
    x->k->logits_parts(acc_at(x, x->room.parts, g->rank * n * 3), s->logits, target, n, x->local.V);
    group_gather(g, x->room.parts, n * 3 * dtype_size(x->k->acc));
    return x->room.parts;
}

void head_loss(const struct context *x, const struct model_params *p, struct model_params *g, struct head_scratch *s,
               el *dx, const el *in, const int *target, const int *host_target, double scale, long T)
{
    const struct kernels *k = x->k;
    const struct group *tensor = &x->grid->tensor;
    long D = x->c->D, V = x->local.V, own = own_tokens(x, T).count;
    el *part = part_of(x, s->dxn);
    k->rmsnorm(s->xn, s->rstd, in, p->final_norm.data, x->c->norm_eps, own, D);
    const el *all = tokens_gather(tensor, k, s->xn, x->room.all, T, D * dtype_size(k->el));
    for (long t = 0; t < T; t += HEAD_CHUNK) {
        long n = chunk_rows(T - t);
        const el *xn = el_at(x, all, t * D);
        const int *column = vocabulary_rows(x, target + t, host_target + t, n, (int)V); // V: another rank's
        k->matmul_nt_acc(s->logits, xn, p->head, n, V, D);
        k->cross_entropy(acc_at(x, s->loss, t), g ? s->dlogits : NULL, s->logits, gathered_parts(x, s, column, n),
                         tensor->size, column, scale, n, V);
        if (!g) continue;
        k->matmul_nn(el_at(x, part, t * D), s->dlogits, p->head, n, V, D);
        k->matmul_tn(g->head.data, s->dlogits, xn, n, V, D);
    }
    if (!g) return;
    tokens_reduce(tensor, k, s->dxn, part, x->room.others, T, D, k->el);
    k->rmsnorm_backward(dx, NULL, s->dxn, in, p->final_norm.data, s->rstd, own, D);
    k->rmsnorm_backward_weight(g->final_norm.data, s->dxn, in, s->rstd, own, D);
}

void head_logits(const struct context *x, const struct model_params *p, struct head_scratch *s, const el *in,
                 long first, long n)
{
    const struct kernels *k = x->k;
    long D = x->c->D, V = x->local.V;
    CHECK(n <= HEAD_CHUNK);
    k->rmsnorm(s->xn, s->rstd, el_at(x, in, first * D), p->final_norm.data, x->c->norm_eps, n, D);
    k->matmul_nt_acc(s->logits, s->xn, p->head, n, V, D);
}

void head_values(const struct context *x, float *to, const acc *from, long n)
{
    enum { PIECE = 512 };
    double piece[PIECE]; // room for either type
    for (long i = 0; i < n; i += PIECE) {
        long m = n - i < PIECE ? n - i : PIECE;
        x->k->to_host(piece, acc_at(x, from, i), m * dtype_size(x->k->acc));
        for (long j = 0; j < m; j++) to[i + j] = (float)acc_get(x, piece, j);
    }
}
