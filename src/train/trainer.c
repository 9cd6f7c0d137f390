#include "train/trainer.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

static volatile sig_atomic_t stop_requested;

void trainer_request_stop(void)
{
    stop_requested = 1;
}

// ---- opening ----

static enum status check_folder(const struct train_options *o)
{
    static const char *const traces[] = {"latest", "settings.conf", "metrics.jsonl"};
    for (size_t i = 0; i < sizeof traces / sizeof *traces; i++) {
        char path[PATH_LENGTH];
        TRY(path_join(path, o->output, traces[i]));
        if (path_exists(path))
            return fail(ERR_CONFIG, "--output %s: already holds a run (%s, or name another folder)", o->output,
                        i == 0 ? "continue it with --resume" : "it has no checkpoint yet: remove it");
    }
    return OK;
}

// The prefix of the first source as it was typed: the last word of a lone prefix, the second of a blend.
static void first_prefix(char prefix[PATH_LENGTH], const char *list)
{
    char word[2][PATH_LENGTH] = {"", ""};
    int n = sscanf(list, "%4095s %4095s", word[0], word[1]);
    memcpy(prefix, word[n > 1], PATH_LENGTH);
}

static bool holds_tokenizer(const char *folder)
{
    char path[PATH_LENGTH];
    return path_join(path, folder, "tokenizer.model") == OK && path_exists(path);
}

// The tokenizer that made the data, else the one beside the starting weights.
static enum status find_tokenizer(struct trainer *t, const char *from)
{
    char prefix[PATH_LENGTH];
    first_prefix(prefix, t->o.data);
    if (snprintf(t->tokenizer, PATH_LENGTH, "%s_tokenizer", prefix) >= PATH_LENGTH || !holds_tokenizer(t->tokenizer))
        snprintf(t->tokenizer, PATH_LENGTH, "%s", from && holds_tokenizer(from) ? from : "");
    if (!t->tokenizer[0]) return OK;
    TRY(tokenizer_open(&t->text, t->tokenizer));
    if (t->text.pieces > t->config.V && t->o.model)
        return fail(ERR_FORMAT, "%s: the tokenizer has %ld pieces, but %s has vocab_size %ld (raise vocab_size)",
                    t->tokenizer, t->text.pieces, t->o.model, t->config.V);
    return OK;
}

static enum status open_validation(struct trainer *t)
{
    if (!t->o.eval_interval) return OK;
    enum status status = loader_open(&t->valid, t->o.data, "_valid", t->o.S, t->o.seed, t->o.document_mask);
    bool same = status == OK && !strcmp(t->valid.source[0].data.prefix, t->data.source[0].data.prefix);
    if (same) {
        loader_close(&t->valid);
        t->valid = (struct loader){0};
        status = fail(ERR_CONFIG, "%s: is the training data itself (name the prefix without _train)",
                      t->data.source[0].data.prefix);
    }
    t->evaluates = status == OK;
    if (status == OK) return OK;
    if (t->o.eval_required)
        return fail(status, "--eval-interval: no validation data: %s", fail_message());
    log_line("no evaluation: %s", fail_message());
    return OK;
}

static enum status check_memory(const struct trainer *t, const struct model_options *mo)
{
    struct model_bytes b;
    TRY(model_measure(&b, &t->config, mo));
    double gib = 1L << 30;
    double planned = ((double)b.parameters + (double)b.gradients + (double)b.optimizer + (double)b.saved +
                      (double)b.scratch + 16.0 * (double)t->o.global_batch * (double)t->o.S) / gib;
    log_line("memory: %.2f GiB planned (parameters %.2f, gradients %.2f, optimizer %.2f, activations %.2f, "
             "scratch %.2f)", planned, (double)b.parameters / gib, (double)b.gradients / gib, (double)b.optimizer / gib,
             (double)b.saved / gib, (double)b.scratch / gib);
    if (t->o.memory_limit_gib > 0 && planned > t->o.memory_limit_gib)
        return fail(ERR_CONFIG, "--memory-limit-gib %g: %.2f GiB are planned, %.2f GiB too much (use a smaller "
                    "micro-batch or --recompute full)", t->o.memory_limit_gib, planned,
                    planned - t->o.memory_limit_gib);
    return OK;
}

// Weights as they are in the folder: masters keep the precision that bf16 values lose.
static void read_masters(struct model *m, const struct model_folder *f)
{
    enum { CHUNK = 1 << 16 };
    static float buffer[CHUNK];
    long i = 0;
    for (const struct param *p = m->params.item; p < m->params.item + m->params.n; p++) {
        long n = p->rows * p->columns;
        if (!model_folder_has(f, i, p)) continue;
        for (long from = 0; p->master && from < n; from += CHUNK) {
            long piece = n - from < CHUNK ? n - from : CHUNK;
            model_folder_read(buffer, f, i, from, piece);
            m->x.k->from_host((float *)p->master + from, buffer, piece * (long)sizeof *buffer);
        }
        i++;
    }
}

static enum status init_from_folder(struct trainer *t, const struct model_folder *f)
{
    TRY(model_folder_load(&t->model, f));
    read_masters(&t->model, f);
    balance_from_model(&t->model);
    return OK;
}

static enum status load_state(struct trainer *t, const char *checkpoint)
{
    TRY(checkpoint_load(&t->model, &t->state, checkpoint));
    balance_from_state(&t->model, &t->state);
    if (t->o.data_restart) t->state.samples = 0;
    return OK;
}

static enum status make_run_folder(struct trainer *t)
{
    char path[PATH_LENGTH], *text;
    TRY(folder_make(t->o.output));
    TRY(path_join(path, t->o.output, "settings.conf"));
    TRY(file_write(path, t->settings, (long)strlen(t->settings)));
    TRY(config_write(&text, &t->config));
    enum status status = path_join(path, t->o.output, "config.json");
    if (status == OK) status = file_write(path, text, (long)strlen(text));
    free(text);
    TRY(status);
    return metrics_open(&t->metrics, t->o.output, t->state.step);
}

static enum status dump_settings(struct trainer *t)
{
    struct settings s = train_settings(&t->o);
    char *text;
    TRY(settings_dump(&text, &s));
    bool fits = strlen(text) < sizeof t->settings;
    if (fits) memcpy(t->settings, text, strlen(text) + 1);
    free(text);
    return fits ? OK : fail(ERR_CONFIG, "settings: the text is longer than %ld bytes (use shorter paths)",
                            (long)sizeof t->settings);
}

// Everything that can be wrong is found here, before memory is reserved and before anything is written.
// `from`: the folder with the weights, NULL for random ones.
static enum status prepare(struct trainer *t, const bool *set, const char *from)
{
    char *text;
    TRY(train_options_resolve(&t->o, set, &t->config));
    TRY(config_write(&text, &t->config)); // can the architecture say it?
    free(text);
    TRY(dump_settings(t));
    t->schedule = train_schedule(&t->o);
    t->optimizer = train_optimizer(&t->o);
    t->balance = train_balance_rule(&t->o);
    TRY(loader_open(&t->data, t->o.data, "_train", t->o.S, t->o.seed, t->o.document_mask));
    TRY(find_tokenizer(t, from));
    return open_validation(t);
}

static enum status build(struct trainer *t)
{
    struct model_options mo = train_model_options(&t->o);
    TRY(check_memory(t, &mo));
    TRY(model_init(&t->model, &t->config, &mo));
    for (long l = 0; l < (t->model.balance ? t->config.L : 0); l++) t->model.balance[l].alpha = t->balance.alpha_max;
    TRY(balance_state_init(&t->state, &t->model, &t->balance));
    t->state.samples = t->o.data_skip; // a resumed run reads its own below
    return step_init(t);
}

static enum status open_resumed(struct trainer *t, const bool *set)
{
    char checkpoint[PATH_LENGTH], *text;
    TRY(checkpoint_latest(checkpoint, t->o.output));
    TRY(checkpoint_settings(&text, checkpoint));
    enum status status = train_options_resume(&t->o, set, text, checkpoint);
    free(text);
    TRY(status);
    TRY(config_read(&t->config, checkpoint));
    TRY(prepare(t, NULL, checkpoint));
    TRY(build(t));
    TRY(load_state(t, checkpoint));
    log_line("resumed: %s", checkpoint);
    return OK;
}

static enum status open_from_folder(struct trainer *t, const bool *set, const struct model_folder *f)
{
    t->config = f->config;
    TRY(prepare(t, set, t->o.init));
    TRY(build(t));
    return init_from_folder(t, f);
}

static enum status open_new(struct trainer *t, const bool *set)
{
    TRY(check_folder(&t->o));
    if (t->o.init) {
        struct model_folder f;
        TRY(model_folder_open(&f, t->o.init));
        enum status status = open_from_folder(t, set, &f);
        model_folder_close(&f);
        return status;
    }
    TRY(config_read(&t->config, t->o.model));
    TRY(prepare(t, set, NULL));
    TRY(build(t));
    model_init_weights(&t->model, t->o.seed, t->o.init_std, t->o.router_init_std);
    return OK;
}

static enum status open_all(struct trainer *t, const bool *set)
{
    TRY(train_options_check(&t->o));
    t->o.eval_required = t->o.eval_interval && train_option_given(set, "eval-interval");
    TRY(t->o.resume ? open_resumed(t, set) : open_new(t, set));
    t->started_step = t->state.step;
    record_start(t);
    if (t->o.replay_routing)
        TRY(routing_read_open(&t->replayed, t->o.replay_routing, &t->config, t->o.global_batch * t->o.S));
    TRY(make_run_folder(t));
    return t->o.dump_routing ? routing_write_open(&t->routing, t->o.dump_routing, &t->model) : OK;
}

enum status trainer_open(struct trainer *t, const struct train_options *o, const bool *set)
{
    *t = (struct trainer){.o = *o, .metrics = {.jsonl = -1, .events = -1}};
    enum status status = open_all(t, set);
    if (status != OK) trainer_close(t);
    return status;
}

void trainer_close(struct trainer *t)
{
    if (t->routing.expert) routing_write_abort(&t->routing); // what a failed run has routed is no whole file
    routing_read_close(&t->replayed);
    if (t->metrics.jsonl >= 0) metrics_close(&t->metrics);
    step_free(t);
    balance_state_free(&t->state);
    model_free(&t->model);
    if (t->text.model) tokenizer_close(&t->text);
    if (t->valid.source) loader_close(&t->valid);
    if (t->data.source) loader_close(&t->data);
}

// ---- running ----

enum status trainer_evaluate(struct trainer *t)
{
    struct evaluation e;
    double begin = seconds_now();
    TRY(evaluate_loss(&e, &t->model, &t->valid, t->text.model ? &t->text : NULL, t->o.eval_tokens));
    return record_evaluation(t, &e, seconds_now() - begin);
}

enum status trainer_save(struct trainer *t)
{
    balance_to_state(&t->state, &t->model);
    double begin = seconds_now();
    TRY(checkpoint_save(t->o.output, &t->model, &t->state, t->settings, t->tokenizer[0] ? t->tokenizer : NULL,
                        t->o.keep));
    log_line("step %ld: saved %s/step-%06ld, %.1f s", t->state.step, t->o.output, t->state.step, seconds_now() - begin);
    return OK;
}

static void say_first_drops(const struct trainer *t)
{
    double mean = 0, most = 0;
    for (long l = 0; l < t->config.L; l++) {
        mean += t->result.drop[l] / (double)t->config.L;
        if (t->result.drop[l] > most) most = t->result.drop[l];
    }
    log_line("drop rate before the first update: %.2f%% on average, %.2f%% in the fullest layer", 100 * mean,
             100 * most);
}

static enum status close_routing(struct trainer *t)
{
    return t->routing.expert ? routing_write_close(&t->routing) : OK;
}

enum status trainer_run(struct trainer *t)
{
    t->started = seconds_now();
    t->started_step = t->state.step;
    if (t->state.step >= t->o.train_steps)
        log_line("step %ld of %ld is done already (raise --train-steps to go on)", t->state.step, t->o.train_steps);
    while (t->state.step < t->o.train_steps) {
        TRY(trainer_step(t));
        long step = t->state.step;
        bool last = step >= t->o.train_steps, stop = stop_requested && !last;
        if (step == 1 && t->o.init && t->model.balance) say_first_drops(t);
        if (step % t->o.log_interval == 0 || last || step == t->started_step + 1) record_progress(t);
        if (t->evaluates && !stop && (last || step % t->o.eval_interval == 0)) TRY(trainer_evaluate(t));
        if (last || stop || (t->o.save_interval && step % t->o.save_interval == 0)) TRY(trainer_save(t));
        if (stop) {
            stop_requested = 0;
            log_line("stopped at step %ld of %ld as asked (go on with --resume)", step, t->o.train_steps);
            break;
        }
    }
    return close_routing(t);
}
