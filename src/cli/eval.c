#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "cli/command.h"
#include "cli/ids.h"
#include "eval/evaluate.h"
#include "eval/inference.h"
#include "eval/sample.h"
#include "eval/tasks.h"
#include "model/decode.h"

static struct options {
    const char *model, *data, *split, *tokens, *logits, *tasks;
    long S, max_tokens;
    bool document_mask;
} options;

#define AT(field) offsetof(struct options, field)
static const struct setting rows[] = {
    {"model", SETTING_TEXT, AT(model), NULL, 0, 0, NULL, "model folder (or a run: its newest checkpoint)"},
    {"data", SETTING_TEXT, AT(data), NULL, 0, 0, NULL, "PREFIX of prepared data: loss, perplexity, bits per byte"},
    {"data-split", SETTING_TEXT, AT(split), "valid", 0, 0, NULL, "which part of it: train, valid or test"},
    {"seq-length", SETTING_LONG, AT(S), NULL, 1, 1 << 24, NULL,
     "tokens the model sees at once; default 512, or max_position_embeddings when smaller"},
    {"max-tokens", SETTING_LONG, AT(max_tokens), "0", 0, 1e15, NULL, "most tokens to score; 0: all"},
    {"document-mask", SETTING_SWITCH, AT(document_mask), "on", 0, 0, NULL,
     "attention and positions restart at each document"},
    {"tokens", SETTING_TEXT, AT(tokens), NULL, 0, 0, NULL, "token ids 1,5,9, or a file of them: their loss"},
    {"logits", SETTING_TEXT, AT(logits), NULL, 0, 0, NULL, "with --tokens: write their logits, f32 [T, V], as .npy"},
    {"tasks", SETTING_TEXT, AT(tasks), NULL, 0, 0, NULL,
     "JSON lines {prompt, choices, answer}: share of right answers"},
};
static const struct settings settings = {
    .command = "eval",
    .summary = "measures loss, perplexity and bits per byte of a model, or its accuracy on tasks",
    .usage = "--model DIR (--data PREFIX | --tokens 1,5,9|FILE [--logits OUT.npy] | --tasks FILE.jsonl)",
    .row = rows,
    .n = sizeof rows / sizeof *rows,
    .options = &options,
};

// ---- output ----

static enum status print_evaluation(const struct evaluation *e, const struct tasks *tasks, bool json)
{
    if (!json) {
        if (e && e->tokens) {
            printf("loss %.6f\nperplexity %.4f\n", e->loss, e->perplexity);
            if (e->bytes) printf("bits per byte %.4f\nbytes %ld\n", e->bits_per_byte, e->bytes);
            printf("tokens %ld\n", e->tokens);
        }
        for (long i = 0; tasks && i < tasks->n; i++)
            printf("%s: %.4f (%ld of %ld)\n", tasks->item[i].name,
                   (double)tasks->item[i].correct / (double)tasks->item[i].questions, tasks->item[i].correct,
                   tasks->item[i].questions);
        return OK;
    }
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    if (e) {
        json_put_real(&o, "loss", e->loss);
        json_put_real(&o, "ppl", e->perplexity);
        json_put_real(&o, "bits_per_byte", e->bits_per_byte);
        json_put_long(&o, "tokens", e->tokens);
        json_put_long(&o, "bytes", e->bytes);
    }
    if (tasks) {
        json_begin(&o, "accuracy", '{');
        for (long i = 0; i < tasks->n; i++)
            json_put_real(&o, tasks->item[i].name,
                          (double)tasks->item[i].correct / (double)tasks->item[i].questions);
        json_end(&o, '}');
    }
    json_end(&o, '}');
    return command_print_json(&o);
}

// ---- --data ----

static enum status eval_data(struct inference *i, const struct common_options *common)
{
    struct loader loader;
    struct evaluation e;
    char suffix[64];
    snprintf(suffix, sizeof suffix, "_%.60s", options.split);
    TRY(loader_open(&loader, options.data, suffix, i->model.o.S, common->seed, options.document_mask));
    double begin = seconds_now();
    enum status status = evaluate_loss(&e, &i->model, &loader, i->tokenizer.model ? &i->tokenizer : NULL,
                                       options.max_tokens, model_sum);
    loader_close(&loader);
    TRY(status);
    double seconds = seconds_now() - begin;
    log_line("%ld tokens in %.1f s, %.0f tokens/s", e.tokens, seconds, (double)e.tokens / seconds);
    return print_evaluation(&e, NULL, common->json);
}

// ---- --tokens ----

enum { LOGIT_ROWS = 64 }; // rows of logits in memory at a time

// Header of a version 1.0 .npy file: f32 [T, V], C order [NumPy's format description].
static enum status npy_start(struct output *o, long T, long V)
{
    char header[128];
    int n = snprintf(header, sizeof header, "{'descr': '<f4', 'fortran_order': False, 'shape': (%ld, %ld), }", T, V);
    memset(header + n, ' ', sizeof header - (size_t)n);
    header[sizeof header - 10 - 1] = '\n'; // magic, version and length take 10 bytes: 128 in all
    static const unsigned char magic[] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, sizeof header - 10, 0};
    TRY(output_write(o, magic, sizeof magic));
    return output_write(o, header, (long)sizeof header - 10);
}

static enum status score_rows(double *nats, struct kv_cache *kv, const int *ids, long n, float *logits,
                              struct output *o)
{
    long V = kv->m->c.V;
    if (o) TRY(npy_start(o, n, V));
    for (long t = 0; t < n; t += LOGIT_ROWS) {
        long rows_n = n - t < LOGIT_ROWS ? n - t : LOGIT_ROWS;
        TRY(kv_append(kv, 0, ids + t, rows_n, NULL, logits));
        for (long r = 0; r < rows_n && t + r + 1 < n; r++) {
            const float *row = logits + r * V;
            *nats += log_sum_exp(row, V) - (double)row[ids[t + r + 1]];
        }
        if (o) TRY(output_write(o, logits, rows_n * V * (long)sizeof *logits));
    }
    return OK;
}

static enum status score_and_write(double *nats, struct kv_cache *kv, const int *ids, long n)
{
    struct output o;
    float *logits = malloc((size_t)(LOGIT_ROWS * kv->m->c.V) * sizeof *logits);
    if (!logits) return fail(ERR_MEMORY, "memory: logits of %d tokens were refused (free some memory)", LOGIT_ROWS);
    enum status status = options.logits ? output_open(&o, options.logits) : OK;
    bool open = options.logits && status == OK;
    if (status == OK) status = score_rows(nats, kv, ids, n, logits, open ? &o : NULL);
    if (open && status == OK) status = output_commit(&o, NULL);
    else if (open) output_abort(&o);
    free(logits);
    return status;
}

static enum status eval_ids(struct inference *i, const int *ids, long n, bool json)
{
    struct kv_cache kv;
    double nats = 0;
    TRY(kv_cache_init(&kv, &i->model, 1, n, n));
    enum status status = score_and_write(&nats, &kv, ids, n);
    kv_cache_free(&kv);
    TRY(status);
    struct evaluation e = {.tokens = n - 1, .loss = n > 1 ? nats / (double)(n - 1) : NAN, .bits_per_byte = NAN};
    e.perplexity = exp(e.loss);
    return print_evaluation(&e, NULL, json);
}

// Of one token there are logits, but nothing is predicted.
static enum status check_ids(const int *ids, long n, long V)
{
    bool listed = ids_are_listed(options.tokens);
    enum status wrong = listed ? ERR_CONFIG : ERR_FORMAT;
    const char *source = listed ? "--tokens" : options.tokens;
    if (n < 2 && !options.logits)
        return fail(wrong, "%s: one token has nothing to predict (give two or more)", source);
    return ids_check(ids, n, V, wrong, source);
}

static enum status eval_tokens(const struct common_options *common)
{
    static struct inference inference;
    int *ids;
    long n;
    TRY(ids_read(&ids, &n, options.tokens, "--tokens"));
    enum status status = inference_start(&inference, options.model);
    if (status == OK) status = check_ids(ids, n, inference.config.V);
    if (status == OK) status = inference_load(&inference, n < LOGIT_ROWS ? n : LOGIT_ROWS, n);
    if (status == OK) status = eval_ids(&inference, ids, n, common->json);
    inference_close(&inference);
    free(ids);
    return status;
}

// ---- --tasks ----

static enum status eval_tasks(struct inference *i, const struct common_options *common)
{
    struct tasks tasks;
    TRY(evaluate_tasks(&tasks, i, options.tasks));
    enum status status = print_evaluation(NULL, &tasks, common->json);
    tasks_free(&tasks);
    return status;
}

// ---- command ----

static enum status check_options(void)
{
    int sources = (options.data != NULL) + (options.tokens != NULL) + (options.tasks != NULL);
    if (!options.model) return fail(ERR_CONFIG, "--model: is missing (name a model folder)");
    if (sources != 1)
        return fail(ERR_CONFIG, "--data, --tokens, --tasks: %s given (give exactly one)",
                    sources ? "more than one is" : "none is");
    if (options.logits && !options.tokens)
        return fail(ERR_CONFIG, "--logits: needs --tokens (give the ids whose logits are wanted)");
    return OK;
}

static enum status run(int argc, char **argv)
{
    static struct inference inference;
    struct common_options common;
    bool done;
    TRY(command_start(&settings, &common, NULL, &done, argc, argv));
    if (done) return OK;
    TRY(check_options());
    if (options.tokens) return eval_tokens(&common);
    enum status status = inference_start(&inference, options.model);
    long most = inference.config.max_positions, S = options.S ? options.S : most < 512 ? most : 512;
    long rows_n = options.tasks && S > 256 ? 256 : S;
    if (status == OK) status = inference_load(&inference, rows_n, options.tasks ? most : S);
    if (status == OK) status = options.tasks ? eval_tasks(&inference, &common) : eval_data(&inference, &common);
    inference_close(&inference);
    return status;
}

const struct command command_eval = {.name = "eval", .run = run, .settings = &settings};
