#include "plan/split.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct part_times seconds_of(const struct work *w)
{
    return (struct part_times){times_sum(&w->forward), times_sum(&w->input), times_sum(&w->weight)};
}

enum status split_task_of(struct split_task *t, const struct run *r, const struct costs *costs, const double *message,
                          double limit, struct memory_cache *cache)
{
    const struct layout *l = &r->layout;
    *t = (struct split_task){
        .p = {r->schedule, l->pp, l->virtual_stages, run_micro_batches(r)}, .layers = r->c->L,
        .layer = seconds_of(&costs->layer), .again = {.input = times_sum(&costs->again[r->recompute])},
        .first = seconds_of(&costs->first), .last = seconds_of(&costs->last), .message = message, .run = r,
        .may_recompute = r->recompute != RECOMPUTE_NONE, .limit = limit,
    };
    return memory_of(&t->memory, r, cache);
}

static long parts_of(const struct split_task *t)
{
    return t->p.stages * t->p.chunks;
}

static long stage_layers(const struct split_task *t, const struct split *s, long stage)
{
    long n = 0;
    for (long c = 0; c < t->p.chunks; c++) n += s->layers[c * t->p.stages + stage];
    return n;
}

void split_given(struct split *s, const struct run *r)
{
    const struct layout *l = &r->layout;
    CHECK(l->pp * l->virtual_stages <= MOST_PARTS);
    for (long v = 0; v < l->pp * l->virtual_stages; v++)
        s->layers[v] = layout_range(l, AXIS_LAYER, r->c->L, v).count;
    for (long stage = 0; stage < l->pp; stage++) {
        long n = 0, wanted = r->recompute_layers ? r->recompute_layers[stage] : r->c->L;
        for (long c = 0; c < l->virtual_stages; c++) n += s->layers[c * l->pp + stage];
        s->recompute[stage] = r->recompute == RECOMPUTE_NONE ? 0 : wanted < n ? wanted : n;
    }
}

// ---- lists into times and bytes ----

// How many of a chunk's layers recompute: a stage's first ones do.
static long chunk_recompute(const struct split_task *t, const struct split *s, long stage, long chunk)
{
    long before = 0, own = s->layers[chunk * t->p.stages + stage];
    for (long c = 0; c < chunk; c++) before += s->layers[c * t->p.stages + stage];
    long rest = s->recompute[stage] - before;
    return rest < 0 ? 0 : rest < own ? rest : own;
}

static void add_part(struct part_times *sum, double times, const struct part_times *x)
{
    sum->forward += times * x->forward;
    sum->input += times * x->input;
    sum->weight += times * x->weight;
}

// One virtual stage of n layers, `again` of them recomputing: those run W right after B, before what they recomputed is
// overwritten.
static struct part_times virtual_part(const struct split_task *t, long n, long again, bool first, bool last)
{
    struct part_times part = {0};
    add_part(&part, (double)n, &t->layer);
    add_part(&part, (double)again, &t->again);
    if (t->p.kind == PIPELINE_ZERO_BUBBLE)
        add_part(&part, (double)again, &(struct part_times){.input = t->layer.weight, .weight = -t->layer.weight});
    if (first) add_part(&part, 1, &t->first);
    if (last) add_part(&part, 1, &t->last);
    return part;
}

void split_times(struct part_times *part, const struct split_task *t, const struct split *s)
{
    for (long c = 0; c < t->p.chunks; c++)
        for (long stage = 0; stage < t->p.stages; stage++) {
            long v = c * t->p.stages + stage;
            part[v] = virtual_part(t, s->layers[v], chunk_recompute(t, s, stage, c), v == 0, v == parts_of(t) - 1);
        }
}

struct stage_shape split_shape(const struct split_task *t, const struct split *s, const struct pipeline_schedule *list)
{
    long stage = list->stage, most = 1;
    struct stage_shape shape = {.layers = stage_layers(t, s, stage), .recompute = s->recompute[stage],
                                .first = stage == 0, .last = stage == t->p.stages - 1};
    for (long c = 0; c < t->p.chunks; c++) {
        long again = chunk_recompute(t, s, stage, c), all = s->layers[c * t->p.stages + stage] - again;
        const struct pipeline_slots *slots = &list->slots[c];
        shape.held[0] += all * slots->saved;
        shape.held[1] += again * slots->backward;
        shape.waiting += all * slots->weight;
        if (slots->saved > most) most = slots->saved;
    }
    shape.batches = t->p.chunks * most;
    shape.messages = memory_messages(t->run, list);
    return shape;
}

// ---- the best lists ----

struct search {
    const struct split_task *t;
    struct simulator sim;
    struct part_times *part;
    struct split now, best;
    double seconds;  // of the best; infinite: none fits yet
    double budget;   // actions that may still be simulated
};

static bool stage_fits(const struct search *x, const struct split *s, long stage)
{
    struct stage_shape shape = split_shape(x->t, s, &x->sim.schedule[stage]);
    struct rank_bytes b = memory_stage(&x->t->memory, &shape);
    return x->t->limit <= 0 || memory_total(&b) <= x->t->limit;
}

// The fewest recomputing layers with which a stage fits; all of them where it does not.
static bool set_recompute(const struct search *x, struct split *s, long stage)
{
    long n = x->t->may_recompute ? stage_layers(x->t, s, stage) : 0;
    for (s->recompute[stage] = 0; s->recompute[stage] < n; s->recompute[stage]++)
        if (stage_fits(x, s, stage)) return true;
    return stage_fits(x, s, stage);
}

// Simulates x->now and keeps it when it is the best so far.
static bool consider(struct search *x)
{
    bool fits = true;
    for (long stage = 0; stage < x->t->p.stages; stage++) fits &= set_recompute(x, &x->now, stage);
    if (!fits) return false;
    split_times(x->part, x->t, &x->now);
    double seconds = simulator_run(&x->sim, x->part, x->t->message);
    x->budget -= (double)(x->t->p.micro_batches * parts_of(x->t) * 6);
    if (seconds >= x->seconds * (1 - 1e-12)) return false;
    x->seconds = seconds;
    x->best = x->now;
    return true;
}

// Every way to give `left` layers to the parts from `part` on.
static void exhaust(struct search *x, long part, long left)
{
    long after = parts_of(x->t) - 1 - part;
    if (!after) {
        x->now.layers[part] = left;
        consider(x);
        return;
    }
    for (long n = 1; n <= left - after; n++) {
        x->now.layers[part] = n;
        exhaust(x, part + 1, left - n);
    }
}

// The estimate: t[stage][n] seconds of a stage with n layers, infinite where it does not fit.
static void fill_estimate(struct search *x, double *t, long L)
{
    struct split *s = &x->now;
    for (long stage = 0; stage < x->t->p.stages; stage++)
        for (long n = 0; n <= L; n++) {
            s->layers[stage] = n;
            bool fits = n > 0 && set_recompute(x, s, stage);
            struct part_times p = virtual_part(x->t, n, s->recompute[stage], stage == 0, stage == x->t->p.stages - 1);
            t[stage * (L + 1) + n] = fits ? p.forward + p.input + p.weight : INFINITY;
        }
}

// The least sum of times with no stage above `most`: sum[stage][n] with n layers up to this stage, took[stage][n] of
// them on it. Returns the whole sum.
static double least_sum(const double *t, double *sum, long *took, long stages, long L, double most)
{
    for (long stage = 0; stage < stages; stage++)
        for (long n = 0; n <= L; n++) {
            double least = INFINITY;
            for (long own = 1; own <= n; own++) {
                double before = stage ? sum[(stage - 1) * (L + 1) + n - own] : n == own ? 0 : INFINITY;
                double here = t[stage * (L + 1) + own];
                if (here <= most && before + here < least) {
                    least = before + here;
                    took[stage * (L + 1) + n] = own;
                }
            }
            sum[stage * (L + 1) + n] = least;
        }
    return sum[(stages - 1) * (L + 1) + L];
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// x->now = the list with the least sum t + (m - 1) max t; false where none fits.
static bool estimate(struct search *x, double *t, double *sum, double *bound, long *took)
{
    enum { BOUNDS = 256 };
    long stages = x->t->p.stages, L = x->t->layers, m = x->t->p.micro_batches, n = 0;
    double least = INFINITY;
    fill_estimate(x, t, L);
    for (long i = 0; i < stages * (L + 1); i++)
        if (isfinite(t[i])) bound[n++] = t[i];
    qsort(bound, (size_t)n, sizeof *bound, compare_doubles);
    long distinct = 0;
    for (long i = 0; i < n; i++)
        if (!distinct || bound[i] > bound[distinct - 1] * (1 + 1e-12)) bound[distinct++] = bound[i];
    long step = distinct > BOUNDS ? distinct / BOUNDS + 1 : 1;
    for (long i = step - 1; i < distinct + step - 1; i += step) {
        double most = bound[i < distinct ? i : distinct - 1];
        if (most * (double)(m > 0 ? m : 1) >= least) break; // the slowest stage alone takes as long
        double total = least_sum(t, sum, took, stages, L, most) + (double)(m - 1) * most;
        if (total >= least) continue;
        least = total;
        for (long stage = stages - 1, left = L; stage >= 0; left -= x->now.layers[stage--])
            x->now.layers[stage] = took[stage * (L + 1) + left];
    }
    bool fits = isfinite(least);
    for (long stage = 0; fits && stage < stages; stage++) fits &= set_recompute(x, &x->now, stage);
    return fits;
}

// Moves single layers from part to part while that helps.
static void improve(struct search *x)
{
    for (bool better = true; better && x->budget > 0;) {
        struct split from = x->best;
        better = false;
        for (long a = 0; a < parts_of(x->t) && x->budget > 0; a++)
            for (long b = 0; b < parts_of(x->t) && x->budget > 0; b++) {
                if (a == b || from.layers[a] < 2) continue;
                memcpy(&x->now, &from, sizeof from);
                x->now.layers[a]--;
                x->now.layers[b]++;
                better |= consider(x);
            }
    }
}

// What the run says, which is the even split unless lists were given.
static void as_given(const struct search *x, struct split *s)
{
    split_given(s, x->t->run);
}

static enum status start_from_estimate(struct search *x, bool *fits)
{
    size_t n = (size_t)(x->t->p.stages * (x->t->layers + 1));
    double *room = malloc(3 * n * sizeof *room);
    long *took = malloc(n * sizeof *took);
    if (room && took) *fits = estimate(x, room, room + n, room + 2 * n, took);
    free(room);
    free(took);
    return room && took ? OK : fail(ERR_MEMORY, "memory: a table of %zu numbers was refused", 3 * n);
}

// Where the search begins, in x->now; false where nothing fits.
static enum status find_start(struct search *x, bool *fits)
{
    if (x->t->p.chunks == 1 && !x->t->keep_layers) return start_from_estimate(x, fits);
    as_given(x, &x->now);
    *fits = true;
    for (long stage = 0; stage < x->t->p.stages; stage++) *fits &= set_recompute(x, &x->now, stage);
    return OK;
}

static enum status find(struct search *x, bool *fits)
{
    x->seconds = INFINITY;
    if (x->t->layers <= EXHAUSTIVE_LAYERS && !x->t->keep_layers) {
        exhaust(x, 0, x->t->layers);
        *fits = isfinite(x->seconds);
    } else {
        TRY(find_start(x, fits));
        x->best = x->now;
        if (*fits && x->budget > 0 && !x->t->keep_layers && consider(x)) improve(x);
    }
    if (*fits) return OK;
    as_given(x, &x->best);
    for (long stage = 0; stage < x->t->p.stages; stage++) (void)set_recompute(x, &x->best, stage);
    return OK;
}

enum status split_best(struct split *s, bool *fits, const struct split_task *t, double effort)
{
    CHECK(parts_of(t) <= MOST_PARTS && parts_of(t) <= t->layers);
    struct search *x = calloc(1, sizeof *x);
    struct part_times *part = calloc((size_t)parts_of(t), sizeof *part);
    enum status status = x && part ? OK : fail(ERR_MEMORY, "memory: a search over splits was refused");
    if (status == OK) status = simulator_open(&x->sim, &t->p, false);
    if (status == OK) {
        x->t = t;
        x->part = part;
        x->budget = effort;
        status = find(x, fits);
        *s = x->best;
        simulator_close(&x->sim);
    }
    free(x);
    free(part);
    return status;
}
