#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "cli/command.h"
#include "cli/report.h"
#include "plan/plan.h"
#include "train/trainer.h"

static void on_signal(int number)
{
    (void)number;
    trainer_request_stop();
}

// SIGTERM and the first Ctrl-C end the run in order; a second Ctrl-C ends it at once. Under mpirun it is SIGUSR1 that
// saves and ends, for mpirun sends SIGTERM to the ranks it is about to kill.
static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
    if (transport_ranks() > 1) return;
    sigaction(SIGTERM, &action, NULL);
    action.sa_flags |= (int)SA_RESETHAND;
    sigaction(SIGINT, &action, NULL);
}

static enum status print_result(const struct trainer *t, bool json)
{
    char path[PATH_LENGTH];
    TRY(checkpoint_latest(path, t->o.output));
    if (!json) {
        printf("%s\n", path);
        return OK;
    }
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_put_text(&o, "checkpoint", path);
    json_put_long(&o, "step", t->state.step);
    json_put_long(&o, "tokens", t->state.tokens);
    json_put_real(&o, "seconds", t->state.seconds);
    if (t->result.step) json_put_real(&o, "loss", t->result.loss);
    else json_put_null(&o, "loss");
    json_put_bool(&o, "finished", t->state.step >= t->o.train_steps);
    json_end(&o, '}');
    return command_print_json(&o);
}

// A picture of the run so far. The weights are safe by now: that it cannot be drawn must not look like a failed run.
static void write_report(const char *run)
{
    char path[PATH_LENGTH];
    if (path_join(path, run, "report.html") != OK || report_write(&run, 1, NULL, path) != OK)
        log_warning("no report: %s", fail_message());
}

// "6,6,5", cut off where there is no more room.
static void list_text(char *text, size_t room, const long *list, long n)
{
    size_t used = 0;
    text[0] = '\0';
    for (long i = 0; i < n && used < room - 24; i++)
        used += (size_t)snprintf(text + used, room - used, "%s%ld", i ? "," : "", list[i]);
}

// The planner's best lists, with FLOPs as its clock.
static enum status choose_split(struct run_layout *l, const struct config *c, const struct train_options *o)
{
    struct cluster none = {.name = "this run"};
    struct model_options mo = train_model_options(o);
    static struct split s;
    bool fits;
    struct run r = {.c = c, .cluster = &none, .layout = l->layout, .schedule = l->schedule,
                    .dtype = mo.dtype, .B = mo.B, .global_batch = o->global_batch, .S = mo.S, .recompute = l->recompute,
                    .recompute_layers = l->recompute_layers, .capacity = mo.rule.capacity, .scope = mo.rule.scope,
                    .exchange_chunks = mo.exchange_chunks, .zero = o->layout.zero != 0};
    double limit = o->memory_limit_gib * 0x1p30, samples = (double)step_bytes(run_micro_batches(&r), mo.B, mo.S);
    TRY(plan_split(&s, &fits, &r, limit > samples ? limit - samples : limit));
    long parts = layout_parts(&l->layout, AXIS_LAYER);
    if (!l->list[AXIS_LAYER]) l->list[AXIS_LAYER] = calloc((size_t)parts, sizeof(long));
    if (!l->recompute_layers) l->recompute_layers = calloc((size_t)l->layout.pp, sizeof(long));
    if (!l->list[AXIS_LAYER] || !l->recompute_layers)
        return fail(ERR_MEMORY, "memory: a list of %ld was refused", parts);
    for (long i = 0; i < parts; i++) l->list[AXIS_LAYER][i] = s.layers[i];
    for (long i = 0; i < l->layout.pp; i++)
        l->recompute_layers[i] = l->recompute == RECOMPUTE_NONE ? 0 : s.recompute[i];
    l->layout.given[AXIS_LAYER] = l->list[AXIS_LAYER];
    char layers[256], recompute[256];
    list_text(layers, sizeof layers, l->list[AXIS_LAYER], parts);
    list_text(recompute, sizeof recompute, l->recompute_layers, l->layout.pp);
    log_line("planner: --layer-split %s --recompute-layers %s%s", layers, recompute,
             fits ? "" : " (no list fits the memory limit)");
    return OK;
}

// What rank 0 does when all is done.
static enum status finish(const struct trainer *t, bool json)
{
    if (t->o.print_grid) {
        print_grid(t);
        return OK;
    }
    write_report(t->o.output);
    return print_result(t, json);
}

static enum status run(int argc, char **argv)
{
    static struct trainer trainer;
    struct common_options common;
    bool done, *set = calloc((size_t)train_rows_n, sizeof *set);
    if (!set) return fail(ERR_MEMORY, "memory: the settings were refused (free some memory)");
    enum status status = agree(command_start(&train_settings_given, &common, set, &done, argc, argv));
    if (status == OK && !done) {
        log_quiet(common.quiet || transport_rank() > 0);
        catch_signals();
        trainer_choose_split = choose_split;
        status = trainer_open(&trainer, &train_given, set);
        if (status == OK) {
            status = trainer.o.print_grid ? OK : trainer_run(&trainer);
            if (status == OK && transport_rank() == 0) status = finish(&trainer, common.json);
            trainer_close(&trainer);
        }
    }
    free(set);
    return status;
}

const struct command command_train = {.name = "train", .run = run, .settings = &train_settings_given, .ranks = true};
