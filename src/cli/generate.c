#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "cli/command.h"
#include "cli/ids.h"
#include "eval/generate.h"
#include "eval/inference.h"

static struct options {
    const char *model, *prompt, *prompt_ids;
    long max_tokens;
    double temperature, top_p, min_p;
    long top_k;
} options;

#define AT(field) offsetof(struct options, field)
enum { MAX_TOKENS = 3 };
static const struct setting rows[] = {
    {"model", SETTING_TEXT, AT(model), NULL, 0, 0, NULL, "model folder (or a run: its newest checkpoint)"},
    {"prompt", SETTING_TEXT, AT(prompt), NULL, 0, 0, NULL, "text to continue; -: all of standard input"},
    {"prompt-ids", SETTING_TEXT, AT(prompt_ids), NULL, 0, 0, NULL,
     "token ids to continue, 1,5,9, as they are (no bos is added)"},
    [MAX_TOKENS] = {"max-tokens", SETTING_LONG, AT(max_tokens), "128", 0, 1 << 24, NULL, "most tokens to generate"},
    {"temperature", SETTING_REAL, AT(temperature), "0.8", 0, 1000, NULL, "0: always the most probable token"},
    {"top-k", SETTING_LONG, AT(top_k), "0", 0, 1 << 24, NULL, "draw from the k most probable tokens; 0: all"},
    {"top-p", SETTING_REAL, AT(top_p), "1", 0, 1, NULL, "draw from the most probable tokens that make up this share"},
    {"min-p", SETTING_REAL, AT(min_p), "0", 0, 1, NULL, "draw from tokens with this share of the largest probability"},
};
static const struct settings settings = {
    .command = "generate",
    .summary = "continues a text",
    .usage = "--model DIR (--prompt TEXT|- | --prompt-ids 1,5,9)",
    .row = rows,
    .n = sizeof rows / sizeof *rows,
    .options = &options,
};

// One text being written.
struct writer {
    const struct tokenizer *tokenizer; // NULL: ids are written
    bool stream;
    int *ids;       // prompt, then text
    long n, prompt_n;
    long shown;     // bytes of the decoded ids that are out
    double *logprob; // of the text's tokens
};

// The part of the decoded text that is new; text that may still change (half a character) waits.
static enum status show(struct writer *w, bool print)
{
    char *more;
    if (!w->tokenizer) {
        if (print) printf("%s%d", w->n - w->prompt_n > 1 ? "," : "", w->ids[w->n - 1]);
        return OK;
    }
    TRY(tokenizer_decode_next(&more, &w->shown, w->tokenizer, w->ids, w->n));
    if (print) fputs(more, stdout);
    free(more);
    return OK;
}

static enum status on_token(void *user, struct sampled token)
{
    struct writer *w = user;
    w->logprob[w->n - w->prompt_n] = token.logprob;
    w->ids[w->n++] = token.token;
    if (!w->stream) return OK;
    TRY(show(w, true));
    if (fflush(stdout) == 0) return OK;
    return fail(ERR_IO, "standard output: cannot be written: %s", strerror(errno)); // nobody reads any more
}

// What was held back to the end: half a character, as U+FFFD.
static enum status show_rest(const struct writer *w)
{
    char *whole;
    long bytes;
    TRY(tokenizer_decode(&whole, &bytes, w->tokenizer, w->ids, w->n));
    if (w->shown < bytes) fputs(whole + w->shown, stdout);
    free(whole);
    return OK;
}

// The text after the prompt. The prompt is decoded with it: the first word's space depends on what stands before.
static enum status text_of(char **text, const struct writer *w)
{
    char *whole, *before;
    long bytes, skip;
    TRY(tokenizer_decode(&whole, &bytes, w->tokenizer, w->ids, w->n));
    enum status status = tokenizer_decode(&before, &skip, w->tokenizer, w->ids, w->prompt_n);
    if (status == OK) {
        *text = strdup(whole + (skip < bytes ? skip : bytes));
        free(before);
        if (!*text) status = fail(ERR_MEMORY, "memory: the text was refused (free some memory)");
    }
    free(whole);
    return status;
}

static enum status print_json(const struct writer *w, enum finish finish)
{
    struct json_out o = {0};
    char *text = NULL;
    if (w->tokenizer) TRY(text_of(&text, w));
    json_begin(&o, NULL, '{');
    json_put_text(&o, "text", text);
    json_begin(&o, "token_ids", '[');
    for (long i = w->prompt_n; i < w->n; i++) json_put_long(&o, NULL, w->ids[i]);
    json_end(&o, ']');
    json_put_long(&o, "prompt_tokens", w->prompt_n);
    json_put_text(&o, "finish_reason", finish_name(finish));
    json_begin(&o, "logprobs", '[');
    for (long i = 0; i < w->n - w->prompt_n; i++) json_put_real(&o, NULL, w->logprob[i]);
    json_end(&o, ']');
    json_end(&o, '}');
    free(text);
    enum status status = json_out_status(&o);
    if (status == OK) printf("%s\n", o.text);
    json_out_free(&o);
    return status;
}

static enum status write_text(struct inference *i, struct kv_cache *kv, struct sampler *sampler, struct writer *w,
                              long max_tokens, bool json)
{
    struct end_ids ends;
    enum finish finish;
    TRY(end_ids_read(&ends, &i->model.c, i->folder));
    if (w->stream && w->tokenizer) TRY(show(w, false)); // the prompt itself is not printed
    struct generation g = {.prompt = w->ids, .prompt_n = w->prompt_n, .max_tokens = max_tokens, .ends = &ends,
                           .on_token = on_token, .user = w};
    double begin = seconds_now();
    TRY(generate(&finish, kv, 0, sampler, &g));
    double seconds = seconds_now() - begin;
    long made = w->n - w->prompt_n;
    if (json) TRY(print_json(w, finish));
    if (w->stream && w->tokenizer) TRY(show_rest(w));
    if (w->stream) printf("\n");
    log_line("%ld prompt tokens, %ld generated, %.1f tokens/s, ended by %s", w->prompt_n, made,
             seconds > 0 ? (double)made / seconds : 0, finish == FINISH_STOP ? "an end token" : "length");
    return OK;
}

static enum status with_buffers(struct inference *i, const int *prompt, long n, long max_tokens,
                                const struct common_options *common)
{
    struct sampling rule = {options.temperature, options.top_k, options.top_p, options.min_p, common->seed};
    bool text = i->tokenizer.model != NULL;
    struct writer w = {.tokenizer = text ? &i->tokenizer : NULL, .stream = !common->json, .n = n, .prompt_n = n};
    struct sampler sampler;
    struct kv_cache kv;
    TRY(sampler_init(&sampler, &rule, i->model.c.V, text ? i->tokenizer.pieces : i->model.c.V));
    enum status status = kv_cache_init(&kv, &i->model, 1, n + max_tokens, n + max_tokens);
    if (status == OK) {
        w.ids = malloc((size_t)(n + max_tokens) * sizeof *w.ids);
        w.logprob = malloc((size_t)(max_tokens + 1) * sizeof *w.logprob);
        if (w.ids && w.logprob) {
            memcpy(w.ids, prompt, (size_t)n * sizeof *prompt);
            status = write_text(i, &kv, &sampler, &w, max_tokens, common->json);
        } else {
            status = fail(ERR_MEMORY, "memory: %ld tokens were refused (use a smaller --max-tokens)", n + max_tokens);
        }
        free(w.ids);
        free(w.logprob);
        kv_cache_free(&kv);
    }
    sampler_free(&sampler);
    return status;
}

// ---- prompt ----

static enum status read_stdin(char **text, long *bytes)
{
    enum { MOST = 64 << 20 };
    size_t room = 1 << 16, used = 0;
    char *buffer = malloc(room);
    while (buffer && !feof(stdin) && !ferror(stdin) && used <= MOST) {
        used += fread(buffer + used, 1, room - used - 1, stdin);
        if (room - used > 1) continue;
        char *grown = realloc(buffer, room *= 2);
        if (!grown) free(buffer);
        buffer = grown;
    }
    if (!buffer) return fail(ERR_MEMORY, "standard input: no memory to read it");
    buffer[used] = '\0';
    *text = buffer;
    *bytes = (long)used;
    if (!ferror(stdin) && used <= MOST) return OK;
    free(buffer);
    return used > MOST ? fail(ERR_FORMAT, "standard input: is longer than %d bytes (use a shorter prompt)", MOST)
                       : fail(ERR_IO, "standard input: cannot be read");
}

// [bos] and the text's tokens; the caller frees.
static enum status encode(int **ids, long *n, const struct tokenizer *t, const char *text, long bytes)
{
    int *plain;
    TRY(tokenizer_encode(&plain, n, t, text, bytes));
    long bos = t->bos >= 0;
    if (*n + bos == 0) {
        free(plain);
        return fail(ERR_CONFIG, "--prompt: is empty, and the tokenizer has no bos token (give some text)");
    }
    *ids = malloc((size_t)(*n + bos) * sizeof **ids);
    if (*ids) {
        if (bos) (*ids)[0] = t->bos;
        memcpy(*ids + bos, plain, (size_t)*n * sizeof *plain);
        *n += bos;
    }
    free(plain);
    return *ids ? OK : fail(ERR_MEMORY, "memory: the prompt's tokens were refused (use a shorter one)");
}

static enum status read_prompt(int **ids, long *n, const struct tokenizer *t)
{
    if (options.prompt_ids) return ids_parse(ids, n, options.prompt_ids, "--prompt-ids");
    if (strcmp(options.prompt, "-")) return encode(ids, n, t, options.prompt, (long)strlen(options.prompt));
    char *text = NULL;
    long bytes = 0;
    TRY(read_stdin(&text, &bytes));
    enum status status = encode(ids, n, t, text, bytes);
    free(text);
    return status;
}

// ---- command ----

// The tokenizer is needed before the model is loaded: how long the prompt is decides how many positions there are.
static enum status prompt_of(int **ids, long *n, struct config *c)
{
    struct model_folder f;
    struct tokenizer t = {0};
    char path[PATH_LENGTH];
    TRY(model_folder_open(&f, options.model));
    *c = f.config;
    memcpy(path, f.path, sizeof path);
    model_folder_close(&f);
    if (options.prompt) {
        char file[PATH_LENGTH];
        TRY(path_join(file, path, "tokenizer.model"));
        if (!path_exists(file))
            return fail(ERR_FORMAT, "%s: has no tokenizer.model, which text needs (add it, or use --prompt-ids)", path);
        TRY(tokenizer_open(&t, path));
    }
    enum status status = read_prompt(ids, n, &t);
    if (t.model) tokenizer_close(&t);
    return status;
}

static enum status continue_prompt(const int *prompt, long n, const struct config *c, bool max_given,
                                   const struct common_options *common)
{
    enum { ROWS = 256 };
    static struct inference inference;
    long room = c->max_positions - n, max_tokens = options.max_tokens;
    if (room < 0)
        return fail(ERR_CONFIG, "prompt: has %ld tokens, max_position_embeddings is %ld (use a shorter one)", n,
                    c->max_positions);
    if (max_tokens > room && max_given)
        return fail(ERR_CONFIG, "--max-tokens %ld: beside %ld prompt tokens the model has room for %ld (use that)",
                    max_tokens, n, room);
    if (max_tokens > room) max_tokens = room;
    TRY(inference_open(&inference, options.model, n < ROWS ? n : ROWS, n + max_tokens));
    enum status status = with_buffers(&inference, prompt, n, max_tokens, common);
    inference_close(&inference);
    return status;
}

static enum status run(int argc, char **argv)
{
    struct common_options common;
    struct config c;
    bool done, set[sizeof rows / sizeof *rows];
    int *prompt;
    long n;
    TRY(command_start(&settings, &common, set, &done, argc, argv));
    if (done) return OK;
    if (!options.model) return fail(ERR_CONFIG, "--model: is missing (name a model folder)");
    if (!options.prompt == !options.prompt_ids)
        return fail(ERR_CONFIG, "--prompt, --prompt-ids: %s given (give exactly one)",
                    options.prompt ? "both are" : "none is");
    TRY(prompt_of(&prompt, &n, &c));
    enum status status = continue_prompt(prompt, n, &c, set[MAX_TOKENS], &common);
    free(prompt);
    return status;
}

const struct command command_generate = {.name = "generate", .run = run, .settings = &settings};
