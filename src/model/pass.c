// A micro-batch's way through the layers that a rank holds: forward, backward, and forward only.
#include "model/model.h"

#include <stdint.h>

// ---- one micro-batch ----

static struct batch batch_at(const struct model *m, long chunk, long micro, long B, long S)
{
    long most = m->o.B * m->o.S;
    int *at = m->batch_ints + (chunk * m->batch_slots + micro % m->batch_slots) * m->batch_stride;
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
