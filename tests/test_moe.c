// Capacity, drops and balance of a MoE layer: numbers worked out here another way.
#include <limits.h>

#include "model_util.h"

static void test_capacity(void **state)
{
    (void)state;
    assert_int_equal(moe_capacity(factor(11, 10), 2, 200, 8), 55); // in double ceil(1.1 * 50) would be 56
    assert_true((long)ceil(1.1 * 50) == 56);
    assert_int_equal(moe_capacity(factor(1, 1), 2, 200, 8), 50);
    assert_int_equal(moe_capacity(factor(11, 10), 2, 201, 8), 56);
    assert_int_equal(moe_capacity(factor(1, 1000000000), 2, 3, 8), 1);
    assert_int_equal(moe_capacity(factor(11, 10), 2, 0, 8), 0);
    assert_true(moe_capacity(factor(0, 1), 2, 200, 8) == LONG_MAX);
    assert_true(moe_capacity((struct decimal){0}, 2, 200, 8) == LONG_MAX);
    assert_true(moe_capacity(factor(LONG_MAX, 1), 64, 1 << 24, 2) == LONG_MAX);
}

static double p_of(const double *g, long first, long n, long e, long E)
{
    double sum = 0;
    for (long t = first; t < first + n; t++) sum += g[t * E + e];
    return sum / (double)n;
}

// One forward; what it added to layer 0's balance against sums over what it saved.
static void check_balance(enum aux_loss aux, enum aux_scope scope, bool has_global, struct decimal capacity)
{
    enum { B = 3, S = 8, T = B * S };
    struct config c = tiny_moe();
    long E = c.E, K = c.K;
    struct model_options o = training(F64, B, S);
    o.rule = (struct moe_rule){.capacity = capacity, .virtual_capacity = {6, 5}, .aux = aux, .scope = scope};
    struct model m;
    model_start(&m, &c, &o);
    struct moe_balance *b = &m.balance[0];
    b->has_global = has_global;
    for (long e = 0; e < E; e++) {
        b->global_p[e] = 0.1 + 0.05 * (double)e;
        b->global_f[e] = 0.3 - 0.05 * (double)e;
    }
    struct owned_batch batch = batch_make(B, S, c.V, false, false, 9);
    model_zero_gradients(&m);
    model_forward_backward(&m, &batch.b, 0.01, 0.25, false);
    model_forward_backward(&m, &batch.b, 0.01, 0.25, false); // sums over micro-batches: twice the same

    const struct moe_saved *s = &m.saved[0].moe;
    double *g = host_of(m.x.k, s->g, F64, T * E);
    int expert[T * 5], row[T * 5];
    m.x.k->to_host(expert, s->expert, T * K * (long)sizeof *expert);
    m.x.k->to_host(row, s->row, T * K * (long)sizeof *row);
    long n[5] = {0}, over = 0, kept = 0;
    for (long i = 0; i < T * K; i++) {
        n[expert[i]]++;
        kept += row[i] >= 0;
    }
    long limit = capacity.numerator ? (long)ceil((double)capacity.numerator / 10 * T * K / 5 - 1e-9)
                                    : (long)ceil(1.2 * T * K / 5 - 1e-9);
    for (long e = 0; e < E; e++) {
        assert_int_equal(b->count[e], 2 * n[e]);
        assert_true(fabs(b->p_sum[e] - 2 * T * p_of(g, 0, T, e, E)) < 1e-12);
        over += n[e] > limit ? n[e] - limit : 0;
    }
    assert_int_equal(b->dropped, 2 * over);
    assert_int_equal(b->tokens, 2 * T);
    assert_int_equal(kept, capacity.numerator ? T * K - over : T * K);
    assert_int_equal(s->R, kept);
    assert_true(over > 0);

    long groups = scope == SCOPE_SEQUENCE ? B : 1, size = T / groups;
    double loss = 0;
    for (long i = 0; i < groups; i++) {
        for (long e = 0; e < E; e++) {
            double P = p_of(g, i * size, size, e, E), f = 0;
            for (long j = i * size * K; j < (i + 1) * size * K; j++) f += (expert[j] == e) / (double)(size * K);
            if (aux == AUX_SWITCH) loss += (double)E * (has_global ? b->global_f[e] : f) * P / (double)groups;
            if (aux != AUX_SKYWORK) continue;
            double miss = 0.2 - P, before = 0.2 - b->global_p[e];
            loss += (has_global ? 2 * before * miss - before * before : miss * miss) / (double)groups;
        }
    }
    printf("  aux %d scope %d: L_aux %.6f, difference %.1e; %ld of %ld over %ld\n", aux, scope, loss,
           fabs(b->aux / 0.5 - loss), over, T * K, limit);
    assert_true(fabs(b->aux / 0.5 - loss) < 1e-13 && (loss != 0) == (aux != AUX_NONE));

    double entropy = 0;
    for (long i = 0; i < T * E; i++) entropy -= g[i] * log(g[i]);
    assert_true(fabs(b->statistics.entropy / (2 * entropy) - 1) < 1e-12);
    assert_true(b->statistics.max1_max2 > 2 * T && b->statistics.max2_max3 > 2 * T);
    assert_true(m.balance[1].aux_weight == 0.25);

    moe_balance_reset(b, E);
    for (long e = 0; e < E; e++) assert_true(b->count[e] == 0 && b->p_sum[e] == 0 && b->global_p[e] > 0);
    assert_true(b->dropped == 0 && b->tokens == 0 && b->aux == 0 && b->statistics.entropy == 0);
    assert_true(b->alpha == 0.3 && b->has_global == has_global);
    free(g);
    batch_free(&batch);
    model_free(&m);
}

static void test_balance(void **state)
{
    (void)state;
    const struct decimal dropless = {0}, tight = {8, 10};
    check_balance(AUX_NONE, SCOPE_MICRO, false, tight);
    check_balance(AUX_SKYWORK, SCOPE_MICRO, false, dropless);
    check_balance(AUX_SKYWORK, SCOPE_SEQUENCE, false, tight);
    check_balance(AUX_SKYWORK, SCOPE_GLOBAL, false, tight);
    check_balance(AUX_SKYWORK, SCOPE_GLOBAL, true, dropless);
    check_balance(AUX_SWITCH, SCOPE_MICRO, false, tight);
    check_balance(AUX_SWITCH, SCOPE_SEQUENCE, false, dropless);
    check_balance(AUX_SWITCH, SCOPE_GLOBAL, true, tight);
}

// Of an expert's assignments, `probs` keeps those with the largest g, `position` those of the earliest tokens.
static void check_policy(enum drop_policy policy)
{
    enum { T = 30 };
    struct config c = tiny_moe();
    struct model_options o = training(F32, 1, T);
    o.rule.capacity = factor(7, 10);
    o.rule.policy = policy;
    struct model m;
    model_start(&m, &c, &o);
    struct owned_batch batch = batch_make(1, T, c.V, false, false, 9);
    model_forward_backward(&m, &batch.b, 0.01, 1, false);
    const struct moe_saved *s = &m.saved[0].moe;
    int expert[T * 2], row[T * 2];
    m.x.k->to_host(expert, s->expert, sizeof expert);
    m.x.k->to_host(row, s->row, sizeof row);
    double *g = host_of(m.x.k, s->g, F32, T * c.E);
    long dropped = 0;
    for (long i = 0; i < T * 2; i++) {
        dropped += row[i] < 0;
        for (long j = 0; j < T * 2; j++) {
            if (expert[i] != expert[j] || row[i] < 0 || row[j] >= 0) continue; // i is kept, j of that expert is not
            if (policy == DROP_POSITION) assert_true(i < j);
            else assert_true(g[i / 2 * c.E + expert[i]] >= g[j / 2 * c.E + expert[j]]);
        }
    }
    printf("  policy %d: %ld of %d dropped\n", policy, dropped, T * 2);
    assert_true(dropped > 10 && dropped == m.balance[0].dropped);
    free(g);
    batch_free(&batch);
    model_free(&m);
}

static void test_policies(void **state)
{
    (void)state;
    check_policy(DROP_PROBS);
    check_policy(DROP_POSITION);
}

// The loss of a balanced batch is 0 (skywork) or 1 (switch), and everything on one expert is 1 - 1/E and E.
static void test_extremes(void **state)
{
    (void)state;
    for (int all = 0; all < 2; all++) {
        struct config c = tiny_moe();
        c.K = 1;
        c.gate_norm_std = 0;
        struct model_options o = training(F64, 1, 10);
        struct model m;
        for (int aux = AUX_SKYWORK; aux <= AUX_SWITCH; aux++) {
            o.rule.aux = (enum aux_loss)aux;
            model_start(&m, &c, &o);
            struct moe_saved *s = &m.saved[0].moe;
            double g[50] = {0};
            for (long t = 0; t < 10; t++) g[t * 5 + (all ? 2 : t % 5)] = 1;
            for (long e = 0; e < 5; e++) s->count[e] = all ? e == 2 ? 10 : 0 : 2;
            device_set(m.x.k, s->g, F64, g, 50);
            m.balance[0].aux_weight = 1;
            moe_balance_add(&m.x, &m.o.rule, &m.balance[0], s, s->expert, 1, 10);
            double want = aux == AUX_SKYWORK ? (all ? 0.8 : 0) : (all ? 5 : 1);
            assert_true(fabs(m.balance[0].aux - want) < 1e-14);
            assert_int_equal(m.balance[0].dropped, all ? 10 - 3 : 0); // virtual: ceil(1.1 * 10 / 5) = 3
            model_free(&m);
        }
    }
}

// Gate normalisation: the router's scale does not matter, and one of 16 never exceeds 0.785 at lambda 1 (facts 1.3).
static void test_gate_norm(void **state)
{
    (void)state;
    struct config c = tiny_moe();
    c.E = 16;
    struct model_options o = training(F64, 2, 20);
    struct model m;
    model_start(&m, &c, &o);
    struct owned_batch b = batch_make(2, 20, c.V, false, false, 9);
    double loss = model_loss(&m, &b.b, NULL), largest = 0;
    double *g = host_of(m.x.k, m.saved[0].moe.g, F64, 40 * 16);
    for (long i = 0; i < 40 * 16; i++) largest = g[i] > largest ? g[i] : largest;
    printf("  largest g of 16 experts: %.3f\n", largest);
    assert_true(largest > 0.2 && largest <= 0.785);
    for (long i = 0; i < m.params.n; i++) {
        const struct param *p = &m.params.item[i];
        if (p->kind->init != INIT_ROUTER) continue;
        double *x = host_of(m.x.k, p->value.data, F64, param_elements(p));
        for (long j = 0; j < param_elements(p); j++) x[j] *= 37;
        device_set(m.x.k, p->value.data, F64, x, param_elements(p));
        free(x);
    }
    double scaled = model_loss(&m, &b.b, NULL);
    printf("  router times 37: relative difference %.1e\n", fabs(scaled / loss - 1));
    assert_true(fabs(scaled / loss - 1) < 1e-13);
    free(g);
    batch_free(&b);
    model_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_capacity),
        cmocka_unit_test(test_balance),
        cmocka_unit_test(test_policies),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_gate_norm),
    };
    return cmocka_run_group_tests_name("moe", tests, tests_start, NULL);
}
