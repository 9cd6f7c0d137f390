#include "model/block.h"

void block_saved_layout(struct block_saved *s, enum recompute level, struct arena *saved, struct arena *shared,
                        struct arena *host, const struct context *x, long T, long groups)
{
    struct arena *attention = level == RECOMPUTE_FULL ? shared : saved;
    struct arena *droppable = level == RECOMPUTE_NONE ? saved : shared;
    long el_size = dtype_size(x->k->el), D = x->c->D;
    s->in = arena_take(saved, T * D, el_size);
    s->mid = arena_take(attention, T * D, el_size);
    attention_saved_layout(&s->attn, attention, x, T);
    if (x->c->E)
        moe_saved_layout(&s->moe, saved, droppable, host, x, T, groups);
    else
        ffn_saved_layout(&s->ffn, droppable, x, T);
}

void block_scratch_layout(struct block_scratch *s, struct arena *a, struct arena *host, const struct context *x, long T,
                          bool backward)
{
    long el_size = dtype_size(x->k->el), D = x->c->D;
    s->out = arena_take(a, T * D, el_size);
    s->rows = arena_take(a, T * x->c->K * D, el_size);
    if (!backward) return;
    block_saved_layout(&s->ds, RECOMPUTE_NONE, a, a, host, x, T, 1);
    s->dxn = arena_take(a, T * D, dtype_size(x->k->acc));
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
        moe_recompute(x, p, &s->moe, s->mid, b->B * b->S);
    else
        ffn_recompute(x, p, &s->ffn, s->mid, b->B * b->S);
}

void block_backward_input(const struct context *x, const struct layer_params *p, const struct moe_rule *rule,
                          const struct block_saved *s, const el *dy, const struct batch *b,
                          struct block_scratch *scratch)
{
    struct block_saved *ds = &scratch->ds;
    long T = b->B * b->S;
    if (x->c->E)
        moe_backward_input(x, p, rule, &s->moe, &ds->moe, ds->mid, dy, s->mid, T, scratch->rows, scratch->dxn);
    else
        ffn_backward_input(x, p, &s->ffn, &ds->ffn, ds->mid, dy, s->mid, T);
    attention_backward_input(x, p, &s->attn, &ds->attn, ds->in, ds->mid, s->in, b);
}

void block_backward_weight(const struct context *x, struct layer_params *g, const struct block_saved *s, const el *dy,
                           const struct batch *b, const struct block_scratch *scratch)
{
    const struct block_saved *ds = &scratch->ds;
    long T = b->B * b->S;
    if (x->c->E)
        moe_backward_weight(x, g, &s->moe, &ds->moe, s->mid, T, scratch->rows);
    else
        ffn_backward_weight(x, g, &s->ffn, &ds->ffn, dy, s->mid, T);
    attention_backward_weight(x, g, &s->attn, &ds->attn, ds->mid, s->in, T);
}
