// What a training step may not depend on: recompute levels, how a batch is cut, what is masked; and its corner cases.
#include "model_util.h"

struct result {
    double loss;
    char *gradients; // the whole arena
    long bytes;
};

static struct result run(struct model *m, const struct batch *b, double scale)
{
    struct result r = {0};
    model_zero_gradients(m);
    for (long l = 0; m->balance && l < m->c.L; l++) moe_balance_reset(&m->balance[l], m->c.E);
    r.loss = model_forward_backward(m, b, scale, 1, false);
    r.bytes = m->gradients.capacity;
    r.gradients = malloc((size_t)r.bytes);
    m->x.k->to_host(r.gradients, m->gradients.base, r.bytes);
    return r;
}

static double largest_gradient(const struct model *m)
{
    double largest = 0;
    for (long i = 0; i < m->params.n; i++) {
        long n = param_elements(&m->params.item[i]);
        double *g = host_of(m->x.k, m->params.item[i].grad, m->x.k->acc, n);
        for (long j = 0; j < n; j++) {
            if (!(fabs(g[j]) <= largest)) largest = fabs(g[j]);
        }
        free(g);
    }
    return largest;
}

static struct model_options with_drops(enum dtype dtype, long B, long S)
{
    struct model_options o = training(dtype, B, S);
    o.rule.capacity = factor(9, 10);
    return o;
}

static void test_recompute_is_bit_identical(void **state)
{
    (void)state;
    for (long i = 0; i < 2 * 2; i++) {
        struct config c = i % 2 ? tiny_moe() : tiny_dense();
        c.L = 3;
        struct owned_batch b = batch_make(3, 11, c.V, true, true, 5);
        struct result want = {0};
        for (long j = 0; j < 5; j++) { // none, moe, full; and the first two layers only
            struct model_options o = with_drops(i / 2 ? BF16 : F32, 3, 11);
            o.recompute = (enum recompute)(j < 3 ? j : j - 2);
            o.recompute_layers = j < 3 ? -1 : 2;
            struct model m;
            model_start(&m, &c, &o);
            struct result r = run(&m, &b.b, 0.01);
            if (j == 0) {
                want = r;
                assert_true(largest_gradient(&m) > 1e-4);
            } else {
                expect_same_bits("loss", &r.loss, &want.loss, sizeof r.loss);
                expect_same_bits("gradients", r.gradients, want.gradients, r.bytes);
                free(r.gradients);
            }
            model_free(&m);
        }
        free(want.gradients);
        batch_free(&b);
    }
}

// The same call twice gives the same bits, and nothing is left from what the model did before.
static void test_no_memory_of_earlier_batches(void **state)
{
    (void)state;
    struct config c = tiny_moe();
    struct model_options o = with_drops(BF16, 3, 8);
    struct model m;
    model_start(&m, &c, &o);
    struct owned_batch b = batch_make(2, 7, c.V, true, true, 5), other = batch_make(3, 8, c.V, false, false, 6);
    struct result first = run(&m, &b.b, 0.01), between = run(&m, &other.b, 0.1);
    model_loss(&m, &other.b, NULL);
    struct result second = run(&m, &b.b, 0.01);
    expect_same_bits("loss", &first.loss, &second.loss, sizeof first.loss);
    expect_same_bits("gradients", first.gradients, second.gradients, first.bytes);
    assert_true(memcmp(first.gradients, between.gradients, (size_t)first.bytes) != 0);
    free(first.gradients);
    free(second.gradients);
    free(between.gradients);
    batch_free(&b);
    batch_free(&other);
    model_free(&m);
}

// A short batch in a large model is the batch in a model of its size.
static void test_smaller_batch(void **state)
{
    (void)state;
    struct config c = tiny_moe();
    struct model_options large = with_drops(F32, 4, 12), small = with_drops(F32, 2, 9);
    large.rule.scope = small.rule.scope = SCOPE_SEQUENCE;
    struct owned_batch b = batch_make(2, 9, c.V, true, true, 5);
    struct model m, n;
    model_start(&m, &c, &large);
    model_start(&n, &c, &small);
    struct result r = run(&m, &b.b, 0.01), s = run(&n, &b.b, 0.01);
    expect_same_bits("loss", &r.loss, &s.loss, sizeof r.loss);
    expect_same_bits("gradients", r.gradients, s.gradients, r.bytes);
    for (long l = 0; l < c.L; l++) assert_true(m.balance[l].aux == n.balance[l].aux && m.balance[l].tokens == 18);
    free(r.gradients);
    free(s.gradients);
    batch_free(&b);
    model_free(&m);
    model_free(&n);
}

// Dense: sequences do not see each other, so a batch is its sequences one after the other.
static void test_accumulation(void **state)
{
    (void)state;
    enum { B = 4, S = 9 };
    struct config c = tiny_dense();
    struct model_options o = training(F64, B, S);
    struct model m;
    model_start(&m, &c, &o);
    struct owned_batch b = batch_make(B, S, c.V, true, true, 5);
    struct result whole = run(&m, &b.b, 0.01);
    model_zero_gradients(&m);
    double loss = 0;
    for (long s = 0; s < B; s++) {
        struct batch one = {1, S, b.b.token + s * S, b.b.target + s * S, b.b.position + s * S, b.b.start + s * S};
        loss += model_forward_backward(&m, &one, 0.01, 0.25, false);
    }
    struct measured error = {0};
    for (long i = 0; i < whole.bytes / 8; i++)
        measure(&error, ((double *)whole.gradients)[i], ((double *)m.gradients.base)[i]);
    measured_expect(&error, "gradients of four micro-batches", 1e-12);
    assert_true(fabs(loss / whole.loss - 1) < 1e-12);
    free(whole.gradients);
    batch_free(&b);
    model_free(&m);
}

static void test_loss(void **state)
{
    (void)state;
    for (long i = 0; i < 3 * 2; i++) {
        enum { B = 3, S = 10 };
        enum dtype dtype = (enum dtype[]){F32, BF16, F64}[i / 2];
        struct config c = i % 2 ? tiny_moe() : tiny_dense();
        c.V = 600; // more than a row of tiles
        struct model_options o = training(dtype, B, S);
        struct model m, n;
        model_start(&m, &c, &o);
        struct model_options only = inference(dtype, S, S);
        only.B = B;
        model_start(&n, &c, &only);
        struct owned_batch b = batch_make(B, S, c.V, true, true, 5);
        struct result r = run(&m, &b.b, 0.01);
        float losses[B * S];
        double loss = model_loss(&m, &b.b, losses), sum = 0;
        expect_same_bits("dropless loss is the training loss", &loss, &r.loss, sizeof loss);
        for (long t = 0; t < b.T; t++) {
            assert_true(b.b.target[t] < 0 ? losses[t] == 0 : losses[t] > 0 && losses[t] < 30);
            sum += (double)losses[t];
        }
        assert_true(fabs(sum / loss - 1) < 1e-6);
        double same = model_loss(&n, &b.b, NULL);
        expect_same_bits("inference model", &loss, &same, sizeof loss);
        free(r.gradients);
        batch_free(&b);
        model_free(&m);
        model_free(&n);
    }
}

// Evaluation is dropless and leaves no trace in the balance of a step.
static void test_loss_is_dropless(void **state)
{
    (void)state;
    struct config c = tiny_moe();
    struct model_options o = training(F32, 2, 10);
    o.rule.capacity = factor(1, 2);
    struct model m;
    model_start(&m, &c, &o);
    struct owned_batch b = batch_make(2, 10, c.V, false, false, 5);
    struct result r = run(&m, &b.b, 0.01);
    assert_true(m.balance[0].dropped > 0);
    struct moe_balance before = m.balance[0];
    double dropless = model_loss(&m, &b.b, NULL);
    assert_true(dropless != r.loss);
    expect_same_bits("balance", &before, &m.balance[0], sizeof before);
    m.o.rule.capacity = factor(0, 1);
    struct result full = run(&m, &b.b, 0.01);
    expect_same_bits("without capacity", &full.loss, &dropless, sizeof dropless);
    assert_true(m.balance[0].dropped > 0); // against the virtual capacity
    free(r.gradients);
    free(full.gradients);
    batch_free(&b);
    model_free(&m);
}

// Documents in one sequence are the documents alone.
static void test_documents_do_not_see_each_other(void **state)
{
    (void)state;
    struct config c = tiny_dense();
    struct model_options o = training(F64, 1, 12);
    struct model m;
    model_start(&m, &c, &o);
    struct owned_batch b = batch_make(1, 12, c.V, false, false, 5);
    for (int t = 5; t < 12; t++) {
        b.b.start[t] = 5;
        b.b.position[t] = t - 5;
    }
    int zero[12] = {0};
    struct batch first = {1, 5, b.b.token, b.b.target, b.b.position, zero};
    struct batch second = {1, 7, b.b.token + 5, b.b.target + 5, b.b.position + 5, zero};
    double parts = model_loss(&m, &first, NULL) + model_loss(&m, &second, NULL), whole = model_loss(&m, &b.b, NULL);
    printf("  two documents: difference %.2e\n", fabs(whole - parts));
    assert_true(fabs(whole / parts - 1) < 1e-13);
    for (int t = 5; t < 12; t++) b.b.start[t] = 0;
    assert_true(fabs(model_loss(&m, &b.b, NULL) - parts) > 1e-3);
    batch_free(&b);
    model_free(&m);
}

// Masked targets: no loss and no gradient; all masked is all zero.
static void test_masked(void **state)
{
    (void)state;
    struct config c = tiny_moe();
    struct model_options o = with_drops(BF16, 2, 8);
    o.rule.aux = AUX_NONE;
    struct model m;
    model_start(&m, &c, &o);
    struct owned_batch b = batch_make(2, 8, c.V, false, false, 5);
    for (long t = 0; t < b.T; t++) b.b.target[t] = -1;
    struct result r = run(&m, &b.b, 0.01);
    assert_true(r.loss == 0 && largest_gradient(&m) == 0);
    free(r.gradients);
    assert_true(m.balance[0].tokens == 16); // masked tokens are real: they are routed and counted
    b.b.target[3] = 1;
    r = run(&m, &b.b, 0.01);
    assert_true(r.loss > 0 && largest_gradient(&m) > 0);
    free(r.gradients);
    batch_free(&b);
    model_free(&m);
}

static void test_no_tokens(void **state)
{
    (void)state;
    for (long i = 0; i < 2; i++) {
        struct config c = i ? tiny_moe() : tiny_dense();
        struct model_options o = with_drops(F32, 2, 8);
        o.rule.scope = SCOPE_SEQUENCE;
        o.recompute = RECOMPUTE_FULL;
        struct model m;
        model_start(&m, &c, &o);
        struct batch none = {.B = 0, .S = 8};
        struct result r = run(&m, &none, 0.01);
        assert_true(r.loss == 0 && largest_gradient(&m) == 0 && model_loss(&m, &none, NULL) == 0);
        for (long l = 0; m.balance && l < c.L; l++)
            assert_true(m.balance[l].tokens == 0 && m.balance[l].aux == 0 && m.balance[l].dropped == 0);
        free(r.gradients);
        model_free(&m);
    }
}

// A router that sends every token to experts 2 and 3: four of the five experts' rows are none or all.
static void test_everything_to_the_same_experts(void **state)
{
    (void)state;
    struct config c = tiny_moe();
    c.gate_norm_std = 0;
    struct model_options o = training(F32, 2, 8);
    struct model m;
    model_start(&m, &c, &o);
    struct owned_batch b = batch_make(2, 8, c.V, false, false, 5);
    // The embedding's first channel is 1, the norms keep it positive, and only the router's first column counts.
    for (long i = 0; i < m.params.n; i++) {
        const struct param *p = &m.params.item[i];
        long n = param_elements(p);
        double *x = host_of(m.x.k, p->value.data, F32, n);
        for (long j = 0; j < n; j++) {
            if (p->kind->init == INIT_ROUTER) x[j] = j % c.D ? 0 : (double[]){-1, -2, 3, 2, -3}[j / c.D];
            else if (p->kind->rows == DIM_V) x[j] = j % c.D ? x[j] : 6;
            else if (p->columns == 1) x[j] = 1;
            else if (p->kind->init == INIT_STD_OUT) x[j] *= 0.1;
        }
        device_set(m.x.k, p->value.data, F32, x, n);
        free(x);
    }
    struct result r = run(&m, &b.b, 0.01);
    for (long l = 0; l < c.L; l++) {
        const long want[] = {0, 0, 16, 16, 0};
        for (long e = 0; e < 5; e++) assert_int_equal(m.balance[l].count[e], want[e]);
        assert_int_equal(m.balance[l].dropped, 2 * (16 - 8)); // virtual: ceil(1.1 * 2 * 16 / 5) = 8
        const char *unused = l ? "model.layers.1.block_sparse_moe.experts.0.w1.weight"
                               : "model.layers.0.block_sparse_moe.experts.4.w2.weight";
        const struct param *p = param_find(&m.params, unused);
        double *g = host_of(m.x.k, p->grad, F32, param_elements(p));
        for (long j = 0; j < param_elements(p); j++) assert_true(g[j] == 0);
        free(g);
    }
    assert_true(r.loss > 0 && largest_gradient(&m) > 0 && largest_gradient(&m) < 1e3);
    free(r.gradients);
    batch_free(&b);
    model_free(&m);
}

// Equal experts with renormalised weights are the dense ffn, whatever the router says.
static void test_equal_experts_are_dense(void **state)
{
    (void)state;
    struct config c = tiny_moe(), d = tiny_dense();
    struct model_options o = training(F32, 2, 10);
    struct model m, n;
    model_start(&m, &c, &o);
    model_start(&n, &d, &o);
    for (long i = 0; i < m.params.n; i++) {
        const struct param *p = &m.params.item[i];
        char name[96];
        snprintf(name, sizeof name, "%s", p->name);
        if (p->kind->init == INIT_ROUTER) continue;
        if (p->expert >= 0) {
            const char *part = strstr(p->name, ".w1.") ? "gate" : strstr(p->name, ".w3.") ? "up" : "down";
            snprintf(name, sizeof name, "model.layers.%ld.mlp.%s_proj.weight", p->layer, part);
        }
        const struct param *q = param_find(&n.params, name);
        assert_non_null(q);
        m.x.k->copy(p->value.data, q->value.data, param_elements(p) * 4);
    }
    struct owned_batch b = batch_make(2, 10, c.V, true, false, 5);
    double moe = model_loss(&m, &b.b, NULL), dense = model_loss(&n, &b.b, NULL);
    printf("  upcycled copy: relative difference %.2e\n", fabs(moe / dense - 1));
    assert_true(fabs(moe / dense - 1) < 1e-6);
    batch_free(&b);
    model_free(&m);
    model_free(&n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recompute_is_bit_identical),
        cmocka_unit_test(test_no_memory_of_earlier_batches),
        cmocka_unit_test(test_smaller_batch),
        cmocka_unit_test(test_accumulation),
        cmocka_unit_test(test_loss),
        cmocka_unit_test(test_loss_is_dropless),
        cmocka_unit_test(test_documents_do_not_see_each_other),
        cmocka_unit_test(test_masked),
        cmocka_unit_test(test_no_tokens),
        cmocka_unit_test(test_everything_to_the_same_experts),
        cmocka_unit_test(test_equal_experts_are_dense),
    };
    return cmocka_run_group_tests_name("model", tests, tests_start, NULL);
}
