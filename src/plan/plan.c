#include "plan/plan.h"

#include <stdlib.h>

enum status run_check(const struct run *r)
{
    long items[AXES];
    const struct layout *l = &r->layout;
    config_items(items, r->c);
    TRY(layout_check(l, items, layout_ranks(l)));
    if (layout_ranks(l) > cluster_devices(r->cluster))
        return fail(ERR_CONFIG, "layout: %ld ranks, but %s has %ld devices (use smaller sizes)", layout_ranks(l),
                    r->cluster->name, cluster_devices(r->cluster));
    struct pipeline p = {r->schedule, l->pp, l->virtual_stages, run_micro_batches(r)};
    return pipeline_check(&p);
}

// ---- times ----

// Work of a stage in a step, by term.
static struct times stage_terms(const struct plan *p, const struct costs *costs, long stage)
{
    const struct stage_plan *s = &p->stage[stage];
    struct times one = {0};
    double n = (double)s->layers, m = (double)p->micro_batches;
    const struct work *part[] = {&costs->layer, &costs->first, &costs->last};
    double times[] = {n, stage == 0, stage == p->run.layout.pp - 1};
    for (int i = 0; i < 3; i++) {
        times_add(&one, times[i], &part[i]->forward);
        times_add(&one, times[i], &part[i]->input);
        times_add(&one, times[i], &part[i]->weight);
    }
    times_add(&one, (double)s->recompute, &costs->again[p->run.recompute]);
    struct times all = {0};
    times_add(&all, m, &one);
    return all;
}

static double most(double a, double b)
{
    return a > b ? a : b;
}

// After the pipeline: gradients to their owners (behind the last micro-batch's backward as far as it goes), then, when
// all have the norm, the update, then the new weights. Returns the time from the pipeline's end to the step's.
static double add_ends(struct plan *p, struct times *terms)
{
    double reduced = p->pipeline_s, gradients = 0, after = 0;
    struct times slowest = {0};
    for (long i = 0; i < p->run.layout.pp; i++) {
        struct ends e;
        const struct stage_plan *s = &p->stage[i];
        ends_of(&e, &p->run, s->layers, i == 0, i == p->run.layout.pp - 1);
        double all = e.t.t[TERM_GRADIENTS], behind = all < s->backward_s ? all : s->backward_s;
        double shown = most(all - e.overlap * behind, e.last_gradient);
        reduced = most(reduced, p->sim.end[i] + shown);
        gradients = most(gradients, all);
        if (e.t.t[TERM_OPTIMIZER] + e.t.t[TERM_WEIGHTS] < after) continue;
        after = e.t.t[TERM_OPTIMIZER] + e.t.t[TERM_WEIGHTS];
        slowest = e.t;
    }
    terms->t[TERM_GRADIENTS] = gradients;
    terms->t[TERM_HIDDEN] -= gradients - (reduced - p->pipeline_s);
    terms->t[TERM_OPTIMIZER] = slowest.t[TERM_OPTIMIZER];
    terms->t[TERM_WEIGHTS] = slowest.t[TERM_WEIGHTS];
    return reduced - p->pipeline_s + after;
}

// The lists are simulated twice: without messages the rest is bubble, with them they say what stages wait for them.
static void set_times(struct plan *p, const struct split_task *t, const struct costs *costs, struct part_times *part,
                      double *silent)
{
    long stages = p->run.layout.pp;
    double busy = 0;
    split_times(part, t, &p->split);
    for (long i = 0; i < stages; i++) silent[i] = 0;
    double quiet = simulator_run(&p->sim, part, silent);
    p->pipeline_s = simulator_run(&p->sim, part, t->message);
    p->bubble = simulator_bubble(&p->sim);
    for (long i = 0; i < stages; i++) {
        struct stage_plan *s = &p->stage[i];
        struct times terms = stage_terms(p, costs, i);
        times_add(&p->terms, 1 / (double)stages, &terms);
        s->busy_s = p->sim.busy[i];
        busy += s->busy_s / (double)stages;
        for (long v = i; v < stages * t->p.chunks; v += stages) {
            s->forward_s += part[v].forward;
            s->backward_s += part[v].input + part[v].weight;
        }
    }
    p->terms.t[TERM_BUBBLE] = quiet - busy;
    p->terms.t[TERM_MESSAGES] = p->pipeline_s - quiet;
    p->step_s = p->pipeline_s + add_ends(p, &p->terms);
}

static void set_bytes(struct plan *p, const struct split_task *t)
{
    p->over_bytes = -p->limit;
    for (long i = 0; i < p->run.layout.pp; i++) {
        struct stage_shape shape = split_shape(t, &p->split, &p->sim.schedule[i]);
        struct stage_plan *s = &p->stage[i];
        s->layers = shape.layers;
        s->recompute = shape.recompute;
        s->bytes = memory_stage(&t->memory, &shape);
        p->over_bytes = most(p->over_bytes, memory_total(&s->bytes) - p->limit);
    }
    p->fits = p->over_bytes <= 0;
}

// ---- the plan ----

static enum status choose_split(struct plan *p, const struct split_task *t, const struct plan_wishes *w)
{
    bool fits;
    split_given(&p->split, &p->run);
    if (!w->best_layers && !w->best_recompute) return OK;
    return split_best(&p->split, &fits, t, w->effort > 0 ? w->effort : SPLIT_EFFORT);
}

static enum status make(struct plan *p, const struct plan_wishes *w, double *room, struct part_times *part)
{
    struct costs costs;
    struct split_task task;
    long stages = p->run.layout.pp;
    double *message = room;
    costs_of(&costs, &p->run);
    for (long i = 0; i < stages; i++) message[i] = message_seconds(&costs, &p->run, i);
    TRY(split_task_of(&task, &p->run, &costs, message, p->limit, NULL));
    task.keep_layers = !w->best_layers;
    TRY(choose_split(p, &task, w));
    TRY(simulator_open(&p->sim, &task.p, w->record));
    set_bytes(p, &task);
    set_times(p, &task, &costs, part, room + stages);
    double tokens = (double)(p->run.global_batch * p->run.S);
    p->tokens_per_s = tokens / p->step_s;
    p->mfu = config_train_flops_per_token(p->run.c, p->run.S) * p->tokens_per_s /
             ((double)layout_ranks(&p->run.layout) * p->run.cluster->peak_flops.value);
    return OK;
}

enum status plan_make(struct plan *p, const struct run *r, const struct plan_wishes *w)
{
    TRY(run_check(r));
    size_t stages = (size_t)r->layout.pp, parts = stages * (size_t)r->layout.virtual_stages;
    *p = (struct plan){.run = *r, .micro_batches = run_micro_batches(r),
                       .limit = w->limit > 0 ? w->limit : r->cluster->memory_bytes.value};
    p->stage = calloc(stages, sizeof *p->stage);
    double *room = calloc(2 * stages, sizeof *room);
    struct part_times *part = calloc(parts, sizeof *part);
    enum status status = p->stage && room && part ? OK : fail(ERR_MEMORY, "memory: a plan of %zu stages was refused",
                                                              stages);
    if (status == OK) status = make(p, w, room, part);
    free(room);
    free(part);
    if (status != OK) plan_free(p);
    return status;
}

void plan_free(struct plan *p)
{
    simulator_close(&p->sim);
    free(p->stage);
    *p = (struct plan){0};
}

enum status plan_split(struct split *s, bool *fits, const struct run *r, double limit)
{
    // One FLOP is one unit of time, memory traffic and wires cost nothing: what remains is the balance of the stages.
    struct constant one = {1, SOURCE_DATASHEET}, free_of_cost = {1e300, SOURCE_DATASHEET};
    struct cluster clock = {.hosts = 1, .devices = layout_ranks(&r->layout), .peak_flops = one,
                            .read_bytes_per_s = free_of_cost, .inside.bytes_per_s = free_of_cost};
    struct run run = *r;
    struct costs costs;
    struct split_task task;
    run.cluster = &clock;
    TRY(run_check(&run));
    double *message = calloc((size_t)r->layout.pp, sizeof *message);
    if (!message) return fail(ERR_MEMORY, "memory: a plan of %ld stages was refused", r->layout.pp);
    costs_of(&costs, &run);
    enum status status = split_task_of(&task, &run, &costs, message, limit, NULL);
    if (status == OK) status = split_best(s, fits, &task, SPLIT_EFFORT);
    free(message);
    return status;
}
