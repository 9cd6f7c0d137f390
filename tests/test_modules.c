// Each module alone, in double: the gradient of its input (every element) and of its parameters against central
// differences of sum(y dy), and that parameter gradients are added to what is there.
#include "model_util.h"

enum { B = 2, S = 7, T = B * S };

// A module between `in` and `y`, with everything it needs.
struct bench {
    const char *name;
    struct model m;
    struct arena arena, host;
    struct owned_batch b;
    struct block_saved s, ds;
    el *in, *y, *dy, *dx, *scratch, *rows;
    acc *dxn;
    struct moe_balance balance;
    struct moe_rule rule;
    double (*run)(struct bench *t, bool backward); // objective; with backward also dx and parameter gradients
};

static void bench_layout(struct bench *t)
{
    struct context *x = &t->m.x;
    long D = x->c->D;
    block_saved_layout(&t->s, RECOMPUTE_NONE, &t->arena, &t->arena, &t->host, x, T, B);
    block_saved_layout(&t->ds, RECOMPUTE_NONE, &t->arena, &t->arena, &t->host, x, T, B);
    el **row[] = {&t->in, &t->y, &t->dy, &t->dx, &t->scratch, &t->dxn};
    for (int i = 0; i < 6; i++) *row[i] = arena_take(&t->arena, T * D, 8);
    t->rows = arena_take(&t->arena, T * x->c->K * D, 8);
}

static void bench_start(struct bench *t, const char *name, const struct config *c)
{
    t->name = name;
    struct model_options o = training(F64, B, S);
    model_start(&t->m, c, &o);
    t->arena = arena_measure("bench", DEVICE_CPU);
    t->host = arena_measure("bench", DEVICE_CPU);
    bench_layout(t);
    OK_OR_FAIL(arena_reserve(&t->arena));
    OK_OR_FAIL(arena_reserve(&t->host));
    bench_layout(t);
    t->b = batch_make(B, S, c->V, true, true, 3);
    double x[T * 16];
    assert_true(c->D <= 16);
    draw(x, T * c->D, 1, "input");
    device_set(t->m.x.k, t->in, F64, x, T * c->D);
    draw(x, T * c->D, 1, "dy");
    device_set(t->m.x.k, t->dy, F64, x, T * c->D);
    if (c->E) OK_OR_FAIL(moe_balance_init(&t->balance, c->E, 0.8));
    t->balance.aux_weight = 0.6;
}

static void bench_end(struct bench *t)
{
    batch_free(&t->b);
    if (t->m.c.E) moe_balance_free(&t->balance);
    arena_release(&t->arena);
    arena_release(&t->host);
    model_free(&t->m);
}

static double y_dy(struct bench *t)
{
    double *y = host_of(t->m.x.k, t->y, F64, T * t->m.c.D), *dy = host_of(t->m.x.k, t->dy, F64, T * t->m.c.D);
    double f = dot(y, dy, T * t->m.c.D);
    free(y);
    free(dy);
    return f;
}

static double run_attention(struct bench *t, bool backward)
{
    struct context *x = &t->m.x;
    struct layer_params *p = &t->m.p.layer[0], *g = &t->m.g.layer[0];
    attention_forward(x, p, &t->s.attn, t->y, t->in, &t->b.b, t->scratch);
    if (backward) {
        attention_backward_input(x, p, &t->s.attn, &t->ds.attn, t->dx, t->dy, t->in, &t->b.b, NULL);
        attention_backward_weight(x, g, &t->s.attn, &t->ds.attn, t->dy, t->in, T, NULL);
    }
    return y_dy(t);
}

static double run_ffn(struct bench *t, bool backward)
{
    struct context *x = &t->m.x;
    struct layer_params *p = &t->m.p.layer[0], *g = &t->m.g.layer[0];
    ffn_forward(x, p, &t->s.ffn, t->y, t->in, T, t->scratch);
    if (backward) {
        ffn_backward_input(x, p, &t->s.ffn, &t->ds.ffn, t->dx, t->dy, t->in, T, NULL);
        ffn_backward_weight(x, g, &t->s.ffn, &t->ds.ffn, t->dy, t->in, T, NULL);
    }
    return y_dy(t);
}

static double run_moe(struct bench *t, bool backward)
{
    struct context *x = &t->m.x;
    struct layer_params *p = &t->m.p.layer[0], *g = &t->m.g.layer[0];
    moe_balance_reset(&t->balance, t->m.c.E);
    moe_forward(x, p, &t->rule, &t->balance, &t->s.moe, t->y, t->in, B, S, t->rows);
    if (backward) {
        struct travel travel = moe_backward_experts(x, p, &t->s.moe, &t->ds.moe, t->dy, t->rows);
        moe_backward_experts_weight(x, g, &t->s.moe, &t->ds.moe, t->rows);
        moe_backward_route(x, p, &t->rule, &t->s.moe, &t->ds.moe, t->dx, t->dy, t->in, T, t->dxn, &travel);
        moe_backward_route_weight(x, g, &t->s.moe, &t->ds.moe, t->in, T);
    }
    return y_dy(t) + t->balance.alpha * t->balance.aux;
}

static double run_head(struct bench *t, bool backward)
{
    struct model *m = &t->m;
    head_loss(&m->x, &m->p, backward ? &m->g : NULL, &m->head, t->dx, t->in, t->b.b.target, t->b.b.target, 0.3, T);
    return 0.3 * m->x.k->sum(m->head.loss, T);
}

// Differences for n doubles at `data` against their gradient.
static void check_elements(struct bench *t, void *data, const double *grad, long n, const char *what)
{
    const double h = 1e-5;
    double *x = host_of(t->m.x.k, data, F64, n);
    struct measured error = {0};
    for (long i = 0; i < n; i++) {
        double value = x[i], side[2];
        for (int j = 0; j < 2; j++) {
            x[i] = value + (j ? h : -h);
            device_set(t->m.x.k, data, F64, x, n);
            side[j] = t->run(t, false);
        }
        x[i] = value;
        measure(&error, (side[1] - side[0]) / (2 * h), grad[i]);
    }
    device_set(t->m.x.k, data, F64, x, n);
    char label[160];
    snprintf(label, sizeof label, "%s: %s", t->name, what);
    measured_expect(&error, label, 1e-7);
    free(x);
}

// Parameters of the layer that belong to the module: those with a gradient.
static void bench_check(struct bench *t, long params)
{
    struct model *m = &t->m;
    long checked = 0;
    model_zero_gradients(m);
    t->run(t, true);
    double *dx = host_of(m->x.k, t->dx, F64, T * m->c.D);
    check_elements(t, t->in, dx, T * m->c.D, "input");
    double **grad = malloc((size_t)m->params.n * sizeof *grad);
    for (long i = 0; i < m->params.n; i++)
        grad[i] = host_of(m->x.k, m->params.item[i].grad, F64, param_elements(&m->params.item[i]));
    for (long i = 0; i < m->params.n; i++) {
        const struct param *p = &m->params.item[i];
        double largest = 0;
        for (long j = 0; j < param_elements(p); j++)
            if (!(fabs(grad[i][j]) <= largest)) largest = fabs(grad[i][j]);
        if (largest == 0) continue;
        check_elements(t, p->value.data, grad[i], param_elements(p), p->name);
        checked++;
    }
    assert_int_equal(checked, params);
    // A second backward doubles the gradients of parameters and leaves that of the input.
    t->run(t, true);
    double *again = host_of(m->x.k, t->dx, F64, T * m->c.D);
    expect_same_bits("dx is written, not added", dx, again, T * m->c.D * 8);
    for (long i = 0; i < m->params.n; i++) {
        double *twice = host_of(m->x.k, m->params.item[i].grad, F64, param_elements(&m->params.item[i]));
        for (long j = 0; j < param_elements(&m->params.item[i]); j++)
            assert_true(fabs(twice[j] - 2 * grad[i][j]) <= 1e-13 * (fabs(grad[i][j]) + 1));
        free(twice);
        free(grad[i]);
    }
    free(grad);
    free(dx);
    free(again);
}

static void test_attention(void **state)
{
    (void)state;
    struct config c = tiny_dense();
    struct bench t = {.run = run_attention};
    bench_start(&t, "attention, GQA, documents", &c);
    bench_check(&t, 5); // norm, q, k, v, o
    bench_end(&t);
    c.window = 3;
    c.G = 4;
    t = (struct bench){.run = run_attention};
    bench_start(&t, "attention, MHA, window", &c);
    bench_check(&t, 5);
    bench_end(&t);
}

static void test_ffn(void **state)
{
    (void)state;
    struct config c = tiny_dense();
    struct bench t = {.run = run_ffn};
    bench_start(&t, "ffn", &c);
    bench_check(&t, 4); // norm, w1, w3, w2
    bench_end(&t);
}

static void test_moe(void **state)
{
    (void)state;
    const struct moe_rule rules[] = {
        {.virtual_capacity = {11, 10}, .aux = AUX_SKYWORK},
        {.capacity = {7, 10}, .aux = AUX_SWITCH, .scope = SCOPE_SEQUENCE},
        {.capacity = {7, 10}, .policy = DROP_POSITION, .aux = AUX_SKYWORK, .scope = SCOPE_SEQUENCE},
    };
    const char *name[] = {"moe, dropless", "moe, drops, switch", "moe, drops by position"};
    for (int i = 0; i < 3; i++) {
        struct config c = tiny_moe();
        c.E = 4;
        c.gate_norm_std = i == 1 ? 0 : 1.5;
        struct bench t = {.run = run_moe, .rule = rules[i]};
        bench_start(&t, name[i], &c);
        t.run(&t, false);
        assert_true(t.balance.dropped > 0 || i == 0);
        bench_check(&t, 2 + 3 * 4);
        bench_end(&t);
    }
}

static void test_head(void **state)
{
    (void)state;
    struct config c = tiny_dense();
    struct bench t = {.run = run_head};
    bench_start(&t, "head", &c);
    bench_check(&t, 2); // norm, head
    bench_end(&t);
}

// Longer than a chunk of rows: the losses and gradients are those of the pieces.
static void test_head_chunks(void **state)
{
    (void)state;
    enum { ROWS = 2 * HEAD_CHUNK + 37 };
    struct config c = tiny_dense();
    struct model_options o = training(F64, 1, ROWS);
    struct model m;
    model_start(&m, &c, &o);
    struct owned_batch b = batch_make(1, ROWS, c.V, false, true, 3);
    double *x = malloc(ROWS * 16 * sizeof *x), whole = 0, pieces = 0;
    draw(x, ROWS * c.D, 1, "input");
    device_set(m.x.k, m.out, F64, x, ROWS * c.D);
    model_zero_gradients(&m);
    head_loss(&m.x, &m.p, &m.g, &m.head, m.dx, m.out, b.b.target, b.b.target, 1, ROWS);
    whole = m.x.k->sum(m.head.loss, ROWS);
    double *dx = host_of(m.x.k, m.dx, F64, ROWS * c.D), *dhead = host_of(m.x.k, m.g.head.data, F64, c.V * c.D);
    model_zero_gradients(&m);
    struct measured error = {0};
    for (long t = 0; t < ROWS; t += 100) {
        long n = ROWS - t < 100 ? ROWS - t : 100;
        head_loss(&m.x, &m.p, &m.g, &m.head, m.dx, el_at(&m.x, m.out, t * c.D), b.b.target + t,
                  b.b.target + t, 1, n);
        pieces += m.x.k->sum(m.head.loss, n);
        double *part = host_of(m.x.k, m.dx, F64, n * c.D);
        for (long i = 0; i < n * c.D; i++) assert_true(part[i] == dx[t * c.D + i]);
        free(part);
    }
    double *sum = host_of(m.x.k, m.g.head.data, F64, c.V * c.D);
    for (long i = 0; i < c.V * c.D; i++) measure(&error, sum[i], dhead[i]);
    measured_expect(&error, "head in chunks", 1e-13);
    assert_true(fabs(whole / pieces - 1) < 1e-14);
    free(dx);
    free(dhead);
    free(sum);
    free(x);
    batch_free(&b);
    model_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention), cmocka_unit_test(test_ffn),         cmocka_unit_test(test_moe),
        cmocka_unit_test(test_head),      cmocka_unit_test(test_head_chunks),
    };
    return cmocka_run_group_tests_name("modules", tests, tests_start, NULL);
}
