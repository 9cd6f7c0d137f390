#include "model/config_quant.h"

#include <string.h>

// vLLM's own layout has a scale per tensor or per block; compressed-tensors, which llm-compressor writes, names the
// strategy and is the only one that vLLM and transformers read with a scale per output channel.

static const char *const names[] = {
    [SCALING_TENSOR] = "tensor", [SCALING_CHANNEL] = "channel", [SCALING_BLOCK] = "block"};
enum { NAMES = sizeof names / sizeof *names };

const char *scaling_name(enum scaling s)
{
    return names[s];
}

bool scaling_from_name(enum scaling *s, const char *name)
{
    for (int i = 0; i < NAMES; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *s = (enum scaling)i;
        return true;
    }
    return false;
}

// ---- reading ----

static enum status not_implemented(const cJSON *value, const char *within, const char *wanted, const char *name)
{
    return fail(ERR_FORMAT, "%s: %s.%.60s is %s, which is not implemented%s%s%s", name, within, value->string,
                json_shown(value), wanted ? " (" : "", wanted ? wanted : "", wanted ? " is)" : "");
}

static enum status need_text(const cJSON *object, const char *within, const char *field, const char *wanted,
                             const char *name)
{
    const cJSON *item = json_field(object, field);
    if (item && cJSON_IsString(item) && strcmp(item->valuestring, wanted) == 0) return OK;
    if (item) return not_implemented(item, within, wanted, name);
    return fail(ERR_FORMAT, "%s: %s.%s is missing, expected \"%s\"", name, within, field, wanted);
}

// Every field is one of `known`, or off.
static enum status need_known(const cJSON *object, const char *within, const char *const *known, const char *name)
{
    for (const cJSON *item = object->child; item; item = item->next) {
        const char *const *k = known;
        while (*k && strcmp(*k, item->string) != 0) k++;
        if (!*k && !json_is_off(item)) return not_implemented(item, within, NULL, name);
    }
    return OK;
}

static enum status need_block(const cJSON *size, const char *within, const char *name)
{
    bool fine = cJSON_IsArray(size) && cJSON_GetArraySize(size) == 2;
    for (const cJSON *n = fine ? size->child : NULL; n; n = n->next)
        fine &= cJSON_IsNumber(n) && n->valuedouble == SCALE_BLOCK;
    return fine ? OK : not_implemented(size, within, "[128, 128]", name);
}

static enum status read_fp8(struct config *c, const cJSON *q, const char *name)
{
    static const char within[] = "quantization_config";
    static const char *const known[] = {"quant_method", "activation_scheme", "fmt", "ignored_layers",
                                        "modules_to_not_convert", "weight_block_size", NULL};
    if (json_field(q, "activation_scheme")) TRY(need_text(q, within, "activation_scheme", "dynamic", name));
    if (json_field(q, "fmt")) TRY(need_text(q, within, "fmt", "e4m3", name));
    TRY(need_known(q, within, known, name));
    const cJSON *block = json_field(q, "weight_block_size");
    c->scaling = SCALING_TENSOR;
    if (!block || cJSON_IsNull(block)) return OK;
    c->scaling = SCALING_BLOCK;
    return need_block(block, within, name);
}

static enum status read_strategy(enum scaling *scaling, const cJSON *weights, const char *within, const char *name)
{
    const cJSON *strategy = json_field(weights, "strategy");
    if (!strategy) return fail(ERR_FORMAT, "%s: %s.strategy is missing", name, within);
    if (!cJSON_IsString(strategy) || !scaling_from_name(scaling, strategy->valuestring))
        return not_implemented(strategy, within, "tensor, channel or block", name);
    const cJSON *block = json_field(weights, "block_structure");
    if (*scaling != SCALING_BLOCK)
        return block && !json_is_off(block) ? not_implemented(block, within, NULL, name) : OK;
    if (!block) return fail(ERR_FORMAT, "%s: %s.block_structure is missing, expected [128, 128]", name, within);
    return need_block(block, within, name);
}

static enum status read_group(enum scaling *scaling, const cJSON *group, const char *name)
{
    static const char in_group[] = "quantization_config.config_groups";
    static const char within[] = "quantization_config.config_groups.weights";
    static const char *const group_known[] = {"targets", "weights", "input_activations", "format", NULL};
    static const char *const known[] = {"num_bits", "type", "symmetric", "strategy", "block_structure", "observer",
                                        "observer_kwargs", NULL};
    const cJSON *weights = json_field(group, "weights"), *input = json_field(group, "input_activations");
    long bits;
    bool symmetric, dynamic;
    if (!cJSON_IsObject(weights)) return fail(ERR_FORMAT, "%s: %s is missing", name, within);
    TRY(need_known(group, in_group, group_known, name));
    if (json_field(group, "format")) TRY(need_text(group, in_group, "format", "float-quantized", name));
    TRY(json_long(&bits, weights, "num_bits", 8, 8, 8, name));
    TRY(need_text(weights, within, "type", "float", name));
    TRY(json_bool(&symmetric, weights, "symmetric", true, name));
    if (!symmetric) return not_implemented(json_field(weights, "symmetric"), within, "true", name);
    TRY(need_known(weights, within, known, name));
    if (input && !cJSON_IsNull(input)) { // ours stay 16-bit; scales that were measured beforehand would be tensors
        TRY(json_bool(&dynamic, input, "dynamic", false, name));
        if (!dynamic)
            return fail(ERR_FORMAT, "%s: %s.input_activations is not dynamic, which is not implemented", name,
                        in_group);
    }
    return read_strategy(scaling, weights, within, name);
}

static enum status read_compressed_tensors(struct config *c, const cJSON *q, const char *name)
{
    static const char within[] = "quantization_config";
    static const char *const known[] = {"quant_method", "format", "config_groups", "ignore", "quantization_status",
                                        "global_compression_ratio", "version", NULL};
    const cJSON *groups = json_field(q, "config_groups");
    TRY(need_text(q, within, "format", "float-quantized", name));
    TRY(need_known(q, within, known, name));
    if (!cJSON_IsObject(groups) || !groups->child)
        return fail(ERR_FORMAT, "%s: quantization_config.config_groups is missing", name);
    for (const cJSON *group = groups->child; group; group = group->next) {
        enum scaling scaling = SCALING_TENSOR;
        TRY(read_group(&scaling, group, name));
        if (group != groups->child && scaling != c->scaling)
            return fail(ERR_FORMAT, "%s: quantization_config.config_groups have strategies %s and %s, which is not "
                        "implemented (one for all is)", name, names[c->scaling], names[scaling]);
        c->scaling = scaling;
    }
    return OK;
}

enum status quantization_read(struct config *c, const cJSON *json, const char *name)
{
    c->quant = QUANT_NONE;
    const cJSON *q = json_field(json, "quantization_config");
    if (!q || cJSON_IsNull(q)) return OK;
    if (!cJSON_IsObject(q))
        return fail(ERR_FORMAT, "%s: quantization_config is %s, expected an object", name, json_shown(q));
    const char *method;
    TRY(json_text(&method, q, "quant_method", "", name));
    c->quant = QUANT_FP8;
    if (strcmp(method, "fp8") == 0) return read_fp8(c, q, name);
    if (strcmp(method, "compressed-tensors") == 0) return read_compressed_tensors(c, q, name);
    return fail(ERR_FORMAT, "%s: quantization_config.quant_method is \"%.40s\", which is not implemented (fp8 and "
                "compressed-tensors are)", name, method);
}

// ---- writing ----

static void write_compressed_tensors(FILE *o, const struct config *c)
{
    fprintf(o, "{\n    \"quant_method\": \"compressed-tensors\",\n    \"format\": \"float-quantized\",\n"
            "    \"quantization_status\": \"compressed\",\n    \"config_groups\": {\"group_0\": {\n"
            "      \"targets\": [\"Linear\"],\n"
            "      \"weights\": {\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"%s\", \"symmetric\": true, "
            "\"dynamic\": false},\n"
            "      \"input_activations\": {\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"token\", "
            "\"symmetric\": true, \"dynamic\": true}}},\n"
            "    \"ignore\": [\"lm_head\"%s]\n  }", names[c->scaling],
            c->E ? ", \"re:.*block_sparse_moe[.]gate$\"" : "");
}

void quantization_write(FILE *o, const struct config *c)
{
    if (c->quant == QUANT_NONE) return;
    fprintf(o, ",\n  \"quantization_config\": ");
    if (c->scaling == SCALING_CHANNEL) write_compressed_tensors(o, c);
    else fprintf(o, "{\"quant_method\": \"fp8\", \"activation_scheme\": \"dynamic\"%s}",
                 c->scaling == SCALING_BLOCK ? ", \"weight_block_size\": [128, 128]" : "");
}
