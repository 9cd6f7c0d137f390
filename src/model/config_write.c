// The config.json of a shape, and what follows from a shape alone.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/decimal.h"
#include "model/config_quant.h"

// ---- writing ----

static enum status check_sayable(const struct config *c)
{
    const char *name = arch_name(c->arch);
    bool dense_only = c->arch == ARCH_LLAMA || c->arch == ARCH_MISTRAL;
    if (c->E > 0 && dense_only)
        return fail(ERR_CONFIG, "--num-experts: %s has no experts (take --arch skywork or mixtral)", name);
    if (c->E == 0 && (c->arch == ARCH_MIXTRAL || c->arch == ARCH_SKYMOE))
        return fail(ERR_CONFIG, "--arch: %s cannot be dense", name);
    if (c->arch == ARCH_MIXTRAL && c->gate_norm_std != 0)
        return fail(ERR_CONFIG, "--moe-gate-norm-std: MixtralForCausalLM cannot say %g (give 0, or upcycle with "
                    "--arch skywork)", c->gate_norm_std);
    if (c->arch == ARCH_MIXTRAL && c->gate_bias)
        return fail(ERR_CONFIG, "--moe-aux-loss bias: MixtralForCausalLM cannot say the bias that chooses its experts "
                    "(upcycle with --arch skywork)");
    if (c->arch == ARCH_LLAMA && c->window != 0)
        return fail(ERR_CONFIG, "--arch: LlamaForCausalLM cannot say sliding_window %ld", c->window);
    if (c->arch == ARCH_SKYWORK && c->C * c->H != c->D)
        return fail(ERR_CONFIG, "head_dim: SkyworkForCausalLM cannot say %ld with %ld heads of hidden size %ld "
                    "(upcycle with --arch mixtral)", c->C, c->H, c->D);
    return OK;
}

// One line each, so that people can read and edit the file.
static void put_text(FILE *o, const char *key, const char *value)
{
    fprintf(o, ",\n  \"%s\": \"%s\"", key, value); // all are words of this file: nothing to escape
}

static void put_word(FILE *o, const char *key, const char *value)
{
    fprintf(o, ",\n  \"%s\": %s", key, value);
}

static void put_bool(FILE *o, const char *key, bool value)
{
    put_word(o, key, value ? "true" : "false");
}

static void put_long(FILE *o, const char *key, long value)
{
    fprintf(o, ",\n  \"%s\": %ld", key, value);
}

// With a point or an exponent: newer readers of these files insist that a float looks like one.
static void put_real(FILE *o, const char *key, double value)
{
    char text[NUMBER_TEXT];
    real_text(text, value);
    fprintf(o, ",\n  \"%s\": %s%s", key, text, strpbrk(text, ".e") ? "" : ".0");
}

static void put_token(FILE *o, const char *key, long id)
{
    if (id < 0) put_word(o, key, "null");
    else put_long(o, key, id);
}

static void put_auto_map(FILE *o, bool moe)
{
    const char *suffix = moe ? "_moe" : "";
    fprintf(o, ",\n  \"auto_map\": {\n    \"AutoConfig\": \"configuration_skywork%s.Skywork%sConfig\"", suffix,
            moe ? "Moe" : "");
    fprintf(o, ",\n    \"AutoModelForCausalLM\": \"modeling_skywork%s.SkyworkForCausalLM\"\n  }", suffix);
}

static void put_experts(FILE *o, const struct config *c, enum arch arch)
{
    if (arch == ARCH_MIXTRAL) {
        put_long(o, "num_local_experts", c->E);
        put_long(o, "num_experts_per_tok", c->K);
        put_bool(o, "output_router_logits", false);
    } else if (arch == ARCH_SKYMOE) {
        put_long(o, "num_experts_per_tok", c->K);
        put_long(o, "skymoe_num_experts", c->E);
        put_real(o, "skymoe_gate_norm_std", c->gate_norm_std);
        if (c->gate_bias) put_bool(o, "skymoe_gate_bias", true);
    } else if (c->E > 0) {
        fprintf(o, ",\n  \"num_experts\": [%ld]", c->E);
        put_long(o, "moe_expert_interval", 1);
        put_bool(o, "moe_use_logits_norm", c->gate_norm_std != 0);
        put_real(o, "moe_gate_norm_std", c->gate_norm_std != 0 ? c->gate_norm_std : 1.0);
        put_bool(o, "moe_2layer_gate", false);
        put_bool(o, "moe_use_skywork_gating", false);
        put_bool(o, "moe_feature_no_mul_topk", true);
    }
}

static void put_shape(FILE *o, const struct config *c, enum arch arch)
{
    put_long(o, "vocab_size", c->V);
    put_token(o, "bos_token_id", c->bos);
    put_token(o, "eos_token_id", c->eos);
    put_token(o, "pad_token_id", c->pad);
    put_text(o, "hidden_act", "silu");
    put_long(o, "hidden_size", c->D);
    put_long(o, "intermediate_size", c->F);
    put_long(o, "num_attention_heads", c->H);
    put_long(o, "num_key_value_heads", c->G);
    if (c->C * c->H != c->D) put_long(o, "head_dim", c->C);
    put_long(o, "num_hidden_layers", c->L);
    put_long(o, "max_position_embeddings", c->max_positions);
    put_real(o, "initializer_range", c->init_std);
    put_real(o, "rms_norm_eps", c->norm_eps);
    put_real(o, "rope_theta", c->rope_theta);
    if (arch == ARCH_LLAMA) {
        put_bool(o, "attention_bias", false);
        put_bool(o, "mlp_bias", false);
    } else if (c->window) {
        put_long(o, "sliding_window", c->window);
    } else {
        put_word(o, "sliding_window", "null"); // absent would mean 4096 to some
    }
    put_bool(o, "tie_word_embeddings", c->tied);
}

static void put_config(FILE *o, const struct config *c, enum arch arch)
{
    static const char *const types[] = {"llama", "mistral", "mixtral", "skywork", "skymoe"};
    static const char *const dtypes[DTYPES] = {[F32] = "float32", [BF16] = "bfloat16", [F16] = "float16"};
    fprintf(o, "{\n  \"architectures\": [\"%s\"]", arch_name(arch));
    if (arch == ARCH_SKYWORK) put_auto_map(o, c->E > 0);
    put_text(o, "model_type", types[arch]);
    put_shape(o, c, arch);
    put_text(o, "torch_dtype", dtypes[c->dtype]);
    put_experts(o, c, arch);
    quantization_write(o, c);
    put_bool(o, "use_cache", true);
    fprintf(o, "\n}\n");
}

enum status config_write(char **text, const struct config *c)
{
    TRY(check_sayable(c));
    // Skywork's code always routes to 2, by the gate alone.
    enum arch arch = c->arch == ARCH_SKYWORK && c->E > 0 && (c->K != 2 || c->gate_bias) ? ARCH_SKYMOE : c->arch;
    size_t bytes;
    FILE *o = open_memstream(text, &bytes);
    if (!o) return fail(ERR_MEMORY, "memory: refused while writing config.json (free some memory)");
    put_config(o, c, arch);
    bool failed = ferror(o) != 0;
    failed |= fclose(o) != 0 || !*text; // it may close well and leave NULL
    if (!failed) return OK;
    free(*text);
    return fail(ERR_MEMORY, "memory: refused while writing config.json (free some memory)");
}

// ---- counts ----

static long params_without_experts(const struct config *c)
{
    long attention = (c->H + 2 * c->G) * c->C * c->D + c->D * c->H * c->C;
    long layer = attention + 2 * c->D + c->E * c->D + (c->gate_bias ? c->E : 0);
    return c->L * layer + c->D + c->V * c->D * (c->tied ? 1 : 2);
}

long config_params_total(const struct config *c)
{
    return params_without_experts(c) + c->L * (c->E ? c->E : 1) * 3 * c->F * c->D;
}

long config_params_active(const struct config *c)
{
    return params_without_experts(c) + c->L * (c->E ? c->K : 1) * 3 * c->F * c->D;
}

double config_train_flops_per_token(const struct config *c, long S)
{
    double embedding = (double)c->V * c->D;
    double body = (double)config_params_active(c) - embedding * (c->tied ? 1 : 2);
    return 6 * (body + embedding) + 6.0 * c->L * c->H * c->C * S;
}
