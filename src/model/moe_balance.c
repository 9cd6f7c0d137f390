// How evenly tokens spread over experts: the capacity of an expert, the auxiliary losses with their gradient for g, and
// the sums of a step.
#include <limits.h>
#include <stdlib.h>

#include "model/moe.h"

long moe_capacity(struct decimal factor, long K, long T, long E)
{
    if (factor.numerator == 0 || factor.denominator == 0) return LONG_MAX;
    __int128 over = (__int128)factor.denominator * E;
    __int128 capacity = ((__int128)factor.numerator * K * T + over - 1) / over;
    return capacity > LONG_MAX ? LONG_MAX : (long)capacity;
}

enum status moe_balance_init(struct moe_balance *b, long E, double alpha)
{
    *b = (struct moe_balance){.alpha = alpha};
    b->global_p = calloc((size_t)E, sizeof *b->global_p);
    b->global_f = calloc((size_t)E, sizeof *b->global_f);
    b->count = calloc((size_t)E, sizeof *b->count);
    b->p_sum = calloc((size_t)E, sizeof *b->p_sum);
    b->bias = calloc((size_t)E, sizeof *b->bias);
    if (b->global_p && b->global_f && b->count && b->p_sum && b->bias) return OK;
    moe_balance_free(b);
    return fail(ERR_MEMORY, "memory: balance statistics of %ld experts were refused (free some memory)", E);
}

void moe_balance_free(struct moe_balance *b)
{
    free(b->global_p);
    free(b->global_f);
    free(b->count);
    free(b->p_sum);
    free(b->bias);
    *b = (struct moe_balance){0};
}

void moe_balance_reset(struct moe_balance *b, long E)
{
    for (long e = 0; e < E; e++) {
        b->count[e] = 0;
        b->p_sum[e] = 0;
    }
    b->dropped = b->tokens = 0;
    b->aux = b->z = 0;
    b->statistics = (struct gate_statistics){0};
}

// L_aux of one group of tokens, and in *slope its derivative for P_e, summand of expert e.
//
// skywork [report, eq 4]: (1/E - P_e)^2. With the previous step's P (`before`) the slope is taken there and the loss is
// the tangent at that point: for `before` = P it is the loss itself.
// switch [Fedus et al. 2022, eq 4]: E f_e P_e, f_e the fraction of assignments, constant.
static double loss_of_expert(double *slope, enum aux_loss aux, double P, double before, double f, long E)
{
    double miss = 1.0 / (double)E - before;
    *slope = aux == AUX_SKYWORK ? -2 * miss : (double)E * f;
    return aux == AUX_SKYWORK ? miss * miss + *slope * (P - before) : *slope * P;
}

// Assignments to each expert among the n tokens of each group, [groups, E].
static const long *counts_of(const struct context *x, struct moe_saved *s, const int *expert, long groups, long n)
{
    long E = x->c->E, K = x->c->K;
    if (groups == 1) return s->count;
    x->k->to_host(s->chosen, expert, groups * n * K * (long)sizeof *s->chosen);
    for (long i = 0; i < groups * E; i++) s->chosen_n[i] = 0;
    for (long i = 0; i < groups * n * K; i++) s->chosen_n[i / (n * K) * E + s->chosen[i]]++;
    return s->chosen_n;
}

// L_aux = mean over groups; s->sums holds the sums of g and receives the gradient for g of alpha * aux_weight * L_aux,
// which is the same for all tokens of a group.
static double loss_and_gradient(const struct context *x, const struct moe_rule *rule, const struct moe_balance *b,
                                struct moe_saved *s, const int *expert, long groups, long n)
{
    const long *count = counts_of(x, s, expert, groups, n);
    long E = x->c->E, assignments = n * x->c->K;
    bool global = rule->scope == SCOPE_GLOBAL && b->has_global;
    double loss = 0;
    for (long i = 0; i < groups * E; i++) {
        double P = acc_get(x, s->sums, i) / (double)n, f = (double)count[i] / (double)assignments, slope;
        loss += loss_of_expert(&slope, rule->aux, P, global ? b->global_p[i] : P, global ? b->global_f[i] : f, E);
        acc_set(x, s->sums, i, b->alpha * b->aux_weight * slope / (double)(n * groups));
    }
    return loss / (double)groups;
}

static void statistics_add(const struct context *x, const struct moe_rule *rule, struct moe_balance *b,
                           const struct moe_saved *s, long groups, long T)
{
    long E = x->c->E, K = x->c->K;
    struct decimal factor = rule->capacity.numerator ? rule->capacity : rule->virtual_capacity;
    long capacity = moe_capacity(factor, K, T, E);
    struct gate_statistics sum = {0};
    x->k->gate_statistics(&sum, s->g, own_tokens(x, T).count, E);
    b->statistics.entropy += sum.entropy;
    b->statistics.max1_max2 += sum.max1_max2;
    b->statistics.max2_max3 += sum.max2_max3;
    b->tokens += T;
    for (long e = 0; e < E; e++) {
        b->count[e] += s->count[e];
        b->dropped += s->count[e] > capacity ? s->count[e] - capacity : 0;
        for (long i = 0; i < groups; i++) b->p_sum[e] += acc_get(x, s->sums, i * E + e);
    }
}

// Sums of g over each group's tokens, of all ranks that have some, into s->sums.
static void sum_groups(const struct context *x, struct moe_saved *s, struct range own, long groups)
{
    const struct kernels *k = x->k;
    const struct group *tensor = &x->grid->tensor;
    long E = x->c->E, with_own = (own.first + own.count + s->aux_group - 1) / s->aux_group;
    k->gate_sums(s->aux_dg, s->g, own.first, s->aux_group, own.count, E);
    k->to_host(s->sums, s->aux_dg, with_own * E * dtype_size(k->acc));
    for (long i = with_own * E; i < groups * E; i++) acc_set(x, s->sums, i, 0);
    if (k->acc == F64) group_sum_f64(tensor, s->sums, groups * E);
    else group_sum_f32(tensor, s->sums, groups * E);
}

void moe_balance_add(const struct context *x, const struct moe_rule *rule, struct moe_balance *b, struct moe_saved *s,
                     const int *expert, long B, long S)
{
    const struct kernels *k = x->k;
    struct range own = own_tokens(x, B * S);
    long T = B * S, E = x->c->E, groups = rule->scope == SCOPE_SEQUENCE ? B : 1;
    s->aux_group = rule->scope == SCOPE_SEQUENCE ? S : T;
    if (T == 0) {
        s->aux_group = 1; // no token asks for it
        return;
    }
    sum_groups(x, s, own, groups);
    statistics_add(x, rule, b, s, groups, T);
    if (rule->z_coeff) {
        b->z += b->aux_weight * k->sum_squares(s->lse, own.count) / (double)T;
        s->z_scale = rule->z_coeff * b->aux_weight * 2 / (double)T;
    }
    if (rule->aux == AUX_NONE) return;
    b->aux += b->aux_weight * loss_and_gradient(x, rule, b, s, expert, groups, s->aux_group);
    k->from_host(s->aux_dg, s->sums, groups * E * dtype_size(k->acc));
}
