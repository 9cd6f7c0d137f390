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
    struct mailbox *box[] = {&e->forward, &e->back};
    for (int i = 0; i < 2; i++) {
        box[i]->out.place = arena_take(&e->messages, box[i]->out.n * elements, size);
        box[i]->in.place = arena_take(&e->messages, box[i]->out.n ? elements : 0, size);
    }
}

long pipeline_message_bytes(const struct model_options *o, const struct config *c, const struct pipeline_schedule *s)
{
    long tp = o->grid ? o->grid->tensor.size : 1, own = (o->B * o->S + tp - 1) / tp;
    struct arena a = arena_measure("messages", DEVICE_CPU);
    for (int i = 0; i < 2; i++) {
        arena_take(&a, outbox_size(s) * own * c->D, dtype_size(o->dtype));
        arena_take(&a, s->p.stages > 1 ? own * c->D : 0, dtype_size(o->dtype));
    }
    return a.peak;
}

enum status pipeline_init(struct pipeline_engine *e, struct model *m, struct pipeline_schedule s)
{
    long n = outbox_size(&s);
    *e = (struct pipeline_engine){.m = m, .schedule = s, .forward.out.n = n, .back.out.n = n};
    e->messages = arena_measure("messages between stages", m->x.k->device);
    e->forward.out.transfer = calloc((size_t)n + 1, sizeof *e->forward.out.transfer);
    e->back.out.transfer = calloc((size_t)n + 1, sizeof *e->back.out.transfer);
    messages_layout(e);
    enum status status = e->forward.out.transfer && e->back.out.transfer ? arena_reserve(&e->messages)
                       : fail(ERR_MEMORY, "memory: a list of %ld messages was refused", n);
    if (status == OK) {
        messages_layout(e);
        return OK;
    }
    pipeline_free(e);
    return status;
}

void pipeline_free(struct pipeline_engine *e)
{
    free(e->forward.out.transfer);
    free(e->back.out.transfer);
    pipeline_schedule_free(&e->schedule);
    arena_release(&e->messages);
    *e = (struct pipeline_engine){0};
}

// ---- messages ----

static long bytes_of(const struct model *m, const struct batch *b)
{
    return own_tokens(&m->x, b->B * b->S).count * m->c.D * dtype_size(m->x.k->el);
}

static struct transfer *receive_start(const struct model *m, enum channel channel, long stage, el *to, long bytes)
{
    struct message in = {group_world_rank(&m->grid.pipeline, stage), to, bytes};
    return transfer_start(channel, NULL, 0, &in, 1);
}

static void receive_wait(struct transfer *t)
{
    enum phase back_to = alive_phase_now();
    alive_phase(PHASE_EXCHANGE);
    transfer_wait(t);
    alive_phase(back_to);
}

// Asks for the message of the first action from `a` on that receives one of that channel.
static void await(struct pipeline_engine *e, enum channel channel, const struct action *a,
                  const struct micro_source *source)
{
    bool back = channel == CHANNEL_PIPELINE_BACK;
    struct inbox *box = back ? &e->back.in : &e->forward.in;
    const struct action *end = e->schedule.action + e->schedule.n;
    while (a < end && a->kind != (back ? ACTION_RECEIVE_GRADIENT : ACTION_RECEIVE_ACTIVATION)) a++;
    box->awaited = a;
    if (a == end) return;
    double weight;
    struct batch b = source->batch(source->whom, a->micro, &weight);
    box->transfer = receive_start(e->m, channel, action_peer(&e->schedule, a), box->place, bytes_of(e->m, &b));
}

static void receive(struct pipeline_engine *e, enum channel channel, const struct action *a, el *to, long bytes,
                    const struct micro_source *source)
{
    struct inbox *box = channel == CHANNEL_PIPELINE_BACK ? &e->back.in : &e->forward.in;
    CHECK(box->awaited == a);
    receive_wait(box->transfer);
    e->m->x.k->copy(to, box->place, bytes);
    await(e, channel, a + 1, source);
}

static void send(struct pipeline_engine *e, enum channel channel, long stage, const el *from, long bytes)
{
    const struct model *m = e->m;
    struct outbox *box = channel == CHANNEL_PIPELINE_BACK ? &e->back.out : &e->forward.out;
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
        receive(e, CHANNEL_PIPELINE, a, model_input(m, &i), bytes, source);
        return OK;
    case ACTION_RECEIVE_GRADIENT:
        receive(e, CHANNEL_PIPELINE_BACK, a, model_output_gradient(m, &i), bytes, source);
        return OK;
    case ACTION_SEND_ACTIVATION:
        send(e, CHANNEL_PIPELINE, action_peer(&e->schedule, a), m->out, bytes);
        return OK;
    case ACTION_SEND_GRADIENT:
        send(e, CHANNEL_PIPELINE_BACK, action_peer(&e->schedule, a), m->dx, bytes);
        return OK;
    }
    CHECK(!"an action");
}

enum status pipeline_step(struct pipeline_engine *e, const struct micro_source *source, double *sum)
{
    *sum = 0;
    await(e, CHANNEL_PIPELINE, e->schedule.action, source);
    await(e, CHANNEL_PIPELINE_BACK, e->schedule.action, source);
    for (const struct action *a = e->schedule.action; a < e->schedule.action + e->schedule.n; a++)
        TRY(act(e, a, source, sum));
    all_sent(&e->forward.out);
    all_sent(&e->back.out);
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
            receive_wait(receive_start(m, CHANNEL_PIPELINE, (stage + stages - 1) % stages, model_input(m, &i), bytes));
        sum += model_chunk_loss(m, c, b, NULL);
        struct message out = {group_world_rank(&m->grid.pipeline, (stage + 1) % stages), m->out, bytes};
        if (travels && !model_ends(m, c)) transfer_wait(transfer_start(CHANNEL_PIPELINE, &out, 1, NULL, 0));
    }
    return sum;
}
