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
    s->lse = arena_take(kept, T, acc_size);
    s->expert = arena_take(kept, T * K, sizeof *s->expert);
    s->weight = arena_take(kept, T * K, acc_size);
    s->score = arena_take(kept, T * K, acc_size);
    s->row = arena_take(kept, T * K, sizeof *s->row);
    s->source = arena_take(kept, T * K, sizeof *s->source);
    s->row_weight = arena_take(kept, T * K, acc_size);
    s->first = arena_take(host, E + 1, sizeof *s->first);
    s->count = arena_take(host, E, sizeof *s->count);
    s->sums = arena_take(host, groups * E, acc_size);
    s->chosen = arena_take(host, groups > 1 ? T * K : 0, sizeof *s->chosen);
    s->chosen_n = arena_take(host, groups > 1 ? groups * E : 0, sizeof *s->chosen_n);
    s->rstd = arena_take(droppable, T, acc_size);
    s->xn = arena_take(droppable, T * D, el_size);
    s->xr = arena_take(droppable, T * K * D, el_size);
    s->ab = arena_take(droppable, T * K * 2 * F, el_size);
    s->h = arena_take(droppable, T * K * F, el_size);
}

// Each kept assignment's row, taken from its token's, goes to the rank that holds its expert; and comes back.
static void dispatch(const struct context *x, const struct moe_saved *s, el *rows, const el *tokens)
{
    x->k->permute(rows, tokens, s->source, s->R, x->c->K, x->c->D);
    exchange_dispatch(&x->grid->expert, rows, s->first, x->local.E, x->c->D * dtype_size(x->k->el));
}
static void return_rows(const struct context *x, const struct moe_saved *s, el *rows)
{
    exchange_return(&x->grid->expert, rows, s->first, x->local.E, x->c->D * dtype_size(x->k->el));
}

// The experts up to their second product: h = silu(w1 n) * w3 n * g_e / sum_{E_t} g.
static void hidden(const struct context *x, const struct layer_params *p, struct moe_saved *s)
{
    x->k->grouped_nt(s->ab, s->xr, p->w13, s->first, x->local.E, 2 * x->local.F, x->c->D);
    x->k->swiglu(s->h, s->ab, s->row_weight, s->R, x->local.F);
}

void moe_forward(const struct context *x, const struct layer_params *p, const struct moe_rule *rule,
                 struct moe_balance *balance, struct moe_saved *s, el *y, const el *in, long B, long S, el *rows)
{
    const struct kernels *k = x->k;
    const struct config *c = x->c;
    long T = B * S, D = c->D, E = c->E, K = c->K, capacity = moe_capacity(rule->capacity, K, T, E);

    // Route: n = norm(x); z = Wg n; z~, g = softmax(z~), E_t = top-K of z~; what an expert can take; L_aux, L_z.
    k->rmsnorm(s->xn, s->rstd, in, p->ffn_norm.data, c->norm_eps, T, D);
    k->router_nt(s->z, s->xn, p->router.data, T, E, D);
    if (rule->z_coeff) k->z_loss(s->lse, s->z, T, E);
    k->gate(s->g, s->inv_std, s->expert, s->weight, s->score, s->z, p->gate_bias.data, c->gate_norm_std, T,
            E, K);
    const int *given = balance ? balance->given : NULL;
    if (given)
        s->R = k->route_given(s->source, s->row, s->first, s->count, s->expert, s->weight, given, s->g, 0, T, T, E, K);
    else
        s->R = k->route(s->source, s->row, s->first, s->count, s->expert, s->score, capacity, rule->policy, 0, T, T, E,
                        K);
    k->pick(s->row_weight, s->weight, s->source, s->R);
    if (balance) moe_balance_add(x, rule, balance, s, B, S);

    // Dispatch | experts | return.
    dispatch(x, s, s->xr, s->xn);
    hidden(x, p, s);
    k->grouped_nt(rows, s->h, p->w2, s->first, x->local.E, D, x->local.F);
    return_rows(x, s, rows);

    // Combine: y = x + sum of each token's rows.
    k->combine(y, in, NULL, rows, s->row, T, K, D);
}

void moe_recompute(const struct context *x, const struct layer_params *p, struct moe_saved *s, const el *in, long T)
{
    x->k->rmsnorm(s->xn, s->rstd, in, p->ffn_norm.data, x->c->norm_eps, T, x->c->D);
    dispatch(x, s, s->xr, s->xn);
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

    // Combine, return: the gradient of a row is its token's.
    dispatch(x, s, rows, dy);

    // Experts. A dropped assignment has no row: its weight's gradient stays 0.
    k->grouped_nn(ds->h, rows, p->w2, s->first, x->local.E, D, F);
    k->zero(ds->weight, T * K * dtype_size(k->acc));
    k->swiglu_backward(ds->ab, ds->row_weight, ds->h, s->ab, s->row_weight, s->R, F);
    k->place(ds->weight, ds->row_weight, s->source, s->R);
    k->grouped_nn(ds->xr, ds->ab, p->w13, s->first, x->local.E, 2 * F, D);

    // Dispatch.
    return_rows(x, s, ds->xr);

    // Route: z from the weights, L_aux and L_z; n from the router and the rows; x from n and the residual.
    k->gate_backward(ds->z, ds->weight, rule->aux == AUX_NONE ? NULL : s->aux_dg, s->g, s->inv_std, s->z, s->expert,
                     s->weight, c->gate_norm_std, 0, s->aux_group, T, E, K);
    if (rule->z_coeff) k->z_loss_backward(ds->z, s->lse, s->z, s->inv_std, c->gate_norm_std, s->z_scale, T, E);
    k->router_nn(dxn, ds->z, p->router.data, T, E, D);
    k->combine(ds->xn, NULL, dxn, ds->xr, s->row, T, K, D);
    k->rmsnorm_backward(dx, dy, ds->xn, in, p->ffn_norm.data, s->rstd, T, D);
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
