// skymoe plan: what a run would take and do, before any device is asked for.
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "cli/command.h"
#include "cli/plan.h"

struct plan_options plan_given;

#define AT(field) offsetof(struct plan_options, field)
static const struct setting rows[] = {
    {"model", SETTING_TEXT, AT(model), NULL, 0, 0, NULL, "config.json or model folder"},
    {"cluster", SETTING_TEXT, AT(cluster), NULL, 0, 0, NULL,
     "cluster file: configs/clusters/, or made by bench --calibrate"},
    {"devices", SETTING_LONG, AT(devices), "0", 0, 1L << 32, NULL, "how many of its devices; 0: all"},
    {"tensor-parallel-size", SETTING_LONG, AT(layout.tp), "0", 0, 1 << 20, NULL,
     "ranks that share each layer's heads and columns; 0: 1, with --inference all devices"},
    LAYOUT_SETTINGS(AT)
    {"memory-limit-gib", SETTING_REAL, AT(memory_limit_gib), "0", 0, 1e9, NULL, "of a device; 0: all it has"},
    {"micro-batch-size", SETTING_LONG, AT(micro_batch), "1", 1, 1 << 20, NULL, "sequences of one forward and backward"},
    {"global-batch-size", SETTING_LONG, AT(global_batch), "2048", 1, 1 << 24, NULL, "sequences of one optimizer step"},
    {"seq-length", SETTING_LONG, AT(S), "0", 0, 1 << 24, NULL, "tokens of a sequence; 0: the model's most positions"},
    {"dtype", SETTING_CHOICE, AT(dtype), NULL, 0, 0, "f32|bf16", "arithmetic; default: the model's own"},
    {"moe-capacity-factor", SETTING_DECIMAL, AT(capacity), "1.1", 0, 1e6, NULL,
     "rows an expert takes of a micro-batch, as a multiple of the mean; 0: dropless"},
    {"search", SETTING_SWITCH, AT(search), NULL, 0, 0, NULL,
     "try every layout, schedule and level of recompute; the fastest that fits is planned"},
    {"compare", SETTING_TEXT, AT(compare), NULL, 0, 0, NULL,
     "another model's config.json: FLOPs, bytes and cost beside it"},
    {"svg", SETTING_TEXT, AT(svg), NULL, 0, 0, NULL, "file for a picture of the step's timeline"},
    {"published", SETTING_REAL, AT(published), "0", 0, 1e15, NULL,
     "tokens/s that someone reports for this: what the plan does not explain is printed"},
    {"inference", SETTING_SWITCH, AT(inference), NULL, 0, 0, NULL, "plan generating instead of training"},
    {"weights", SETTING_CHOICE, AT(weights), "bf16", 0, 0, "bf16|fp8", "--inference: how matrices are held"},
    {"batch-size", SETTING_TEXT, AT(batch_size), "1,2,4,8,16,32,64,128", 0, 0, NULL,
     "--inference: sequences that generate together, a list"},
    {"context", SETTING_LONG, AT(context), "512", 1, 1 << 24, NULL, "--inference: tokens of a sequence, on average"},
};
static const struct settings settings = {
    .command = "plan",
    .summary = "says what a run would take on a cluster: memory, time, bubble, by term",
    .usage = "--model config.json --cluster cluster.json [layout options | --search | --inference]",
    .row = rows,
    .n = sizeof rows / sizeof *rows,
    .options = &plan_given,
};

// --compare while training: its plan, or why there is none.
static enum status plan_beside(struct plan *p, struct plan_request *q, const struct plan_options *o, long S)
{
    TRY(plan_other(q, o, S));
    return plan_make(p, &q->run, &q->wishes);
}

static enum status show(const struct plan *p, const struct search_result *s, const struct plan_options *o, bool json,
                        double seconds)
{
    static struct plan_request beside;
    struct plan other = {0};
    if (o->svg) TRY(plan_svg(p, o->svg));
    enum status status = o->compare ? plan_beside(&other, &beside, o, p->run.S) : OK;
    if (status == OK && json) status = plan_print_json(p, s, o->compare ? &other : NULL, o->published);
    if (status == OK && !json) {
        if (s) plan_print_search(s, layout_ranks(&p->run.layout), seconds);
        plan_print(p, o->published);
        if (!s) plan_print_experts(p);
        plan_timeline(p);
        if (o->compare) plan_print_compare(p, &other, o->model, o->compare);
    }
    plan_free(&other);
    plan_request_free(&beside);
    return status;
}

// The best layout takes the place of the one that the options describe.
static enum status choose(struct plan_request *q, struct search_result *s, const struct plan_options *o)
{
    long devices = o->devices ? o->devices : cluster_devices(&q->cluster);
    TRY(plan_search(s, &q->run, devices, q->wishes.limit));
    double limit = q->wishes.limit > 0 ? q->wishes.limit : q->cluster.memory_bytes.value;
    if (!s->n)
        return fail(ERR_CONFIG,
                    "--search: none of %ld layouts of %ld devices fits: the least needs %.2f GiB of %.2f (use "
                    "more devices or a smaller --micro-batch-size)", s->tried, devices, s->least_bytes / 0x1p30,
                    limit / 0x1p30);
    q->run = s->best[0].run;
    q->wishes.best_layers = q->wishes.best_recompute = true;
    q->wishes.effort = SEARCH_EFFORT;
    return OK;
}

static enum status train(struct plan_request *q, const struct plan_options *o, bool json)
{
    static struct search_result found;
    struct plan p;
    double begin = seconds_now();
    if (o->search) TRY(choose(q, &found, o));
    double seconds = seconds_now() - begin;
    TRY(plan_make(&p, &q->run, &q->wishes));
    enum status status = show(&p, o->search ? &found : NULL, o, json, seconds);
    plan_free(&p);
    return status;
}

static enum status infer(const struct plan_request *q, const struct plan_options *o, bool json)
{
    static struct plan_request other;
    enum status status = o->compare ? plan_other(&other, o, q->run.S) : OK;
    if (status == OK) status = plan_inference(q, o, o->compare ? &other : NULL, json);
    plan_request_free(&other);
    return status;
}

static enum status check(const struct plan_options *o)
{
    if (!o->model) return fail(ERR_CONFIG, "--model: is missing (name a config.json)");
    if (!o->cluster) return fail(ERR_CONFIG,
                                 "--cluster: is missing (configs/clusters/ has some; bench --calibrate makes "
                                 "one of this machine)");
    if (o->search && o->inference) return fail(ERR_CONFIG, "--search: is for training (leave out --inference)");
    if (o->inference && o->svg) return fail(ERR_CONFIG, "--svg: --inference has no timeline (leave it out)");
    return OK;
}

static enum status run(int argc, char **argv)
{
    static struct plan_request request;
    struct common_options common;
    bool done;
    TRY(command_start(&settings, &common, NULL, &done, argc, argv));
    if (done) return OK;
    TRY(check(&plan_given));
    enum status status = plan_request_make(&request, &plan_given);
    if (status == OK)
        status = plan_given.inference ? infer(&request, &plan_given, common.json)
                                      : train(&request, &plan_given, common.json);
    plan_request_free(&request);
    return status;
}

const struct command command_plan = {.name = "plan", .run = run, .settings = &settings};
