#include "model/moe.h"

#include "model/moe_travel.h"

const struct moe_rule moe_rule_inference = {.aux = AUX_NONE};

// Of each tensor group whose tokens may come here, an expert takes at most its capacity, and every token at most once.
long moe_rows_most(const struct context *x, const struct moe_rule *rule, long T)
{
    const struct grid *g = x->grid;
    long K = x->c->K, E = x->local.E, tp = g->tensor.size, block = g->expert.size * g->expert_tensor.size, rows = 0;
    long capacity = moe_capacity(rule->capacity, K, T, x->c->E), first = g->replica * block;
    for (long dp = first / tp; dp <= (first + block - 1) / tp; dp++) {
        long tokens = 0;
        for (long q = first > dp * tp ? first : dp * tp; q < first + block && q < (dp + 1) * tp; q++)
            tokens += partition(T, tp, q - dp * tp).count;
        long each = capacity < tokens ? capacity : tokens, all = (K < E ? K : E) * tokens;
        rows += each * E < all ? each * E : all;
    }
    return rows;
}

void moe_saved_layout(struct moe_saved *s, struct arena *kept, struct arena *rows, struct arena *droppable,
                      struct arena *host, const struct context *x, long T, long groups)
{
    long el_size = dtype_size(x->k->el), acc_size = dtype_size(x->k->acc);
    long D = x->c->D, F = x->local.F, E = x->c->E, K = x->c->K, own = own_most(x, T), R = x->rows;
    s->z = arena_take(kept, own * E, acc_size);
    s->g = arena_take(kept, own * E, acc_size);
    s->inv_std = arena_take(kept, own, acc_size);
    s->aux_dg = arena_take(kept, groups * E, acc_size);
    s->lse = arena_take(kept, own, acc_size);
    s->expert = arena_take(kept, own * K, sizeof *s->expert);
    s->weight = arena_take(kept, own * K, acc_size);
    s->row = arena_take(kept, own * K, sizeof *s->row);
    s->source = arena_take(kept, own * K, sizeof *s->source);
    s->row_weight = arena_take(kept, R, acc_size);
    s->first = arena_take(host, E + 1, sizeof *s->first);
    s->count = arena_take(host, E, sizeof *s->count);
    row_plan_layout(&s->plan, host, x->grid, E, x->local.E);
    s->sums = arena_take(host, groups * E, acc_size);
    s->chosen = arena_take(host, groups > 1 ? T * K : 0, sizeof *s->chosen);
    s->chosen_n = arena_take(host, groups > 1 ? groups * E : 0, sizeof *s->chosen_n);
    s->xr = arena_take(rows, R * D, el_size);
    s->rstd = arena_take(droppable, own, acc_size);
    s->xn = arena_take(droppable, own * D, el_size);
    s->ab = arena_take(droppable, R * 2 * F, el_size);
    s->h = arena_take(droppable, R * F, el_size);
}

// ---- forward ----

// A chunk's experts: where their rows begin, counted from the chunk's first one, and their matrices.
struct chunk {
    struct range experts, rows;
    const long *first; // [experts + 1], of all rows here
};
static struct chunk chunk_of(const struct moe_saved *s, long c)
{
    struct range experts = row_chunk_experts(&s->plan, c);
    return (struct chunk){experts, row_chunk_rows(&s->plan, c), s->plan.first + experts.first};
}

static struct tensor matrices_from(struct tensor w, long expert, long rows, long columns)
{
    w.data = (char *)w.data + expert * rows * columns * dtype_size(w.dtype);
    if (w.scale) w.scale += expert * rows * (w.scale_columns > 1 ? w.scale_columns : 1);
    return w;
}

// The experts up to their second product: h = silu(w1 n) * w3 n * g_e / sum_{E_t} g.
static void hidden(const struct context *x, const struct layer_params *p, struct moe_saved *s, long c)
{
    struct chunk m = chunk_of(s, c);
    long D = x->c->D, F = x->local.F;
    struct tensor w13 = matrices_from(p->w13, m.experts.first, 2 * F, D);
    x->k->grouped_nt(s->ab, s->xr, w13, m.first, m.experts.count, 2 * F, D);
    x->k->swiglu(el_at(x, s->h, m.rows.first * F), el_at(x, s->ab, m.rows.first * 2 * F),
                 acc_at(x, s->row_weight, m.rows.first), m.rows.count, F);
}

static void experts_forward(const struct context *x, const struct layer_params *p, struct moe_saved *s, el *rows,
                            long c)
{
    struct chunk m = chunk_of(s, c);
    hidden(x, p, s, c);
    x->k->grouped_nt(rows, s->h, matrices_from(p->w2, m.experts.first, x->c->D, x->local.F), m.first, m.experts.count,
                     x->c->D, x->local.F);
}

// Route: n = norm(x); z = Wg n; z~, g = softmax(z~), E_t = top-K of z~; what an expert can take; L_aux, L_z.
static void route(const struct context *x, const struct layer_params *p, const struct moe_rule *rule,
                  struct moe_balance *balance, struct moe_saved *s, const el *in, long B, long S)
{
    const struct kernels *k = x->k;
    const struct config *c = x->c;
    const struct group *tensor = &x->grid->tensor;
    struct range own = own_tokens(x, B * S);
    long T = B * S, n = own.count, D = c->D, E = c->E, K = c->K, capacity = moe_capacity(rule->capacity, K, T, E);
    acc *score = acc_at(x, x->room.score, own.first * K);

    k->rmsnorm(s->xn, s->rstd, in, p->ffn_norm.data, c->norm_eps, n, D);
    k->router_nt(s->z, s->xn, p->router.data, n, E, D);
    if (rule->z_coeff) k->z_loss(s->lse, s->z, n, E);
    k->gate(s->g, s->inv_std, s->expert, s->weight, score, s->z, p->gate_bias.data, c->gate_norm_std, n, E, K);

    const int *given = balance ? balance->given : NULL;
    const int *expert = tokens_gather(tensor, k, s->expert, x->room.expert, T, K * (long)sizeof *expert);
    if (given) {
        s->R = k->route_given(s->source, s->row, s->first, s->count, s->expert, s->weight, given, s->g, own.first, n, T,
                              E, K);
        expert = tokens_gather(tensor, k, s->expert, x->room.expert, T, K * (long)sizeof *expert);
    } else {
        tokens_gather(tensor, k, score, x->room.score, T, K * dtype_size(k->acc));
        s->R = k->route(s->source, s->row, s->first, s->count, expert, x->room.score, capacity, rule->policy, own.first,
                        n, T, E, K);
    }
    if (balance) moe_balance_add(x, rule, balance, s, expert, B, S);
    row_plan_make(&s->plan, x->grid, s->first, E, x->chunks);
    CHECK(s->plan.rows <= x->rows);
}

void moe_forward(const struct context *x, const struct layer_params *p, const struct moe_rule *rule,
                 struct moe_balance *balance, struct moe_saved *s, el *y, const el *in, long B, long S, el *rows)
{
    route(x, p, rule, balance, s, in, B, S);

    // Dispatch | experts | return.
    struct travel t = dispatch_start(x, s, s->xr, s->xn, true);
    for (long c = 0; c < s->plan.chunks; c++) {
        dispatch_wait(x, s, &t, s->xr, true, c);
        experts_forward(x, p, s, rows, c);
        return_start(x, s, &t, rows, NULL, c);
    }
    const el *back = return_wait(x, s, &t, false, rows);

    // Combine: y = x + sum of each token's rows.
    x->k->combine(y, in, NULL, back, s->row, own_tokens(x, B * S).count, x->c->K, x->c->D);
}

void moe_recompute(const struct context *x, const struct layer_params *p, struct moe_saved *s, const el *in, long T,
                   bool dispatch)
{
    struct travel t = {{NULL}, {NULL}};
    x->k->rmsnorm(s->xn, s->rstd, in, p->ffn_norm.data, x->c->norm_eps, own_tokens(x, T).count, x->c->D);
    if (dispatch) t = dispatch_start(x, s, s->xr, s->xn, false);
    for (long c = 0; c < s->plan.chunks; c++) {
        if (dispatch) dispatch_wait(x, s, &t, s->xr, false, c);
        hidden(x, p, s, c);
    }
}

// ---- backward ----

// From the last line of forward to the first.

// A chunk's experts, from the gradient of their results to that of their rows. A dropped assignment has no row.
static void experts_backward(const struct context *x, const struct layer_params *p, const struct moe_saved *s,
                             struct moe_saved *ds, const el *rows, long c)
{
    const struct kernels *k = x->k;
    struct chunk m = chunk_of(s, c);
    long D = x->c->D, F = x->local.F;
    struct tensor w13 = matrices_from(p->w13, m.experts.first, 2 * F, D);
    struct tensor w2 = matrices_from(p->w2, m.experts.first, D, F);
    k->grouped_nn(ds->h, rows, w2, m.first, m.experts.count, D, F);
    k->swiglu_backward(el_at(x, ds->ab, m.rows.first * 2 * F), acc_at(x, ds->row_weight, m.rows.first),
                       el_at(x, ds->h, m.rows.first * F), el_at(x, s->ab, m.rows.first * 2 * F),
                       acc_at(x, s->row_weight, m.rows.first), m.rows.count, F);
    k->grouped_nn(ds->xr, ds->ab, w13, m.first, m.experts.count, 2 * F, D);
}

// Combine, return: the gradient of a row is its token's. Experts. Dispatch.
struct travel moe_backward_experts(const struct context *x, const struct layer_params *p, const struct moe_saved *s,
                                   struct moe_saved *ds, const el *dy, el *rows)
{
    struct travel t = dispatch_start(x, s, rows, dy, false);
    for (long i = 0; i < s->plan.chunks; i++) {
        dispatch_wait(x, s, &t, rows, false, i);
        experts_backward(x, p, s, ds, rows, i);
        return_start(x, s, &t, ds->xr, ds, i);
    }
    return t;
}

void moe_backward_experts_weight(const struct context *x, struct layer_params *g, const struct moe_saved *s,
                                 const struct moe_saved *ds, const el *rows)
{
    const struct kernels *k = x->k;
    long D = x->c->D, F = x->local.F, E = x->local.E;
    k->grouped_tn(g->w2.data, rows, s->h, s->plan.first, E, D, F);
    k->grouped_tn(g->w13.data, ds->ab, s->xr, s->plan.first, E, 2 * F, D);
}

// Route: z from the weights, L_aux and L_z; n from the router and the rows; x from n and the residual.
void moe_backward_route(const struct context *x, const struct layer_params *p, const struct moe_rule *rule,
                        const struct moe_saved *s, struct moe_saved *ds, el *dx, const el *dy, const el *in, long T,
                        acc *dxn, struct travel *t)
{
    const struct kernels *k = x->k;
    const struct config *c = x->c;
    struct range own = own_tokens(x, T);
    long D = c->D, E = c->E, K = c->K, n = own.count;
    const el *back = return_wait(x, s, t, true, ds->xr);
    k->zero(ds->weight, n * K * dtype_size(k->acc));
    k->place(ds->weight, moe_alone(x) ? ds->row_weight : x->room.weights, s->source, s->R);

    k->gate_backward(ds->z, ds->weight, rule->aux == AUX_NONE ? NULL : s->aux_dg, s->g, s->inv_std, s->z, s->expert,
                     s->weight, c->gate_norm_std, own.first, s->aux_group, n, E, K);
    if (rule->z_coeff) k->z_loss_backward(ds->z, s->lse, s->z, s->inv_std, c->gate_norm_std, s->z_scale, n, E);
    k->router_nn(dxn, ds->z, p->router.data, n, E, D);
    k->combine(ds->xn, NULL, dxn, back, s->row, n, K, D);
    k->rmsnorm_backward(dx, dy, ds->xn, in, p->ffn_norm.data, s->rstd, n, D);
}

void moe_backward_route_weight(const struct context *x, struct layer_params *g, const struct moe_saved *s,
                               const struct moe_saved *ds, const el *in, long T)
{
    const struct kernels *k = x->k;
    long D = x->c->D, n = own_tokens(x, T).count;
    k->router_tn(g->router.data, ds->z, s->xn, n, x->c->E, D);
    k->rmsnorm_backward_weight(g->ffn_norm.data, ds->xn, in, s->rstd, n, D);
}
