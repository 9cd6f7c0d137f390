// Learning rates, the adaptive coefficient, and the settings of training.
#include "train_util.h"

static void near(double a, double b)
{
    if (!(fabs(a - b) <= 1e-12 * (1 + fabs(b)))) fail_msg("%.17g, expected %.17g", a, b);
}

static void test_cosine(void **state)
{
    (void)state;
    struct schedule s = {SCHEDULE_COSINE, 1.0, 0.1, 10, 110, 0};
    near(schedule_lr(&s, 1), 0.1);
    near(schedule_lr(&s, 5), 0.5);
    near(schedule_lr(&s, 10), 1.0);
    near(schedule_lr(&s, 35), 0.1 + 0.9 * 0.5 * (1 + sqrt(0.5)));
    near(schedule_lr(&s, 60), 0.55);
    near(schedule_lr(&s, 110), 0.1);
    near(schedule_lr(&s, 5000), 0.1);
    s.warmup = 0;
    s.decay = 100;
    near(schedule_lr(&s, 50), 0.55);
}

static void test_linear_and_constant(void **state)
{
    (void)state;
    struct schedule s = {SCHEDULE_LINEAR, 2.0, 1.0, 4, 14, 0};
    near(schedule_lr(&s, 2), 1.0);
    near(schedule_lr(&s, 4), 2.0);
    near(schedule_lr(&s, 9), 1.5);
    near(schedule_lr(&s, 14), 1.0);
    near(schedule_lr(&s, 15), 1.0);
    s.kind = SCHEDULE_CONSTANT;
    near(schedule_lr(&s, 1), 0.5);
    near(schedule_lr(&s, 4), 2.0);
    near(schedule_lr(&s, 1000), 2.0);
}

static void test_wsd(void **state)
{
    (void)state;
    struct schedule s = {SCHEDULE_WSD, 1.0, 0.0, 5, 100, 20};
    near(schedule_lr(&s, 1), 0.2);
    near(schedule_lr(&s, 5), 1.0);
    near(schedule_lr(&s, 80), 1.0);
    near(schedule_lr(&s, 81), 0.95);
    near(schedule_lr(&s, 90), 0.5);
    near(schedule_lr(&s, 100), 0.0);
    near(schedule_lr(&s, 101), 0.0);
    s.wsd_decay = 1000; // longer than what follows the warm-up
    near(schedule_lr(&s, 5), 1.0);
    near(schedule_lr(&s, 100), 0.0);
}

// facts: formats.md, golden vector 6.
static void test_alpha(void **state)
{
    (void)state;
    const struct balance_rule r = {.adaptive = true, .alpha_max = 0.01, .xi = 0.2, .beta = 0.99};
    const double drop[] = {.20, .10, .02, 0, 0}, wanted[] = {.01, .01, .00994, .0098406, .009742194};
    double alpha = 0.01;
    for (int i = 0; i < 5; i++) {
        alpha = alpha_next(&r, alpha, drop[i]);
        near(alpha, wanted[i]);
    }
    for (int i = 0; i < 5000; i++) alpha = alpha_next(&r, alpha, 0.03);
    near(alpha, 0.2 * 0.03); // steady: d / 5
}

#define PARSE(o, set, ...)                                                                                             \
    parse_options(o, set, (const char *const[]){__VA_ARGS__},                                                          \
                  (int)(sizeof(const char *[]){__VA_ARGS__} / sizeof(char *)))

static struct config moe_shape(void)
{
    return (struct config){.arch = ARCH_SKYWORK, .D = 32, .F = 40, .L = 2, .H = 4, .G = 2, .C = 8, .V = TINY_V, .E = 8,
                           .K = 2, .max_positions = 64, .gate_norm_std = 1, .dtype = BF16};
}

static void test_defaults(void **state)
{
    (void)state;
    struct train_options o;
    bool set[256];
    struct config c = moe_shape();
    OK_OR_FAIL(PARSE(&o, set, "--model", "m", "--data", "d", "--output", "r"));
    OK_OR_FAIL(train_options_check(&o));
    OK_OR_FAIL(train_options_resolve(&o, set, &c));
    assert_true(o.aux_adaptive);
    near(o.aux_coeff, 0.01);
    near(o.aux_xi, 0.2);
    near(o.min_lr, o.lr / 10);
    assert_int_equal(o.S, 64);
    assert_string_equal(o.dtype, "bf16");
    assert_int_equal(o.capacity.numerator * 10, o.capacity.denominator * 11);

    c = moe_shape();
    OK_OR_FAIL(PARSE(&o, set, "--model", "m", "--data", "d", "--output", "r", "--moe-aux-loss", "switch"));
    OK_OR_FAIL(train_options_resolve(&o, set, &c));
    assert_false(o.aux_adaptive);
    near(o.aux_coeff, 0.01 * 2 / 8);
    near(o.aux_xi, 0.2 * 2 / 8);

    c = moe_shape();
    OK_OR_FAIL(PARSE(&o, set, "--model", "m", "--data", "d", "--output", "r", "--moe-aux-loss", "none"));
    OK_OR_FAIL(train_options_resolve(&o, set, &c));
    near(o.aux_coeff, 0);
    OK_OR_FAIL(PARSE(&o, set, "--moe-aux-loss", "none", "--moe-aux-loss-adaptive"));
    assert_int_equal(train_options_resolve(&o, set, &c), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "--moe-aux-loss-adaptive"));
}

// What would have no effect, or an odd one, is refused: of a new run, and when a run is resumed.
static void test_refused(void **state)
{
    (void)state;
    struct train_options o;
    bool set[256];
    struct config dense = moe_shape();
    char *text;
    dense.arch = ARCH_LLAMA;
    dense.E = dense.K = 0;
    dense.gate_norm_std = 0;
    static const char *const refused[][3] = {
        {"--moe-router-topk=3", "--num-experts=0", "--moe-router-topk 3: a dense model"},
        {"--wsd-decay-steps=5", "--lr-schedule=cosine", "--wsd-decay-steps: only --lr-schedule wsd"},
        {"--min-lr=1e-3", "--lr=1e-4", "--min-lr 0.001: is above --lr 0.0001"},
        {"--min-lr=1e-5", "--lr-schedule=constant", "--min-lr: --lr-schedule constant"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct config c = dense;
        OK_OR_FAIL(PARSE(&o, set, "--model", "m", refused[i][0], refused[i][1]));
        enum status status = train_options_resolve(&o, set, &c);
        if (status != ERR_CONFIG || !strstr(fail_message(), refused[i][2])) fail_msg("case %zu", i);
    }
    struct config c = dense;
    OK_OR_FAIL(PARSE(&o, set, "--model", "m", "--lr", "1e-4", "--min-lr", "1e-4", "--moe-router-topk", "0"));
    OK_OR_FAIL(train_options_resolve(&o, set, &c));
    struct settings s = train_settings(&o);
    OK_OR_FAIL(settings_dump(&text, &s));
    for (size_t i = 1; i < sizeof refused / sizeof *refused; i++) {
        OK_OR_FAIL(PARSE(&o, set, "--output", "r", "--resume", refused[i][0], refused[i][1]));
        assert_int_equal(train_options_resume(&o, set, text, "ckpt"), ERR_CONFIG);
        if (!strstr(fail_message(), refused[i][2])) fail_msg("%s", fail_message());
    }
    OK_OR_FAIL(PARSE(&o, set, "--output", "r", "--resume", "--lr-schedule", "wsd", "--wsd-decay-steps", "5"));
    OK_OR_FAIL(train_options_resume(&o, set, text, "ckpt"));
    OK_OR_FAIL(PARSE(&o, set, "--output", "r", "--resume", "--lr-schedule", "constant", "--lr", "1e-5"));
    OK_OR_FAIL(train_options_resume(&o, set, text, "ckpt")); // --min-lr is not used
    free(text);
}

static void test_shape_options(void **state)
{
    (void)state;
    struct train_options o;
    bool set[256];
    struct config c = moe_shape();
    c.arch = ARCH_LLAMA;
    c.E = c.K = 0;
    c.gate_norm_std = 0;
    OK_OR_FAIL(PARSE(&o, set, "--model", "m", "--num-experts", "6", "--moe-router-topk", "3"));
    OK_OR_FAIL(train_options_resolve(&o, set, &c));
    assert_int_equal(c.E, 6);
    assert_int_equal(c.K, 3);
    assert_int_equal(c.arch, ARCH_SKYMOE);
    near(c.gate_norm_std, 1);

    c = moe_shape();
    OK_OR_FAIL(PARSE(&o, set, "--init", "m", "--num-experts", "4"));
    assert_int_equal(train_options_resolve(&o, set, &c), ERR_CONFIG);
    c = moe_shape();
    OK_OR_FAIL(PARSE(&o, set, "--model", "m", "--seq-length", "65"));
    assert_int_equal(train_options_resolve(&o, set, &c), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "64"));
    c = moe_shape();
    OK_OR_FAIL(PARSE(&o, set, "--model", "m", "--num-experts", "1"));
    assert_int_equal(train_options_resolve(&o, set, &c), ERR_CONFIG);
}

static void test_one_start(void **state)
{
    (void)state;
    struct train_options o;
    bool set[256];
    OK_OR_FAIL(PARSE(&o, set, "--data", "d", "--output", "r"));
    assert_int_equal(train_options_check(&o), ERR_CONFIG);
    OK_OR_FAIL(PARSE(&o, set, "--data", "d", "--output", "r", "--model", "a", "--init", "b"));
    assert_int_equal(train_options_check(&o), ERR_CONFIG);
    OK_OR_FAIL(PARSE(&o, set, "--output", "r", "--resume", "--init", "b"));
    assert_int_equal(train_options_check(&o), ERR_CONFIG);
    OK_OR_FAIL(PARSE(&o, set, "--output", "r", "--resume"));
    OK_OR_FAIL(train_options_check(&o));
    assert_int_equal(PARSE(&o, set, "--micro-batch", "4"), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "micro-batch-size"));
}

// What a checkpoint keeps is read back to the same values, and only some of it may be overridden.
static void test_resume_settings(void **state)
{
    (void)state;
    struct train_options first, o;
    bool set[256];
    struct config c = moe_shape();
    char *text;
    OK_OR_FAIL(PARSE(&first, set, "--model", "m", "--data", "0.3 a 0.7 b c", "--output", "r r", "--seed", "7", "--lr",
                     "0.00123", "--no-document-mask", "--moe-capacity-factor", "1.15", "--moe-aux-loss", "switch"));
    OK_OR_FAIL(train_options_resolve(&first, set, &c));
    struct settings s = train_settings(&first);
    OK_OR_FAIL(settings_dump(&text, &s));

    OK_OR_FAIL(PARSE(&o, set, "--output", "r r", "--resume", "--train-steps", "77", "--seed", "7"));
    OK_OR_FAIL(train_options_resume(&o, set, text, "ckpt"));
    assert_int_equal(o.train_steps, 77);
    assert_int_equal(o.seed, 7);
    assert_true(o.lr == first.lr && o.min_lr == first.min_lr && o.aux_coeff == first.aux_coeff);
    assert_int_equal(o.capacity.numerator * 100, o.capacity.denominator * 115);
    assert_false(o.document_mask);
    assert_false(o.aux_adaptive);
    assert_string_equal(o.data, "0.3 a 0.7 b c");
    OK_OR_FAIL(train_options_resolve(&o, NULL, &c));
    assert_true(o.aux_xi == first.aux_xi && o.S == first.S);

    static const char *const refused[][2] = {{"--seed", "8"}, {"--weight-decay", "0.2"}, {"--micro-batch-size", "2"},
                                             {"--data", "other"}, {"--moe-capacity-factor", "1.2"},
                                             {"--dtype", "f32"}, {"--moe-aux-loss", "none"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        OK_OR_FAIL(PARSE(&o, set, "--output", "r r", "--resume", refused[i][0], refused[i][1]));
        assert_int_equal(train_options_resume(&o, set, text, "ckpt"), ERR_CONFIG);
        assert_non_null(strstr(fail_message(), refused[i][0]));
    }
    OK_OR_FAIL(PARSE(&o, set, "--output", "r r", "--resume", "--data-restart", "--data", "other"));
    OK_OR_FAIL(train_options_resume(&o, set, text, "ckpt"));
    assert_string_equal(o.data, "other");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cosine),        cmocka_unit_test(test_linear_and_constant),
        cmocka_unit_test(test_wsd),           cmocka_unit_test(test_alpha),
        cmocka_unit_test(test_defaults),      cmocka_unit_test(test_shape_options),
        cmocka_unit_test(test_one_start),     cmocka_unit_test(test_resume_settings),
        cmocka_unit_test(test_refused),
    };
    log_quiet(true);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
