#include "model/config.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/json.h"
#include "model/config_quant.h"

// ---- which keys a config.json may have ----
//
// Every key of the file is looked up here, so that nothing which changes the arithmetic can be overlooked. A key that
// is not in the table (or not of that architecture) is refused unless its value says "off": null, false, 0 or empty.

enum key_rule {
    KEY_READ,     // read below
    KEY_HARMLESS, // any value: says nothing about the arithmetic of this program
    KEY_ONE,      // must be 1 (or null)
    KEY_OFF,      // must be off
};
enum { LLAMA = 1 << ARCH_LLAMA, MISTRAL = 1 << ARCH_MISTRAL, MIXTRAL = 1 << ARCH_MIXTRAL, SKYWORK = 1 << ARCH_SKYWORK,
       SKYMOE = 1 << ARCH_SKYMOE, ALL = LLAMA | MISTRAL | MIXTRAL | SKYWORK | SKYMOE };

static const struct key {
    const char *name;
    enum key_rule rule;
    int archs;
} keys[] = {
    {"architectures", KEY_READ, ALL},
    {"model_type", KEY_READ, ALL},
    {"hidden_size", KEY_READ, ALL},
    {"intermediate_size", KEY_READ, ALL},
    {"num_hidden_layers", KEY_READ, ALL},
    {"num_attention_heads", KEY_READ, ALL},
    {"num_key_value_heads", KEY_READ, ALL},
    {"head_dim", KEY_READ, LLAMA | MISTRAL | MIXTRAL | SKYMOE},
    {"vocab_size", KEY_READ, ALL},
    {"max_position_embeddings", KEY_READ, ALL},
    {"sliding_window", KEY_READ, MISTRAL | MIXTRAL | SKYWORK | SKYMOE},
    {"layer_types", KEY_READ, ALL},
    {"rms_norm_eps", KEY_READ, ALL},
    {"rope_theta", KEY_READ, ALL},
    {"rope_scaling", KEY_READ, ALL},
    {"rope_parameters", KEY_READ, ALL},
    {"hidden_act", KEY_READ, ALL},
    {"tie_word_embeddings", KEY_READ, ALL},
    {"torch_dtype", KEY_READ, ALL},
    {"dtype", KEY_READ, ALL},
    {"quantization_config", KEY_READ, ALL},
    {"initializer_range", KEY_READ, ALL},
    {"bos_token_id", KEY_READ, ALL},
    {"eos_token_id", KEY_READ, ALL},
    {"pad_token_id", KEY_READ, ALL},
    {"num_local_experts", KEY_READ, MIXTRAL},
    {"num_experts_per_tok", KEY_READ, MIXTRAL | SKYWORK | SKYMOE},
    {"num_experts", KEY_READ, SKYWORK},
    {"moe_expert_interval", KEY_READ, SKYWORK},
    {"moe_use_logits_norm", KEY_READ, SKYWORK},
    {"moe_gate_norm_std", KEY_READ, SKYWORK},
    {"moe_2layer_gate", KEY_READ, SKYWORK},
    {"moe_use_skywork_gating", KEY_READ, SKYWORK},
    {"moe_use_mixtral_gating", KEY_READ, SKYWORK},
    {"moe_feature_no_mul_topk", KEY_READ, SKYWORK},
    {"skymoe_num_experts", KEY_READ, SKYMOE},
    {"skymoe_gate_norm_std", KEY_READ, SKYMOE},
    {"skymoe_gate_bias", KEY_READ, SKYMOE},
    {"rotary_percent", KEY_ONE, ALL},
    {"partial_rotary_factor", KEY_ONE, ALL},
    {"pretraining_tp", KEY_ONE, ALL},
    {"attention_bias", KEY_OFF, ALL},
    {"mlp_bias", KEY_OFF, ALL},
    {"attention_dropout", KEY_OFF, ALL},
    {"router_jitter_noise", KEY_OFF, ALL},
    {"transformers_version", KEY_HARMLESS, ALL},
    {"use_cache", KEY_HARMLESS, ALL},
    {"auto_map", KEY_HARMLESS, ALL},
    {"output_router_logits", KEY_HARMLESS, ALL},
    {"router_aux_loss_coef", KEY_HARMLESS, ALL},
    {"return_dict", KEY_HARMLESS, ALL},
    {"use_return_dict", KEY_HARMLESS, ALL},
    {"is_decoder", KEY_HARMLESS, ALL},
    {"id2label", KEY_HARMLESS, ALL},
    {"label2id", KEY_HARMLESS, ALL},
    {"unk_token_id", KEY_HARMLESS, ALL},
    {"sep_token_id", KEY_HARMLESS, ALL},
    {"max_length", KEY_HARMLESS, ALL}, // defaults of text generation that old transformers wrote here
    {"max_sequence_length", KEY_HARMLESS, ALL},
    {"temperature", KEY_HARMLESS, ALL},
    {"top_p", KEY_HARMLESS, ALL},
    {"top_k", KEY_HARMLESS, ALL},
    {"typical_p", KEY_HARMLESS, ALL},
    {"num_beams", KEY_HARMLESS, ALL},
    {"num_beam_groups", KEY_HARMLESS, ALL},
    {"num_return_sequences", KEY_HARMLESS, ALL},
    {"repetition_penalty", KEY_HARMLESS, ALL},
    {"length_penalty", KEY_HARMLESS, ALL},
    {"chunk_size_feed_forward", KEY_HARMLESS, ALL},
};

static const char *const arch_names[] = {
    [ARCH_LLAMA] = "LlamaForCausalLM",     [ARCH_MISTRAL] = "MistralForCausalLM", [ARCH_MIXTRAL] = "MixtralForCausalLM",
    [ARCH_SKYWORK] = "SkyworkForCausalLM", [ARCH_SKYMOE] = "SkymoeForCausalLM",
};
enum { ARCHS = sizeof arch_names / sizeof *arch_names };

const char *arch_name(enum arch a)
{
    return arch_names[a];
}

static enum status check_keys(const cJSON *json, enum arch arch, const char *name)
{
    for (const cJSON *item = json->child; item; item = item->next) {
        const struct key *key = NULL;
        for (unsigned i = 0; i < sizeof keys / sizeof *keys; i++)
            if (keys[i].archs & 1 << arch && strcmp(keys[i].name, item->string) == 0) key = &keys[i];
        if (key && (key->rule == KEY_READ || key->rule == KEY_HARMLESS)) continue;
        if (!key && item->string[0] == '_') continue; // private notes of the library that wrote the file
        if (key && key->rule == KEY_ONE) {
            if (cJSON_IsNull(item) || (cJSON_IsNumber(item) && item->valuedouble == 1)) continue;
        } else if (json_is_off(item)) {
            continue;
        }
        return fail(ERR_FORMAT, "%s: %.60s is %s, which is not implemented for %s", name, item->string,
                    json_shown(item), arch_name(arch));
    }
    return OK;
}

// ---- reading ----

static enum status need_long(long *value, const cJSON *json, const char *field, long min, long max, const char *name)
{
    TRY(json_long(value, json, field, LONG_MIN, min, max, name));
    if (*value == LONG_MIN) return fail(ERR_FORMAT, "%s: %s is missing", name, field);
    return OK;
}

static enum status need_bool(const cJSON *json, const char *field, bool wanted, bool class_default, const char *name)
{
    bool value;
    TRY(json_bool(&value, json, field, class_default, name));
    if (value == wanted) return OK;
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, field);
    return fail(ERR_FORMAT, "%s: %s is %s%s, which is not implemented (only %s is)", name, field,
                value ? "true" : "false", item && !cJSON_IsNull(item) ? "" : " by default", wanted ? "true" : "false");
}

static enum status read_arch(enum arch *arch, const cJSON *json, const char *name)
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(json, "architectures");
    if (!list) return fail(ERR_FORMAT, "%s: architectures is missing", name);
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != 1 || !cJSON_IsString(list->child))
        return fail(ERR_FORMAT, "%s: architectures is %s, expected a list of one name", name, json_shown(list));
    for (int a = 0; a < ARCHS; a++)
        if (strcmp(list->child->valuestring, arch_names[a]) == 0) {
            *arch = a;
            return OK;
        }
    return fail(ERR_FORMAT, "%s: architectures is %s, which is not supported (LlamaForCausalLM, MistralForCausalLM, "
                "MixtralForCausalLM and SkyworkForCausalLM are)", name, json_shown(list));
}

static enum status check_model_type(const cJSON *json, enum arch arch, const char *name)
{
    static const char *const allowed[ARCHS][2] = {
        [ARCH_LLAMA] = {"llama"},
        [ARCH_MISTRAL] = {"mistral"},
        [ARCH_MIXTRAL] = {"mixtral"},
        [ARCH_SKYWORK] = {"skywork", "skywork_moe"},
        [ARCH_SKYMOE] = {"skymoe"},
    };
    const char *type;
    TRY(json_text(&type, json, "model_type", allowed[arch][0], name));
    for (int i = 0; i < 2; i++)
        if (allowed[arch][i] && strcmp(type, allowed[arch][i]) == 0) return OK;
    return fail(ERR_FORMAT, "%s: model_type is \"%.40s\", which contradicts architectures %s", name, type,
                arch_name(arch));
}

static enum status read_dtype(enum dtype *dtype, const cJSON *json, const char *name)
{
    // torch_dtype was renamed to dtype in newer files; both may be there if they agree.
    const char *old, *new;
    TRY(json_text(&old, json, "torch_dtype", NULL, name));
    TRY(json_text(&new, json, "dtype", NULL, name));
    if (old && new && strcmp(old, new) != 0)
        return fail(ERR_FORMAT, "%s: torch_dtype is \"%.40s\" but dtype is \"%.40s\"", name, old, new);
    const char *text = new ? new : old ? old : "float32";
    if (strncmp(text, "torch.", 6) == 0) text += 6;
    static const struct {
        const char *name;
        enum dtype dtype;
    } known[] = {{"float32", F32}, {"bfloat16", BF16}, {"float16", F16}};
    for (int i = 0; i < 3; i++)
        if (strcmp(text, known[i].name) == 0) {
            *dtype = known[i].dtype;
            return OK;
        }
    return fail(ERR_FORMAT, "%s: %s is \"%.40s\", expected float32, bfloat16 or float16", name,
                new ? "dtype" : "torch_dtype", text);
}

// An object that names a kind of rotary embedding; only the plain one is implemented.
static enum status read_rope(double *theta, const cJSON *json, const char *field, const char *name)
{
    const cJSON *rope = cJSON_GetObjectItemCaseSensitive(json, field);
    if (!rope || cJSON_IsNull(rope)) return OK;
    bool plain = cJSON_IsObject(rope);
    for (const cJSON *item = plain ? rope->child : NULL; item; item = item->next) {
        bool type = strcmp(item->string, "rope_type") == 0 || strcmp(item->string, "type") == 0;
        bool whole = strcmp(item->string, "partial_rotary_factor") == 0;
        if (type) plain &= cJSON_IsString(item) && strcmp(item->valuestring, "default") == 0;
        else if (whole) plain &= cJSON_IsNumber(item) && item->valuedouble == 1;
        else plain &= strcmp(item->string, "rope_theta") == 0;
    }
    if (!plain) return fail(ERR_FORMAT, "%s: %s is %s, which is not implemented", name, field, json_shown(rope));
    return json_real(theta, rope, "rope_theta", *theta, 1e-3, 1e15, name);
}

static enum status read_token(long *id, const cJSON *json, const char *field, long fallback, long max, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, field);
    if (cJSON_IsNull(item)) {
        *id = -1;
        return OK;
    }
    if (cJSON_IsArray(item)) { // several ends of text: the first is the model's own
        const cJSON *first = item->child;
        if (!cJSON_IsNumber(first) || !(first->valuedouble >= 0 && first->valuedouble <= (double)max) ||
            first->valuedouble != (double)(long)first->valuedouble)
            return fail(ERR_FORMAT, "%s: %s is %s, expected token ids from 0 to %ld", name, field, json_shown(item),
                        max);
        *id = (long)first->valuedouble;
        return OK;
    }
    return json_long(id, json, field, fallback, -1, max, name);
}

// num_experts is a list in Skywork's files.
static enum status read_skywork_experts(long *E, const cJSON *json, const char *name)
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(json, "num_experts");
    *E = 0;
    if (!list || cJSON_IsNull(list)) return OK;
    const cJSON *item = cJSON_IsArray(list) ? list->child : list;
    if (!cJSON_IsNumber(item) || item->next != (cJSON_IsArray(list) ? NULL : list->next) ||
        !(item->valuedouble >= 0 && item->valuedouble <= 4096) || item->valuedouble != (double)(long)item->valuedouble)
        return fail(ERR_FORMAT, "%s: num_experts is %s, expected one whole number from 0 to 4096 in a list", name,
                    json_shown(list));
    *E = (long)item->valuedouble;
    if (*E == 1) *E = 0; // one expert that always has weight 1 is the dense network
    return OK;
}

static enum status read_skywork(struct config *c, const cJSON *json, const char *name)
{
    TRY(read_skywork_experts(&c->E, json, name));
    if (c->E == 0) return OK;
    long value;
    TRY(json_long(&value, json, "num_experts_per_tok", 2, 0, LONG_MAX, name));
    if (value != 2)
        return fail(ERR_FORMAT, "%s: num_experts_per_tok is %ld, but SkyworkForCausalLM always routes to 2 experts",
                    name, value);
    c->K = 2;
    TRY(json_long(&value, json, "moe_expert_interval", 1, 0, LONG_MAX, name));
    if (value != 1)
        return fail(ERR_FORMAT, "%s: moe_expert_interval is %ld, which is not implemented (only 1 is)", name, value);
    // Absent keys take the defaults of the released configuration class, where they differ from the released model.
    TRY(need_bool(json, "moe_2layer_gate", false, true, name));
    TRY(need_bool(json, "moe_use_skywork_gating", false, false, name));
    TRY(need_bool(json, "moe_use_mixtral_gating", false, false, name));
    TRY(need_bool(json, "moe_feature_no_mul_topk", true, false, name));
    bool normalise;
    double std;
    TRY(json_bool(&normalise, json, "moe_use_logits_norm", false, name));
    TRY(json_real(&std, json, "moe_gate_norm_std", 1.0, 1e-6, 1e6, name));
    c->gate_norm_std = normalise ? std : 0;
    return OK;
}

static enum status read_experts(struct config *c, const cJSON *json, const char *name)
{
    switch (c->arch) {
    case ARCH_LLAMA:
    case ARCH_MISTRAL: return OK;
    case ARCH_SKYWORK: return read_skywork(c, json, name);
    case ARCH_MIXTRAL:
        TRY(need_long(&c->E, json, "num_local_experts", 1, 4096, name));
        TRY(json_long(&c->K, json, "num_experts_per_tok", 2, 1, 64, name));
        break;
    case ARCH_SKYMOE:
        TRY(need_long(&c->E, json, "skymoe_num_experts", 2, 4096, name));
        TRY(need_long(&c->K, json, "num_experts_per_tok", 1, 64, name));
        TRY(json_real(&c->gate_norm_std, json, "skymoe_gate_norm_std", 0, 0, 1e6, name));
        TRY(json_bool(&c->gate_bias, json, "skymoe_gate_bias", false, name));
        break;
    }
    if (c->K > c->E)
        return fail(ERR_FORMAT, "%s: num_experts_per_tok is %ld, but there are only %ld experts", name, c->K, c->E);
    return OK;
}

static enum status read_heads(struct config *c, const cJSON *json, const char *name)
{
    TRY(need_long(&c->H, json, "num_attention_heads", 1, 4096, name));
    TRY(json_long(&c->G, json, "num_key_value_heads", c->H, 1, 4096, name));
    if (c->G > c->H || c->H % c->G != 0)
        return fail(ERR_FORMAT, "%s: num_key_value_heads is %ld, which does not divide num_attention_heads %ld", name,
                    c->G, c->H);
    TRY(json_long(&c->C, json, "head_dim", 0, 1, 1 << 16, name));
    if (c->C == 0) {
        if (c->D % c->H != 0)
            return fail(ERR_FORMAT, "%s: hidden_size %ld is not a multiple of num_attention_heads %ld, and head_dim is "
                        "missing", name, c->D, c->H);
        c->C = c->D / c->H;
    }
    if (c->C % 2 != 0)
        return fail(ERR_FORMAT, "%s: head_dim is %ld, but rotary embedding needs an even number", name, c->C);
    return OK;
}

static enum status read_window(struct config *c, const cJSON *json, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, "sliding_window");
    c->window = c->arch == ARCH_MISTRAL && !item ? 4096 : 0; // transformers' default of that class
    if (c->arch != ARCH_LLAMA) TRY(json_long(&c->window, json, "sliding_window", c->window, 1, 1 << 30, name));
    if (cJSON_IsNull(item)) c->window = 0;
    const cJSON *types = cJSON_GetObjectItemCaseSensitive(json, "layer_types");
    if (!types || cJSON_IsNull(types)) return OK;
    const char *wanted = c->window ? "sliding_attention" : "full_attention";
    bool fine = cJSON_IsArray(types);
    for (const cJSON *t = fine ? types->child : NULL; t; t = t->next)
        fine &= cJSON_IsString(t) && strcmp(t->valuestring, wanted) == 0;
    if (!fine)
        return fail(ERR_FORMAT, "%s: layer_types is %s, which is not implemented (every layer is %s here)", name,
                    json_shown(types), wanted);
    return OK;
}

static enum status check_size(const struct config *c, const char *name)
{
    // Everything later multiplies these numbers as longs.
    __int128 experts = c->E ? c->E : 1;
    __int128 layer = experts * 3 * c->F * c->D + 2 * (__int128)(c->H + c->G) * c->C * c->D + c->E * c->D + 2 * c->D;
    __int128 total = layer * c->L + 2 * (__int128)c->V * c->D + c->D;
    if (total > (__int128)1 << 56)
        return fail(ERR_FORMAT, "%s: hidden_size, intermediate_size, num_hidden_layers and the number of experts make "
                    "more than 2^56 parameters", name);
    if (experts * 3 * c->L > 1 << 20)
        return fail(ERR_FORMAT, "%s: %ld layers of %ld experts make more than 2^20 expert tensors", name, c->L, c->E);
    return OK;
}

static enum status read_fields(struct config *c, const cJSON *json, const char *name)
{
    if (!cJSON_IsObject(json)) return fail(ERR_FORMAT, "%s: not a JSON object", name);
    TRY(read_arch(&c->arch, json, name));
    TRY(check_keys(json, c->arch, name));
    TRY(check_model_type(json, c->arch, name));
    TRY(need_long(&c->D, json, "hidden_size", 1, 1 << 20, name));
    TRY(need_long(&c->F, json, "intermediate_size", 1, 1 << 20, name));
    TRY(need_long(&c->L, json, "num_hidden_layers", 1, 4096, name));
    TRY(need_long(&c->V, json, "vocab_size", 1, 1 << 24, name));
    TRY(read_heads(c, json, name));
    TRY(read_experts(c, json, name));
    TRY(check_size(c, name));
    bool mixtral = c->arch == ARCH_MIXTRAL; // transformers' defaults of that class differ from Llama's
    long positions = mixtral || c->arch == ARCH_MISTRAL ? 131072 : 2048;
    TRY(json_long(&c->max_positions, json, "max_position_embeddings", positions, 1, 1 << 30, name));
    TRY(read_window(c, json, name));
    TRY(json_real(&c->norm_eps, json, "rms_norm_eps", mixtral ? 1e-5 : 1e-6, 0, 1, name));
    TRY(json_real(&c->rope_theta, json, "rope_theta", mixtral ? 1e6 : 1e4, 1e-3, 1e15, name));
    TRY(read_rope(&c->rope_theta, json, "rope_parameters", name));
    TRY(read_rope(&c->rope_theta, json, "rope_scaling", name));
    const char *act;
    TRY(json_text(&act, json, "hidden_act", "silu", name));
    if (strcmp(act, "silu") != 0)
        return fail(ERR_FORMAT, "%s: hidden_act is \"%.40s\", which is not implemented (silu is)", name, act);
    TRY(json_bool(&c->tied, json, "tie_word_embeddings", false, name));
    TRY(read_dtype(&c->dtype, json, name));
    TRY(quantization_read(c, json, name));
    TRY(json_real(&c->init_std, json, "initializer_range", 0.02, 0, 1e3, name));
    TRY(read_token(&c->bos, json, "bos_token_id", 1, c->V - 1, name));
    TRY(read_token(&c->eos, json, "eos_token_id", 2, c->V - 1, name));
    TRY(read_token(&c->pad, json, "pad_token_id", -1, 1 << 24, name)); // never fed to the model
    if (c->bos >= c->V) c->bos = -1; // only by default: a vocabulary of one or two tokens
    if (c->eos >= c->V) c->eos = -1;
    return OK;
}

enum status config_parse(struct config *c, const char *text, long bytes, const char *name)
{
    cJSON *json;
    TRY(json_parse(&json, text, bytes, name));
    struct config read = {0};
    enum status status = read_fields(&read, json, name);
    cJSON_Delete(json);
    if (status != OK) return status;
    snprintf(read.folder, sizeof read.folder, "%s", name);
    *c = read;
    return OK;
}

enum { CONFIG_BYTES = 16 << 20 };

enum status config_read(struct config *c, const char *path)
{
    char file[PATH_LENGTH];
    bool folder = path_is_folder(path);
    if (folder) TRY(path_join(file, path, "config.json"));
    char *text;
    long bytes;
    TRY(file_read(&text, &bytes, folder ? file : path, CONFIG_BYTES));
    enum status status = config_parse(c, text, bytes, folder ? file : path);
    free(text);
    if (status == OK) snprintf(c->folder, sizeof c->folder, "%s", path);
    return status;
}
