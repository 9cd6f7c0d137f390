#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "cli/command.h"
#include "cli/ids.h"
#include "cli/sampling.h"
#include "eval/generate.h"
#include "eval/inference.h"
#include "eval/stream.h"

static struct options {
    const char *model, *prompt, *prompt_ids;
    struct sampling_options sampling;
} options;

#define AT(field) offsetof(struct options, field)
enum { MAX_TOKENS = 3 };
static const struct setting rows[] = {
    {"model", SETTING_TEXT, AT(model), NULL, 0, 0, NULL, "model folder (or a run: its newest checkpoint)"},
    {"prompt", SETTING_TEXT, AT(prompt), NULL, 0, 0, NULL, "text to continue; -: all of standard input"},
    {"prompt-ids", SETTING_TEXT, AT(prompt_ids), NULL, 0, 0, NULL,
     "token ids to continue, 1,5,9, as they are (no bos is added)"},
    [MAX_TOKENS] = SAMPLING_ROWS(AT(sampling), "128"),
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
    bool text;      // else ids are written
    bool show;      // as it comes
    struct text_stream stream;
    int *ids;       // prompt, then text
    long n, prompt_n;
    double *logprob; // of the text's tokens
};

static void show_more(struct writer *w)
{
    long bytes;
    const char *more = text_stream_take(&w->stream, &bytes);
    fwrite(more, 1, (size_t)bytes, stdout);
}

static enum status on_token(void *user, struct sampled token, bool *stop)
{
    struct writer *w = user;
    (void)stop;
    w->logprob[w->n - w->prompt_n] = token.logprob;
    w->ids[w->n++] = token.token;
    if (w->text) TRY(text_stream_add(&w->stream, token.token));
    if (!w->show) return OK;
    if (w->text) show_more(w);
    else printf("%s%d", w->n - w->prompt_n > 1 ? "," : "", token.token);
    if (fflush(stdout) == 0) return OK;
    return fail(ERR_IO, "standard output: cannot be written: %s", strerror(errno)); // nobody reads any more
}

static enum status print_json(const struct writer *w, enum finish finish)
{
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_put_text(&o, "text", w->text ? w->stream.text + w->stream.begin : NULL);
    json_begin(&o, "token_ids", '[');
    for (long i = w->prompt_n; i < w->n; i++) json_put_long(&o, NULL, w->ids[i]);
    json_end(&o, ']');
    json_put_long(&o, "prompt_tokens", w->prompt_n);
    json_put_text(&o, "finish_reason", finish_name(finish));
    json_begin(&o, "logprobs", '[');
    for (long i = 0; i < w->n - w->prompt_n; i++) json_put_real(&o, NULL, w->logprob[i]);
    json_end(&o, ']');
    json_end(&o, '}');
    return command_print_json(&o);
}

static enum status write_text(struct inference *i, struct kv_cache *kv, struct sampler *sampler, struct writer *w,
                              long max_tokens, bool json)
{
    struct end_ids ends;
    enum finish finish;
    TRY(end_ids_read(&ends, &i->model.c, i->folder));
    struct generation g = {.prompt = w->ids, .prompt_n = w->prompt_n, .max_tokens = max_tokens, .ends = &ends,
                           .on_token = on_token, .user = w};
    if (w->text) TRY(text_stream_open(&w->stream, &i->tokenizer, w->ids, w->n, NULL));
    double begin = seconds_now();
    TRY(generate(&finish, kv, 0, sampler, &g));
    double seconds = seconds_now() - begin;
    long made = w->n - w->prompt_n;
    if (w->text) TRY(text_stream_end(&w->stream));
    if (json) TRY(print_json(w, finish));
    if (w->show && w->text) show_more(w);
    if (w->show) printf("\n");
    fflush(stdout); // what follows goes to the other stream; main tells if it cannot be written
    log_line("%ld prompt tokens, %ld generated, %.1f tokens/s, ended by %s", w->prompt_n, made,
             seconds > 0 ? (double)made / seconds : 0, finish == FINISH_STOP ? "an end token" : "length");
    return OK;
}

static enum status with_buffers(struct inference *i, const int *prompt, long n, long max_tokens,
                                const struct common_options *common)
{
    struct sampling rule = sampling_rule(&options.sampling, common->seed);
    bool text = i->tokenizer.model != NULL;
    struct writer w = {.text = text, .show = !common->json, .n = n, .prompt_n = n};
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
        text_stream_close(&w.stream);
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

static enum status encode(int **ids, long *n, const struct tokenizer *t, const char *text, long bytes)
{
    TRY(tokenizer_encode_begin(ids, n, t, text, bytes));
    if (*n) return OK;
    free(*ids);
    return fail(ERR_CONFIG, "--prompt: is empty, and the tokenizer has no bos token (give some text)");
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

// How long the prompt is decides how many positions there are: the weights are loaded last.
static enum status continue_prompt(struct inference *i, const int *prompt, long n, bool max_given,
                                   const struct common_options *common)
{
    enum { ROWS = 256 };
    long most = i->config.max_positions, room = most - n, max_tokens = options.sampling.max_tokens;
    if (options.prompt_ids) { // with a tokenizer they are shown as text, too
        long V = i->config.V, pieces = i->tokenizer.model ? i->tokenizer.pieces : V;
        TRY(ids_check(prompt, n, pieces < V ? pieces : V, ERR_CONFIG, "--prompt-ids"));
    }
    if (room < 0)
        return fail(ERR_CONFIG, "prompt: has %ld tokens, max_position_embeddings is %ld (use a shorter one)", n, most);
    if (max_tokens > room && max_given)
        return fail(ERR_CONFIG, "--max-tokens %ld: beside %ld prompt tokens the model has room for %ld (use that)",
                    max_tokens, n, room);
    if (max_tokens > room) max_tokens = room;
    TRY(inference_load(i, n < ROWS ? n : ROWS, n + max_tokens));
    return with_buffers(i, prompt, n, max_tokens, common);
}

static enum status with_tokenizer(struct inference *i, bool max_given, const struct common_options *common)
{
    int *prompt;
    long n;
    if (options.prompt) TRY(inference_need_tokenizer(i));
    TRY(read_prompt(&prompt, &n, &i->tokenizer));
    enum status status = continue_prompt(i, prompt, n, max_given, common);
    free(prompt);
    return status;
}

static enum status run(int argc, char **argv)
{
    static struct inference inference;
    struct common_options common;
    bool done, set[sizeof rows / sizeof *rows];
    TRY(command_start(&settings, &common, set, &done, argc, argv));
    if (done) return OK;
    if (!options.model) return fail(ERR_CONFIG, "--model: is missing (name a model folder)");
    if (!options.prompt == !options.prompt_ids)
        return fail(ERR_CONFIG, "--prompt, --prompt-ids: %s given (give exactly one)",
                    options.prompt ? "both are" : "none is");
    enum status status = inference_start(&inference, options.model);
    if (status == OK) status = with_tokenizer(&inference, set[MAX_TOKENS], &common);
    inference_close(&inference);
    return status;
}

const struct command command_generate = {.name = "generate", .run = run, .settings = &settings};
