#include "model/model.h"

#include <math.h>
#include <stdint.h>

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

static long batch_ints(long T)
{
    return (4 * T + 15) / 16 * 16; // fills multiples of ARENA_ALIGN, so that n batches take n times as much
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
    m->batch_ints = arena_take(&m->scratch_arena, batches * batch_ints(T), sizeof *m->batch_ints);
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

// ---- one micro-batch ----

static struct batch batch_at(const struct model *m, long chunk, long micro, long B, long S)
{
    long most = m->o.B * m->o.S;
    int *at = m->batch_ints + (chunk * m->batch_slots + micro % m->batch_slots) * batch_ints(most);
    return (struct batch){B, S, at, at + most, at + 2 * most, at + 3 * most};
}

// The batch with its arrays on the device.
static struct batch batch_on_device(struct model *m, long chunk, long micro, const struct batch *b)
{
    long T = b->B * b->S, most = m->o.B * m->o.S;
    CHECK(b->B >= 0 && b->S >= 0 && T <= most && (b->B <= m->o.B || m->o.rule.scope != SCOPE_SEQUENCE));
    for (long t = 0; t < T; t++) {
        CHECK(b->token[t] >= 0 && b->token[t] < m->c.V && b->target[t] >= -1 && b->target[t] < m->c.V);
        CHECK(b->position[t] >= 0 && b->position[t] < m->o.positions && b->start[t] >= 0 && b->start[t] <= t % b->S);
    }
    struct batch d = batch_at(m, chunk, micro, b->B, b->S);
    const int *host[] = {b->token, b->target, b->position, b->start};
    int *device[] = {d.token, d.target, d.position, d.start};
    for (int i = 0; i < 4; i++) m->x.k->from_host(device[i], host[i], T * (long)sizeof *host[i]);
    return d;
}

// x = rows of the embedding, each rank's own tokens of them.
static void embed(struct model *m, el *x, const int *token, const int *host, long T)
{
    const struct kernels *k = m->x.k;
    el *part = part_of(&m->x, x);
    k->embed(part, m->p.embed, vocabulary_rows(&m->x, token, host, T, -1), T, m->c.D);
    tokens_reduce(&m->grid.tensor, k, x, part, m->x.room.others, T, m->c.D, k->el);
}

static void embed_backward(struct model *m, const int *token, const int *host, long T)
{
    const struct kernels *k = m->x.k;
    const el *dx = tokens_gather(&m->grid.tensor, k, m->dx, m->x.room.all, T, m->c.D * dtype_size(k->el));
    k->embed_backward(m->g.embed.data, dx, vocabulary_rows(&m->x, token, host, T, -1), T, m->c.D);
}

// ---- a chunk of layers ----

static struct range local_layers(const struct model *m, long chunk)
{
    struct range r = {0, chunk_layers(&m->c, &m->grid, chunk).count};
    for (long v = 0; v < chunk; v++) r.first += chunk_layers(&m->c, &m->grid, v).count;
    return r;
}

bool model_begins(const struct model *m, long chunk)
{
    return m->x.local.embeds && chunk == 0;
}

bool model_ends(const struct model *m, long chunk)
{
    return m->x.local.ends && chunk == m->grid.layout.virtual_stages - 1;
}

static struct block_saved *saved_of(const struct model *m, long local, long micro)
{
    const struct layer_slots *s = &m->slots[local];
    return &s->saved[micro % s->saved_n];
}

static struct block_gradients *gradients_of(const struct model *m, long local, long micro)
{
    const struct layer_slots *s = &m->slots[local];
    return s->gradients_n ? &s->gradients[micro % s->gradients_n] : &((struct model *)(uintptr_t)m)->shared;
}

el *model_input(const struct model *m, const struct micro *i)
{
    return saved_of(m, local_layers(m, i->chunk).first, i->number)->in;
}

el *model_output_gradient(struct model *m, const struct micro *i)
{
    struct range layers = local_layers(m, i->chunk);
    return gradients_of(m, layers.first + layers.count - 1, i->number)->dy;
}

// Where local layer l's output goes: the next one's input, or what leaves the chunk.
static el *output_of(struct model *m, struct range layers, long l, long micro)
{
    return l + 1 < layers.first + layers.count ? saved_of(m, l + 1, micro)->in : m->out;
}

double model_forward(struct model *m, const struct micro *i, const struct batch *host)
{
    CHECK(m->o.training);
    struct batch b = batch_on_device(m, i->chunk, i->number, host);
    struct range layers = local_layers(m, i->chunk);
    long T = b.B * b.S;
    if (model_begins(m, i->chunk)) embed(m, model_input(m, i), b.token, host->token, T);
    for (long l = layers.first; l < layers.first + layers.count; l++) {
        struct moe_balance *balance = m->balance ? &m->balance[m->slots[l].layer] : NULL;
        if (balance) balance->aux_weight = i->aux_weight;
        block_forward(&m->x, &m->p.layer[l], &m->o.rule, balance, saved_of(m, l, i->number),
                      output_of(m, layers, l, i->number), &b, &m->scratch);
    }
    if (!model_ends(m, i->chunk)) return 0;
    head_loss(&m->x, &m->p, &m->g, &m->head, model_output_gradient(m, i), m->out, b.target, host->target, i->loss_scale,
              T);
    return m->x.k->sum(m->head.loss, T);
}

static void tell_layer_done(const struct model *m, const struct micro *i, long l)
{
    if (i->last && m->layer_done) m->layer_done(m->whom, l);
}

// A layer's dx is the dy of the one below, whose gradients may be the same ones; it leaves the chunk in m->dx. Layers
// that recompute do the weights' half at once: what it reads is here only now.
static void layers_backward(struct model *m, const struct micro *i, const struct batch *b, bool both)
{
    struct range layers = local_layers(m, i->chunk);
    for (long l = layers.first + layers.count - 1; l >= layers.first; l--) {
        struct block_gradients *g = gradients_of(m, l, i->number);
        struct block_gradients *below = l > layers.first ? gradients_of(m, l - 1, i->number) : NULL;
        el *dx = !below ? m->dx : below == g ? g->d.in : below->dy;
        block_recompute(&m->x, &m->p.layer[l], m->slots[l].level, saved_of(m, l, i->number), b, &m->scratch);
        bool weights = both || !m->slots[l].gradients_n;
        block_backward_input(&m->x, &m->p.layer[l], &m->o.rule, saved_of(m, l, i->number), g, dx, b, &m->scratch,
                             weights ? &m->g.layer[l] : NULL);
        if (weights) tell_layer_done(m, i, l);
        if (below == g) {
            g->d.in = g->dy;
            g->dy = dx;
        }
    }
}

static void backward(struct model *m, const struct micro *i, const struct batch *host, bool both)
{
    struct batch b = batch_at(m, i->chunk, i->number, host->B, host->S);
    layers_backward(m, i, &b, both);
    if (model_begins(m, i->chunk)) embed_backward(m, b.token, host->token, b.B * b.S);
}

void model_backward(struct model *m, const struct micro *i, const struct batch *host)
{
    backward(m, i, host, true);
}

void model_backward_input(struct model *m, const struct micro *i, const struct batch *host)
{
    backward(m, i, host, false);
}

void model_backward_weight(struct model *m, const struct micro *i, const struct batch *host)
{
    struct batch b = batch_at(m, i->chunk, i->number, host->B, host->S);
    struct range layers = local_layers(m, i->chunk);
    for (long l = layers.first + layers.count - 1; l >= layers.first; l--)
        if (m->slots[l].gradients_n) {
            block_backward_weight(&m->x, &m->g.layer[l], saved_of(m, l, i->number), gradients_of(m, l, i->number), &b);
            tell_layer_done(m, i, l);
        }
}

double model_forward_backward(struct model *m, const struct batch *host, double loss_scale, double aux_weight,
                              bool last)
{
    struct micro i = {.loss_scale = loss_scale, .aux_weight = aux_weight, .last = last};
    CHECK(model_begins(m, 0) && model_ends(m, 0));
    double sum = model_forward(m, &i, host);
    model_backward(m, &i, host);
    return sum;
}

// ---- forward only ----

long model_loss_sequences(const struct model *m, long S)
{
    long B = m->o.B;
    while (m->c.E && B > 1 && moe_rows_most(&m->x, &moe_rule_inference, B * S) > m->x.rows) B--;
    return B;
}

double model_chunk_loss(struct model *m, long chunk, const struct batch *host, float *losses)
{
    struct batch b = batch_on_device(m, chunk, 0, host);
    struct range layers = local_layers(m, chunk);
    long T = b.B * b.S;
    if (model_begins(m, chunk)) embed(m, saved_of(m, layers.first, 0)->in, b.token, host->token, T);
    for (long l = layers.first; l < layers.first + layers.count; l++)
        block_forward(&m->x, &m->p.layer[l], &moe_rule_inference, NULL, saved_of(m, l, 0), output_of(m, layers, l, 0),
                      &b, &m->scratch);
    if (!model_ends(m, chunk)) return 0;
    head_loss(&m->x, &m->p, NULL, &m->head, NULL, m->out, b.target, host->target, 0, T);
    if (losses) head_values(&m->x, losses, m->head.loss, T);
    return m->x.k->sum(m->head.loss, T);
}

double model_loss(struct model *m, const struct batch *host, float *losses)
{
    CHECK(model_begins(m, 0) && model_ends(m, 0));
    return model_chunk_loss(m, 0, host, losses);
}

void model_paged_forward(struct model *m, const int *token, const struct kv_view *layer_kv, long T, long first)
{
    CHECK(T <= m->o.B * m->o.S && first >= 0 && first <= T && m->grid.tensor.size == 1);
    struct range layers = local_layers(m, 0);
    m->x.k->from_host(m->batch_ints, token, T * (long)sizeof *token);
    embed(m, m->saved[0].in, m->batch_ints, token, T);
    for (long l = 0; l < m->c.L; l++)
        block_paged_forward(&m->x, &m->p.layer[l], &m->saved[l], output_of(m, layers, l, 0), &layer_kv[l], T,
                            l == m->c.L - 1 ? first : 0, &m->scratch);
}
