#include "model/moe_travel.h"

#include "comm/alive.h"

bool moe_alone(const struct context *x)
{
    return x->grid->expert.size * x->grid->expert_tensor.size == 1;
}

static long row_bytes(const struct context *x)
{
    return x->c->D * dtype_size(x->k->el);
}

// Chunk after chunk is waited for, worked on and sent back while the next one travels. That one sets out only then: all
// at once would share the wire and arrive together, at the end.
static void dispatch_next(const struct context *x, const struct moe_saved *s, struct travel *t, el *here, bool weights,
                          long chunk)
{
    if (moe_alone(x) || chunk == s->plan.chunks) return;
    t->rows[chunk] = rows_start(&s->plan, x->k, x->room.sent, here, row_bytes(x), chunk);
    if (weights)
        t->weights[chunk] = rows_start(&s->plan, x->k, x->room.weights, s->row_weight, dtype_size(x->k->acc), chunk);
}

struct travel dispatch_start(const struct context *x, const struct moe_saved *s, el *here, const el *tokens,
                             bool weights)
{
    const struct kernels *k = x->k;
    struct travel t = {{NULL}, {NULL}};
    bool alone = moe_alone(x);
    k->permute(alone ? here : x->room.sent, tokens, s->source, s->R, x->c->K, x->c->D);
    if (weights) k->pick(alone ? s->row_weight : x->room.weights, s->weight, s->source, s->R);
    dispatch_next(x, s, &t, here, weights, 0);
    return t;
}

void dispatch_wait(const struct context *x, const struct moe_saved *s, struct travel *t, el *here, bool weights,
                   long chunk)
{
    if (moe_alone(x)) return;
    enum phase back_to = alive_phase_now();
    alive_phase(PHASE_EXCHANGE);
    transfer_wait(t->rows[chunk]);
    transfer_wait(t->weights[chunk]);
    dispatch_next(x, s, t, here, weights, chunk + 1);
    rows_share(&s->plan, here, row_bytes(x), chunk);
    if (weights) rows_share(&s->plan, s->row_weight, dtype_size(x->k->acc), chunk);
    alive_phase(back_to);
}

void return_start(const struct context *x, const struct moe_saved *s, struct travel *t, el *here,
                  const struct moe_saved *ds, long chunk)
{
    const struct kernels *k = x->k;
    if (moe_alone(x)) return;
    rows_sum(&s->plan, k, here, x->room.slices, x->c->D, k->el, chunk);
    t->rows[chunk] = rows_return_start(&s->plan, k, x->room.sent, here, row_bytes(x), chunk);
    if (!ds) return;
    rows_sum(&s->plan, k, ds->row_weight, x->room.weight_slices, 1, k->acc, chunk);
    t->weights[chunk] = rows_return_start(&s->plan, k, x->room.weights, ds->row_weight, dtype_size(k->acc), chunk);
}

el *return_wait(const struct context *x, const struct moe_saved *s, struct travel *t, bool weights, el *here)
{
    if (moe_alone(x)) return here;
    enum phase back_to = alive_phase_now();
    alive_phase(PHASE_EXCHANGE);
    for (long c = 0; c < s->plan.chunks; c++) {
        transfer_wait(t->rows[c]);
        if (weights) transfer_wait(t->weights[c]);
    }
    alive_phase(back_to);
    return x->room.sent;
}
