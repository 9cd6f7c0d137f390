// Backward of the whole model against central differences in double: every parameter tensor, by single elements and by
// directions through all of its elements, for each way a model can be shaped, routed and balanced. Routing must not
// change between the two sides of a difference (checked); what is dropped stays dropped.
#include "model_util.h"

struct setup {
    const char *name;
    struct config c;
    struct moe_rule rule;
    enum recompute recompute;
    bool documents, masked, has_global;
};

// The objective that model_forward_backward descends.
static double objective(struct model *m, const struct batch *b, double scale, double aux_weight)
{
    for (long l = 0; m->balance && l < m->c.L; l++) moe_balance_reset(&m->balance[l], m->c.E);
    double f = scale * model_forward_backward(m, b, scale, aux_weight, false);
    for (long l = 0; m->balance && l < m->c.L; l++)
        f += m->balance[l].alpha * m->balance[l].aux + m->o.rule.z_coeff * m->balance[l].z;
    return f;
}

// A number that changes when any routing decision does.
static uint64_t routing(const struct model *m, long T)
{
    uint64_t hash = 0;
    for (long l = 0; m->balance && l < m->c.L; l++) {
        const struct moe_saved *s = &m->saved[l].moe;
        long n = T * m->c.K;
        int *row = malloc((size_t)n * sizeof *row * 2), *expert = row + n;
        m->x.k->to_host(row, s->row, n * (long)sizeof *row);
        m->x.k->to_host(expert, s->expert, n * (long)sizeof *expert);
        for (long i = 0; i < 2 * n; i++) hash = (hash ^ (uint64_t)(row[i] + 2)) * 0x9E3779B97F4A7C15u;
        free(row);
    }
    return hash;
}

struct difference {
    struct model *m;
    const struct batch *b;
    double scale, aux_weight;
    uint64_t routing;
};

// d objective / d h of value + h direction. n elements at p->value.
static double slope(const struct difference *d, const struct param *p, const double *value, const double *direction,
                    double h)
{
    long n = param_elements(p);
    double side[2], *moved = malloc((size_t)n * sizeof *moved);
    for (int i = 0; i < 2; i++) {
        for (long j = 0; j < n; j++) moved[j] = value[j] + (i ? h : -h) * direction[j];
        device_set(d->m->x.k, p->value.data, F64, moved, n);
        side[i] = objective(d->m, d->b, d->scale, d->aux_weight);
        if (routing(d->m, d->b->B * d->b->S) != d->routing) fail_msg("%s: the difference changes the routing", p->name);
    }
    device_set(d->m->x.k, p->value.data, F64, value, n);
    free(moved);
    return (side[1] - side[0]) / (2 * h);
}

static void check_param(const struct difference *d, const struct param *p, const double *grad, struct measured *error)
{
    enum { ELEMENTS = 4, DIRECTIONS = 2 };
    long n = param_elements(p);
    double *value = host_of(d->m->x.k, p->value.data, F64, n), *direction = calloc((size_t)n, sizeof *direction);
    for (long i = 0; i < ELEMENTS; i++) {
        long j = (long)(rng_bits(5, rng_stream(p->name), (uint64_t)i) % (uint64_t)n);
        direction[j] = 1;
        measure(error, slope(d, p, value, direction, 1e-5), grad[j]);
        direction[j] = 0;
    }
    for (int i = 0; i < DIRECTIONS; i++) {
        draw(direction, n, 1 / sqrt((double)n), i ? "second" : "first");
        measure(error, slope(d, p, value, direction, 1e-5), dot(direction, grad, n));
    }
    free(value);
    free(direction);
}

static void check_model(const struct setup *t)
{
    enum { B = 3, S = 9 };
    struct model_options o = training(F64, B, S);
    o.rule = t->rule;
    o.recompute = t->recompute;
    struct model m;
    model_start(&m, &t->c, &o);
    for (long l = 0; m.balance && l < t->c.L; l++) {
        m.balance[l].has_global = t->has_global;
        for (long e = 0; e < t->c.E; e++) {
            m.balance[l].global_p[e] = (double)(e + 1) / 15; // of 5 experts: sums to 1
            m.balance[l].global_f[e] = (double)(5 - e) / 15;
        }
    }
    struct owned_batch b = batch_make(B, S, t->c.V, t->documents, t->masked, 11);
    struct difference d = {&m, &b.b, 1.0 / (double)b.targets, 0.7, 0};
    model_zero_gradients(&m);
    objective(&m, &b.b, d.scale, d.aux_weight);
    d.routing = routing(&m, b.T);

    long dropped = 0;
    for (long l = 0; m.balance && l < t->c.L; l++)
        if (t->rule.capacity.numerator) dropped += m.balance[l].dropped;
    if (t->rule.capacity.numerator && dropped == 0) fail_msg("%s: nothing is dropped", t->name);

    double **grad = malloc((size_t)m.params.n * sizeof *grad);
    struct measured worst = {0};
    for (long i = 0; i < m.params.n; i++)
        grad[i] = host_of(m.x.k, m.params.item[i].grad, F64, param_elements(&m.params.item[i]));
    for (long i = 0; i < m.params.n; i++) {
        struct measured error = {0};
        if (m.params.item[i].kind->counted) { // chooses, weighs nothing
            free(grad[i]);
            continue;
        }
        check_param(&d, &m.params.item[i], grad[i], &error);
        const struct param *p = &m.params.item[i];
        if (p->expert >= 0 && m.balance[p->layer].count[p->expert] == 0) { // no token: no gradient
            if (error.scale != 0 || error.difference != 0) fail_msg("%s: %s has a gradient", t->name, p->name);
            free(grad[i]);
            continue;
        }
        double relative = measured_error(&error);
        if (!(relative < 1e-6)) fail_msg("%s: %s: error %g of %g", t->name, p->name, relative, error.scale);
        if (!(relative <= worst.difference)) worst.difference = relative;
        worst.n += error.n;
        worst.equal += error.equal;
        free(grad[i]);
    }
    worst.scale = 1;
    measured_expect(&worst, t->name, 1e-6);
    free(grad);
    batch_free(&b);
    model_free(&m);
}

static struct setup dense(const char *name)
{
    return (struct setup){.name = name, .c = tiny_dense()};
}

static struct setup moe(const char *name, enum aux_loss aux, enum aux_scope scope)
{
    return (struct setup){.name = name, .c = tiny_moe(),
                          .rule = {.virtual_capacity = {11, 10}, .aux = aux, .scope = scope}};
}

static void test_dense(void **state)
{
    (void)state;
    struct setup t = dense("dense, GQA");
    check_model(&t);
    t = dense("dense, documents, masked targets");
    t.documents = t.masked = true;
    check_model(&t);
    t = dense("dense, MHA, window 4, documents");
    t.c.G = t.c.H;
    t.c.window = 4;
    t.documents = true;
    check_model(&t);
    t = dense("dense, 6 heads on 2 kv heads, window 3");
    t.c.H = 6;
    t.c.window = 3;
    check_model(&t);
    t = dense("dense, 5 heads on one kv head");
    t.c.H = 5;
    t.c.G = 1;
    check_model(&t);
    t = dense("dense, 7 heads on 7");
    t.c.H = t.c.G = 7;
    check_model(&t);
    t = dense("dense, one kv head, tied embedding");
    t.c.G = 1;
    t.c.tied = true;
    check_model(&t);
    t = dense("dense, recompute full");
    t.recompute = RECOMPUTE_FULL;
    check_model(&t);
}

static void test_moe_losses(void **state)
{
    (void)state;
    struct setup t = moe("moe, no auxiliary loss", AUX_NONE, SCOPE_MICRO);
    check_model(&t);
    t = moe("moe, skywork, micro", AUX_SKYWORK, SCOPE_MICRO);
    check_model(&t);
    t = moe("moe, skywork, sequence", AUX_SKYWORK, SCOPE_SEQUENCE);
    check_model(&t);
    t = moe("moe, skywork, global", AUX_SKYWORK, SCOPE_GLOBAL);
    t.has_global = true;
    check_model(&t);
    t = moe("moe, skywork, global, first step", AUX_SKYWORK, SCOPE_GLOBAL);
    check_model(&t);
    t = moe("moe, switch, micro", AUX_SWITCH, SCOPE_MICRO);
    check_model(&t);
    t = moe("moe, switch, sequence", AUX_SWITCH, SCOPE_SEQUENCE);
    check_model(&t);
    t = moe("moe, switch, global", AUX_SWITCH, SCOPE_GLOBAL);
    t.has_global = true;
    check_model(&t);
}

static void test_moe_gates(void **state)
{
    (void)state;
    struct setup t = moe("moe, gate norm off", AUX_SKYWORK, SCOPE_MICRO);
    t.c.gate_norm_std = 0;
    check_model(&t);
    t = moe("moe, gate norm 0.5", AUX_SWITCH, SCOPE_SEQUENCE);
    t.c.gate_norm_std = 0.5;
    check_model(&t);
    t = moe("moe, gate norm 2", AUX_SKYWORK, SCOPE_MICRO);
    t.c.gate_norm_std = 2;
    check_model(&t);
    t = moe("moe, two experts of two", AUX_SKYWORK, SCOPE_MICRO); // with gate norm their z~ would be constants
    t.c.E = 2;
    t.c.gate_norm_std = 0;
    check_model(&t);
    t = moe("moe, top-1, tied embedding", AUX_SKYWORK, SCOPE_MICRO);
    t.c.K = 1;
    t.c.tied = true;
    check_model(&t);
    t = moe("moe, top-5 of 5", AUX_SWITCH, SCOPE_MICRO);
    t.c.K = 5;
    check_model(&t);
}

static void test_moe_drops(void **state)
{
    (void)state;
    struct setup t = moe("moe, capacity 0.8 by probability", AUX_SKYWORK, SCOPE_MICRO);
    t.rule.capacity = factor(8, 10);
    check_model(&t);
    t = moe("moe, capacity 0.6 by position, sequence", AUX_SWITCH, SCOPE_SEQUENCE);
    t.rule.capacity = factor(6, 10);
    t.rule.policy = DROP_POSITION;
    t.documents = t.masked = true;
    check_model(&t);
    t = moe("moe, capacity of one row, recompute moe", AUX_SKYWORK, SCOPE_MICRO);
    t.rule.capacity = factor(1, 100);
    t.recompute = RECOMPUTE_MOE;
    check_model(&t);
    t = moe("moe, drops, recompute full", AUX_SKYWORK, SCOPE_SEQUENCE);
    t.rule.capacity = factor(8, 10);
    t.recompute = RECOMPUTE_FULL;
    t.c.gate_norm_std = 0;
    check_model(&t);
}

static void test_moe_bias_and_z_loss(void **state)
{
    (void)state;
    struct setup t = moe("moe, z-loss", AUX_SKYWORK, SCOPE_MICRO);
    t.rule.z_coeff = 0.1;
    check_model(&t);
    t = moe("moe, z-loss alone, gate norm off", AUX_NONE, SCOPE_MICRO);
    t.rule.z_coeff = 0.3;
    t.c.gate_norm_std = 0;
    check_model(&t);
    t = moe("moe, z-loss, gate norm 2, drops, recompute full", AUX_SWITCH, SCOPE_SEQUENCE);
    t.rule.z_coeff = 0.1;
    t.rule.capacity = factor(8, 10);
    t.recompute = RECOMPUTE_FULL;
    t.c.gate_norm_std = 2;
    check_model(&t);
    t = moe("moe, chosen with a bias", AUX_NONE, SCOPE_MICRO);
    t.rule.capacity = factor(8, 10);
    t.c.gate_bias = true;
    check_model(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_moe_losses),
        cmocka_unit_test(test_moe_gates),
        cmocka_unit_test(test_moe_drops),
        cmocka_unit_test(test_moe_bias_and_z_loss),
    };
    return cmocka_run_group_tests_name("gradients", tests, tests_start, NULL);
}
