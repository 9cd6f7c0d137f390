#include "train/balance.h"

#include <stdlib.h>

double alpha_next(const struct balance_rule *r, double alpha, double drop)
{
    double wanted = r->xi * drop;
    return r->beta * alpha + (1 - r->beta) * (wanted < r->alpha_max ? wanted : r->alpha_max);
}

double drop_rate(const struct moe_balance *b, long K)
{
    return b->tokens ? (double)b->dropped / ((double)K * (double)b->tokens) : 0;
}

void balance_begin(struct model *m)
{
    for (long l = 0; l < (m->balance ? m->c.L : 0); l++) moe_balance_reset(&m->balance[l], m->c.E);
}

void balance_end(struct model *m, const struct balance_rule *r)
{
    for (long l = 0; l < (m->balance ? m->c.L : 0); l++) {
        struct moe_balance *b = &m->balance[l];
        if (r->adaptive) b->alpha = alpha_next(r, b->alpha, drop_rate(b, m->c.K));
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
    if (whole) return OK;
    balance_state_free(s);
    return fail(ERR_MEMORY, "memory: %ld layers' balance statistics were refused (free some memory)", m->c.L);
}

void balance_state_free(struct training_state *s)
{
    free(s->alpha);
    free(s->global_p);
    free(s->global_f);
    s->alpha = s->global_p = s->global_f = NULL;
}

void balance_to_state(struct training_state *s, const struct model *m)
{
    if (!m->balance) return;
    s->has_global = s->global_p && m->balance[0].has_global;
    for (long l = 0; l < m->c.L; l++) {
        const struct moe_balance *b = &m->balance[l];
        s->alpha[l] = b->alpha;
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
        b->has_global = s->has_global && s->global_p;
        for (long e = 0; b->has_global && e < m->c.E; e++) {
            b->global_p[e] = s->global_p[l * m->c.E + e];
            b->global_f[e] = s->global_f[l * m->c.E + e];
        }
    }
}
