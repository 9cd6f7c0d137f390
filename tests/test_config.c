// config.json: what is read, what is refused and with which sentence, what is written.
#include "model_util.h"

#include "base/files.h"

static const char *const llama =
    "\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":2,\"vocab_size\":16";
static const char *const mixtral =
    "\"architectures\":[\"MixtralForCausalLM\"],\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":2,\"vocab_size\":16,\"num_local_experts\":4";
static const char *const mistral =
    "\"architectures\":[\"MistralForCausalLM\"],\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":2,\"vocab_size\":16";
static const char *const skywork =
    "\"architectures\":[\"SkyworkForCausalLM\"],\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":2,\"vocab_size\":16";
static const char *const moe = "\"num_experts\":[4],\"moe_2layer_gate\":false,\"moe_feature_no_mul_topk\":true";

// What llm-compressor writes, with this of a group's weights.
#define COMPRESSED(weights)                                                                                            \
    "\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"format\":\"float-quantized\","                 \
    "\"version\":\"0.9\",\"ignore\":[\"lm_head\"],\"kv_cache_scheme\":null,\"config_groups\":{\"group_0\":{"           \
    "\"targets\":[\"Linear\"],\"output_activations\":null,\"weights\":{\"dynamic\":false," weights "}}}}"

static enum status parse(struct config *c, const char *base, const char *more)
{
    char text[4096];
    snprintf(text, sizeof text, "{%s%s%s}", base, more && *more ? "," : "", more ? more : "");
    return config_parse(c, text, (long)strlen(text), "config.json");
}

static void refused(const char *base, const char *more, const char *sentence)
{
    struct config c = {.D = 77};
    enum status status = parse(&c, base, more);
    if (status != ERR_FORMAT || !strstr(fail_message(), sentence))
        fail_msg("%s: status %d, \"%s\", expected \"%s\"", more, status, status ? fail_message() : "", sentence);
    assert_int_equal(c.D, 77); // unchanged
    assert_non_null(strstr(fail_message(), "config.json: "));
}

static void test_defaults(void **state)
{
    (void)state;
    struct config c;
    OK_OR_FAIL(parse(&c, llama, NULL));
    assert_int_equal(c.arch, ARCH_LLAMA);
    assert_int_equal(c.G, 2);
    assert_int_equal(c.C, 4);
    assert_int_equal(c.E, 0);
    assert_true(c.norm_eps == 1e-6 && c.rope_theta == 1e4 && c.gate_norm_std == 0);
    assert_false(c.tied);
    assert_int_equal(c.dtype, F32);
    assert_int_equal(c.bos, 1);
    assert_int_equal(c.eos, 2);
    assert_int_equal(c.pad, -1);
    OK_OR_FAIL(parse(&c, mixtral, NULL));
    assert_int_equal(c.E, 4);
    assert_int_equal(c.K, 2);
    assert_true(c.norm_eps == 1e-5 && c.rope_theta == 1e6);
    OK_OR_FAIL(parse(&c, mistral, NULL));
    assert_int_equal(c.window, 4096);
    OK_OR_FAIL(parse(&c, mistral, "\"sliding_window\":null"));
    assert_int_equal(c.window, 0);
    OK_OR_FAIL(parse(&c, skywork, NULL));
    assert_int_equal(c.E, 0);
}

static void test_values(void **state)
{
    (void)state;
    struct config c;
    OK_OR_FAIL(parse(&c, llama,
                     "\"head_dim\":6,\"num_key_value_heads\":1,\"torch_dtype\":\"bfloat16\",\"use_cache\":false,"
                     "\"eos_token_id\":[3,4],\"pad_token_id\":null,\"bos_token_id\":null,\"_name_or_path\":\"x\","
                     "\"tie_word_embeddings\":true,\"rope_parameters\":{\"rope_type\":\"default\","
                     "\"rope_theta\":5000.0},\"unheard_of\":null,\"another\":false,\"third\":0,\"list\":[]"));
    assert_int_equal(c.C, 6);
    assert_int_equal(c.G, 1);
    assert_int_equal(c.dtype, BF16);
    assert_int_equal(c.eos, 3);
    assert_int_equal(c.bos, -1);
    assert_true(c.tied);
    assert_true(c.rope_theta == 5000);
    OK_OR_FAIL(parse(&c, llama, "\"dtype\":\"float16\""));
    assert_int_equal(c.dtype, F16);
    OK_OR_FAIL(parse(&c, mixtral, "\"num_experts_per_tok\":3,\"sliding_window\":5,\"router_aux_loss_coef\":0.02,"
                                  "\"output_router_logits\":true,\"router_jitter_noise\":0.0"));
    assert_int_equal(c.K, 3);
    assert_int_equal(c.window, 5);
    OK_OR_FAIL(parse(&c, llama,
                     "\"quantization_config\":{\"quant_method\":\"fp8\",\"activation_scheme\":\"dynamic\"}"));
    assert_true(c.quant == QUANT_FP8 && c.scaling == SCALING_TENSOR);
    OK_OR_FAIL(parse(&c, llama, "\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\","
                                "\"weight_block_size\":[128,128],\"modules_to_not_convert\":[\"lm_head\"]}"));
    assert_true(c.quant == QUANT_FP8 && c.scaling == SCALING_BLOCK);
    static const struct {
        const char *strategy;
        enum scaling scaling;
    } groups[] = {{"\"tensor\"", SCALING_TENSOR}, {"\"channel\"", SCALING_CHANNEL},
                  {"\"block\",\"block_structure\":[128,128]", SCALING_BLOCK}};
    for (int i = 0; i < 3; i++) {
        char text[1024];
        snprintf(text, sizeof text, COMPRESSED("\"num_bits\":8,\"type\":\"float\",\"strategy\":%s"),
                 groups[i].strategy);
        OK_OR_FAIL(parse(&c, llama, text));
        assert_true(c.quant == QUANT_FP8 && c.scaling == groups[i].scaling);
    }
}

static void test_skywork(void **state)
{
    (void)state;
    struct config c;
    char more[512];
    OK_OR_FAIL(parse(&c, skywork, "\"num_experts\":[0]"));
    assert_int_equal(c.E, 0);
    OK_OR_FAIL(parse(&c, skywork, "\"num_experts\":[1]"));
    assert_int_equal(c.E, 0);
    OK_OR_FAIL(parse(&c, skywork, moe));
    assert_int_equal(c.E, 4);
    assert_int_equal(c.K, 2);
    assert_true(c.gate_norm_std == 0); // the class's default
    snprintf(more, sizeof more, "%s,\"moe_use_logits_norm\":true", moe);
    OK_OR_FAIL(parse(&c, skywork, more));
    assert_true(c.gate_norm_std == 1);
    snprintf(more, sizeof more, "%s,\"moe_use_logits_norm\":true,\"moe_gate_norm_std\":0.5", moe);
    OK_OR_FAIL(parse(&c, skywork, more));
    assert_true(c.gate_norm_std == 0.5);
    refused(skywork, "\"num_experts\":[4],\"moe_feature_no_mul_topk\":true", "moe_2layer_gate is true by default");
    refused(skywork, "\"num_experts\":[4],\"moe_2layer_gate\":false", "moe_feature_no_mul_topk is false by default");
    snprintf(more, sizeof more, "%s,\"moe_expert_interval\":2", moe);
    refused(skywork, more, "moe_expert_interval is 2");
    snprintf(more, sizeof more, "%s,\"moe_use_skywork_gating\":true", moe);
    refused(skywork, more, "moe_use_skywork_gating is true");
    snprintf(more, sizeof more, "%s,\"moe_use_mixtral_gating\":true", moe);
    refused(skywork, more, "moe_use_mixtral_gating is true");
    snprintf(more, sizeof more, "%s,\"num_experts_per_tok\":3", moe);
    refused(skywork, more, "num_experts_per_tok is 3");
    refused(skywork, "\"num_experts\":[4,8]", "num_experts is [4,8]");
    refused(skywork, "\"num_experts\":[-4]", "num_experts is [-4]");
    refused(skywork, "\"num_experts\":\"4\"", "num_experts is \"4\"");
    refused(skywork, "\"num_experts\":[]", "num_experts is []");
    refused(skywork, "\"num_experts\":[1e300]", "num_experts is [1e+300]");
    OK_OR_FAIL(parse(&c, skywork, "\"num_experts\":0,\"bos_token_id\":3")); // a plain number has neighbours
}

static void test_refused(void **state)
{
    (void)state;
    refused("\"architectures\":[\"GPT2LMHeadModel\"]", "", "architectures is [\"GPT2LMHeadModel\"]");
    refused("\"architectures\":[]", "", "architectures is []");
    refused("\"architectures\":\"LlamaForCausalLM\"", "", "architectures");
    refused("\"hidden_size\":8", "", "architectures is missing");
    refused("\"architectures\":[\"LlamaForCausalLM\"]", "", "hidden_size is missing");
    refused(llama, "\"model_type\":\"mixtral\"", "model_type is \"mixtral\"");
    refused(llama, "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.0}", "rope_scaling is {\"type\":\"linear\"");
    refused(llama, "\"rope_scaling\":7", "rope_scaling is 7");
    refused(llama, "\"rope_parameters\":{\"rope_type\":\"llama3\"}", "rope_parameters");
    refused(llama, "\"attention_bias\":true", "attention_bias is true");
    refused(llama, "\"mlp_bias\":true", "mlp_bias is true");
    refused(llama, "\"attention_dropout\":0.1", "attention_dropout is 0.1");
    refused(llama, "\"hidden_act\":\"gelu\"", "hidden_act is \"gelu\"");
    refused(llama, "\"pretraining_tp\":2", "pretraining_tp is 2");
    refused(llama, "\"rotary_percent\":0.5", "rotary_percent is 0.5");
    refused(llama, "\"sliding_window\":16", "sliding_window is 16");
    refused(mistral, "\"sliding_window\":0", "sliding_window is 0"); // a token that sees nothing; none is null
    refused(llama, "\"num_local_experts\":8", "num_local_experts is 8");
    refused(llama, "\"unheard_of\":3", "unheard_of is 3");
    refused(llama, "\"logit_scale\":\"x\"", "logit_scale is \"x\"");
    refused(llama, "\"torch_dtype\":\"float8\"", "torch_dtype is \"float8\"");
    refused(llama, "\"torch_dtype\":\"float16\",\"dtype\":\"bfloat16\"", "torch_dtype is \"float16\" but dtype");
    refused(llama, "\"quantization_config\":{\"quant_method\":\"gptq\"}",
            "quantization_config.quant_method is \"gptq\"");
    refused(llama, "\"quantization_config\":{\"quant_method\":\"fp8\",\"activation_scheme\":\"static\"}", "static");
    refused(llama, "\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[64,128]}",
            "quantization_config.weight_block_size is [64,128]");
    refused(llama, "\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":128}", "weight_block_size");
    refused(llama, "\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\"}", "fmt is \"e5m2\"");
    refused(llama, "\"quantization_config\":{\"quant_method\":\"fp8\",\"kv_cache_scheme\":{\"a\":1}}",
            "kv_cache_scheme");
    refused(llama, "\"quantization_config\":{\"quant_method\":\"compressed-tensors\"}",
            "quantization_config.format is missing, expected \"float-quantized\"");
    refused(llama, "\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"format\":\"float-quantized\"}",
            "config_groups is missing");
    refused(llama, COMPRESSED("\"num_bits\":4,\"type\":\"float\",\"strategy\":\"tensor\""), "num_bits is 4");
    refused(llama, COMPRESSED("\"num_bits\":8,\"type\":\"int\",\"strategy\":\"tensor\""), "weights.type is \"int\"");
    refused(llama, COMPRESSED("\"type\":\"float\",\"strategy\":\"group\""), "weights.strategy is \"group\"");
    refused(llama, COMPRESSED("\"type\":\"float\",\"strategy\":\"block\""), "block_structure is missing");
    refused(llama, COMPRESSED("\"type\":\"float\",\"strategy\":\"channel\",\"group_size\":32"), "group_size is 32");
    refused(llama, COMPRESSED("\"type\":\"float\",\"strategy\":\"channel\",\"symmetric\":false"), "symmetric is false");
    refused(llama, COMPRESSED("\"type\":\"float\",\"strategy\":\"channel\"},\"input_activations\":{\"num_bits\":8"),
            "input_activations is not dynamic");
    refused(llama, COMPRESSED("\"type\":\"float\",\"strategy\":\"channel\"}},\"group_1\":{\"weights\":{"
                              "\"type\":\"float\",\"strategy\":\"tensor\""), "strategies channel and tensor");
    refused(llama, "\"quantization_config\":3", "quantization_config is 3");
    refused(llama, "\"head_dim\":5", "head_dim is 5");
    refused(llama, "\"num_key_value_heads\":3", "num_key_value_heads is 3");
    refused(llama, "\"num_key_value_heads\":0", "num_key_value_heads is 0");
    refused(llama, "\"layer_types\":[\"sliding_attention\"]", "layer_types");
    refused(llama, "\"rms_norm_eps\":\"1e-5\"", "rms_norm_eps is \"1e-5\"");
    refused(llama, "\"rms_norm_eps\":-1", "rms_norm_eps is -1");
    refused(llama, "\"bos_token_id\":16", "bos_token_id is 16");
    refused(llama, "\"eos_token_id\":[]", "eos_token_id is []");
    refused(llama, "\"hidden_size\":9", "hidden_size twice");
    refused(mixtral, "\"num_experts_per_tok\":5", "num_experts_per_tok is 5, but there are only 4 experts");
    refused(mixtral, "\"num_experts_per_tok\":0", "num_experts_per_tok is 0");
    refused(mixtral, "\"router_jitter_noise\":0.1", "router_jitter_noise is 0.1");
}

// Sizes: each one alone, and what overflows only when multiplied.
static void test_sizes(void **state)
{
    (void)state;
    const char *format = "\"architectures\":[\"MixtralForCausalLM\"],\"hidden_size\":%ld,\"intermediate_size\":%ld,"
                         "\"num_hidden_layers\":%ld,\"num_attention_heads\":%ld,\"vocab_size\":%ld,"
                         "\"num_local_experts\":%ld";
    static const struct {
        long D, F, L, H, V, E;
        const char *sentence; // NULL: accepted
    } cases[] = {
        {8, 8, 1, 2, 8, 2, NULL},
        {1 << 20, 1 << 20, 1, 2, 8, 2, NULL},
        {(1 << 20) + 2, 8, 1, 2, 8, 2, "hidden_size is 1048578"},
        {8, 0, 1, 2, 8, 2, "intermediate_size is 0"},
        {8, 8, 4097, 2, 8, 2, "num_hidden_layers is 4097"},
        {8, 8, 1, -2, 8, 2, "num_attention_heads is -2"},
        {8, 8, 1, 3, 8, 2, "hidden_size 8 is not a multiple of num_attention_heads 3"},
        {8, 8, 1, 2, (1 << 24) + 1, 2, "vocab_size is 16777217"},
        {8, 8, 1, 2, 8, 4097, "num_local_experts is 4097"},
        {8, 8, 1, 2, 8, 1, "num_experts_per_tok is 2, but there are only 1 experts"},
        {1 << 20, 1 << 20, 4096, 2, 8, 4096, "2^56 parameters"},
        {8, 8, 4096, 2, 8, 4096, "2^20 expert tensors"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        char base[512];
        struct config c;
        snprintf(base, sizeof base, format, cases[i].D, cases[i].F, cases[i].L, cases[i].H, cases[i].V, cases[i].E);
        if (cases[i].sentence) refused(base, "", cases[i].sentence);
        else OK_OR_FAIL(parse(&c, base, ""));
    }
}

// write(parse(text)) parses to the same shape.
static void round_trip(struct config c)
{
    char *text;
    struct config again;
    OK_OR_FAIL(config_write(&text, &c));
    OK_OR_FAIL(config_parse(&again, text, (long)strlen(text), "written"));
    enum arch arch = c.arch == ARCH_SKYWORK && c.E > 0 && c.K != 2 ? ARCH_SKYMOE : c.arch;
    if (again.arch != arch) fail_msg("%s", text);
    memset(again.folder, 0, sizeof again.folder);
    memset(c.folder, 0, sizeof c.folder);
    c.arch = again.arch;
    again.init_std = c.init_std;
    if (again.D != c.D || again.F != c.F || again.L != c.L || again.H != c.H || again.G != c.G || again.C != c.C ||
        again.V != c.V || again.E != c.E || again.K != c.K || again.max_positions != c.max_positions ||
        again.window != c.window || again.norm_eps != c.norm_eps || again.rope_theta != c.rope_theta ||
        again.gate_norm_std != c.gate_norm_std || again.tied != c.tied || again.dtype != c.dtype ||
        again.quant != c.quant || again.scaling != c.scaling || again.bos != c.bos || again.eos != c.eos ||
        again.pad != c.pad)
        fail_msg("not the same model: %s", text);
    free(text);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct config c = tiny_dense();
    round_trip(c);
    c.arch = ARCH_MISTRAL;
    round_trip(c);
    c.window = 9;
    round_trip(c);
    c.quant = QUANT_FP8;
    for (int s = SCALING_TENSOR; s <= SCALING_BLOCK; s++) {
        c.scaling = (enum scaling)s;
        round_trip(c);
    }
    c.dtype = BF16;
    c.tied = true;
    c.norm_eps = 1.2345678901234567e-7;
    round_trip(c);
    c = tiny_moe();
    c.C = 4;
    c.D = 16;
    round_trip(c);
    c.gate_norm_std = 0;
    round_trip(c);
    c.K = 3;
    c.gate_norm_std = 0.7;
    round_trip(c);
    c.arch = ARCH_SKYMOE;
    c.C = 6;
    round_trip(c);
    c.arch = ARCH_MIXTRAL;
    c.gate_norm_std = 0;
    round_trip(c);
    c.E = 0;
    c.K = 0;
    c.C = 4;
    c.arch = ARCH_SKYWORK;
    round_trip(c);
}

// What an architecture's config cannot say is refused, naming the option.
static void test_unsayable(void **state)
{
    (void)state;
    char *text;
    struct config c = tiny_moe();
    c.arch = ARCH_MIXTRAL;
    assert_int_equal(config_write(&text, &c), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "--moe-gate-norm-std"));
    c = tiny_moe(); // 4 heads of 6 with hidden size 10
    assert_int_equal(config_write(&text, &c), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "head_dim: SkyworkForCausalLM cannot say 6 with 4 heads"));
    c.arch = ARCH_LLAMA;
    assert_int_equal(config_write(&text, &c), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "--num-experts"));
    c = tiny_dense();
    c.window = 3;
    assert_int_equal(config_write(&text, &c), ERR_CONFIG);
    c = tiny_dense();
    c.arch = ARCH_MIXTRAL;
    assert_int_equal(config_write(&text, &c), ERR_CONFIG);
}

static void test_shapes_in_configs(void **state)
{
    (void)state;
    struct config c;
    static const struct {
        const char *path;
        double total, active; // billions
    } known[] = {{"configs/skywork-moe.json", 146.36, 22.69},
                 {"configs/skywork-13b.json", 13.85, 13.85},
                 {"configs/llama-70b.json", 68.98, 68.98}};
    for (int i = 0; i < 3; i++) {
        OK_OR_FAIL(config_read(&c, known[i].path));
        double total = (double)config_params_total(&c) / 1e9, active = (double)config_params_active(&c) / 1e9;
        printf("  %s: %.2f B, %.2f B active\n", known[i].path, total, active);
        assert_true(fabs(total - known[i].total) < 0.005 && fabs(active - known[i].active) < 0.005);
        round_trip(c);
    }
    OK_OR_FAIL(config_read(&c, "configs/skywork-moe.json"));
    assert_true(c.gate_norm_std == 1 && c.E == 16 && c.K == 2 && c.V == 65532 && c.dtype == BF16);
    // 6 * (22.39 B without input embedding) + 6 L H C S at 8192 tokens; Megatron's formula, without the router: 146.1
    double gflop = config_train_flops_per_token(&c, 8192) / 1e9;
    printf("  Skywork-MoE: %.2f GFLOP a token at 8192\n", gflop);
    assert_true(fabs(gflop - 146.1) < 0.1);
    OK_OR_FAIL(config_read(&c, "configs/tiny.json"));
    OK_OR_FAIL(config_read(&c, "configs/small.json"));
    assert_true(config_params_total(&c) >= 6000000 && c.L >= 4 && c.D >= 256);
}

static void test_files(void **state)
{
    (void)state;
    struct config c;
    assert_int_equal(config_read(&c, "/nowhere/config.json"), ERR_IO);
    assert_int_equal(config_read(&c, "tests"), ERR_IO); // a folder without config.json
    assert_non_null(strstr(fail_message(), "tests/config.json"));
    assert_int_equal(config_parse(&c, "[1]", 3, "x"), ERR_FORMAT);
    assert_int_equal(config_parse(&c, "", 0, "x"), ERR_FORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),   cmocka_unit_test(test_values),    cmocka_unit_test(test_skywork),
        cmocka_unit_test(test_refused),    cmocka_unit_test(test_sizes),     cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_unsayable),  cmocka_unit_test(test_shapes_in_configs),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
