#include "model/moe.h"

const struct moe_rule moe_rule_inference = {.aux = AUX_NONE};

void moe_saved_layout(struct moe_saved *s, struct arena *kept, struct arena *droppable, struct arena *host,
                      const struct context *x, long T, long groups)
{
    long el_size = dtype_size(x->k->el), acc_size = dtype_size(x->k->acc);
    long D = x->c->D, F = x->local.F, E = x->c->E, K = x->c->K;
    s->z = arena_take(kept, T * E, acc_size);
    s->g = arena_take(kept, T * E, acc_size);
    s->inv_std = arena_take(kept, T, acc_size);
    s->aux_dg = arena_take(kept, groups * E, acc_size);
    s->expert = arena_take(kept, T * K, sizeof *s->expert);
    s->weight = arena_take(kept, T * K, acc_size);
    s->row = arena_take(kept, T * K, sizeof *s->row);
    s->source = arena_take(kept, T * K, sizeof *s->source);
    s->first = arena_take(host, E + 1, sizeof *s->first);
    s->count = arena_take(host, E, sizeof *s->count);
    s->sums = arena_take(host, groups * E, acc_size);
    s->chosen = arena_take(host, groups > 1 ? T * K : 0, sizeof *s->chosen);
    s->rstd = arena_take(droppable, T, acc_size);
    s->xn = arena_take(droppable, T * D, el_size);
    s->xr = arena_take(droppable, T * K * D, el_size);
    s->ab = arena_take(droppable, T * K * 2 * F, el_size);
    s->h = arena_take(droppable, T * K * F, el_size);
}

// What forward computes between the routing decisions and the experts' second product, and recompute computes again:
// the rows of the experts' tokens, at the experts, and h = silu(w1 row) * w3 row * weight.
static void hidden(const struct context *x, const struct layer_params *p, struct moe_saved *s)
{
    const struct kernels *k = x->k;
    long D = x->c->D, F = x->local.F, E = x->local.E, K = x->c->K;
    k->permute(s->xr, s->xn, s->source, s->R, K, D);
    exchange_dispatch(&x->grid->expert, s->xr, s->first, E, D * dtype_size(k->el));
    k->grouped_nt(s->ab, s->xr, p->w13, s->first, E, 2 * F, D);
    k->swiglu(s->h, s->ab, s->weight, s->source, s->R, F);
}

void moe_forward(const struct context *x, const struct layer_params *p, const struct moe_rule *rule,
                 struct moe_balance *balance, struct moe_saved *s, el *y, const el *in, long B, long S, el *rows)
{
    const struct kernels *k = x->k;
    const struct config *c = x->c;
    long T = B * S, D = c->D, F = x->local.F, E = c->E, K = c->K, capacity = moe_capacity(rule->capacity, K, T, E);

    k->rmsnorm(s->xn, s->rstd, in, p->ffn_norm.data, c->norm_eps, T, D);                          // n = norm(x)
    k->router_nt(s->z, s->xn, p->router.data, T, E, D);                                           // z = Wg n
    k->gate(s->g, s->inv_std, s->expert, s->weight, s->z, NULL, c->gate_norm_std, T, E, K);       // z~, g, E_t
    s->R = k->route(s->source, s->row, s->first, s->count, s->expert, s->g, capacity, rule->policy, T, E, K);
    if (balance) moe_balance_add(x, rule, balance, s, B, S);                                      // L_aux
    hidden(x, p, s);                                                                              // w1, w3
    k->grouped_nt(rows, s->h, p->w2, s->first, x->local.E, D, F);                                 // w2
    exchange_return(&x->grid->expert, rows, s->first, x->local.E, D * dtype_size(k->el));
    k->combine(y, in, NULL, rows, s->row, T, K, D);                                               // y = x + sum of rows
}

void moe_recompute(const struct context *x, const struct layer_params *p, struct moe_saved *s, const el *in, long T)
{
    x->k->rmsnorm(s->xn, s->rstd, in, p->ffn_norm.data, x->c->norm_eps, T, x->c->D);
    hidden(x, p, s);
}

// From the last line of forward to the first.
void moe_backward_input(const struct context *x, const struct layer_params *p, const struct moe_rule *rule,
                        const struct moe_saved *s, struct moe_saved *ds, el *dx, const el *dy, const el *in, long T,
                        el *rows, acc *dxn)
{
    const struct kernels *k = x->k;
    const struct config *c = x->c;
    long D = c->D, F = x->local.F, E = c->E, K = c->K;
    const acc *aux_dg = rule->aux == AUX_NONE ? NULL : s->aux_dg;

    k->permute(rows, dy, s->source, s->R, K, D);                                                  // combine
    exchange_dispatch(&x->grid->expert, rows, s->first, x->local.E, D * dtype_size(k->el));
    k->grouped_nn(ds->h, rows, p->w2, s->first, x->local.E, D, F);                                // w2
    k->zero(ds->weight, T * K * dtype_size(k->acc));                                              // of dropped ones: 0
    k->swiglu_backward(ds->ab, ds->weight, ds->h, s->ab, s->weight, s->source, s->R, F);
    k->grouped_nn(ds->xr, ds->ab, p->w13, s->first, x->local.E, 2 * F, D);                        // w1, w3
    exchange_return(&x->grid->expert, ds->xr, s->first, x->local.E, D * dtype_size(k->el));
    k->gate_backward(ds->z, ds->weight, aux_dg, s->g, s->inv_std, s->z, s->expert, s->weight, c->gate_norm_std,
                     s->aux_group, T, E, K);                                                      // L_aux, E_t, g, z~
    k->router_nn(dxn, ds->z, p->router.data, T, E, D);                                            // z = Wg n
    k->combine(ds->xn, NULL, dxn, ds->xr, s->row, T, K, D);                                       // n: router and rows
    k->rmsnorm_backward(dx, dy, ds->xn, in, p->ffn_norm.data, s->rstd, T, D);                     // n = norm(x)
}

void moe_backward_weight(const struct context *x, struct layer_params *g, const struct moe_saved *s,
                         const struct moe_saved *ds, const el *in, long T, const el *rows)
{
    const struct kernels *k = x->k;
    long D = x->c->D, F = x->local.F, E = x->local.E;
    k->grouped_tn(g->w2.data, rows, s->h, s->first, E, D, F);
    k->grouped_tn(g->w13.data, ds->ab, s->xr, s->first, E, 2 * F, D);
    k->router_tn(g->router.data, ds->z, s->xn, T, x->c->E, D);
    k->rmsnorm_backward_weight(g->ffn_norm.data, ds->xn, in, s->rstd, T, D);
}
