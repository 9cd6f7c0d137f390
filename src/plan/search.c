#include "plan/search.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { KEPT = 32, MOST_TP = 64, MOST_ETP = 16 };

struct hunt {
    struct search_result *result;
    double limit;
    struct candidate kept[KEPT]; // by their even split, fastest first
    long n;
    struct split *split;
    struct part_times *part;
    double *message;
    struct memory_cache cache;
};

// ---- one candidate ----

// As few recomputing layers as fit, the layers evenly split. Returns the bytes of the fullest rank.
static double set_recompute(struct hunt *h, const struct split_task *t, const struct simulator *sim)
{
    double fullest = 0;
    for (long stage = 0; stage < t->p.stages; stage++) {
        double bytes;
        long n = 0;
        for (long v = stage; v < t->p.stages * t->p.chunks; v += t->p.stages) n += h->split->layers[v];
        h->split->recompute[stage] = 0;
        for (;;) {
            struct stage_shape s = split_shape(t, h->split, &sim->schedule[stage]);
            struct rank_bytes b = memory_stage(&t->memory, &s);
            bytes = memory_total(&b);
            if (bytes <= t->limit || !t->may_recompute || h->split->recompute[stage] == n) break;
            h->split->recompute[stage]++;
        }
        if (bytes > fullest) fullest = bytes;
    }
    return fullest;
}

static void keep(struct hunt *h, const struct candidate *c)
{
    if (h->n == KEPT && h->kept[KEPT - 1].seconds <= c->seconds) return;
    long i = h->n < KEPT ? h->n++ : KEPT - 1;
    for (; i > 0 && h->kept[i - 1].seconds > c->seconds; i--) h->kept[i] = h->kept[i - 1];
    h->kept[i] = *c;
}

static double slowest(const struct part_times *part, long stages, long chunks)
{
    double most = 0;
    for (long stage = 0; stage < stages; stage++) {
        double sum = 0;
        for (long v = stage; v < stages * chunks; v += stages) sum += part[v].forward + part[v].input + part[v].weight;
        if (sum > most) most = sum;
    }
    return most;
}

static enum status consider(struct hunt *h, const struct run *r, struct simulator *sim)
{
    struct costs costs;
    struct split_task task;
    struct candidate c = {.run = *r};
    struct ends first, last;
    long stages = r->layout.pp;
    costs_of(&costs, r);
    for (long i = 0; i < stages; i++) h->message[i] = message_seconds(&costs, r, i);
    TRY(split_task_of(&task, r, &costs, h->message, h->limit, &h->cache));
    split_given(h->split, r);
    c.bytes = set_recompute(h, &task, sim);
    h->result->tried++;
    if (h->result->tried == 1 || c.bytes < h->result->least_bytes) h->result->least_bytes = c.bytes;
    if (c.bytes > h->limit) return OK;
    h->result->fitting++;
    split_times(h->part, &task, h->split);
    ends_of(&first, r, (r->c->L + stages - 1) / stages, true, stages == 1);
    ends_of(&last, r, r->c->L / stages, stages == 1, true);
    double ends = fmax(first.last_gradient + first.t.t[TERM_OPTIMIZER] + first.t.t[TERM_WEIGHTS],
                       last.last_gradient + last.t.t[TERM_OPTIMIZER] + last.t.t[TERM_WEIGHTS]);
    double least = (double)task.p.micro_batches * slowest(h->part, stages, task.p.chunks) + ends;
    if (h->n == KEPT && least >= h->kept[KEPT - 1].seconds) return OK; // even without a bubble
    c.seconds = simulator_run(sim, h->part, h->message) + ends;
    keep(h, &c);
    return OK;
}

// ---- all of them ----

static enum status each_recompute(struct hunt *h, struct run *r, struct simulator *sim)
{
    for (int level = RECOMPUTE_NONE; level <= RECOMPUTE_FULL; level++) {
        long fitting = h->result->fitting;
        r->recompute = (enum recompute)level;
        TRY(consider(h, r, sim));
        if (level == RECOMPUTE_NONE && h->result->fitting > fitting) break; // the others would recompute nothing
    }
    return OK;
}

static enum status each_expert_mesh(struct hunt *h, struct run *r, struct simulator *sim)
{
    struct layout *l = &r->layout;
    long plane = l->dp * l->tp, E = r->c->E;
    for (l->etp = 1; l->etp <= plane && l->etp <= MOST_ETP && l->etp <= r->c->F; l->etp++)
        for (l->ep = 1; l->ep <= plane && l->ep <= (E ? E : 1); l->ep++) {
            if (plane % (l->ep * l->etp) || (!E && l->etp > 1)) continue;
            TRY(each_recompute(h, r, sim));
        }
    return OK;
}

static enum status each_schedule(struct hunt *h, struct run *r)
{
    static const struct {
        enum pipeline_kind kind;
        long chunks;
    } shapes[] = {{PIPELINE_1F1B, 1}, {PIPELINE_ZERO_BUBBLE, 1}, {PIPELINE_INTERLEAVED, 2}, {PIPELINE_INTERLEAVED, 4}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct simulator sim;
        if (r->layout.pp == 1 && i) return OK;
        if (r->layout.pp * shapes[i].chunks > r->c->L) continue;
        r->schedule = shapes[i].kind;
        r->layout.virtual_stages = shapes[i].chunks;
        struct pipeline p = {r->schedule, r->layout.pp, shapes[i].chunks, run_micro_batches(r)};
        TRY(simulator_open(&sim, &p, false));
        enum status status = each_expert_mesh(h, r, &sim);
        simulator_close(&sim);
        TRY(status);
    }
    return OK;
}

static enum status each_mesh(struct hunt *h, const struct run *base, long devices)
{
    struct run r = *base;
    long micro_batches = (base->global_batch + base->B - 1) / base->B;
    for (long tp = 1; tp <= MOST_TP && tp <= base->c->H; tp++)
        for (long pp = 1; pp <= base->c->L; pp++) {
            if (devices % (tp * pp) || devices / (tp * pp) > micro_batches) continue; // ranks without work
            r.layout = (struct layout){.pp = pp, .dp = devices / (tp * pp), .tp = tp, .ep = 1, .etp = 1,
                                       .virtual_stages = 1};
            TRY(each_schedule(h, &r));
        }
    return OK;
}

// The kept ones again, each with its best split.
static enum status plan_kept(struct hunt *h)
{
    struct search_result *result = h->result;
    for (long i = 0; i < h->n; i++) {
        struct plan p;
        struct plan_wishes w = {.best_layers = true, .best_recompute = true, .effort = SEARCH_EFFORT,
                                .limit = h->limit};
        struct candidate c = {.run = h->kept[i].run};
        TRY(plan_make(&p, &c.run, &w));
        c.seconds = p.step_s;
        c.bytes = p.over_bytes + p.limit;
        bool fits = p.fits;
        plan_free(&p);
        if (!fits || (result->n == SEARCH_BEST && result->best[SEARCH_BEST - 1].seconds <= c.seconds)) continue;
        long k = result->n < SEARCH_BEST ? result->n++ : SEARCH_BEST - 1;
        for (; k > 0 && result->best[k - 1].seconds > c.seconds; k--) result->best[k] = result->best[k - 1];
        result->best[k] = c;
    }
    return OK;
}

enum status plan_search(struct search_result *result, const struct run *base, long devices, double limit)
{
    size_t L = (size_t)base->c->L;
    struct hunt *h = calloc(1, sizeof *h);
    struct split *split = malloc(sizeof *split);
    struct part_times *part = calloc(L, sizeof *part);
    double *message = calloc(L, sizeof *message);
    *result = (struct search_result){0};
    enum status status = h && split && part && message ? OK : fail(ERR_MEMORY, "memory: a search was refused");
    if (status == OK) {
        *h = (struct hunt){.result = result, .split = split, .part = part, .message = message,
                           .limit = limit > 0 ? limit : base->cluster->memory_bytes.value};
        status = each_mesh(h, base, devices);
        if (status == OK) status = plan_kept(h);
    }
    free(h);
    free(split);
    free(part);
    free(message);
    return status;
}
