// Training against golden values (golden_util.h): logits, loss, every gradient, routing with drops, balance losses, two
// AdamW steps, coefficients, biases.
#include "golden_util.h"

#include "train/balance.h"
#include "train/optimizer.h"
#include "train/trace.h"

// n elements of device memory in F32 or F64, as doubles.
static double *from_device(const struct kernels *k, const void *data, enum dtype type, long n)
{
    double *x = test_malloc((size_t)(n + 1) * sizeof *x);
    void *raw = test_malloc((size_t)(n + 1) * 8);
    k->to_host(raw, data, n * dtype_size(type));
    for (long i = 0; i < n; i++) x[i] = type == F64 ? ((double *)raw)[i] : ((float *)raw)[i];
    test_free(raw);
    return x;
}

// Routing of one micro-batch: its tokens begin at `first` of the golden arrays.
static void compare_routing(const struct golden *g, const struct model *m, long first, long T, double *worst)
{
    const struct config *c = &m->c;
    long n = T * c->K;
    int *expert = test_malloc((size_t)n * sizeof *expert), *row = test_malloc((size_t)n * sizeof *row);
    for (long l = 0; l < c->L; l++) {
        const struct moe_saved *s = &m->saved[l].moe;
        char name[32];
        snprintf(name, sizeof name, "expert.%ld", l);
        int *want_expert = ints_of(g, name, g->T * c->K);
        snprintf(name, sizeof name, "dropped.%ld", l);
        int *want_dropped = ints_of(g, name, g->T * c->K);
        m->x.k->to_host(expert, s->expert, n * (long)sizeof *expert);
        m->x.k->to_host(row, s->row, n * (long)sizeof *row);
        for (long i = 0; i < n; i++) {
            long j = first * c->K + i;
            if (expert[i] != want_expert[j])
                fail_msg("layer %ld token %ld choice %ld: expert %d, golden %d", l, first + i / c->K, i % c->K,
                         expert[i], want_expert[j]);
            if ((row[i] < 0) != want_dropped[j])
                fail_msg("layer %ld token %ld choice %ld: dropped %d, golden %d", l, first + i / c->K, i % c->K,
                         row[i] < 0, want_dropped[j]);
        }
        long unused;
        snprintf(name, sizeof name, "%ld", l);
        double *weight = from_device(m->x.k, s->weight, m->x.k->acc, n);
        double *want = values_of(g, "weight.", name, &unused);
        double error = difference(weight, want + first * c->K, n);
        if (!(error <= *worst)) *worst = error;
        double *gate = from_device(m->x.k, s->g, m->x.k->acc, T * c->E);
        double *want_gate = values_of(g, "gate.", name, &unused);
        error = difference(gate, want_gate + first * c->E, T * c->E);
        if (!(error <= *worst)) *worst = error;
        test_free(want_expert);
        test_free(want_dropped);
        test_free(weight);
        test_free(want);
        test_free(gate);
        test_free(want_gate);
    }
    test_free(expert);
    test_free(row);
}

// Logits of the last forward (dropping as it did), against rows first.. of the golden ones.
static double compare_logits(const struct golden *g, struct model *m, long first, long T)
{
    long n, V = m->c.V;
    double *want = values_of(g, "", "logits", &n);
    assert_int_equal(n, g->T * V);
    head_logits(&m->x, &m->p, &m->head, m->out, 0, T);
    double *got = from_device(m->x.k, m->head.logits, m->x.k->acc, T * V);
    double error = difference(got, want + first * V, T * V);
    test_free(want);
    test_free(got);
    return error;
}

struct step_errors {
    double logits, routing;
};

// All micro-batches of the golden step, forward and backward; returns the mean cross entropy.
static double run_step(const struct golden *g, struct model *m, struct step_errors *e)
{
    int *token = ints_of(g, "token", g->T), *target = ints_of(g, "target", g->T);
    int *position = ints_of(g, "position", g->T), *start = ints_of(g, "start", g->T);
    double loss = 0;
    model_zero_gradients(m);
    balance_begin(m);
    for (long s = 0; s < g->B; s += g->micro) {
        long first = s * g->S, T = g->micro * g->S;
        struct batch b = {g->micro, g->S, token + first, target + first, position + first, start + first};
        loss += model_forward_backward(m, &b, 1.0 / (double)g->targets, (double)T / (double)g->T, false);
        if (!e) continue;
        if (m->c.E) compare_routing(g, m, first, T, &e->routing);
        double error = compare_logits(g, m, first, T);
        if (!(error <= e->logits)) e->logits = error;
    }
    test_free(token);
    test_free(target);
    test_free(position);
    test_free(start);
    return loss / (double)g->targets;
}

static double compare_gradients(const struct golden *g, const struct model *m, double tolerance)
{
    double worst = 0;
    long seen = 0;
    for (long i = 0; i < m->params.n; i++) {
        const struct param *p = &m->params.item[i];
        if (p->kind->counted) continue;
        long n;
        double *want = values_of(g, "grad.", p->name, &n);
        assert_int_equal(n, p->rows * p->columns);
        double *got = from_device(m->x.k, p->grad, m->x.k->acc, n);
        double error = difference(got, want, n);
        if (!(error <= tolerance)) fail_msg("%s: gradient differs by %.2e of its largest element", p->name, error);
        if (error > worst) worst = error;
        test_free(want);
        test_free(got);
        seen++;
    }
    long expected = 0;
    for (long i = 0; i < g->values.n; i++) expected += !strncmp(g->values.tensor[i].name, "grad.", 5);
    assert_int_equal(seen, expected);
    return worst;
}

static void compare_balance(const struct golden *g, const struct model *m, double tolerance)
{
    const cJSON *layers = cJSON_GetObjectItem(g->json, "layers");
    for (long l = 0; l < m->c.L; l++) {
        const cJSON *want = cJSON_GetArrayItem(layers, (int)l);
        const struct moe_balance *b = &m->balance[l];
        const cJSON *counts = cJSON_GetObjectItem(want, "tokens_per_expert");
        for (long e = 0; e < m->c.E; e++)
            assert_int_equal(b->count[e], (long)cJSON_GetArrayItem(counts, (int)e)->valuedouble);
        assert_int_equal(b->tokens, g->T);
        expect_near("aux_loss", b->aux, number(want, "aux_loss"), tolerance);
        if (m->o.rule.z_coeff > 0) expect_near("z_loss", b->z, number(want, "z_loss"), tolerance);
        else assert_true(b->z == 0);
        double T = (double)g->T;
        expect_near("router_entropy", b->statistics.entropy / T, number(want, "router_entropy"), tolerance);
        expect_near("max1_max2", b->statistics.max1_max2 / T, number(want, "max1_max2"), tolerance);
        expect_near("max2_max3", b->statistics.max2_max3 / T, number(want, "max2_max3"), tolerance);
        if (!m->o.rule.capacity.numerator) continue; // dropless counts against the virtual capacity
        assert_int_equal(b->dropped, (long)number(want, "dropped"));
        expect_near("drop_rate", drop_rate(b, m->c.K), number(want, "drop_rate"), 1e-12);
    }
}

static double tolerance_of(enum dtype type)
{
    return type == F64 ? 1e-11 : 5e-5;
}

static void step_case(const char *name, enum dtype type, enum recompute recompute)
{
    struct golden g;
    struct model m;
    struct step_errors e = {0};
    double tolerance = tolerance_of(type);
    golden_open(&g, name);
    open_model(&m, &g, type, recompute);
    double loss = run_step(&g, &m, &e);
    if (!(e.logits <= tolerance)) fail_msg("logits differ by %.2e of the largest", e.logits);
    if (!(e.routing <= tolerance)) fail_msg("gates or weights differ by %.2e of the largest", e.routing);
    expect_near("loss", loss, number(g.json, "loss"), tolerance);
    double worst = compare_gradients(&g, &m, tolerance);
    struct zero z;
    OK_OR_FAIL(zero_init(&z, &m, &(struct zero_options){.spread = true}));
    expect_near("gradient norm", zero_norm(&z), number(g.json, "grad_norm"), tolerance);
    zero_free(&z);
    if (m.c.E) compare_balance(&g, &m, tolerance);
    assert_true(worst > 0); // two independent programs never agree in every bit
    print_message("%s %s recompute %d: logits %.1e, gates %.1e, gradients %.1e\n", name, dtype_name(type),
                  (int)recompute, e.logits, e.routing, worst);
    model_free(&m);
    golden_close(&g);
}

static void test_step_f64(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++) step_case(cases[i], F64, RECOMPUTE_NONE);
}

static void test_step_f32(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++) step_case(cases[i], F32, RECOMPUTE_NONE);
}

static void test_step_recompute(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++) {
        step_case(cases[i], F64, RECOMPUTE_MOE);
        step_case(cases[i], F64, RECOMPUTE_FULL);
    }
}

static void test_dropless_loss(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++) {
        struct golden g;
        struct model m;
        golden_open(&g, cases[i]);
        open_model(&m, &g, F64, RECOMPUTE_NONE);
        int *token = ints_of(&g, "token", g.T), *target = ints_of(&g, "target", g.T);
        int *position = ints_of(&g, "position", g.T), *start = ints_of(&g, "start", g.T);
        double sum = 0;
        for (long s = 0; s < g.B; s += g.micro) {
            long at = s * g.S;
            struct batch b = {g.micro, g.S, token + at, target + at, position + at, start + at};
            sum += model_loss(&m, &b, NULL);
        }
        expect_near("dropless loss", sum / (double)g.targets, number(g.json, "dropless_loss"), 1e-12);
        test_free(token);
        test_free(target);
        test_free(position);
        test_free(start);
        model_free(&m);
        golden_close(&g);
    }
}

static void test_two_adamw_steps(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++) {
        struct golden g;
        struct model m;
        golden_open(&g, cases[i]);
        open_model(&m, &g, F64, RECOMPUTE_NONE);
        struct zero z;
        OK_OR_FAIL(zero_init(&z, &m, &(struct zero_options){.spread = true}));
        const cJSON *a = cJSON_GetObjectItem(g.json, "adamw"), *lr = cJSON_GetObjectItem(a, "lr");
        struct optimizer o = {number(a, "beta1"), number(a, "beta2"), number(a, "eps"), number(a, "weight_decay"),
                              number(a, "clip")};
        for (int step = 0; step < cJSON_GetArraySize(lr); step++) {
            (void)run_step(&g, &m, NULL);
            zero_update(&z, optimizer_at(&o, cJSON_GetArrayItem(lr, step)->valuedouble, zero_norm(&z), step + 1));
        }
        double worst = 0;
        long seen = 0;
        for (long t = 0; t < g.values.n; t++) {
            const char *name = g.values.tensor[t].name;
            if (strncmp(name, "after.", 6)) continue;
            const struct param *p = param_find(&m.params, name + 6);
            assert_non_null(p);
            long n;
            double *want = values_of(&g, "", name, &n);
            double *got = from_device(m.x.k, p->value.data, p->value.dtype, n);
            double error = difference(got, want, n);
            if (!(error <= 1e-7)) fail_msg("%s: after two steps it differs by %.2e", name + 6, error);
            if (error > worst) worst = error;
            test_free(want);
            test_free(got);
            seen++;
        }
        assert_true(seen >= 9 && worst > 0);
        zero_free(&z);
        print_message("%s: %ld tensors after two AdamW steps: %.1e\n", cases[i], seen, worst);
        model_free(&m);
        golden_close(&g);
    }
}

static void test_adaptive_coefficients(void **state)
{
    (void)state;
    struct golden g;
    golden_open(&g, "skywork-probs");
    const cJSON *a = cJSON_GetObjectItem(g.json, "adaptive");
    const cJSON *drops = cJSON_GetObjectItem(a, "drop_rates"), *want = cJSON_GetObjectItem(a, "alpha");
    struct balance_rule r = {.adaptive = true, .alpha_max = number(a, "alpha_max"), .xi = number(a, "xi"),
                             .beta = number(a, "beta")};
    double alpha = r.alpha_max;
    assert_int_equal(cJSON_GetArraySize(want), 5);
    for (int i = 0; i < 5; i++) {
        alpha = alpha_next(&r, alpha, cJSON_GetArrayItem(drops, i)->valuedouble);
        expect_near("alpha", alpha, cJSON_GetArrayItem(want, i)->valuedouble, 1e-12);
    }
    golden_close(&g);
}

// What --dump-gradients writes, tensor by tensor.
static void test_dumped_gradients(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++) {
        struct golden g;
        struct model m;
        struct safetensors dumped;
        char base[] = "/tmp/skymoe-golden-XXXXXX", path[PATH_LENGTH];
        golden_open(&g, cases[i]);
        open_model(&m, &g, i % 2 ? F32 : F64, RECOMPUTE_NONE);
        (void)run_step(&g, &m, NULL);
        assert_non_null(mkdtemp(base));
        struct zero z;
        OK_OR_FAIL(zero_init(&z, &m, &(struct zero_options){.spread = true}));
        OK_OR_FAIL(gradients_write(base, &z));
        zero_free(&z);
        OK_OR_FAIL(path_join(path, base, "gradients.safetensors"));
        OK_OR_FAIL(safetensors_open(&dumped, path));
        for (long t = 0; t < dumped.n; t++) {
            long n;
            double *want = values_of(&g, "grad.", dumped.tensor[t].name, &n);
            double *got = from_device(m.x.k, dumped.tensor[t].data, F32, n);
            assert_int_equal(n, dumped.tensor[t].elements);
            double error = difference(got, want, n);
            if (!(error <= (i % 2 ? 5e-5 : 1e-7))) fail_msg("%s differs by %.2e", dumped.tensor[t].name, error);
            test_free(want);
            test_free(got);
        }
        long expected = 0;
        for (long t = 0; t < g.values.n; t++) expected += !strncmp(g.values.tensor[t].name, "grad.", 5);
        assert_int_equal(dumped.n, expected);
        safetensors_close(&dumped);
        OK_OR_FAIL(folder_remove(base));
        model_free(&m);
        golden_close(&g);
    }
}

// Loss-free balancing: the biases after a step that begins with those of the folder, and what gates then read.
static void test_bias(void **state)
{
    (void)state;
    struct golden g;
    struct model m;
    golden_open(&g, "skymoe-bias");
    open_model(&m, &g, F64, RECOMPUTE_NONE);
    balance_from_model(&m);
    const struct balance_rule r = {.bias_rate = number(g.json, "bias_rate")};
    (void)run_step(&g, &m, NULL);
    balance_end(&m, &r);
    long moved = 0;
    for (long l = 0; l < m.c.L; l++) {
        const cJSON *layer = cJSON_GetArrayItem(cJSON_GetObjectItem(g.json, "layers"), (int)l);
        const cJSON *want = cJSON_GetObjectItem(layer, "bias_after");
        double *got = from_device(m.x.k, m.p.layer[l].gate_bias.data, F64, m.c.E);
        assert_int_equal(cJSON_GetArraySize(want), m.c.E);
        for (long e = 0; e < m.c.E; e++) {
            double value = cJSON_GetArrayItem(want, (int)e)->valuedouble;
            expect_near("bias", m.balance[l].bias[e], value, 1e-12);
            assert_true(got[e] == m.balance[l].bias[e]);
            moved += m.balance[l].count[e] * m.c.E != g.T * m.c.K;
        }
        test_free(got);
    }
    assert_true(moved > m.c.E);
    model_free(&m);
    golden_close(&g);
}

int main(int argc, char **argv)
{
    if (!golden_start(argc, argv)) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_f64),           cmocka_unit_test(test_step_f32),
        cmocka_unit_test(test_step_recompute),     cmocka_unit_test(test_dropless_loss),
        cmocka_unit_test(test_two_adamw_steps),    cmocka_unit_test(test_adaptive_coefficients),
        cmocka_unit_test(test_bias),               cmocka_unit_test(test_dumped_gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
