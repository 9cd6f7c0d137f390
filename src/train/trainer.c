#include "train/trainer.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "comm/alive.h"

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

static void layer_done(void *zero, long local_layer)
{
    zero_layer(zero, local_layer);
}

// The model as this rank holds it, which has its slots from the schedule.
static struct model_options model_options_of(const struct trainer *t)
{
    struct model_options mo = train_model_options(&t->o);
    mo.grid = &t->grid;
    mo.slots = t->slots;
    mo.recompute = t->layout.recompute;
    mo.recompute_layers = t->layout.recompute_layers ? t->layout.recompute_layers[t->grid.pp] : -1;
    return mo;
}

static enum status check_memory(const struct trainer *t, const struct model_options *mo, const struct zero_options *zo)
{
    struct model m;
    struct zero_bytes zb;
    TRY(model_outline(&m, &t->config, mo));
    struct model_bytes b = {m.parameters.peak, m.gradients.peak, m.activations.peak, m.scratch_arena.peak};
    enum status status = zero_measure(&zb, &m, zo);
    model_free(&m);
    TRY(status);
    long messages = pipeline_message_bytes(mo, &t->config, &t->engine.schedule);
    double gib = 1L << 30, other = (double)b.scratch + (double)zb.room + (double)messages;
    double planned = ((double)b.parameters + (double)b.gradients + (double)zb.optimizer + (double)b.saved + other +
                      (double)step_bytes(t->rounds, mo->B, mo->S)) / gib;
    log_line("memory: %.2f GiB planned (parameters %.2f, gradients %.2f, optimizer %.2f, activations %.2f, "
             "scratch %.2f)", planned, (double)b.parameters / gib, (double)b.gradients / gib,
             (double)zb.optimizer / gib, (double)b.saved / gib, other / gib);
    if (t->o.memory_limit_gib > 0 && planned > t->o.memory_limit_gib)
        return fail(ERR_CONFIG, "--memory-limit-gib %g: %.2f GiB are planned, %.2f GiB too much (use a smaller "
                    "micro-batch or --recompute full)", t->o.memory_limit_gib, planned,
                    planned - t->o.memory_limit_gib);
    return OK;
}

// Weights as they are in the folder: masters keep the precision that bf16 values lose.
static void read_masters(struct zero *z, const struct model_folder *f)
{
    enum { CHUNK = 1 << 16 };
    static float buffer[CHUNK];
    for (const struct zero_piece *p = z->piece; p < z->piece + z->pieces; p++) {
        long i = p->master ? model_folder_find(f, p->param, 0) : -1;
        for (long at = 0, n; i >= 0 && at < p->n; at += n) {
            long from = param_global(p->param, p->from + at, &n);
            n = n < p->n - at ? n : p->n - at;
            if (n > CHUNK) n = CHUNK;
            model_folder_read(buffer, f, i, from, n);
            z->m->x.k->from_host(acc_at(&z->m->x, p->master, at), buffer, n * (long)sizeof *buffer);
        }
    }
}

static enum status init_from_folder(struct trainer *t, const struct model_folder *f)
{
    TRY(agree(model_folder_load(&t->model, f)));
    read_masters(&t->zero, f);
    balance_from_model(&t->model);
    return OK;
}

static enum status load_state(struct trainer *t, const char *checkpoint)
{
    TRY(checkpoint_load(&t->zero, &t->state, checkpoint));
    balance_from_state(&t->model, &t->state);
    if (t->o.data_restart) t->state.samples = 0;
    return OK;
}

// Rank 0 makes it; what the others cannot see they could not resume from.
static enum status make_run_folder(struct trainer *t)
{
    char path[PATH_LENGTH], *text;
    if (transport_rank() > 0) return OK;
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

// Before the run's files: what cannot be written begins no run. It may lie in the run folder, so that one is first.
static enum status open_dumps(struct trainer *t)
{
    if (!t->o.dump_gradients && !t->o.dump_routing) return OK;
    bool first = transport_rank() == 0, made = first && !path_exists(t->o.output);
    TRY(agree(first ? folder_make(t->o.output) : OK));
    enum status status = OK;
    bool made_gradients = first && t->o.dump_gradients && !path_exists(t->o.dump_gradients);
    if (t->o.dump_gradients) status = agree(first ? folder_make(t->o.dump_gradients) : OK);
    if (status == OK && t->o.dump_routing)
        status = agree(routing_write_open(&t->routing, t->o.dump_routing, &t->model));
    if (status != OK && made_gradients) rmdir(t->o.dump_gradients);
    if (status != OK && made) rmdir(t->o.output);
    return status;
}

static enum status see_run_folder(const struct trainer *t)
{
    if (path_exists(t->o.output)) return OK;
    return fail(ERR_IO, "--output %s: not seen by rank %ld on %s (every host must see it)", t->o.output,
                transport_rank(), transport_host(transport_rank()));
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

// ---- who does what ----

enum status (*trainer_choose_split)(struct run_layout *l, const struct config *c, const struct train_options *o);

static enum status make_layout(struct trainer *t)
{
    TRY(run_layout_make(&t->layout, &t->o.layout, &t->config, transport_ranks()));
    if (t->layout.best_layers || t->layout.best_recompute) {
        if (!trainer_choose_split)
            return fail(ERR_CONFIG, "--layer-split auto: there is no planner here (give a list)");
        TRY(trainer_choose_split(&t->layout, &t->config, &t->o));
    }
    t->grid = grid_of(&t->layout.layout, transport_rank());
    return OK;
}

static enum status make_schedule(struct trainer *t)
{
    const struct layout *l = &t->layout.layout;
    long B = train_model_options(&t->o).B, all = (t->o.global_batch + B - 1) / B;
    t->rounds = (all + l->dp - 1) / l->dp;
    struct pipeline p = {.kind = t->layout.schedule, .stages = l->pp, .chunks = l->virtual_stages,
                         .micro_batches = t->rounds};
    if (l->pp == 1 && l->virtual_stages > 1)
        return fail(ERR_CONFIG, "--virtual-stages %ld: there is one stage (raise --pipeline-parallel-size)",
                    l->virtual_stages);
    TRY(pipeline_check(&p));
    TRY(pipeline_schedule_make(&t->engine.schedule, &p, t->grid.pp));
    t->slots = calloc((size_t)l->virtual_stages, sizeof *t->slots);
    if (!t->slots) return fail(ERR_MEMORY, "memory: a list of %ld chunks was refused", l->virtual_stages);
    for (long v = 0; v < l->virtual_stages; v++) {
        const struct pipeline_slots *s = &t->engine.schedule.slots[v];
        t->slots[v] = (struct model_slots){s->saved, s->backward, s->weight};
    }
    return OK;
}

// ---- the same job on every host ----

static uint64_t hash_of_program(void)
{
    struct file_map map;
    if (file_map_open(&map, "/proc/self/exe") != OK) return 0;
    uint64_t hash = xxh3(map.data, map.bytes);
    file_map_close(&map);
    return hash;
}

// Ranks that were started in different ways would ask each other different things: this comes before anything else, and
// once more for what a checkpoint's settings have made of the options.
static enum status check_same(const struct trainer *t)
{
    enum { PROGRAM, SETTINGS, KINDS };
    static const char *const what[KINDS] = {"its program is not rank 0's (install the same on every host)",
                                            "its settings differ from rank 0's (start all ranks alike)"};
    uint64_t own[KINDS] = {hash_of_program(), xxh3(t->settings, (long)strlen(t->settings))}, first[KINDS];
    struct group world = group_of("world", CHANNEL_WORLD, 0, 1, transport_ranks(), transport_rank());
    memcpy(first, own, sizeof first);
    group_broadcast(&world, first, sizeof first);
    for (int i = 0; i < KINDS; i++)
        if (own[i] != first[i])
            return fail(ERR_CONFIG, "rank %ld on %s: %s", transport_rank(), transport_host(transport_rank()), what[i]);
    return OK;
}

// Everything that can be wrong is found here, before memory is reserved and before anything is written.
// `from`: the folder with the weights, NULL for random ones.
static enum status prepare(struct trainer *t, const bool *set, const char *from)
{
    char *text;
    TRY(train_options_resolve(&t->o, set, &t->config));
    TRY(config_write(&text, &t->config)); // can the architecture say it?
    free(text);
    TRY(make_layout(t));
    TRY(make_schedule(t));
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
    struct model_options mo = model_options_of(t);
    struct zero_options zo = {.spread = t->o.layout.zero != 0};
    TRY(check_memory(t, &mo, &zo));
    TRY(model_init(&t->model, &t->config, &mo));
    TRY(zero_init(&t->zero, &t->model, &zo));
    TRY(pipeline_init(&t->engine, &t->model, t->engine.schedule));
    t->model.layer_done = layer_done;
    t->model.whom = &t->zero;
    for (long l = 0; l < (t->model.balance ? t->config.L : 0); l++) t->model.balance[l].alpha = t->balance.alpha_max;
    TRY(balance_state_init(&t->state, &t->model, &t->balance));
    t->state.samples = t->o.data_skip; // a resumed run reads its own below
    return step_init(t);
}

// What all ranks must have found right before the first of them reserves memory.
static enum status prepare_and_build(struct trainer *t, const bool *set, const char *from)
{
    TRY(agree(prepare(t, set, from)));
    TRY(agree(check_same(t)));
    return t->o.print_grid ? OK : agree(build(t));
}

static enum status read_resumed(struct trainer *t, const bool *set, char checkpoint[PATH_LENGTH])
{
    char *text;
    const struct layout_options fresh = t->o.layout;
    TRY(checkpoint_latest(checkpoint, t->o.output));
    TRY(checkpoint_settings(&text, checkpoint));
    enum status status = train_options_resume(&t->o, set, text, checkpoint);
    free(text);
    TRY(status);
    TRY(config_read(&t->config, checkpoint));
    if (train_layout_given(set)) return OK;
    return run_layout_kept(&t->o.layout, &fresh, &t->config, transport_ranks(), checkpoint);
}

static enum status open_resumed(struct trainer *t, const bool *set)
{
    char checkpoint[PATH_LENGTH];
    TRY(agree(read_resumed(t, set, checkpoint)));
    TRY(prepare_and_build(t, NULL, checkpoint));
    if (t->o.print_grid) return OK;
    TRY(alive_open(t->o.output)); // reading and verifying take long
    alive_phase(PHASE_LOAD);
    TRY(load_state(t, checkpoint));
    log_line("resumed: %s", checkpoint);
    return OK;
}

static enum status open_from_folder(struct trainer *t, const bool *set, const struct model_folder *f)
{
    t->config = f->config;
    TRY(prepare_and_build(t, set, t->o.init));
    return t->o.print_grid ? OK : init_from_folder(t, f);
}

static enum status open_new(struct trainer *t, const bool *set)
{
    TRY(agree(t->o.print_grid ? OK : check_folder(&t->o)));
    if (t->o.init) {
        struct model_folder f;
        enum status opened = model_folder_open(&f, t->o.init), status = agree(opened);
        if (status == OK) status = open_from_folder(t, set, &f);
        if (opened == OK) model_folder_close(&f);
        return status;
    }
    TRY(agree(config_read(&t->config, t->o.model)));
    TRY(prepare_and_build(t, set, NULL));
    if (t->o.print_grid) return OK;
    struct init_rule rule = {t->o.seed, t->o.init_std, t->o.router_init_std};
    model_init_weights(&t->model, &rule);
    zero_init_masters(&t->zero, &rule);
    return OK;
}

static enum status open_all(struct trainer *t, const bool *set)
{
    transport_patience(t->o.comm_timeout);
    TRY(agree(dump_settings(t)));
    TRY(agree(check_same(t)));
    TRY(agree(train_options_check(&t->o)));
    t->o.eval_required = t->o.eval_interval && train_option_given(set, "eval-interval");
    TRY(t->o.resume ? open_resumed(t, set) : open_new(t, set));
    if (t->o.print_grid) return OK;
    t->started_step = t->state.step;
    record_start(t);
    if (t->o.replay_routing)
        TRY(agree(routing_read_open(&t->replayed, t->o.replay_routing, &t->config, t->o.global_batch * t->o.S,
                                    t->state.step + 1, t->o.train_steps)));
    TRY(open_dumps(t));
    TRY(agree(make_run_folder(t)));
    TRY(agree(see_run_folder(t)));
    if (!t->o.resume) TRY(alive_open(t->o.output));
    if (transport_ranks() > 1) kernels_meanwhile(transport_meanwhile);
    return OK;
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
    kernels_meanwhile(NULL);
    if (t->routing.expert) routing_write_abort(&t->routing); // what a failed run has routed is no whole file
    routing_read_close(&t->replayed);
    if (t->metrics.jsonl >= 0) metrics_close(&t->metrics);
    alive_close();
    step_free(t);
    balance_state_free(&t->state);
    pipeline_free(&t->engine);
    zero_free(&t->zero);
    model_free(&t->model);
    free(t->slots);
    run_layout_free(&t->layout);
    if (t->text.model) tokenizer_close(&t->text);
    if (t->valid.source) loader_close(&t->valid);
    if (t->data.source) loader_close(&t->data);
}

// ---- running ----

enum status trainer_evaluate(struct trainer *t)
{
    struct evaluation e;
    double begin = seconds_now();
    alive_phase(PHASE_EVALUATE);
    TRY(evaluate_loss(&e, &t->model, &t->valid, t->text.model ? &t->text : NULL, t->o.eval_tokens, pipeline_loss));
    return agree(record_evaluation(t, &e, seconds_now() - begin));
}

enum status trainer_save(struct trainer *t)
{
    balance_to_state(&t->state, &t->model);
    double begin = seconds_now();
    alive_phase(PHASE_SAVE);
    TRY(checkpoint_save(t->o.output, &t->zero, &t->state, t->settings, t->tokenizer[0] ? t->tokenizer : NULL,
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
    return agree(t->routing.expert ? routing_write_close(&t->routing) : OK);
}

// Whether any rank was asked to stop: a signal reaches them at different times.
static bool stop_agreed(const struct trainer *t)
{
    long asked = stop_requested;
    group_max_long(&t->grid.world, &asked, 1);
    return asked != 0;
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
        bool last = step >= t->o.train_steps, stop = stop_agreed(t) && !last;
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
