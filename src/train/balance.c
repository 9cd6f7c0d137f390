#include "train/balance.h"

#include <stdlib.h>

double alpha_next(const struct balance_rule *r, double alpha, double drop)
{
    double wanted = r->xi * drop;
    return r->beta * alpha + (1 - r->beta) * (wanted < r->alpha_max ? wanted : r->alpha_max);
}

void bias_move(double *bias, const long *count, long E, double rate)
{
    long all = 0;
    for (long e = 0; e < E; e++) all += count[e];
    for (long e = 0; e < E; e++) bias[e] += rate * ((all > E * count[e]) - (all < E * count[e]));
}

// ---- the tensor that gates read ----

enum { PIECE = 64 }; // elements that pass through the host at a time

static void bias_to_model(struct model *m, long l)
{
    double piece[PIECE]; // room for either type
    long size = dtype_size(m->x.k->acc), local = model_local_layer(m, l);
    if (local < 0) return;
    for (long e = 0; e < m->c.E; e += PIECE) {
        long n = m->c.E - e < PIECE ? m->c.E - e : PIECE;
        for (long i = 0; i < n; i++) acc_set(&m->x, piece, i, m->balance[l].bias[e + i]);
        m->x.k->from_host(acc_at(&m->x, m->p.layer[local].gate_bias.data, e), piece, n * size);
    }
}

static void bias_from_model(struct model *m, long l, long local)
{
    double piece[PIECE];
    long size = dtype_size(m->x.k->acc);
    for (long e = 0; e < m->c.E; e += PIECE) {
        long n = m->c.E - e < PIECE ? m->c.E - e : PIECE;
        m->x.k->to_host(piece, acc_at(&m->x, m->p.layer[local].gate_bias.data, e), n * size);
        for (long i = 0; i < n; i++) m->balance[l].bias[e + i] = acc_get(&m->x, piece, i);
    }
}

void balance_from_model(struct model *m)
{
    for (long l = 0; l < (m->balance && m->c.gate_bias ? m->c.L : 0); l++) {
        long local = model_local_layer(m, l);
        for (long e = 0; e < m->c.E; e++) m->balance[l].bias[e] = 0;
        if (local >= 0) bias_from_model(m, l, local);
        group_sum_f64(&m->grid.pipeline, m->balance[l].bias, m->c.E); // each layer is on one stage
    }
}

// ---- a step ----

double drop_rate(const struct moe_balance *b, long K)
{
    return b->tokens ? (double)b->dropped / ((double)K * (double)b->tokens) : 0;
}

void balance_begin(struct model *m)
{
    for (long l = 0; l < (m->balance ? m->c.L : 0); l++) moe_balance_reset(&m->balance[l], m->c.E);
}

// A layer's sums as numbers, and back. Of own tokens: z and the statistics, which all ranks of a stage have parts of;
// the others are the same on the ranks of a tensor group, of which one tells them.
static void pack(double *to, const struct moe_balance *b, long E, bool tells)
{
    for (long e = 0; e < E; e++) {
        to[e] = tells ? (double)b->count[e] : 0;
        to[E + e] = tells ? b->p_sum[e] : 0;
    }
    double rest[] = {tells ? (double)b->dropped : 0, tells ? (double)b->tokens : 0, tells ? b->aux : 0, b->z,
                     b->statistics.entropy, b->statistics.max1_max2, b->statistics.max2_max3};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) to[2 * E + (long)i] = rest[i];
}

static void unpack(struct moe_balance *b, const double *from, long E)
{
    for (long e = 0; e < E; e++) {
        b->count[e] = (long)from[e];
        b->p_sum[e] = from[E + e];
    }
    from += 2 * E;
    b->dropped = (long)from[0];
    b->tokens = (long)from[1];
    b->aux = from[2];
    b->z = from[3];
    b->statistics = (struct gate_statistics){from[4], from[5], from[6]};
}

enum status balance_sum(struct model *m)
{
    enum { REST = 7 };
    long L = m->balance ? m->c.L : 0, each = 2 * m->c.E + REST;
    if (m->grid.world.size == 1 || L == 0) return OK;
    double *sum = calloc((size_t)(L * each), sizeof *sum);
    if (!sum) return fail(ERR_MEMORY, "memory: the statistics of %ld layers were refused", L);
    for (long l = 0; l < L; l++)
        if (model_local_layer(m, l) >= 0) pack(sum + l * each, &m->balance[l], m->c.E, m->grid.tp == 0);
    group_sum_f64(&m->grid.world, sum, L * each);
    for (long l = 0; l < L; l++) unpack(&m->balance[l], sum + l * each, m->c.E);
    free(sum);
    return OK;
}

void balance_end(struct model *m, const struct balance_rule *r)
{
    for (long l = 0; l < (m->balance ? m->c.L : 0); l++) {
        struct moe_balance *b = &m->balance[l];
        if (r->adaptive) b->alpha = alpha_next(r, b->alpha, drop_rate(b, m->c.K));
        if (r->bias_rate) {
            bias_move(b->bias, b->count, m->c.E, r->bias_rate);
            bias_to_model(m, l);
        }
        if (!r->keep_global || !b->tokens) continue;
        for (long e = 0; e < m->c.E; e++) {
            b->global_p[e] = b->p_sum[e] / (double)b->tokens;
            b->global_f[e] = (double)b->count[e] / ((double)m->c.K * (double)b->tokens);
        }
        b->has_global = true;
    }
}

enum status balance_state_init(struct training_state *s, const struct model *m, const struct balance_rule *r)
{
    *s = (struct training_state){0};
    if (!m->balance) return OK;
    s->alpha = calloc((size_t)m->c.L, sizeof *s->alpha);
    bool whole = s->alpha;
    if (r->keep_global) {
        s->global_p = calloc((size_t)(m->c.L * m->c.E), sizeof *s->global_p);
        s->global_f = calloc((size_t)(m->c.L * m->c.E), sizeof *s->global_f);
        whole = whole && s->global_p && s->global_f;
    }
    if (m->c.gate_bias) {
        s->bias = calloc((size_t)(m->c.L * m->c.E), sizeof *s->bias);
        whole = whole && s->bias;
    }
    if (whole) return OK;
    balance_state_free(s);
    return fail(ERR_MEMORY, "memory: %ld layers' balance statistics were refused (free some memory)", m->c.L);
}

void balance_state_free(struct training_state *s)
{
    free(s->alpha);
    free(s->global_p);
    free(s->global_f);
    free(s->bias);
    s->alpha = s->global_p = s->global_f = s->bias = NULL;
}

void balance_to_state(struct training_state *s, const struct model *m)
{
    if (!m->balance) return;
    s->has_global = s->global_p && m->balance[0].has_global;
    for (long l = 0; l < m->c.L; l++) {
        const struct moe_balance *b = &m->balance[l];
        s->alpha[l] = b->alpha;
        for (long e = 0; s->bias && e < m->c.E; e++) s->bias[l * m->c.E + e] = b->bias[e];
        for (long e = 0; s->has_global && e < m->c.E; e++) {
            s->global_p[l * m->c.E + e] = b->global_p[e];
            s->global_f[l * m->c.E + e] = b->global_f[e];
        }
    }
}

void balance_from_state(struct model *m, const struct training_state *s)
{
    if (!m->balance) return;
    for (long l = 0; l < m->c.L; l++) {
        struct moe_balance *b = &m->balance[l];
        b->alpha = s->alpha[l];
        for (long e = 0; s->bias && e < m->c.E; e++) b->bias[e] = s->bias[l * m->c.E + e];
        if (s->bias) bias_to_model(m, l);
        b->has_global = s->has_global && s->global_p;
        for (long e = 0; b->has_global && e < m->c.E; e++) {
            b->global_p[e] = s->global_p[l * m->c.E + e];
            b->global_f[e] = s->global_f[l * m->c.E + e];
        }
    }
}
