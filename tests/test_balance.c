// Loss-free balancing and the router z-loss in training: what moves, what is logged, what a folder keeps, what goes on.
#include "checkpoint/folder.h"
#include "eval/inference.h"
#include "train_util.h"

static void test_move(void **state)
{
    (void)state;
    double bias[4] = {0.5, 0, -0.25, 1};
    bias_move(bias, (const long[]){3, 4, 4, 5}, 4, 0.125); // mean 4
    assert_true(bias[0] == 0.625 && bias[1] == 0 && bias[2] == -0.25 && bias[3] == 0.875);
    bias_move(bias, (const long[]){10, 0, 0, 1}, 4, 0.125); // mean 2.75
    assert_true(bias[0] == 0.5 && bias[1] == 0.125 && bias[2] == -0.125 && bias[3] == 1);
}

#define RESOLVE(o, set, c, ...)                                                                                        \
    (parse_options(o, set, (const char *const[]){__VA_ARGS__},                                                         \
                   (int)(sizeof(const char *[]){__VA_ARGS__} / sizeof(char *))) == OK                                  \
         ? train_options_resolve(o, set, c) : ERR_MEMORY)

static struct config shape(enum arch arch)
{
    return (struct config){.arch = arch, .D = 32, .F = 40, .L = 2, .H = 4, .G = 2, .C = 8, .V = TINY_V, .E = 8, .K = 2,
                           .max_positions = 64, .gate_norm_std = arch == ARCH_MIXTRAL ? 0 : 1, .dtype = BF16};
}

static void test_options(void **state)
{
    (void)state;
    struct train_options o;
    bool set[256];
    struct config c = shape(ARCH_SKYWORK);
    OK_OR_FAIL(RESOLVE(&o, set, &c, "--model", "m", "--moe-aux-loss", "bias"));
    assert_true(c.gate_bias && c.arch == ARCH_SKYMOE);
    struct balance_rule r = train_balance_rule(&o);
    assert_true(r.bias_rate == 0.001 && !r.adaptive && r.alpha_max == 0);
    assert_true(train_model_options(&o).rule.aux == AUX_NONE && train_model_options(&o).rule.z_coeff == 0);

    static const char *const contrary[][3] = {{"bias", "--moe-aux-loss-adaptive"}, {"none", "--moe-aux-loss-adaptive"}};
    for (int i = 0; i < 2; i++) {
        c = shape(ARCH_SKYWORK);
        assert_int_equal(RESOLVE(&o, set, &c, "--model", "m", "--moe-aux-loss", contrary[i][0], contrary[i][1]),
                         ERR_CONFIG);
        assert_non_null(strstr(fail_message(), "--moe-aux-loss-adaptive"));
        assert_non_null(strstr(fail_message(), contrary[i][0]));
    }
    c = shape(ARCH_SKYWORK);
    assert_int_equal(RESOLVE(&o, set, &c, "--model", "m", "--moe-bias-rate", "0.01"), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "--moe-bias-rate"));
    c = shape(ARCH_SKYWORK);
    OK_OR_FAIL(RESOLVE(&o, set, &c, "--model", "m", "--moe-aux-loss", "bias", "--moe-bias-rate", "0.01"));
    assert_true(train_balance_rule(&o).bias_rate == 0.01);
    OK_OR_FAIL(RESOLVE(&o, set, &c, "--model", "m", "--moe-z-loss-coeff", "0.25"));
    assert_true(train_model_options(&o).rule.z_coeff == 0.25);
    assert_true(c.gate_bias && train_balance_rule(&o).bias_rate == 0); // a bias that is there stays, unmoved

    char *text;
    c = shape(ARCH_MIXTRAL);
    OK_OR_FAIL(RESOLVE(&o, set, &c, "--model", "m", "--moe-aux-loss", "bias"));
    assert_int_equal(config_write(&text, &c), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "MixtralForCausalLM"));
}

// A loss that does not exist has no coefficient; what would be passed over is refused instead.
static void test_without_effect(void **state)
{
    (void)state;
    struct train_options o;
    bool set[256];
    static const char *const option[] = {"--moe-aux-loss-coeff=0.1", "--moe-aux-loss-xi=0.1", "--moe-aux-loss-beta=0.9",
                                         "--moe-aux-loss-scope=global"};
    for (int i = 0; i < 8; i++) {
        struct config c = shape(ARCH_SKYWORK);
        const char *how = i < 4 ? "none" : "bias";
        char name[32];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(option[i % 4], "="), option[i % 4]);
        assert_int_equal(RESOLVE(&o, set, &c, "--model", "m", "--moe-aux-loss", how, option[i % 4]), ERR_CONFIG);
        if (!strstr(fail_message(), name) || !strstr(fail_message(), how)) fail_msg("%s", fail_message());
        OK_OR_FAIL(RESOLVE(&o, set, &c, "--model", "m", option[i % 4]));
        OK_OR_FAIL(RESOLVE(&o, set, &c, "--model", "m", "--moe-aux-loss", how));
        assert_true(train_balance_rule(&o).alpha_max == 0);
        if (!strstr(name, "-xi") && !strstr(name, "-beta")) continue;
        assert_int_equal(RESOLVE(&o, set, &c, "--model", "m", "--no-moe-aux-loss-adaptive", option[i % 4]), ERR_CONFIG);
        if (!strstr(fail_message(), name) || !strstr(fail_message(), "fixed")) fail_msg("%s", fail_message());
        assert_int_equal(RESOLVE(&o, set, &c, "--model", "m", "--moe-aux-loss", "switch", option[i % 4]), ERR_CONFIG);
        OK_OR_FAIL(RESOLVE(&o, set, &c, "--model", "m", "--moe-aux-loss", "switch", "--moe-aux-loss-adaptive",
                           option[i % 4]));
    }
}

// A virtual capacity is a dropless run's, and counts something.
static void test_virtual_capacity(void **state)
{
    (void)state;
    struct train_options o;
    bool set[256];
    struct config c = shape(ARCH_SKYWORK);
    assert_int_equal(RESOLVE(&o, set, &c, "--model", "m", "--moe-virtual-capacity-factor", "1.5"), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "--moe-virtual-capacity-factor: only --moe-capacity-factor 0"));
    assert_int_equal(RESOLVE(&o, set, &c, "--model", "m", "--moe-capacity-factor", "0",
                             "--moe-virtual-capacity-factor", "0.0"), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "--moe-virtual-capacity-factor 0"));
    OK_OR_FAIL(RESOLVE(&o, set, &c, "--model", "m", "--moe-capacity-factor", "0", "--moe-virtual-capacity-factor",
                       "1.5"));
    assert_true(decimal_value(train_model_options(&o).rule.virtual_capacity) == 1.5);
}

static const char bias_name[] = "model.layers.1.block_sparse_moe.gate.e_score_correction_bias";

// Loss, then the folder: the model in memory and the folder it wrote agree on every bias, and on the loss.
static void test_run_and_folder(void **state)
{
    (void)state;
    static struct trainer t;
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("run"), MOE_RUN,
                    "--train-steps", "12", "--moe-aux-loss", "bias", "--moe-bias-rate", "0.0123", "--dtype", "f32",
                    "--moe-z-loss-coeff", "0.01", "--moe-capacity-factor", "0"));
    double want[4] = {0}; // layer 1, by hand
    for (int step = 0; step < 12; step++) {
        OK_OR_FAIL(trainer_step(&t));
        const struct moe_balance *b = &t.model.balance[1];
        for (int e = 0; e < 4; e++) {
            want[e] += 0.0123 * ((b->count[e] < 48) - (b->count[e] > 48)); // 2 of 6 x 16 tokens over 4 experts
            assert_true(fabs(b->bias[e] - want[e]) < 1e-12);
        }
        double sum = 0.01 * (t.model.balance[0].z + t.model.balance[1].z);
        assert_true(t.model.balance[0].z > 1 && fabs(t.result.z_loss - sum) < 1e-12); // log(4)^2 and more
        assert_true(t.result.aux_loss == 0);
    }
    assert_true(t.model.balance[1].bias[0] != 0);
    OK_OR_FAIL(trainer_save(&t));
    float in_memory[4], stored[4];
    t.model.x.k->to_host(in_memory, t.model.p.layer[1].gate_bias.data, sizeof in_memory);

    struct model_folder f;
    OK_OR_FAIL(model_folder_open(&f, at("run")));
    assert_true(f.config.gate_bias && f.config.arch == ARCH_SKYMOE);
    long i = param_find(&f.params, bias_name) - f.params.item;
    assert_string_equal(f.stored[i]->dtype, "F32");
    model_folder_read(stored, &f, i, 0, 4);
    assert_memory_equal(stored, in_memory, sizeof stored);
    for (int e = 0; e < 4; e++) assert_true(stored[e] == (float)want[e]);
    model_folder_close(&f);

    struct rows r = read_rows(at("run"), "loss");
    const cJSON *layer = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(r.row[11], "layers"), 1);
    assert_true(number(r.row[11], "z_loss") == t.result.z_loss && number(r.row[11], "aux_loss") == 0);
    assert_true(number(layer, "z_loss") == t.model.balance[1].z && number(layer, "aux_loss") == 0);
    assert_true(number(layer, "bias_range") > 0.01 && number(layer, "aux_coeff") == 0);
    assert_true(number(layer, "drop_rate") > 0); // dropless: what the virtual capacity would have dropped
    free_rows(&r);

    // Selection in evaluation and inference uses the bias.
    struct loader valid;
    struct evaluation during, after, other;
    struct inference inference;
    OK_OR_FAIL(loader_open(&valid, at("text"), "_valid", 16, 1, true));
    OK_OR_FAIL(evaluate_loss(&during, &t.model, &valid, NULL, 0, model_sum));
    OK_OR_FAIL(inference_open(&inference, at("run"), 16, 0));
    OK_OR_FAIL(evaluate_loss(&after, &inference.model, &valid, NULL, 0, model_sum));
    for (int l = 0; l < 2; l++)
        inference.model.x.k->from_host(inference.model.p.layer[l].gate_bias.data, (float[]){9, 9, 0, 0}, 16);
    OK_OR_FAIL(evaluate_loss(&other, &inference.model, &valid, NULL, 0, model_sum));
    printf("  loss in the run %.6f, of its folder %.6f, with another bias %.6f\n", during.loss, after.loss, other.loss);
    assert_true(fabs(during.loss - after.loss) < 1e-6 && fabs(other.loss - after.loss) > 1e-5);
    inference_close(&inference);
    loader_close(&valid);
    trainer_close(&t);
}

// A run that starts from that folder goes on from its bias; another loss leaves it as it is; skipped steps too.
static void test_start_from_folder(void **state)
{
    (void)state;
    static struct trainer t;
    struct model_folder f;
    float stored[4], now[4];
    OK_OR_FAIL(model_folder_open(&f, at("run")));
    model_folder_read(stored, &f, param_find(&f.params, bias_name) - f.params.item, 0, 4);
    model_folder_close(&f);
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--init", at("run"), "--output", at("frozen"), MOE_RUN, "--train-steps",
                    "2"));
    OK_OR_FAIL(trainer_run(&t));
    t.model.x.k->to_host(now, t.model.p.layer[1].gate_bias.data, sizeof now);
    assert_memory_equal(now, stored, sizeof now);
    assert_true(t.balance.adaptive && t.model.balance[1].aux > 0);
    trainer_close(&t);

    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--init", at("run"), "--output", at("on"), MOE_RUN, "--train-steps", "3",
                    "--moe-aux-loss", "bias", "--moe-bias-rate", "0.5", "--dtype", "bf16"));
    for (int e = 0; e < 4; e++) assert_true(t.model.balance[1].bias[e] == stored[e]);
    OK_OR_FAIL(trainer_step(&t));
    t.model.x.k->to_host(now, t.model.p.layer[1].gate_bias.data, sizeof now);
    for (int e = 0; e < 4; e++) assert_true(fabsf(now[e] - stored[e]) == 0.5f || t.model.balance[1].count[e] == 48);
    OK_OR_FAIL(trainer_save(&t)); // a bf16 folder: the bias is not
    OK_OR_FAIL(model_folder_open(&f, at("on")));
    model_folder_read(stored, &f, param_find(&f.params, bias_name) - f.params.item, 0, 4);
    assert_int_equal(f.config.dtype, BF16);
    assert_memory_equal(now, stored, sizeof now);
    model_folder_close(&f);
    const uint16_t nan = 0x7fc0;
    t.model.x.k->from_host(t.model.p.head.data, &nan, sizeof nan);
    double before = t.model.balance[1].bias[0];
    OK_OR_FAIL(trainer_step(&t));
    assert_true(t.result.skipped && t.model.balance[1].bias[0] == before);
    trainer_close(&t);
}

// From one start, 120 steps: with a bias (moved quickly, for the run is short) the later load of an expert, summed over
// steps since a step has few tokens, is near the mean; without one it is not.
static void test_balances(void **state)
{
    (void)state;
    static struct trainer t;
    static const char *const how[] = {"none", "bias"};
    double worst[2] = {0};
    for (int i = 0; i < 2; i++) {
        OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at(how[i]), MOE_RUN,
                        "--train-steps", "120", "--moe-aux-loss", how[i], "--save-interval", "0"));
        if (i) t.balance.bias_rate = 0.05;
        double load[2][4] = {{0}};
        for (int step = 0; step < 120; step++) {
            OK_OR_FAIL(trainer_step(&t));
            for (int j = 0; j < 8 && step >= 60; j++) load[j / 4][j % 4] += t.model.balance[j / 4].count[j % 4];
        }
        for (int j = 0; j < 8; j++) worst[i] = fmax(worst[i], fabs(load[j / 4][j % 4] / (60 * 48) - 1));
        trainer_close(&t);
    }
    printf("  an expert's load in steps 61 to 120 is at most %.1f %% off the mean without, %.1f %% with a bias\n",
           100 * worst[0], 100 * worst[1]);
    assert_true(worst[1] < 0.06 && worst[0] > 2 * worst[1]);
}

static int set_up(void **state)
{
    if (make_temporary(state) != 0 || kernels_init(1) != OK) return -1;
    log_quiet(true);
    write_config("moe.json", true, 64);
    write_data("text_train", 40, 100, 1);
    write_data("text_valid", 10, 100, 2);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_move),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_without_effect),
        cmocka_unit_test(test_virtual_capacity),
        cmocka_unit_test(test_run_and_folder),
        cmocka_unit_test(test_start_from_folder),
        cmocka_unit_test(test_balances),
    };
    return cmocka_run_group_tests(tests, set_up, remove_temporary);
}
