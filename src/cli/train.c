#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/log.h"
#include "cli/command.h"
#include "cli/report.h"
#include "train/trainer.h"

static void on_signal(int number)
{
    (void)number;
    trainer_request_stop();
}

// SIGTERM and the first Ctrl-C end the run in order; a second Ctrl-C ends it at once.
static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
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

static enum status run(int argc, char **argv)
{
    static struct trainer trainer;
    struct common_options common;
    bool done, *set = calloc((size_t)train_rows_n, sizeof *set);
    if (!set) return fail(ERR_MEMORY, "memory: the settings were refused (free some memory)");
    enum status status = command_start(&train_settings_given, &common, set, &done, argc, argv);
    if (status == OK && !done) {
        catch_signals();
        status = trainer_open(&trainer, &train_given, set);
        if (status == OK) {
            status = trainer_run(&trainer);
            if (status == OK) write_report(trainer.o.output);
            if (status == OK) status = print_result(&trainer, common.json);
            trainer_close(&trainer);
        }
    }
    free(set);
    return status;
}

const struct command command_train = {.name = "train", .run = run, .settings = &train_settings_given};
