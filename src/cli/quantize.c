#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "cli/command.h"
#include "eval/evaluate.h"
#include "eval/inference.h"
#include "quant/quantize.h"

static struct options {
    const char *model, *output, *format, *scale, *data, *split;
    long S, max_tokens;
} options;

#define AT(field) offsetof(struct options, field)
static const struct setting rows[] = {
    {"model", SETTING_TEXT, AT(model), NULL, 0, 0, NULL, "model folder (or a run: its newest checkpoint)"},
    {"output", SETTING_TEXT, AT(output), NULL, 0, 0, NULL, "folder to write"},
    {"format", SETTING_CHOICE, AT(format), "fp8", 0, 0, "fp8", "format of the weights (fp8: e4m3)"},
    {"scale", SETTING_CHOICE, AT(scale), "tensor", 0, 0, "tensor|channel|block",
     "what has a scale of its own: a matrix, an output channel of it, a block of 128 x 128"},
    {"data", SETTING_TEXT, AT(data), NULL, 0, 0, NULL, "PREFIX of prepared data: perplexity before and after, KL"},
    {"data-split", SETTING_TEXT, AT(split), "valid", 0, 0, NULL, "which part of it: train, valid or test"},
    {"seq-length", SETTING_LONG, AT(S), NULL, 1, 1 << 24, NULL,
     "tokens the model sees at once; default 512, or max_position_embeddings when smaller"},
    {"max-tokens", SETTING_LONG, AT(max_tokens), "32768", 0, 1e15, NULL, "most tokens to compare on; 0: all"},
};
static const struct settings settings = {
    .command = "quantize",
    .summary = "writes a model's weights in FP8 and measures what that changes",
    .usage = "--model DIR --output DIR [--data PREFIX]",
    .row = rows,
    .n = sizeof rows / sizeof *rows,
    .options = &options,
};

// What the smaller weights change.
struct comparison {
    bool made;
    double before, after; // perplexity
    struct divergence kl;
};

static enum status compare_models(struct comparison *c, struct inference *a, struct inference *b, long seed)
{
    struct loader loader;
    struct evaluation before, after;
    char suffix[64];
    snprintf(suffix, sizeof suffix, "_%.60s", options.split);
    TRY(loader_open(&loader, options.data, suffix, a->model.o.S, seed, true));
    log_line("comparing both on %s%s", options.data, suffix);
    enum status status = evaluate_loss(&before, &a->model, &loader, NULL, options.max_tokens, model_sum);
    if (status == OK) status = evaluate_loss(&after, &b->model, &loader, NULL, options.max_tokens, model_sum);
    if (status == OK) status = evaluate_kl(&c->kl, &a->model, &b->model, &loader, options.max_tokens);
    loader_close(&loader);
    TRY(status);
    c->before = before.perplexity;
    c->after = after.perplexity;
    c->made = true;
    return OK;
}

static enum status compare_folders(struct comparison *c, long S, long seed)
{
    static struct inference a, b;
    TRY(inference_open(&a, options.model, S, S));
    enum status status = inference_open(&b, options.output, S, S);
    if (status == OK) {
        status = compare_models(c, &a, &b, seed);
        inference_close(&b);
    }
    inference_close(&a);
    return status;
}

static void print_people(const struct quantize_result *r, const struct comparison *c)
{
    long worst = 0;
    double sum = 0;
    for (long i = 0; i < r->n; i++) {
        if (r->tensor[i].rel_error > r->tensor[worst].rel_error) worst = i;
        sum += r->tensor[i].rel_error;
    }
    printf("%ld matrices in FP8\n", r->n);
    if (r->n)
        printf("relative error %.4f on average, largest %.4f (%s)\n", sum / (double)r->n, r->tensor[worst].rel_error,
               r->tensor[worst].name);
    if (c->made)
        printf("perplexity %.4f before, %.4f after (%+.3f %%)\nKL mean %.6f, max %.6f over %ld tokens\n", c->before,
               c->after, 100 * (c->after / c->before - 1), c->kl.mean, c->kl.max, c->kl.tokens);
    printf("%s\n", options.output);
}

static enum status print_json(const struct quantize_result *r, const struct comparison *c)
{
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_begin(&o, "tensors", '[');
    for (long i = 0; i < r->n; i++) {
        json_begin(&o, NULL, '{');
        json_put_text(&o, "name", r->tensor[i].name);
        json_put_real(&o, "rel_error", r->tensor[i].rel_error);
        json_put_real(&o, "max_error", r->tensor[i].max_error);
        json_end(&o, '}');
    }
    json_end(&o, ']');
    if (c->made) {
        json_put_real(&o, "ppl_before", c->before);
        json_put_real(&o, "ppl_after", c->after);
        json_put_real(&o, "kl_mean", c->kl.mean);
        json_put_real(&o, "kl_max", c->kl.max);
        json_put_long(&o, "tokens", c->kl.tokens);
    } else {
        json_put_null(&o, "ppl_before");
        json_put_null(&o, "ppl_after");
        json_put_null(&o, "kl_mean");
        json_put_null(&o, "kl_max");
    }
    json_end(&o, '}');
    return command_print_json(&o);
}

// Data that cannot be used are found before hours of quantising, not after.
static enum status check_data(long S, long seed)
{
    struct loader loader;
    char suffix[64];
    snprintf(suffix, sizeof suffix, "_%.60s", options.split);
    if (!options.data) return OK;
    TRY(loader_open(&loader, options.data, suffix, S, seed, true));
    loader_close(&loader);
    return OK;
}

static enum status quantize_folder(struct quantize_result *r, long *S, const struct common_options *common)
{
    static struct model_folder from;
    TRY(model_folder_open(&from, options.model));
    *S = options.S ? options.S : from.config.max_positions < 512 ? from.config.max_positions : 512;
    enum status status = check_data(*S, common->seed);
    enum scaling scaling = SCALING_TENSOR;
    CHECK(scaling_from_name(&scaling, options.scale));
    if (status == OK) status = quantize_fp8(r, &from, options.output, scaling);
    model_folder_close(&from);
    return status;
}

static enum status run(int argc, char **argv)
{
    struct common_options common;
    bool done;
    long S;
    struct quantize_result r;
    struct comparison c = {0};
    TRY(command_start(&settings, &common, NULL, &done, argc, argv));
    if (done) return OK;
    if (!options.model) return fail(ERR_CONFIG, "--model: is missing (name a model folder)");
    if (!options.output) return fail(ERR_CONFIG, "--output: is missing (name a folder to write)");
    TRY(command_threads_beside_writing(&common));
    TRY(quantize_folder(&r, &S, &common));
    enum status status = options.data ? kernels_init(common.threads) : OK; // all of them again
    if (status == OK && options.data) status = compare_folders(&c, S, common.seed);
    if (status == OK && common.json) status = print_json(&r, &c);
    else if (status == OK) print_people(&r, &c);
    free(r.tensor);
    return status;
}

const struct command command_quantize = {.name = "quantize", .run = run, .settings = &settings};
