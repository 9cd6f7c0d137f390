#include "model/block.h"

void block_saved_layout(struct block_saved *s, enum recompute level, struct arena *saved, struct arena *shared,
                        struct arena *host, const struct context *x, long T, long groups)
{
    struct arena *attention = level == RECOMPUTE_FULL ? shared : saved;
    struct arena *droppable = level == RECOMPUTE_NONE ? saved : shared;
    struct arena *rows = level == RECOMPUTE_MOE && !moe_alone(x) ? saved : droppable; // they would have to travel again
    long el_size = dtype_size(x->k->el), D = x->c->D, own = own_most(x, T);
    s->in = arena_take(saved, own * D, el_size);
    s->mid = arena_take(attention, own * D, el_size);
    attention_saved_layout(&s->attn, attention, x, T);
    if (x->c->E)
        moe_saved_layout(&s->moe, saved, rows, droppable, host, x, T, groups);
    else
        ffn_saved_layout(&s->ffn, droppable, x, T);
}

void block_gradients_layout(struct block_gradients *g, struct arena *a, struct arena *host, const struct context *x,
                            long T)
{
    long el_size = dtype_size(x->k->el), D = x->c->D, all = x->grid->tensor.size > 1 ? T * D : 0;
    g->dy = arena_take(a, own_most(x, T) * D, el_size);
    block_saved_layout(&g->d, RECOMPUTE_NONE, a, a, host, x, T, 1);
    g->rows = arena_take(a, x->c->E ? x->rows * D : 0, el_size);
    g->mid_all = arena_take(a, all, el_size);
    g->dy_all = arena_take(a, x->c->E ? 0 : all, el_size);
}

void block_scratch_layout(struct block_scratch *s, struct arena *a, const struct context *x, long T, bool backward)
{
    long el_size = dtype_size(x->k->el), D = x->c->D;
    s->out = arena_take(a, own_most(x, T) * D, el_size);
    s->rows = arena_take(a, x->c->E ? x->rows * D : 0, el_size);
    s->dxn = arena_take(a, backward ? own_most(x, T) * D : 0, dtype_size(x->k->acc));
}

// The second half, from mid to y.
static void experts_forward(const struct context *x, const struct layer_params *p, const struct moe_rule *rule,
                            struct moe_balance *balance, struct block_saved *s, el *y, const el *mid, long B, long S,
                            struct block_scratch *scratch)
{
    if (x->c->E)
        moe_forward(x, p, rule, balance, &s->moe, y, mid, B, S, scratch->rows);
    else
        ffn_forward(x, p, &s->ffn, y, mid, B * S, scratch->out);
}

void block_forward(const struct context *x, const struct layer_params *p, const struct moe_rule *rule,
                   struct moe_balance *balance, struct block_saved *s, el *y, const struct batch *b,
                   struct block_scratch *scratch)
{
    attention_forward(x, p, &s->attn, s->mid, s->in, b, scratch->out);
    experts_forward(x, p, rule, balance, s, y, s->mid, b->B, b->S, scratch);
}

void block_paged_forward(const struct context *x, const struct layer_params *p, struct block_saved *s, el *y,
                         const struct kv_view *kv, long T, long first, struct block_scratch *scratch)
{
    long from = first * x->c->D;
    attention_paged_forward(x, p, &s->attn, s->mid, s->in, kv, T, scratch->out);
    if (first == T) return;
    experts_forward(x, p, &moe_rule_inference, NULL, s, el_at(x, y, from), el_at(x, s->mid, from), 1, T - first,
                    scratch);
}

void block_recompute(const struct context *x, const struct layer_params *p, enum recompute level, struct block_saved *s,
                     const struct batch *b, struct block_scratch *scratch)
{
    if (level == RECOMPUTE_FULL) attention_forward(x, p, &s->attn, s->mid, s->in, b, scratch->out);
    if (level == RECOMPUTE_NONE) return;
    if (x->c->E)
        moe_recompute(x, p, &s->moe, s->mid, b->B * b->S, level == RECOMPUTE_FULL || moe_alone(x));
    else
        ffn_recompute(x, p, &s->ffn, s->mid, b->B * b->S);
}

static void backward_weight(const struct context *x, struct layer_params *g, const struct block_saved *s,
                            const struct block_gradients *d, const struct batch *b, bool experts)
{
    long T = b->B * b->S;
    if (x->c->E && experts) moe_backward_experts_weight(x, g, &s->moe, &d->d.moe, d->rows);
    if (x->c->E) moe_backward_route_weight(x, g, &s->moe, &d->d.moe, s->mid, T);
    else ffn_backward_weight(x, g, &s->ffn, &d->d.ffn, d->dy, s->mid, T, d->dy_all);
    attention_backward_weight(x, g, &s->attn, &d->d.attn, d->d.mid, s->in, T, d->mid_all);
}

void block_backward_input(const struct context *x, const struct layer_params *p, const struct moe_rule *rule,
                          const struct block_saved *s, struct block_gradients *d, el *dx, const struct batch *b,
                          struct block_scratch *scratch, struct layer_params *g)
{
    struct block_saved *own = &d->d;
    long T = b->B * b->S;
    if (x->c->E) {
        struct travel t = moe_backward_experts(x, p, &s->moe, &own->moe, d->dy, d->rows);
        if (g) moe_backward_experts_weight(x, g, &s->moe, &own->moe, d->rows);
        moe_backward_route(x, p, rule, &s->moe, &own->moe, own->mid, d->dy, s->mid, T, scratch->dxn, &t);
    } else {
        ffn_backward_input(x, p, &s->ffn, &own->ffn, own->mid, d->dy, s->mid, T, d->dy_all);
    }
    attention_backward_input(x, p, &s->attn, &own->attn, dx, own->mid, s->in, b, d->mid_all);
    if (g) backward_weight(x, g, s, d, b, false);
}

void block_backward_weight(const struct context *x, struct layer_params *g, const struct block_saved *s,
                           const struct block_gradients *d, const struct batch *b)
{
    backward_weight(x, g, s, d, b, true);
}
