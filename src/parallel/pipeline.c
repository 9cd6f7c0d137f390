#include "parallel/pipeline.h"

#include <stdlib.h>

#include "comm/alive.h"

// ---- what is under way ----

// Two are enough where messages go between neighbours in a line: a stage that waits for the last but one to arrive
// waits for a neighbour that needs nothing later from it. Around a ring all that the stage keeps may be under way.
static long outbox_size(const struct pipeline_schedule *s)
{
    long n = 2;
    if (s->p.stages == 1) return 0;
    for (long c = 0; s->p.chunks > 1 && c < s->p.chunks; c++) n += s->slots[c].saved;
    return s->p.chunks > 1 ? 2 * n : n;
}

static long message_elements(const struct model *m)
{
    return own_most(&m->x, m->o.B * m->o.S) * m->c.D;
}

static void messages_layout(struct pipeline_engine *e)
{
    long elements = message_elements(e->m), size = dtype_size(e->m->x.k->el);
    e->forward.place = arena_take(&e->messages, e->forward.n * elements, size);
    e->back.place = arena_take(&e->messages, e->back.n * elements, size);
}

long pipeline_message_bytes(const struct model_options *o, const struct config *c, const struct pipeline_schedule *s)
{
    long tp = o->grid ? o->grid->tensor.size : 1, own = (o->B * o->S + tp - 1) / tp;
    struct arena a = arena_measure("messages", DEVICE_CPU);
    for (int i = 0; i < 2; i++) arena_take(&a, outbox_size(s) * own * c->D, dtype_size(o->dtype));
    return a.peak;
}

enum status pipeline_init(struct pipeline_engine *e, struct model *m, struct pipeline_schedule *s)
{
    long n = outbox_size(s);
    *e = (struct pipeline_engine){.m = m, .schedule = *s, .forward.n = n, .back.n = n};
    e->messages = arena_measure("messages between stages", m->x.k->device);
    e->forward.transfer = calloc((size_t)n + 1, sizeof *e->forward.transfer);
    e->back.transfer = calloc((size_t)n + 1, sizeof *e->back.transfer);
    messages_layout(e);
    enum status status = e->forward.transfer && e->back.transfer ? arena_reserve(&e->messages)
                       : fail(ERR_MEMORY, "memory: a list of %ld messages was refused", n);
    if (status == OK) {
        messages_layout(e);
        *s = (struct pipeline_schedule){0};
        return OK;
    }
    e->schedule = (struct pipeline_schedule){0};
    pipeline_free(e);
    return status;
}

void pipeline_free(struct pipeline_engine *e)
{
    free(e->forward.transfer);
    free(e->back.transfer);
    pipeline_schedule_free(&e->schedule);
    arena_release(&e->messages);
    *e = (struct pipeline_engine){0};
}

// ---- messages ----

static long bytes_of(const struct model *m, const struct batch *b)
{
    return own_tokens(&m->x, b->B * b->S).count * m->c.D * dtype_size(m->x.k->el);
}

static void receive(const struct model *m, enum channel channel, long stage, el *to, long bytes)
{
    struct message in = {group_world_rank(&m->grid.pipeline, stage), to, bytes};
    enum phase back_to = alive_phase_now();
    alive_phase(PHASE_EXCHANGE);
    transfer_wait(transfer_start(channel, NULL, 0, &in, 1));
    alive_phase(back_to);
}

static void send(struct pipeline_engine *e, struct outbox *box, enum channel channel, long stage, const el *from,
                 long bytes)
{
    const struct model *m = e->m;
    long i = box->next++ % box->n;
    el *copy = el_at(&m->x, box->place, i * message_elements(m));
    transfer_wait(box->transfer[i]);
    m->x.k->copy(copy, from, bytes);
    struct message out = {group_world_rank(&m->grid.pipeline, stage), copy, bytes};
    box->transfer[i] = transfer_start(channel, &out, 1, NULL, 0);
}

static void all_sent(struct outbox *box)
{
    for (long i = 0; i < box->n; i++) {
        transfer_wait(box->transfer[i]);
        box->transfer[i] = NULL;
    }
}

// ---- a step ----

static enum status act(struct pipeline_engine *e, const struct action *a, const struct micro_source *source,
                       double *sum)
{
    struct model *m = e->m;
    struct micro i = {.chunk = a->chunk, .number = a->micro, .loss_scale = source->loss_scale,
                      .last = a->micro == e->schedule.p.micro_batches - 1};
    struct batch b = source->batch(source->whom, a->micro, &i.aux_weight);
    long bytes = bytes_of(m, &b);
    switch (a->kind) {
    case ACTION_FORWARD:
        alive_phase(PHASE_FORWARD);
        if (source->before) source->before(source->whom, m, &i, &b);
        *sum += model_forward(m, &i, &b);
        return source->forwarded ? source->forwarded(source->whom, m, &i, &b) : OK;
    case ACTION_BACKWARD:
        alive_phase(PHASE_BACKWARD);
        model_backward(m, &i, &b);
        return OK;
    case ACTION_BACKWARD_INPUT:
        alive_phase(PHASE_BACKWARD);
        model_backward_input(m, &i, &b);
        return OK;
    case ACTION_BACKWARD_WEIGHT:
        alive_phase(PHASE_BACKWARD);
        model_backward_weight(m, &i, &b);
        return OK;
    case ACTION_RECEIVE_ACTIVATION:
        receive(m, CHANNEL_PIPELINE, action_peer(&e->schedule, a), model_input(m, &i), bytes);
        return OK;
    case ACTION_RECEIVE_GRADIENT:
        receive(m, CHANNEL_PIPELINE_BACK, action_peer(&e->schedule, a), model_output_gradient(m, &i), bytes);
        return OK;
    case ACTION_SEND_ACTIVATION:
        send(e, &e->forward, CHANNEL_PIPELINE, action_peer(&e->schedule, a), m->out, bytes);
        return OK;
    case ACTION_SEND_GRADIENT:
        send(e, &e->back, CHANNEL_PIPELINE_BACK, action_peer(&e->schedule, a), m->dx, bytes);
        return OK;
    }
    CHECK(!"an action");
}

enum status pipeline_step(struct pipeline_engine *e, const struct micro_source *source, double *sum)
{
    *sum = 0;
    for (const struct action *a = e->schedule.action; a < e->schedule.action + e->schedule.n; a++)
        TRY(act(e, a, source, sum));
    all_sent(&e->forward);
    all_sent(&e->back);
    return OK;
}

double pipeline_loss(struct model *m, const struct batch *b)
{
    long stages = m->grid.layout.pp, stage = m->grid.pp, chunks = m->grid.layout.virtual_stages, bytes = bytes_of(m, b);
    double sum = 0;
    for (long c = 0; c < chunks; c++) {
        struct micro i = {.chunk = c};
        bool travels = stages > 1;
        if (travels && !model_begins(m, c))
            receive(m, CHANNEL_PIPELINE, (stage + stages - 1) % stages, model_input(m, &i), bytes);
        sum += model_chunk_loss(m, c, b, NULL);
        struct message out = {group_world_rank(&m->grid.pipeline, (stage + 1) % stages), m->out, bytes};
        if (travels && !model_ends(m, c)) transfer_wait(transfer_start(CHANNEL_PIPELINE, &out, 1, NULL, 0));
    }
    return sum;
}
