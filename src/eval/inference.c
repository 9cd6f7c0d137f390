#include "eval/inference.h"

#include <stdio.h>
#include <string.h>

static enum status load(struct inference *i, const struct model_folder *f, long rows, long positions)
{
    struct model_options o = {
        .dtype = f->config.dtype == F32 && f->config.quant == QUANT_NONE ? F32 : BF16,
        .B = 1,
        .S = rows,
        .positions = positions > rows ? positions : rows,
        .rule = moe_rule_inference,
        .weights = f->config.quant,
    };
    if (o.positions > f->config.max_positions)
        return fail(ERR_CONFIG, "%s: %ld positions are needed, max_position_embeddings is %ld (use shorter sequences)",
                    f->path, o.positions, f->config.max_positions);
    TRY(mapped_weights_open(&i->weights, f, o.weights == QUANT_FP8 ? F8_E4M3 : o.dtype, o.dtype));
    o.mapped = &i->weights.p;
    TRY(model_init(&i->model, &f->config, &o));
    return model_folder_load(&i->model, f);
}

static enum status open_tokenizer(struct inference *i)
{
    char path[PATH_LENGTH];
    TRY(path_join(path, i->folder, "tokenizer.model"));
    return path_exists(path) ? tokenizer_open(&i->tokenizer, i->folder) : OK;
}

enum status inference_start(struct inference *i, const char *path)
{
    struct model_folder f;
    memset(i, 0, sizeof *i);
    TRY(model_folder_open(&f, path));
    i->config = f.config;
    memcpy(i->folder, f.path, sizeof i->folder);
    model_folder_close(&f);
    return open_tokenizer(i);
}

enum status inference_load(struct inference *i, long rows, long positions)
{
    struct model_folder f;
    TRY(model_folder_open(&f, i->folder));
    enum status status = load(i, &f, rows, positions);
    model_folder_close(&f);
    return status;
}

enum status inference_open(struct inference *i, const char *path, long rows, long positions)
{
    enum status status = inference_start(i, path);
    if (status == OK) status = inference_load(i, rows, positions);
    if (status != OK) inference_close(i);
    return status;
}

enum status inference_need_tokenizer(const struct inference *i)
{
    if (i->tokenizer.model) return OK;
    return fail(ERR_FORMAT, "%s: has no tokenizer.model, which text needs (add it, or give token ids)", i->folder);
}

void inference_close(struct inference *i)
{
    if (i->tokenizer.model) tokenizer_close(&i->tokenizer);
    model_free(&i->model);
    mapped_weights_close(&i->weights);
    memset(i, 0, sizeof *i);
}
