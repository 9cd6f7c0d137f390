// The config.json of a shape, and what follows from a shape alone.
#include <stdlib.h>

#include "base/json.h"
#include "model/config.h"

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
        return fail(ERR_CONFIG, "--moe-gate-norm-std: MixtralForCausalLM cannot say %g (give 0, or --arch skywork)",
                    c->gate_norm_std);
    if (c->arch == ARCH_LLAMA && c->window != 0)
        return fail(ERR_CONFIG, "--arch: LlamaForCausalLM cannot say sliding_window %ld", c->window);
    if (c->arch == ARCH_SKYWORK && c->C * c->H != c->D)
        return fail(ERR_CONFIG, "--arch: SkyworkForCausalLM cannot say head_dim %ld with %ld heads of hidden size %ld "
                    "(take --arch mixtral)", c->C, c->H, c->D);
    return OK;
}

static void put_token(struct json_out *o, const char *key, long id)
{
    if (id < 0) json_put_null(o, key);
    else json_put_long(o, key, id);
}

static void put_auto_map(struct json_out *o, bool moe)
{
    json_begin(o, "auto_map", '{');
    json_put_text(o, "AutoConfig",
                  moe ? "configuration_skywork_moe.SkyworkMoeConfig" : "configuration_skywork.SkyworkConfig");
    json_put_text(o, "AutoModelForCausalLM",
                  moe ? "modeling_skywork_moe.SkyworkForCausalLM" : "modeling_skywork.SkyworkForCausalLM");
    json_end(o, '}');
}

static void put_experts(struct json_out *o, const struct config *c, enum arch arch)
{
    if (arch == ARCH_MIXTRAL) {
        json_put_long(o, "num_local_experts", c->E);
        json_put_long(o, "num_experts_per_tok", c->K);
        json_put_bool(o, "output_router_logits", false);
    } else if (arch == ARCH_SKYMOE) {
        json_put_long(o, "num_experts_per_tok", c->K);
        json_put_long(o, "skymoe_num_experts", c->E);
        json_put_real(o, "skymoe_gate_norm_std", c->gate_norm_std);
    } else if (c->E > 0) {
        json_begin(o, "num_experts", '[');
        json_put_long(o, NULL, c->E);
        json_end(o, ']');
        json_put_long(o, "moe_expert_interval", 1);
        json_put_bool(o, "moe_use_logits_norm", c->gate_norm_std != 0);
        json_put_real(o, "moe_gate_norm_std", c->gate_norm_std != 0 ? c->gate_norm_std : 1.0);
        json_put_bool(o, "moe_2layer_gate", false);
        json_put_bool(o, "moe_use_skywork_gating", false);
        json_put_bool(o, "moe_feature_no_mul_topk", true);
    }
}

enum status config_write(char **text, const struct config *c)
{
    TRY(check_sayable(c));
    // Skywork's code always routes to 2.
    enum arch arch = c->arch == ARCH_SKYWORK && c->E > 0 && c->K != 2 ? ARCH_SKYMOE : c->arch;
    static const char *const types[] = {"llama", "mistral", "mixtral", "skywork", "skymoe"};
    static const char *const dtypes[DTYPES] = {[F32] = "float32", [BF16] = "bfloat16", [F16] = "float16"};
    struct json_out out = {0}, *o = &out;
    json_begin(o, NULL, '{');
    json_begin(o, "architectures", '[');
    json_put_text(o, NULL, arch_name(arch));
    json_end(o, ']');
    if (arch == ARCH_SKYWORK) put_auto_map(o, c->E > 0);
    json_put_text(o, "model_type", types[arch]);
    json_put_long(o, "vocab_size", c->V);
    put_token(o, "bos_token_id", c->bos);
    put_token(o, "eos_token_id", c->eos);
    put_token(o, "pad_token_id", c->pad);
    json_put_text(o, "hidden_act", "silu");
    json_put_long(o, "hidden_size", c->D);
    json_put_long(o, "intermediate_size", c->F);
    json_put_long(o, "num_attention_heads", c->H);
    json_put_long(o, "num_key_value_heads", c->G);
    if (c->C * c->H != c->D) json_put_long(o, "head_dim", c->C);
    json_put_long(o, "num_hidden_layers", c->L);
    json_put_long(o, "max_position_embeddings", c->max_positions);
    json_put_real(o, "initializer_range", c->init_std);
    json_put_real(o, "rms_norm_eps", c->norm_eps);
    json_put_real(o, "rope_theta", c->rope_theta);
    if (arch == ARCH_LLAMA) {
        json_put_bool(o, "attention_bias", false);
        json_put_bool(o, "mlp_bias", false);
    } else if (c->window) {
        json_put_long(o, "sliding_window", c->window);
    } else {
        json_put_null(o, "sliding_window"); // absent would mean 4096 to some
    }
    json_put_bool(o, "tie_word_embeddings", c->tied);
    json_put_text(o, "torch_dtype", dtypes[c->dtype]);
    put_experts(o, c, arch);
    if (c->quant == QUANT_FP8) {
        json_begin(o, "quantization_config", '{');
        json_put_text(o, "quant_method", "fp8");
        json_put_text(o, "activation_scheme", "dynamic");
        json_end(o, '}');
    }
    json_put_bool(o, "use_cache", true);
    json_end(o, '}');
    enum status status = json_out_status(o);
    if (status != OK) {
        json_out_free(o);
        return status;
    }
    *text = out.text;
    return OK;
}

// ---- counts ----

static long params_without_experts(const struct config *c)
{
    long attention = (c->H + 2 * c->G) * c->C * c->D + c->D * c->H * c->C;
    long layer = attention + 2 * c->D + c->E * c->D;
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
