#include "model/model.h"

#include <math.h>

#include "base/rng.h"

// ---- layout ----

static void params_layout(struct model_params *p, struct model *m, struct arena *a, enum dtype matrix, enum dtype other,
                          enum dtype in_acc)
{
    struct layer_params *layer = arena_take(&m->host, m->x.local.L, sizeof *layer);
    model_params_layout(p, layer, a, &m->c, &m->grid, matrix, other, in_acc, p == &m->p ? m->o.mapped : NULL);
}

static enum recompute level_of(const struct model_options *o, long local)
{
    if (!o->training) return RECOMPUTE_NONE;
    return o->recompute_layers < 0 || local < o->recompute_layers ? o->recompute : RECOMPUTE_NONE;
}

static struct model_slots slots_of(const struct model_options *o, long chunk)
{
    return o->slots ? o->slots[chunk] : (struct model_slots){1, 1, 0};
}

// Saved values of a layer: a place for each micro-batch in flight. In inference all layers use the same one.
static void layer_saved_layout(struct model *m, struct layer_slots *s, struct block_saved *saved, long shared)
{
    const struct model_options *o = &m->o;
    long T = o->B * o->S, groups = o->rule.scope == SCOPE_SEQUENCE ? o->B : 1;
    s->saved = saved;
    for (long i = 0; i < s->saved_n; i++) {
        struct block_saved measured;
        if (s->level != RECOMPUTE_NONE) arena_rewind(&m->scratch_arena, shared);
        if (!o->training) arena_rewind(&m->activations, 0);
        block_saved_layout(saved ? &saved[i] : &measured, s->level, &m->activations, &m->scratch_arena, &m->host, &m->x,
                           T, groups);
    }
}

static void layer_gradients_layout(struct model *m, struct layer_slots *s)
{
    struct block_gradients measured;
    s->gradients = s->gradients_n ? arena_take(&m->host, s->gradients_n, sizeof *s->gradients) : &m->shared;
    for (long i = 0; i < s->gradients_n; i++)
        block_gradients_layout(s->gradients ? &s->gradients[i] : &measured, &m->activations, &m->host, &m->x,
                               m->o.B * m->o.S);
}

static void layers_layout(struct model *m)
{
    long all = 0, shared = m->scratch_arena.used;
    struct layer_slots measured;
    m->slots = arena_take(&m->host, m->x.local.L, sizeof *m->slots);
    for (long pass = 0, l = 0; pass < 2; pass++, l = 0) { // first count, then place
        struct block_saved *saved = pass ? m->saved : NULL;
        for (long v = 0; v < m->grid.layout.virtual_stages; v++) {
            struct model_slots n = slots_of(&m->o, v);
            for (long i = 0; i < chunk_layers(&m->c, &m->grid, v).count; i++, l++) {
                struct layer_slots *s = m->slots ? &m->slots[l] : &measured;
                *s = (struct layer_slots){.layer = layer_of(&m->c, &m->grid, l), .level = level_of(&m->o, l)};
                s->saved_n = s->level == RECOMPUTE_NONE ? n.saved : n.backward;
                s->gradients_n = s->level == RECOMPUTE_NONE ? n.weight : 0;
                all += s->saved_n;
                if (!pass) continue;
                layer_saved_layout(m, s, saved, shared);
                if (m->o.training) layer_gradients_layout(m, s);
                if (saved) saved += s->saved_n;
            }
        }
        if (!pass) m->saved = arena_take(&m->host, all, sizeof *m->saved);
    }
}

static long batch_slots(const struct model *m)
{
    long most = 1;
    for (long v = 0; v < m->grid.layout.virtual_stages; v++)
        if (slots_of(&m->o, v).saved > most) most = slots_of(&m->o, v).saved;
    return most;
}

// What is needed only where groups have more than one rank, and the scores, of all tokens, that routing compares.
static void room_layout(struct model *m, long T)
{
    struct room *r = &m->x.room;
    const struct context *x = &m->x;
    struct arena *a = &m->scratch_arena;
    long el_size = dtype_size(x->k->el), acc_size = dtype_size(x->k->acc), D = m->c.D, K = m->c.K;
    long tp = m->grid.tensor.size, slices = m->grid.expert_tensor.size - 1, own = own_most(x, T);
    bool moe = m->c.E > 0, travels = moe && !moe_alone(x);
    r->all = arena_take(a, tp > 1 ? T * D : 0, el_size);
    r->part = arena_take(a, tp > 1 ? T * D : 0, el_size);
    r->others = arena_take(a, tp > 1 ? (tp - 1) * own * D : 0, el_size);
    r->row = arena_take(a, tp > 1 ? T : 0, sizeof *r->row);
    r->parts = arena_take(a, tp > 1 ? tp * HEAD_CHUNK * 3 : 0, acc_size);
    r->expert = arena_take(a, tp > 1 ? T * K : 0, sizeof *r->expert);
    r->score = arena_take(a, T * K, acc_size);
    r->sent = arena_take(a, travels ? own * K * D : 0, el_size);
    r->weights = arena_take(a, travels ? own * K : 0, acc_size);
    r->slices = arena_take(a, moe ? slices * x->rows * D : 0, el_size);
    r->weight_slices = arena_take(a, moe ? slices * x->rows : 0, acc_size);
}

static void model_layout(struct model *m)
{
    const struct model_options *o = &m->o;
    enum dtype el_type = m->x.k->el, acc_type = m->x.k->acc;
    long T = o->B * o->S, D = m->c.D, el_size = dtype_size(el_type), own = own_most(&m->x, T);
    params_layout(&m->p, m, &m->parameters, o->weights == QUANT_FP8 ? F8_E4M3 : el_type, el_type, acc_type);
    if (o->training) {
        params_layout(&m->g, m, &m->gradients, acc_type, acc_type, acc_type);
        m->dx = arena_take(&m->scratch_arena, own * D, el_size);
        if (m->c.E) m->balance = arena_take(&m->host, m->c.L, sizeof *m->balance);
        block_gradients_layout(&m->shared, &m->scratch_arena, &m->host, &m->x, T);
    }
    m->x.angle = arena_take(&m->scratch_arena, o->positions * m->c.C, dtype_size(acc_type));
    if (o->given_routing) m->given = arena_take(&m->scratch_arena, m->x.local.L * T * m->c.K, sizeof *m->given);
    m->batch_slots = batch_slots(m);
    long batches = m->grid.layout.virtual_stages * m->batch_slots;
    m->batch_stride = (4 * T + 15) / 16 * 16; // fills multiples of ARENA_ALIGN: n batches take n times as much
    m->batch_ints = arena_take(&m->scratch_arena, batches * m->batch_stride, sizeof *m->batch_ints);
    m->drawn = arena_take(&m->scratch_arena, DRAW_CHUNK, dtype_size(acc_type));
    m->out = arena_take(&m->scratch_arena, own * D, el_size);
    room_layout(m, T);
    if (m->x.local.ends) head_scratch_layout(&m->head, &m->scratch_arena, &m->x, T, o->training);
    block_scratch_layout(&m->scratch, &m->scratch_arena, &m->x, T, o->training);
    layers_layout(m);
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
    struct arena *arena[] = {&m->parameters, &m->gradients, &m->activations, &m->scratch_arena, &m->host};
    return i < (long)(sizeof arena / sizeof *arena) ? arena[i] : NULL;
}

// Room for the rows of a training micro-batch, and for those of one sequence when none is dropped. Where none travels,
// or somebody else decides, for as many as there can be.
static long rows_room(const struct context *x, const struct model_options *o)
{
    bool all = !o->training || moe_alone(x) || o->given_routing;
    long T = o->B * o->S, training = moe_rows_most(x, &o->rule, T);
    long undropped = moe_rows_most(x, &moe_rule_inference, all ? T : o->B ? o->S : 0);
    return training > undropped ? training : undropped;
}

static enum status outline(struct model *m, const struct config *c, const struct model_options *o)
{
    static const char *const name[] = {"parameters", "gradients", "activations", "scratch", "tables"};
    *m = (struct model){.c = *c, .o = *o, .grid = o->grid ? *o->grid : grid_of_one()};
    m->o.grid = &m->grid;
    m->x = (struct context){.k = kernels_for(o->dtype), .c = &m->c, .grid = &m->grid, .local = local_of(c, &m->grid),
                            .chunks = o->exchange_chunks ? o->exchange_chunks : 1};
    CHECK(m->x.chunks <= MOST_CHUNKS);
    for (long i = 0; arena_of(m, i); i++) *arena_of(m, i) = arena_measure(name[i], m->x.k->device);
    TRY(options_check(c, o));
    if (c->E) m->x.rows = rows_room(&m->x, o);
    TRY(param_list_of(&m->params, c, &m->grid));
    model_layout(m);
    return OK;
}

enum status model_outline(struct model *m, const struct config *c, const struct model_options *o)
{
    enum status s = outline(m, c, o);
    if (s != OK) model_free(m);
    return s;
}

static void *place_of(const struct model_params *p, const struct param *q)
{
    const struct tensor *field = param_field(p, q);
    return field->data ? (char *)field->data + q->part * dtype_size(field->dtype) : NULL;
}

static void params_bind(struct model *m)
{
    for (struct param *q = m->params.item; q < m->params.item + m->params.n; q++) {
        q->value = *param_field(&m->p, q);
        q->value.data = place_of(&m->p, q);
        if (q->value.scale) q->value.scale += q->part / q->columns * q->value.scale_columns;
        if (m->o.training) q->grad = place_of(&m->g, q);
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
    TRY(model_outline(m, c, o));
    enum status s = model_placed(m);
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
    TRY(model_outline(&m, c, o));
    *bytes = (struct model_bytes){m.parameters.peak, m.gradients.peak, m.activations.peak, m.scratch_arena.peak};
    model_free(&m);
    return OK;
}

// ---- values ----

void param_draw(const struct model *m, const struct param *p, const struct init_rule *rule, long at, long n)
{
    const struct kernels *k = m->x.k;
    const double std[] = {[INIT_STD] = rule->std,
                          [INIT_STD_OUT] = rule->std / sqrt(2.0 * (double)m->c.L),
                          [INIT_ROUTER] = rule->router_std};
    CHECK(n <= DRAW_CHUNK);
    for (long i = 0, run; i < n; i += run) {
        struct tensor to = {.data = acc_at(&m->x, m->drawn, i), .dtype = k->acc};
        long first = param_global(p, at + i, &run);
        if (run > n - i) run = n - i;
        if (p->kind->init == INIT_ONE || p->kind->init == INIT_ZERO)
            k->fill(to, p->kind->init == INIT_ONE, run);
        else
            k->init_normal(to, 0, std[p->kind->init], run, rule->seed, rng_stream(p->name), first);
    }
}

void model_init_weights(struct model *m, const struct init_rule *rule)
{
    struct tensor drawn = {.data = m->drawn, .dtype = m->x.k->acc};
    for (const struct param *p = m->params.item; p < m->params.item + m->params.n; p++)
        for (long at = 0, n; at < p->rows * p->columns; at += n) {
            struct tensor to = p->value;
            n = p->rows * p->columns - at < DRAW_CHUNK ? p->rows * p->columns - at : DRAW_CHUNK;
            to.data = (char *)to.data + at * dtype_size(to.dtype);
            param_draw(m, p, rule, at, n);
            m->x.k->cast(to, drawn, 1, n);
        }
}

void model_zero_gradients(struct model *m)
{
    m->x.k->zero(m->gradients.base, m->gradients.capacity);
}

long model_local_layer(const struct model *m, long l)
{
    for (long i = 0; i < m->x.local.L; i++)
        if (m->slots[i].layer == l) return i;
    return -1;
}
