// The planner: closed forms, times that follow from one constant each, the best split beside brute force, memory beside
// what a model reserves.
#include "plan_util.h"

#include <time.h>

// ---- simulation ----

// 1f1b with these stage times (forward and backward in the same proportion on all).
static double run_1f1b(const double *t, long stages, long m, double *bubble)
{
    struct simulator s;
    struct part_times part[16];
    double message[16] = {0};
    struct pipeline p = {PIPELINE_1F1B, stages, 1, m};
    for (long i = 0; i < stages; i++) part[i] = (struct part_times){t[i] / 3, t[i] / 3, t[i] / 3};
    OK_OR_FAIL(simulator_open(&s, &p, false));
    double total = simulator_run(&s, part, message);
    if (bubble) *bubble = simulator_bubble(&s);
    simulator_close(&s);
    return total;
}

// One micro-batch down and up again: each wire is used twice, the one from the last stage to the first never.
static void test_messages(void **state)
{
    (void)state;
    struct simulator s;
    const struct part_times part[3] = {{1, 1, 1}, {2, 1, 1}, {3, 1, 1}};
    const double message[3] = {10, 200, 5000};
    OK_OR_FAIL(simulator_open(&s, &(struct pipeline){PIPELINE_1F1B, 3, 1, 1}, true));
    near(simulator_run(&s, part, message), 6 + 6 + 2 * 210, 1e-12);
    assert_true(s.events_n[1] == 2 && s.events[1][0].start == 11 && s.events[1][1].end == 11 + 2 + 200 + 5 + 200 + 2);
    simulator_close(&s);
}

// T = sum t + (m - 1) max t; the report's example, where the head weighs as much as a layer.
static void test_bubbles(void **state)
{
    (void)state;
    const double even[] = {6, 6, 6, 7}, uneven[] = {5, 5, 5, 5, 5};
    double bubble;
    near(run_1f1b(even, 4, 16, &bubble), 25 + 15 * 7, 1e-12);
    near(bubble, 3.0 / 13, 1e-12); // 23.1 %
    run_1f1b(even, 4, 100000, &bubble);
    near(bubble, 3.0 / 28, 1e-3); // 10.7 %
    near(run_1f1b(uneven, 5, 16, &bubble), 25 + 15 * 5, 1e-12);
    near(bubble, 0.2, 1e-12);
    run_1f1b(uneven, 5, 100000, &bubble);
    assert_true(bubble < 1e-4);
}

// It holds where the last stage is among the slowest; elsewhere other stages' work fits into what it counts.
static void test_closed_form(void **state)
{
    (void)state;
    unsigned x = 1;
    long shorter = 0;
    for (int i = 0; i < 200; i++) {
        double t[16], sum = 0, longest = 0;
        long stages = 1 + i % 9, m = stages + i % 17;
        for (long k = 0; k < stages; k++) {
            x = x * 1103515245 + 12345;
            t[k] = 1 + (x >> 16) % 1000 / 250.0;
            sum += t[k];
            longest = fmax(longest, t[k]);
        }
        double bound = sum + (double)(m - 1) * longest, seconds = run_1f1b(t, stages, m, NULL);
        assert_true(seconds <= bound * (1 + 1e-12));
        shorter += seconds < bound * (1 - 1e-12);
        double last = t[stages - 1];
        t[stages - 1] = longest;
        sum += longest - last;
        near(run_1f1b(t, stages, m, NULL), sum + (double)(m - 1) * longest, 1e-12);
    }
    assert_true(shorter > 0);
}

// ---- terms ----

static struct times terms_of(const struct run *r)
{
    struct plan p;
    OK_OR_FAIL(plan_make(&p, r, &(struct plan_wishes){0}));
    struct times t = p.terms;
    near(times_sum(&t), p.step_s, 1e-12);
    plan_free(&p);
    return t;
}

static void test_terms(void **state)
{
    (void)state;
    static const struct {
        const char *constant;
        enum term term[3];
        int terms;
    } moves[] = {
        {"memory_bytes", {0}, 0},
        {"peak_flops", {0}, 0}, // every rate is given
        {"kernels.product_flops", {TERM_PROJECTIONS, TERM_HEAD}, 2},
        {"kernels.product_weight_flops", {TERM_PROJECTIONS, TERM_HEAD}, 2},
        {"kernels.grouped_flops", {TERM_EXPERTS}, 1},
        {"kernels.grouped_weight_flops", {TERM_EXPERTS}, 1},
        {"kernels.attention_flops", {TERM_ATTENTION}, 1},
        {"kernels.attention_backward_flops", {TERM_ATTENTION}, 1},
        {"kernels.read_bytes_per_s", {TERM_OPTIMIZER}, 1},
        {"kernels.elements_bytes_per_s", {TERM_ELEMENTS}, 1},
    };
    struct config c = shape(3);
    struct cluster k = machine(1, 1);
    struct run r = run_of(&c, &k, layout_of_one);
    struct times before = terms_of(&r);
    for (size_t i = 0; i < sizeof moves / sizeof *moves; i++) {
        struct constant *constant;
        assert_string_equal(cluster_constant(&constant, &k, (long)i), moves[i].constant);
        constant->value *= 2;
        struct times after = terms_of(&r);
        constant->value /= 2;
        for (int t = 0; t < TERMS; t++) {
            bool moved = false;
            for (int j = 0; j < moves[i].terms; j++) moved |= moves[i].term[j] == (enum term)t;
            if (moved != (after.t[t] < before.t[t]) || after.t[t] > before.t[t])
                fail_msg("%s: %s %g, was %g", moves[i].constant, term_name((enum term)t), after.t[t], before.t[t]);
        }
    }
}

// Products and attention of one rank add up to the model's FLOPs: backward of attention recomputes its scores, so its
// rate here is 5/4 of the others'.
static void test_flops(void **state)
{
    (void)state;
    for (long E = 0; E <= 8; E += 8) {
        struct config c = shape(3);
        struct cluster k = machine(1, 1);
        c.E = E;
        c.K = E ? 2 : 0;
        struct run r = run_of(&c, &k, layout_of_one);
        k.flops[RATE_ATTENTION_BACKWARD].value *= 1.25;
        struct times t = terms_of(&r);
        double norms = 6 * (2 * 3 + 1) * 48, attention = 6.0 * 3 * 48 * 64, tokens = 32 * 64, S = 64;
        double products = config_train_flops_per_token(&c, r.S) - norms - attention;
        near(t.t[TERM_PROJECTIONS] + t.t[TERM_EXPERTS] + t.t[TERM_HEAD], tokens * products / 1e10, 1e-12);
        near(t.t[TERM_ATTENTION], tokens * attention * (S + 1) / S / 1e10, 1e-12);
        near(t.t[TERM_EXPERTS], tokens * 6 * 3 * 3 * 48 * 40 * (E ? 2 : 1) / 1e10, 1e-12);
    }
}

// Wires move what travels on them, and nothing else (but what is idle or hidden because of it).
static void test_wires(void **state)
{
    (void)state;
    struct config c = shape(4);
    struct cluster k = machine(4, 2);
    struct layout l = {.pp = 2, .dp = 2, .tp = 2, .ep = 2, .etp = 1, .virtual_stages = 1};
    struct run r = run_of(&c, &k, l);
    struct times before = terms_of(&r);
    assert_true(before.t[TERM_TOKENS] > 0 && before.t[TERM_ROWS] > 0 && before.t[TERM_GRADIENTS] > 0);
    assert_true(before.t[TERM_MESSAGES] > 0 && before.t[TERM_SLICES] == 0 && before.t[TERM_BUBBLE] > 0);
    k.between.bytes_per_s.value *= 2; // tensor and expert groups lie inside, the others between
    struct times after = terms_of(&r);
    for (int t = 0; t < TERMS; t++) {
        bool between = t == TERM_GRADIENTS || t == TERM_WEIGHTS || t == TERM_MESSAGES || t == TERM_HIDDEN;
        if (!between) near(after.t[t], before.t[t], 1e-12);
        else if (t != TERM_HIDDEN) assert_true(after.t[t] < before.t[t]);
    }
    near(after.t[TERM_WEIGHTS] - 2e-6, (before.t[TERM_WEIGHTS] - 2e-6) / 2, 0.1); // but for latencies
}

// Sent bytes: K/n of what sliced experts send, so whole experts win for n > K only [cost of one layer's exchange].
static void test_exchange(void **state)
{
    (void)state;
    struct config c = shape(2);
    struct cluster k = machine(1, 8);
    k.inside.latency_s.value = 0;
    struct layout whole = {.pp = 1, .dp = 1, .tp = 4, .ep = 4, .etp = 1, .virtual_stages = 1}, sliced = whole;
    sliced.ep = 1;
    sliced.etp = 4;
    struct run r = run_of(&c, &k, whole);
    double T = 128, D = 48, size = 2, n = 4, K = 2, w = 1e9;
    struct costs a, b;
    costs_of(&a, &r);
    double records = (n - 1) * T / n * K * 8 / w, weights = (n - 1) * T / n * K / n * 4 / w;
    near(a.layer.forward.t[TERM_ROWS] - records - weights, 2 * (T / n) * K * D * (n - 1) / n * size / w, 1e-12);
    assert_true(a.layer.forward.t[TERM_SLICES] == 0);
    r.layout = sliced;
    costs_of(&b, &r);
    near(b.layer.forward.t[TERM_SLICES], 2 * (n - 1) * K * T / n * D * size / w, 1e-12);
    near(b.layer.forward.t[TERM_ROWS], records, 1e-12);
    near(a.layer.forward.t[TERM_EXPERTS], b.layer.forward.t[TERM_EXPERTS], 1e-12);
}

// The terms are the step, whatever the schedule and what recomputes; and W that waits for its turn keeps more.
static void test_sums(void **state)
{
    (void)state;
    struct config c = shape(8);
    struct cluster k = machine(2, 2);
    struct layout l = {.pp = 4, .dp = 1, .tp = 1, .ep = 1, .etp = 1, .virtual_stages = 1};
    long recompute[] = {2, 1, 0, 0};
    double saved[3], step[3];
    for (int kind = 0; kind < 3; kind++) {
        struct run r = run_of(&c, &k, l);
        struct plan p;
        r.schedule = (enum pipeline_kind)kind;
        r.layout.virtual_stages = kind == PIPELINE_INTERLEAVED ? 2 : 1;
        r.recompute = RECOMPUTE_MOE;
        r.recompute_layers = recompute;
        r.exchange_chunks = 3;
        OK_OR_FAIL(plan_make(&p, &r, &(struct plan_wishes){0}));
        near(times_sum(&p.terms), p.step_s, 1e-12);
        saved[kind] = (double)p.stage[3].bytes.saved;
        step[kind] = p.step_s;
        plan_free(&p);
    }
    assert_true(saved[PIPELINE_1F1B] < saved[PIPELINE_ZERO_BUBBLE]);
    assert_true(step[PIPELINE_ZERO_BUBBLE] < step[PIPELINE_1F1B]);
    assert_true(step[PIPELINE_INTERLEAVED] < step[PIPELINE_1F1B]);
}

static void test_refused(void **state)
{
    (void)state;
    struct config c = shape(4);
    struct cluster k = machine(1, 2);
    struct plan p;
    struct layout l = {.pp = 2, .dp = 2, .tp = 1, .ep = 1, .etp = 1, .virtual_stages = 1};
    struct run r = run_of(&c, &k, l);
    assert_int_equal(plan_make(&p, &r, &(struct plan_wishes){0}), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "4 ranks, but test has 2 devices"));
    r.layout.dp = 1;
    r.layout.virtual_stages = 2;
    assert_int_equal(plan_make(&p, &r, &(struct plan_wishes){0}), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "--virtual-stages"));
    k.devices = 64;
    r.layout = (struct layout){.pp = 1, .dp = 16, .tp = 1, .ep = 16, .etp = 1, .virtual_stages = 1};
    assert_int_equal(plan_make(&p, &r, &(struct plan_wishes){0}), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "the model has 8 experts"));
}

// ---- splits ----

// Every list of layers and of recomputing layers; the least time of those that fit.
struct brute {
    const struct split_task *t;
    struct simulator sim;
    struct split now;
    double least;
};

static void try_recompute(struct brute *b, long stage)
{
    struct part_times part[16];
    if (stage < b->t->p.stages) {
        long n = 0;
        for (long c = 0; c < b->t->p.chunks; c++) n += b->now.layers[c * b->t->p.stages + stage];
        for (long r = 0; r <= n; r++) {
            b->now.recompute[stage] = r;
            struct stage_shape s = split_shape(b->t, &b->now, &b->sim.schedule[stage]);
            struct rank_bytes m = memory_stage(&b->t->memory, &s);
            if (memory_total(&m) <= b->t->limit) try_recompute(b, stage + 1);
        }
        return;
    }
    split_times(part, b->t, &b->now);
    b->least = fmin(b->least, simulator_run(&b->sim, part, b->t->message));
}

static void try_layers(struct brute *b, long part, long left)
{
    long parts = b->t->p.stages * b->t->p.chunks;
    if (part == parts) {
        if (!left) try_recompute(b, 0);
        return;
    }
    for (long n = 1; n <= left; n++) {
        b->now.layers[part] = n;
        try_layers(b, part + 1, left - n);
    }
}

static double seconds_of(const struct split_task *t, const struct split *s)
{
    struct simulator sim;
    struct part_times part[MOST_PARTS];
    OK_OR_FAIL(simulator_open(&sim, &t->p, false));
    split_times(part, t, s);
    double seconds = simulator_run(&sim, part, t->message);
    simulator_close(&sim);
    return seconds;
}

// Bytes between those of a stage that recomputes everything and one that keeps everything: there the lists matter.
static double limit_between(const struct split_task *t, long layers, double share)
{
    double low = 0, high = 0;
    for (int i = 0; i < 2; i++) {
        struct stage_shape s = {.layers = layers, .recompute = i ? 0 : layers, .first = t->p.stages == 1,
                                .last = t->p.stages == 1, .batches = t->p.stages};
        s.held[!i] = layers * t->p.stages;
        struct rank_bytes b = memory_stage(&t->memory, &s);
        *(i ? &high : &low) = memory_total(&b);
    }
    return low + share * (high - low);
}

static void test_best_split(void **state)
{
    (void)state;
    static const struct {
        enum pipeline_kind kind;
        long L, stages, chunks, m;
        double share;
    } cases[] = {{PIPELINE_1F1B, 7, 3, 1, 5, 0.3},        {PIPELINE_1F1B, 9, 3, 1, 8, 0.2},
                 {PIPELINE_1F1B, 9, 4, 1, 6, 0.3},
                 {PIPELINE_ZERO_BUBBLE, 8, 3, 1, 6, 0.9}, {PIPELINE_INTERLEAVED, 7, 2, 2, 5, 0.6},
                 {PIPELINE_1F1B, 6, 1, 1, 3, 0.5},        {PIPELINE_1F1B, 12, 2, 1, 7, 0.2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct config c = shape(cases[i].L);
        struct cluster k = machine(1, 8);
        struct layout l = layout_of_one;
        l.pp = cases[i].stages;
        l.virtual_stages = cases[i].chunks;
        struct run r = run_of(&c, &k, l);
        struct costs costs;
        static struct split_task t;
        static struct split s;
        static struct brute b;
        double message[8] = {0};
        bool fits;
        r.schedule = cases[i].kind;
        r.recompute = RECOMPUTE_FULL;
        r.B = 32;
        r.global_batch = r.B * cases[i].m;
        costs_of(&costs, &r);
        OK_OR_FAIL(split_task_of(&t, &r, &costs, message, 1, NULL));
        t.limit = limit_between(&t, (cases[i].L + cases[i].stages - 1) / cases[i].stages, cases[i].share);
        OK_OR_FAIL(split_best(&s, &fits, &t, SPLIT_EFFORT));
        b = (struct brute){.t = &t, .least = INFINITY};
        OK_OR_FAIL(simulator_open(&b.sim, &t.p, false));
        try_layers(&b, 0, c.L);
        simulator_close(&b.sim);
        assert_true(fits && isfinite(b.least));
        near(seconds_of(&t, &s), b.least, 1e-12);
        long again = 0;
        for (long x = 0; x < l.pp; x++) again += s.recompute[x];
        assert_true(again > 0 && again < c.L); // the limit was felt
    }
}

// 52 layers: no worse than every list within two layers of it, and the head's stage gets fewer.
static void test_good_split(void **state)
{
    (void)state;
    struct config c = shape(52);
    struct cluster k = machine(2, 8);
    struct layout l = {.pp = 12, .dp = 1, .tp = 1, .ep = 1, .etp = 1, .virtual_stages = 1};
    struct run r = run_of(&c, &k, l);
    struct plan p, even;
    c.V = 800;
    r.global_batch = 96;
    k.memory_bytes.value = 1e12;
    OK_OR_FAIL(plan_make(&even, &r, &(struct plan_wishes){0}));
    OK_OR_FAIL(plan_make(&p, &r, &(struct plan_wishes){.best_layers = true}));
    assert_true(p.step_s < even.step_s);
    assert_true(p.stage[11].layers < p.stage[1].layers);
    plan_free(&p);
    plan_free(&even);
}

// The trainer's question: no cluster, only a limit.
static void test_split_without_cluster(void **state)
{
    (void)state;
    struct config c = shape(11);
    struct layout l = {.pp = 3, .dp = 2, .tp = 2, .ep = 2, .etp = 1, .virtual_stages = 1};
    struct run r = run_of(&c, NULL, l);
    static struct split s;
    bool fits;
    c.V = 2000; // a head of several layers
    r.recompute = RECOMPUTE_FULL;
    r.B = 32;
    r.global_batch = 32 * 16;
    OK_OR_FAIL(plan_split(&s, &fits, &r, 0));
    assert_true(fits && s.layers[0] + s.layers[1] + s.layers[2] == 11 && s.layers[2] < s.layers[1]);
    assert_true(s.recompute[0] == 0 && s.recompute[1] == 0 && s.recompute[2] == 0);
    struct memory m;
    struct cluster k = machine(1, 12);
    r.cluster = &k;
    OK_OR_FAIL(memory_of(&m, &r, NULL));
    struct stage_shape all = {.layers = 4, .held = {3 * 4, 0}, .first = true};
    struct rank_bytes b = memory_stage(&m, &all);
    OK_OR_FAIL(plan_split(&s, &fits, &r, 0.8 * memory_total(&b))); // too little to keep everything on the first stage
    assert_true(fits && s.recompute[0] > 0 && s.recompute[0] >= s.recompute[2]);
    OK_OR_FAIL(plan_split(&s, &fits, &r, 1000));
    assert_false(fits);
    assert_true(s.layers[0] == 4 && s.recompute[0] == 4); // the even split, all of it recomputing
}

// 100 000 ranks and more in far less than 10 s.
static void test_large(void **state)
{
    (void)state;
    struct config c = shape(128);
    struct cluster k = machine(16384, 8);
    struct layout l = {.pp = 64, .dp = 256, .tp = 8, .ep = 8, .etp = 1, .virtual_stages = 2};
    struct run r = run_of(&c, &k, l);
    struct plan p;
    c.H = c.G = 8;
    r.schedule = PIPELINE_INTERLEAVED;
    r.global_batch = 256 * 512 * r.B;
    clock_t begin = clock();
    OK_OR_FAIL(plan_make(&p, &r, &(struct plan_wishes){0}));
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    print_message("%ld ranks, %ld micro-batches: %.2f s\n", layout_ranks(&l), p.micro_batches, seconds);
    assert_int_equal(p.micro_batches, 512);
    assert_true(seconds < 10);
    plan_free(&p);
}

static int setup(void **state)
{
    (void)state;
    return kernels_init(1) == OK ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bubbles), cmocka_unit_test(test_closed_form), cmocka_unit_test(test_terms),
        cmocka_unit_test(test_wires), cmocka_unit_test(test_exchange), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_best_split), cmocka_unit_test(test_good_split), cmocka_unit_test(test_large),
        cmocka_unit_test(test_flops), cmocka_unit_test(test_sums), cmocka_unit_test(test_messages),
        cmocka_unit_test(test_split_without_cluster),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
