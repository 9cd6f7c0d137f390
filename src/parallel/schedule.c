#include "parallel/schedule.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const kind_names[] = {"1f1b", "interleaved", "zero-bubble"};

const char *pipeline_kind_name(enum pipeline_kind kind)
{
    return kind_names[kind];
}

bool pipeline_kind_from_name(enum pipeline_kind *kind, const char *name)
{
    for (int i = 0; i < (int)(sizeof kind_names / sizeof *kind_names); i++)
        if (strcmp(name, kind_names[i]) == 0) {
            *kind = (enum pipeline_kind)i;
            return true;
        }
    return false;
}

enum status pipeline_check(const struct pipeline *p)
{
    CHECK(p->stages >= 1 && p->chunks >= 1 && p->micro_batches >= 0);
    if (p->chunks > 1 && p->kind != PIPELINE_INTERLEAVED)
        return fail(ERR_CONFIG, "--virtual-stages %ld: --pipeline-schedule %s has one chunk of layers a stage (use "
                    "interleaved, or leave it out)", p->chunks, pipeline_kind_name(p->kind));
    if (p->chunks > INT_MAX || p->micro_batches > LONG_MAX / 8 / p->chunks / p->stages)
        return fail(ERR_CONFIG, "--global-batch-size: %ld micro-batches are more than can be listed (use fewer)",
                    p->micro_batches);
    return OK;
}

// ---- one action, with the messages around it ----

static bool is_first(const struct pipeline_schedule *s, int chunk)
{
    return s->stage == 0 && chunk == 0;
}

static bool is_last(const struct pipeline_schedule *s, int chunk)
{
    return s->stage == s->p.stages - 1 && chunk == s->p.chunks - 1;
}

// Without room it only counts.
static void put(struct pipeline_schedule *s, enum action_kind kind, int chunk, long micro)
{
    if (s->action) s->action[s->n] = (struct action){.kind = kind, .chunk = chunk, .micro = micro};
    s->n++;
}

static void forward(struct pipeline_schedule *s, int chunk, long micro)
{
    if (micro >= s->p.micro_batches) return; // of a group that is not full
    bool alone = s->p.stages == 1;
    if (!alone && !is_first(s, chunk)) put(s, ACTION_RECEIVE_ACTIVATION, chunk, micro);
    put(s, ACTION_FORWARD, chunk, micro);
    if (!alone && !is_last(s, chunk)) put(s, ACTION_SEND_ACTIVATION, chunk, micro);
}

static void backward(struct pipeline_schedule *s, enum action_kind kind, int chunk, long micro)
{
    if (micro >= s->p.micro_batches) return;
    bool alone = s->p.stages == 1;
    if (!alone && !is_last(s, chunk)) put(s, ACTION_RECEIVE_GRADIENT, chunk, micro);
    put(s, kind, chunk, micro);
    if (!alone && !is_first(s, chunk)) put(s, ACTION_SEND_GRADIENT, chunk, micro);
}

// ---- the three schedules ----

static long least(long a, long b)
{
    return a < b ? a : b;
}

static void list_1f1b(struct pipeline_schedule *s)
{
    long m = s->p.micro_batches, warm = least(s->p.stages - 1 - s->stage, m);
    for (long i = 0; i < warm; i++) forward(s, 0, i);
    for (long i = 0; i < m; i++) {
        if (warm + i < m) forward(s, 0, warm + i);
        backward(s, ACTION_BACKWARD, 0, i);
    }
}

// As 1f1b, but a stage lets W fall behind B by its distance from the first stage, whose forwards run as much ahead: so
// every stage keeps as many micro-batches as the first. What is left fills the gaps between the last B.
static void list_zero_bubble(struct pipeline_schedule *s)
{
    long m = s->p.micro_batches, warm = least(s->p.stages - 1 - s->stage, m), done = 0;
    for (long i = 0; i < warm; i++) forward(s, 0, i);
    for (long i = 0; i < m; i++) {
        if (warm + i < m) forward(s, 0, warm + i);
        backward(s, ACTION_BACKWARD_INPUT, 0, i);
        if (i >= s->stage || warm + i >= m) put(s, ACTION_BACKWARD_WEIGHT, 0, done++);
    }
    while (done < m) put(s, ACTION_BACKWARD_WEIGHT, 0, done++);
}

// The k-th forward (backward: chunks from the last) of a stage: `stages` micro-batches go through chunk after chunk.
struct turn {
    int chunk;
    long micro;
};
static struct turn turn_of(const struct pipeline *p, long k)
{
    long group = p->stages * p->chunks, in_group = k % group;
    return (struct turn){.chunk = (int)(in_group / p->stages), .micro = k / group * p->stages + in_group % p->stages};
}

// A stage is two forwards ahead of the next, not one as in 1f1b: then messages travel while it computes. The order is
// that of full groups of micro-batches. Actions of those that do not exist are left out: micro-batches do not
// depend on one another, so what is left still runs.
static void list_interleaved(struct pipeline_schedule *s)
{
    const struct pipeline *p = &s->p;
    long groups = (p->micro_batches + p->stages - 1) / p->stages, turns = groups * p->stages * p->chunks;
    long warm = least(2 * (p->stages - 1 - s->stage) + (p->chunks - 1) * p->stages, turns);
    for (long k = 0; k < turns + warm; k++) {
        struct turn f = turn_of(p, k), b = turn_of(p, k - warm);
        if (k < turns) forward(s, f.chunk, f.micro);
        if (k >= warm) backward(s, ACTION_BACKWARD, (int)p->chunks - 1 - b.chunk, b.micro);
    }
}

static void list_alone(struct pipeline_schedule *s)
{
    for (long i = 0; i < s->p.micro_batches; i++) {
        for (int c = 0; c < s->p.chunks; c++) forward(s, c, i);
        for (int c = (int)s->p.chunks - 1; c >= 0; c--) backward(s, ACTION_BACKWARD, c, i);
    }
}

static void list(struct pipeline_schedule *s)
{
    s->n = 0;
    if (s->p.kind == PIPELINE_ZERO_BUBBLE) list_zero_bubble(s);
    else if (s->p.stages == 1) list_alone(s);
    else if (s->p.chunks == 1) list_1f1b(s);
    else list_interleaved(s);
}

// ---- slots ----

static long most(long a, long b)
{
    return a > b ? a : b;
}

static void count_slots(struct pipeline_schedule *s, int chunk)
{
    struct pipeline_slots *slots = &s->slots[chunk];
    long f = 0, b = 0, w = 0;
    *slots = (struct pipeline_slots){0};
    for (const struct action *a = s->action; a < s->action + s->n; a++) {
        if (a->chunk != chunk) continue;
        f += a->kind == ACTION_FORWARD;
        b += a->kind == ACTION_BACKWARD || a->kind == ACTION_BACKWARD_INPUT;
        w += a->kind == ACTION_BACKWARD || a->kind == ACTION_BACKWARD_WEIGHT;
        slots->saved = most(slots->saved, f - w);
        slots->backward = most(slots->backward, f - b);
        slots->weight = most(slots->weight, b - w);
    }
}

enum status pipeline_schedule_make(struct pipeline_schedule *s, const struct pipeline *p, long stage)
{
    CHECK(stage >= 0 && stage < p->stages);
    struct pipeline_schedule made = {.p = *p, .stage = stage};
    TRY(pipeline_check(p));
    list(&made);
    made.action = calloc((size_t)made.n + 1, sizeof *made.action);
    made.slots = calloc((size_t)p->chunks, sizeof *made.slots);
    if (!made.action || !made.slots) {
        pipeline_schedule_free(&made);
        return fail(ERR_MEMORY, "memory: a schedule of %ld micro-batches was refused (use fewer)", p->micro_batches);
    }
    list(&made);
    for (int c = 0; c < p->chunks; c++) count_slots(&made, c);
    *s = made;
    return OK;
}

void pipeline_schedule_free(struct pipeline_schedule *s)
{
    free(s->action);
    free(s->slots);
    *s = (struct pipeline_schedule){0};
}

// ---- reading a list ----

bool action_sends(enum action_kind kind)
{
    return kind == ACTION_SEND_ACTIVATION || kind == ACTION_SEND_GRADIENT;
}

bool action_receives(enum action_kind kind)
{
    return kind == ACTION_RECEIVE_ACTIVATION || kind == ACTION_RECEIVE_GRADIENT;
}

long action_peer(const struct pipeline_schedule *s, const struct action *a)
{
    bool next = a->kind == ACTION_SEND_ACTIVATION || a->kind == ACTION_RECEIVE_GRADIENT;
    CHECK(action_sends(a->kind) || action_receives(a->kind));
    return (s->stage + (next ? 1 : s->p.stages - 1)) % s->p.stages;
}

void action_text(char text[ACTION_TEXT], const struct pipeline_schedule *s, const struct action *a)
{
    static const char *const word[] = {"F", "B", "I", "W", "<F", ">F", "<B", ">B"};
    int used = snprintf(text, ACTION_TEXT, "%s%ld", word[a->kind], a->micro);
    if (s->p.chunks > 1) snprintf(text + used, (size_t)(ACTION_TEXT - used), ".%d", a->chunk);
}
