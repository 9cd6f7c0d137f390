#include "model/model.h"

#include <math.h>

#include "base/rng.h"


// ---- layout ----

static void params_layout(struct model_params *p, struct model *m, struct arena *a, enum dtype matrix, enum dtype other,
                          enum dtype in_acc)
{
    struct layer_params *layer = arena_take(&m->host, m->c.L, sizeof *layer);
    model_params_layout(p, layer, a, &m->c, matrix, other, in_acc, p == &m->p ? m->o.mapped : NULL);
}

static enum recompute level_of(const struct model_options *o, long layer)
{
    return o->recompute_layers < 0 || layer < o->recompute_layers ? o->recompute : RECOMPUTE_NONE;
}

// Saved values of each layer in training; in inference all layers use the same place.
static void saved_layout(struct model *m)
{
    const struct model_options *o = &m->o;
    long T = o->B * o->S, groups = o->rule.scope == SCOPE_SEQUENCE ? o->B : 1;
    long shared = m->scratch_arena.used;
    struct block_saved measured;
    m->saved = arena_take(&m->host, m->c.L, sizeof *m->saved);
    for (long l = 0; l < m->c.L; l++) {
        enum recompute level = o->training ? level_of(o, l) : RECOMPUTE_NONE;
        if (level != RECOMPUTE_NONE) arena_rewind(&m->scratch_arena, shared);
        if (!o->training) arena_rewind(&m->activations, 0);
        block_saved_layout(m->saved ? &m->saved[l] : &measured, level, &m->activations, &m->scratch_arena, &m->host,
                           &m->x, T, groups);
    }
}

static void model_layout(struct model *m)
{
    const struct model_options *o = &m->o;
    enum dtype el_type = m->x.k->el, acc_type = m->x.k->acc;
    enum dtype master = el_type == acc_type ? DTYPES : acc_type; // f32: a value is its own master
    long T = o->B * o->S, D = m->c.D, el_size = dtype_size(el_type);
    params_layout(&m->p, m, &m->parameters, o->weights == QUANT_FP8 ? F8_E4M3 : el_type, el_type, acc_type);
    if (o->training) {
        params_layout(&m->g, m, &m->gradients, acc_type, acc_type, acc_type);
        params_layout(&m->master, m, &m->optimizer, master, master, DTYPES);
        params_layout(&m->moment1, m, &m->optimizer, acc_type, acc_type, acc_type);
        params_layout(&m->moment2, m, &m->optimizer, acc_type, acc_type, acc_type);
        m->dy = arena_take(&m->scratch_arena, T * D, el_size);
        if (m->c.E) m->balance = arena_take(&m->host, m->c.L, sizeof *m->balance);
    }
    m->x.angle = arena_take(&m->scratch_arena, o->positions * m->c.C, dtype_size(acc_type));
    if (o->given_routing) m->given = arena_take(&m->scratch_arena, m->c.L * T * m->c.K, sizeof *m->given);
    m->batch_ints = arena_take(&m->scratch_arena, 4 * T, sizeof *m->batch_ints);
    m->out = arena_take(&m->scratch_arena, T * D, el_size);
    head_scratch_layout(&m->head, &m->scratch_arena, &m->x, T, o->training);
    block_scratch_layout(&m->scratch, &m->scratch_arena, &m->host, &m->x, T, o->training);
    saved_layout(m);
}

// ---- life ----

// Numbers a user chose, refused here before any size is multiplied from them.
static enum status options_check(const struct config *c, const struct model_options *o)
{
    enum { MOST_TOKENS = 1 << 24, MOST_BITS = 58 };
    CHECK(o->B >= 0 && o->S >= 0 && o->positions >= o->S && !(o->training && o->mapped));
    if (o->S > MOST_TOKENS || (o->S && o->B > MOST_TOKENS / o->S))
        return fail(ERR_CONFIG, "micro-batch: %ld sequences of %ld tokens are more than %d tokens (use a smaller one)",
                    o->B, o->S, MOST_TOKENS);
    if (o->training && o->weights != QUANT_NONE)
        return fail(ERR_CONFIG, "model: FP8 weights cannot be trained (load them as bf16 or f32)");
    double row = 8.0 * (double)c->D + 4.0 * (double)((c->H + 2 * c->G) * c->C) + 5.0 * (double)c->E +
                 (double)(c->K + 1) * (2.0 * (double)c->D + 6.0 * (double)c->F);
    double elements = (double)(o->B * o->S) * (double)(c->L + 2) * row + (double)o->positions * (double)c->C;
    if (elements > ldexp(1, MOST_BITS))
        return fail(ERR_MEMORY, "memory: %.3g activations are not possible (use a smaller micro-batch or sequence)",
                    elements);
    return OK;
}

static struct arena *arena_of(struct model *m, long i)
{
    struct arena *arena[] = {&m->parameters, &m->gradients,     &m->optimizer,
                             &m->activations, &m->scratch_arena, &m->host};
    return i < (long)(sizeof arena / sizeof *arena) ? arena[i] : NULL;
}

static enum status model_measured(struct model *m, const struct config *c, const struct model_options *o)
{
    static const char *const name[] = {"parameters",  "gradients", "the optimizer",
                                       "activations", "scratch",   "tables"};
    *m = (struct model){.c = *c, .o = *o, .grid = grid_of_one()};
    m->x = (struct context){.k = kernels_for(o->dtype), .c = &m->c, .grid = &m->grid, .local = local_of(c, &m->grid)};
    for (long i = 0; arena_of(m, i); i++) *arena_of(m, i) = arena_measure(name[i], m->x.k->device);
    TRY(options_check(c, o));
    TRY(param_list_of(&m->params, c));
    model_layout(m);
    return OK;
}

static void *part_of(struct model_params *p, const struct param *q)
{
    const struct tensor *field = params_field(p, q->kind, q->layer);
    return field->data ? (char *)field->data + q->part * dtype_size(field->dtype) : NULL;
}

static void params_bind(struct model *m)
{
    for (struct param *q = m->params.item; q < m->params.item + m->params.n; q++) {
        q->value = *params_field(&m->p, q->kind, q->layer);
        q->value.data = part_of(&m->p, q);
        if (q->value.scale) q->value.scale += q->part / q->columns * q->value.scale_columns;
        if (!m->o.training) continue;
        q->grad = part_of(&m->g, q);
        q->master = part_of(&m->master, q);
        q->m = part_of(&m->moment1, q);
        q->v = part_of(&m->moment2, q);
    }
}

static enum status model_placed(struct model *m)
{
    for (long i = 0; arena_of(m, i); i++) TRY(arena_reserve(arena_of(m, i)));
    model_layout(m);
    params_bind(m);
    m->x.k->rope_angles(m->x.angle, m->c.rope_theta, m->o.positions, m->c.C);
    for (long l = 0; m->balance && l < m->c.L; l++) TRY(moe_balance_init(&m->balance[l], m->c.E, 0));
    return OK;
}

enum status model_init(struct model *m, const struct config *c, const struct model_options *o)
{
    enum status s = model_measured(m, c, o);
    if (s == OK) s = model_placed(m);
    if (s != OK) model_free(m);
    return s;
}

void model_free(struct model *m)
{
    for (long l = 0; m->host.base && m->balance && l < m->c.L; l++) moe_balance_free(&m->balance[l]);
    for (long i = 0; arena_of(m, i); i++) arena_release(arena_of(m, i));
    param_list_free(&m->params);
    *m = (struct model){0};
}

enum status model_measure(struct model_bytes *bytes, const struct config *c, const struct model_options *o)
{
    struct model m;
    enum status s = model_measured(&m, c, o);
    if (s == OK)
        *bytes = (struct model_bytes){.parameters = m.parameters.peak, .gradients = m.gradients.peak,
                                      .optimizer = m.optimizer.peak, .saved = m.activations.peak,
                                      .scratch = m.scratch_arena.peak};
    model_free(&m);
    return s;
}

// ---- values ----

static struct tensor master_of(const struct model *m, const struct param *q)
{
    return (struct tensor){.data = q->master, .dtype = m->x.k->acc};
}

void model_init_weights(struct model *m, long seed, double init_std, double router_std)
{
    const struct kernels *k = m->x.k;
    const double std[] = {
        [INIT_STD] = init_std, [INIT_STD_OUT] = init_std / sqrt(2.0 * (double)m->c.L), [INIT_ROUTER] = router_std};
    for (const struct param *q = m->params.item; q < m->params.item + m->params.n; q++) {
        struct tensor drawn = q->master ? master_of(m, q) : q->value;
        long n = q->rows * q->columns;
        if (q->kind->init == INIT_ONE || q->kind->init == INIT_ZERO)
            k->fill(drawn, q->kind->init == INIT_ONE, n);
        else
            k->init_normal(drawn, 0, std[q->kind->init], n, seed, rng_stream(q->name), 0);
        if (q->master) k->cast(q->value, drawn, q->rows, q->columns);
    }
}

void model_masters_from_values(struct model *m)
{
    for (const struct param *q = m->params.item; q < m->params.item + m->params.n; q++)
        if (q->master) m->x.k->cast(master_of(m, q), q->value, q->rows, q->columns);
}

void model_zero_gradients(struct model *m)
{
    m->x.k->zero(m->gradients.base, m->gradients.capacity);
}

// ---- one micro-batch ----

// The batch with its arrays on the device.
static struct batch batch_on_device(struct model *m, const struct batch *b)
{
    const int *host[] = {b->token, b->target, b->position, b->start};
    int *device[4];
    long T = b->B * b->S, most = m->o.B * m->o.S;
    CHECK(b->B >= 0 && b->S >= 0 && T <= most && (b->B <= m->o.B || m->o.rule.scope != SCOPE_SEQUENCE));
    for (long t = 0; t < T; t++) {
        CHECK(b->token[t] >= 0 && b->token[t] < m->c.V && b->target[t] >= -1 && b->target[t] < m->c.V);
        CHECK(b->position[t] >= 0 && b->position[t] < m->o.positions && b->start[t] >= 0 && b->start[t] <= t % b->S);
    }
    for (int i = 0; i < 4; i++) {
        device[i] = m->batch_ints + i * most;
        m->x.k->from_host(device[i], host[i], T * (long)sizeof *host[i]);
    }
    return (struct batch){b->B, b->S, device[0], device[1], device[2], device[3]};
}

static void embed(struct model *m, const int *token, long T)
{
    m->x.k->embed(m->saved[0].in, m->p.embed, token, T, m->c.D);
    exchange_reduce(&m->grid.tensor, m->saved[0].in, T, m->c.D, m->x.k->el);
}

// Where layer l's output goes: the next one's input.
static el *output_of(struct model *m, long l)
{
    return l + 1 < m->c.L ? m->saved[l + 1].in : m->out;
}

static void layers_forward(struct model *m, const struct batch *b, const struct moe_rule *rule,
                           struct moe_balance *balance)
{
    for (long l = 0; l < m->c.L; l++)
        block_forward(&m->x, &m->p.layer[l], rule, balance ? &balance[l] : NULL, &m->saved[l], output_of(m, l), b,
                      &m->scratch);
}

// m->dy: gradient of the last layer's output; afterwards of the first one's input.
static void layers_backward(struct model *m, const struct batch *b)
{
    for (long l = m->c.L - 1; l >= 0; l--) {
        const struct layer_params *p = &m->p.layer[l];
        struct block_saved *s = &m->saved[l];
        block_recompute(&m->x, p, level_of(&m->o, l), s, b, &m->scratch);
        block_backward_input(&m->x, p, &m->o.rule, s, m->dy, b, &m->scratch);
        block_backward_weight(&m->x, &m->g.layer[l], s, m->dy, b, &m->scratch);
        el *dx = m->scratch.ds.in; // becomes the dy of the layer below
        m->scratch.ds.in = m->dy;
        m->dy = dx;
    }
}

double model_forward_backward(struct model *m, const struct batch *host, double loss_scale, double aux_weight)
{
    CHECK(m->o.training);
    struct batch b = batch_on_device(m, host);
    long T = b.B * b.S;
    for (long l = 0; m->balance && l < m->c.L; l++) m->balance[l].aux_weight = aux_weight;
    embed(m, b.token, T);
    layers_forward(m, &b, &m->o.rule, m->balance);
    head_loss(&m->x, &m->p, &m->g, &m->head, m->dy, m->out, b.target, loss_scale, T);
    layers_backward(m, &b);
    m->x.k->embed_backward(m->g.embed.data, m->dy, b.token, T, m->c.D);
    return m->x.k->sum(m->head.loss, T);
}

double model_loss(struct model *m, const struct batch *host, float *losses)
{
    struct batch b = batch_on_device(m, host);
    long T = b.B * b.S;
    embed(m, b.token, T);
    layers_forward(m, &b, &moe_rule_inference, NULL);
    head_loss(&m->x, &m->p, NULL, &m->head, NULL, m->out, b.target, 0, T);
    if (losses) head_values(&m->x, losses, m->head.loss, T);
    return m->x.k->sum(m->head.loss, T);
}

void model_paged_forward(struct model *m, const int *token, const struct kv_view *layer_kv, long T, long first)
{
    CHECK(T <= m->o.B * m->o.S && first >= 0 && first <= T);
    m->x.k->from_host(m->batch_ints, token, T * (long)sizeof *token);
    embed(m, m->batch_ints, T);
    for (long l = 0; l < m->c.L; l++)
        block_paged_forward(&m->x, &m->p.layer[l], &m->saved[l], output_of(m, l), &layer_kv[l], T,
                            l == m->c.L - 1 ? first : 0, &m->scratch);
}
