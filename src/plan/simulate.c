#include "plan/simulate.h"

#include <stdlib.h>
#include <string.h>

enum { ACTIVATION, GRADIENT };

static bool is_work(enum action_kind kind)
{
    return !action_sends(kind) && !action_receives(kind);
}

static int kind_of(enum action_kind kind)
{
    return kind == ACTION_SEND_GRADIENT || kind == ACTION_RECEIVE_GRADIENT ? GRADIENT : ACTIVATION;
}

// ---- life ----

static bool reserve(struct simulator *s, bool record)
{
    size_t n = (size_t)s->p.stages;
    s->arrival = malloc((n * 2 * (size_t)s->messages + 1) * sizeof *s->arrival);
    s->at = calloc(n, sizeof *s->at);
    s->sent = calloc(2 * n, sizeof *s->sent);
    s->taken = calloc(2 * n, sizeof *s->taken);
    s->ready = calloc(n, sizeof *s->ready);
    s->queued = calloc(n, sizeof *s->queued);
    s->end = calloc(n, sizeof *s->end);
    s->busy = calloc(n, sizeof *s->busy);
    s->events_n = calloc(n, sizeof *s->events_n);
    s->events = record ? calloc(n, sizeof *s->events) : NULL;
    if (!s->arrival || !s->at || !s->sent || !s->taken || !s->ready || !s->queued || !s->end || !s->busy ||
        !s->events_n || (record && !s->events))
        return false;
    for (size_t i = 0; record && i < n; i++)
        if (!(s->events[i] = calloc((size_t)s->schedule[i].n + 1, sizeof *s->events[i]))) return false;
    return true;
}

static enum status open_parts(struct simulator *s, bool record)
{
    s->schedule = calloc((size_t)s->p.stages, sizeof *s->schedule);
    if (!s->schedule) return fail(ERR_MEMORY, "memory: a simulation of %ld stages was refused", s->p.stages);
    for (long i = 0; i < s->p.stages; i++) TRY(pipeline_schedule_make(&s->schedule[i], &s->p, i));
    if (!reserve(s, record))
        return fail(ERR_MEMORY, "memory: a simulation of %ld stages and %ld micro-batches was refused", s->p.stages,
                    s->p.micro_batches);
    return OK;
}

enum status simulator_open(struct simulator *s, const struct pipeline *p, bool record)
{
    *s = (struct simulator){.p = *p, .messages = p->micro_batches * p->chunks};
    TRY(pipeline_check(p));
    enum status status = open_parts(s, record);
    if (status != OK) simulator_close(s);
    return status;
}

void simulator_close(struct simulator *s)
{
    for (long i = 0; i < s->p.stages; i++) {
        if (s->schedule) pipeline_schedule_free(&s->schedule[i]);
        if (s->events) free(s->events[i]);
    }
    free(s->schedule);
    free(s->arrival);
    free(s->at);
    free(s->sent);
    free(s->taken);
    free(s->ready);
    free(s->queued);
    free(s->end);
    free(s->busy);
    free(s->events);
    free(s->events_n);
    *s = (struct simulator){0};
}

// ---- a run ----

static double *arrival_of(struct simulator *s, long stage, int kind)
{
    return s->arrival + (stage * 2 + kind) * s->messages;
}

static double duration(const struct part_times *t, enum action_kind kind)
{
    switch (kind) {
    case ACTION_FORWARD: return t->forward;
    case ACTION_BACKWARD: return t->input + t->weight;
    case ACTION_BACKWARD_INPUT: return t->input;
    case ACTION_BACKWARD_WEIGHT: return t->weight;
    default: return 0;
    }
}

// A stage goes on until it waits for a message; who may be waiting for one of its own becomes ready.
static long advance(struct simulator *s, long stage, const struct part_times *part, const double *message, long ready)
{
    const struct pipeline_schedule *list = &s->schedule[stage];
    double now = s->end[stage];
    for (; s->at[stage] < list->n; s->at[stage]++) {
        const struct action *a = &list->action[s->at[stage]];
        int kind = kind_of(a->kind);
        if (is_work(a->kind)) {
            double seconds = duration(&part[a->chunk * s->p.stages + stage], a->kind);
            if (s->events) s->events[stage][s->events_n[stage]++] = (struct event){*a, now, now + seconds};
            now += seconds;
            s->busy[stage] += seconds;
            continue;
        }
        long peer = action_peer(list, a);
        if (action_sends(a->kind)) {
            double travel = message[kind == ACTIVATION ? stage : peer];
            arrival_of(s, stage, kind)[s->sent[2 * stage + kind]++] = now + travel;
            if (!s->queued[peer]) {
                s->queued[peer] = true;
                s->ready[ready++] = peer;
            }
        } else {
            long *taken = &s->taken[2 * stage + kind];
            if (*taken == s->sent[2 * peer + kind]) break;
            double when = arrival_of(s, peer, kind)[(*taken)++];
            if (when > now) now = when;
        }
    }
    s->end[stage] = now;
    return ready;
}

double simulator_run(struct simulator *s, const struct part_times *part, const double *message)
{
    long n = s->p.stages, ready = 0;
    double last = 0;
    memset(s->at, 0, (size_t)n * sizeof *s->at);
    memset(s->sent, 0, 2 * (size_t)n * sizeof *s->sent);
    memset(s->taken, 0, 2 * (size_t)n * sizeof *s->taken);
    memset(s->events_n, 0, (size_t)n * sizeof *s->events_n);
    for (long i = n - 1; i >= 0; i--) {
        s->end[i] = s->busy[i] = 0;
        s->queued[i] = true;
        s->ready[ready++] = i;
    }
    while (ready) {
        long stage = s->ready[--ready];
        s->queued[stage] = false;
        ready = advance(s, stage, part, message, ready);
    }
    for (long i = 0; i < n; i++) {
        CHECK(s->at[i] == s->schedule[i].n);
        if (s->end[i] > last) last = s->end[i];
    }
    return last;
}

double simulator_bubble(const struct simulator *s)
{
    double busy = 0, last = 0;
    for (long i = 0; i < s->p.stages; i++) {
        busy += s->busy[i];
        if (s->end[i] > last) last = s->end[i];
    }
    return last > 0 ? 1 - busy / (last * (double)s->p.stages) : 0;
}
