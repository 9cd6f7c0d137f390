// One optimizer step.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "comm/alive.h"
#include "train/trainer.h"

long step_bytes(long rounds, long B, long S)
{
    return 4 * rounds * B * S * (long)sizeof(int);
}

enum status step_init(struct trainer *t)
{
    size_t own = (size_t)(t->rounds * t->model.o.B), sources = (size_t)t->data.sources;
    size_t L = (size_t)t->config.L;
    t->ints = malloc((size_t)step_bytes(t->rounds, t->model.o.B, t->o.S));
    t->which = malloc(own * sizeof *t->which);
    t->losses = malloc((size_t)(t->model.o.B * t->model.o.S) * sizeof *t->losses);
    t->sums = malloc((1 + 2 * sources) * sizeof *t->sums);
    t->result.source_loss = malloc(sources * sizeof *t->result.source_loss);
    t->result.alpha = malloc(L * sizeof *t->result.alpha);
    t->result.drop = malloc(L * sizeof *t->result.drop);
    if (t->ints && t->which && t->losses && t->sums && t->result.source_loss && t->result.alpha && t->result.drop)
        return OK;
    return fail(ERR_MEMORY, "memory: a batch of %ld sequences of %ld tokens was refused (use smaller ones)",
                t->o.global_batch, t->o.S);
}

void step_free(struct trainer *t)
{
    free(t->ints);
    free(t->which);
    free(t->losses);
    free(t->sums);
    free(t->result.source_loss);
    free(t->result.alpha);
    free(t->result.drop);
}

// The step's sequences that are this rank's number-th micro-batch: micro-batches go round the data-parallel ranks.
static struct range micro_samples(const struct trainer *t, long number)
{
    long B = t->model.o.B, first = (number * t->grid.layout.dp + t->grid.dp) * B, left = t->o.global_batch - first;
    return (struct range){first, left < 0 ? 0 : left < B ? left : B};
}

// B sequences from the at-th of those this rank keeps.
static struct batch batch_of(const struct trainer *t, long at, long B)
{
    long S = t->o.S, all = t->rounds * t->model.o.B * S;
    int *to = t->ints + at * S;
    return (struct batch){
        .B = B, .S = S, .token = to, .target = to + all, .position = to + 2 * all, .start = to + 3 * all};
}

static enum status check_tokens(const struct trainer *t, const struct batch *b, long source)
{
    for (long i = 0; i < b->S; i++) {
        long id = b->token[i] > b->target[i] ? b->token[i] : b->target[i];
        if (b->token[i] >= 0 && id < t->config.V) continue;
        return fail(ERR_FORMAT, "%s: holds token %ld, but the model's vocabulary has %ld (prepare it with the model's "
                    "tokenizer)", t->data.source[source].data.prefix, id < t->config.V ? (long)b->token[i] : id,
                    t->config.V);
    }
    return OK;
}

// Reads this rank's samples of the step; t->targets = unmasked targets of the whole step.
static enum status read_samples(struct trainer *t)
{
    t->targets = 0;
    for (long m = 0; m < t->rounds; m++) {
        struct range r = micro_samples(t, m);
        for (long i = 0; i < r.count; i++) {
            long at = m * t->model.o.B + i;
            struct batch b = batch_of(t, at, 1);
            TRY(loader_sample(&t->data, t->state.samples + r.first + i, b.token, b.target, b.position, b.start,
                              &t->which[at]));
            TRY(check_tokens(t, &b, t->which[at]));
            for (long s = 0; s < b.S; s++) t->targets += b.target[s] >= 0;
        }
    }
    return OK;
}

static void add_source_losses(struct trainer *t, const struct batch *b, long at)
{
    double *sum = t->sums + 1, *n = sum + t->data.sources;
    head_values(&t->model.x, t->losses, t->model.head.loss, b->B * b->S);
    for (long i = 0; i < b->B * b->S; i++) {
        if (b->target[i] < 0) continue;
        long source = t->which[at + i / b->S];
        sum[source] += (double)t->losses[i];
        n[source]++;
    }
}

// ---- what the pipeline asks for ----

static struct batch give_batch(void *trainer, long number, double *aux_weight)
{
    struct trainer *t = trainer;
    long B = micro_samples(t, number).count;
    *aux_weight = (double)B / (double)t->o.global_batch; // T_m / T_step
    return batch_of(t, number * t->model.o.B, B);
}

static void before_forward(void *trainer, struct model *m, const struct micro *i, const struct batch *b)
{
    struct trainer *t = trainer;
    if (t->replayed.given) routing_force(&t->replayed, m, micro_samples(t, i->number).first * b->S, b->B * b->S);
}

static enum status after_forward(void *trainer, const struct model *m, const struct micro *i, const struct batch *b)
{
    struct trainer *t = trainer;
    if (t->routing.expert)
        TRY(routing_write(&t->routing, m, i, t->result.step, micro_samples(t, i->number).first * b->S, b->B * b->S));
    if (t->data.sources > 1 && model_ends(m, i->chunk) && m->grid.tp == 0)
        add_source_losses(t, b, i->number * t->model.o.B);
    return OK;
}

// Sums over the world: each number is told by the ranks that have a part of it.
static void sum_losses(struct trainer *t, double own)
{
    bool tells = t->model.x.local.ends && t->grid.tp == 0;
    double *sum = t->sums + 1, *n = sum + t->data.sources;
    t->sums[0] = tells ? own : 0;
    group_sum_f64(&t->grid.world, t->sums, 1 + 2 * t->data.sources);
    t->result.loss = t->targets ? t->sums[0] / (double)t->targets : NAN;
    for (long s = 0; s < t->data.sources; s++) t->result.source_loss[s] = n[s] > 0 ? sum[s] / n[s] : NAN;
}

// Gradients of the whole step, and its losses.
static enum status forward_backward(struct trainer *t)
{
    double own;
    if (t->replayed.given) TRY(agree(routing_read(&t->replayed, t->result.step)));
    model_zero_gradients(&t->model);
    balance_begin(&t->model);
    for (long i = 0; i < 1 + 2 * t->data.sources; i++) t->sums[i] = 0;
    struct micro_source source = {.whom = t, .batch = give_batch, .before = before_forward, .forwarded = after_forward,
                                  .loss_scale = t->targets ? 1 / (double)t->targets : 0};
    TRY(pipeline_step(&t->engine, &source, &own));
    alive_phase(PHASE_REDUCE);
    zero_reduce(&t->zero);
    sum_losses(t, own);
    TRY(agree(balance_sum(&t->model)));
    if (t->routing.expert) TRY(agree(routing_write_step(&t->routing)));
    if (t->o.dump_gradients && t->state.step == t->started_step)
        TRY(gradients_write(t->o.dump_gradients, &t->zero));
    return OK;
}

static void summarise_balance(struct trainer *t)
{
    t->result.aux_loss = t->result.z_loss = 0;
    for (long l = 0; l < (t->model.balance ? t->config.L : 0); l++) {
        const struct moe_balance *b = &t->model.balance[l];
        t->result.alpha[l] = b->alpha;
        t->result.drop[l] = drop_rate(b, t->config.K);
        t->result.aux_loss += b->alpha * b->aux;
        t->result.z_loss += t->o.z_coeff * b->z;
    }
}

static enum status name_culprit(struct trainer *t)
{
    long i = zero_not_finite(&t->zero);
    struct param_list all;
    t->result.culprit[0] = '\0';
    if (i < 0) return OK;
    TRY(param_list_of(&all, &t->config, NULL));
    snprintf(t->result.culprit, sizeof t->result.culprit, "%s", all.item[i].name);
    param_list_free(&all);
    return OK;
}

// What the optimizer does with the gradients, or why it leaves them.
static enum status update(struct trainer *t)
{
    struct step_result *r = &t->result;
    r->norm = zero_norm(&t->zero);
    r->skipped = !isfinite(r->norm) || (t->o.skip_grad_norm > 0 && r->norm > t->o.skip_grad_norm);
    if (r->skipped) {
        t->state.skipped_in_row++;
        return name_culprit(t);
    }
    t->state.skipped_in_row = 0;
    t->state.updates++;
    alive_phase(PHASE_OPTIMIZER);
    zero_update(&t->zero, optimizer_at(&t->optimizer, r->lr, r->norm, t->state.updates));
    balance_end(&t->model, &t->balance);
    return OK;
}

static enum status too_many_skipped(const struct trainer *t)
{
    const struct step_result *r = &t->result;
    char path[PATH_LENGTH], kept[PATH_LENGTH + 64] = "no checkpoint was written";
    if (checkpoint_latest(path, t->o.output) == OK) snprintf(kept, sizeof kept, "%s is untouched", path);
    if (r->culprit[0])
        return fail(ERR_FORMAT, "step %ld: %ld steps in a row were skipped, the gradient of %s is not finite (%s; use "
                    "a lower --lr)", r->step, t->state.skipped_in_row, r->culprit, kept);
    return fail(ERR_FORMAT, "step %ld: %ld steps in a row were skipped, gradient norm %.4g is above --skip-grad-norm "
                "%g (%s; use a lower --lr or a higher bound)", r->step, t->state.skipped_in_row, r->norm,
                t->o.skip_grad_norm, kept);
}

// What this process has sent since its start, and how long it has waited for rows, gradients and weights of other
// ranks. Waiting for another stage is part of the pipeline's bubble and not counted.
struct so_far {
    double waited_s, rows_s; // for anything; for experts' rows
    long bytes[4]; // of all: near, far; of experts: near, far
};

static struct so_far so_far(void)
{
    struct so_far sum = {0};
    for (int c = 0; c < CHANNELS; c++) {
        struct traffic t = transport_traffic((enum channel)c);
        bool experts = c == CHANNEL_EXPERT || c == CHANNEL_EXPERT_TENSOR;
        if (c == CHANNEL_WORLD) continue;
        if (c != CHANNEL_PIPELINE && c != CHANNEL_PIPELINE_BACK) sum.waited_s += t.waited_s;
        if (experts) sum.rows_s += t.waited_s;
        sum.bytes[0] += t.near_bytes;
        sum.bytes[1] += t.far_bytes;
        sum.bytes[2] += experts ? t.near_bytes : 0;
        sum.bytes[3] += experts ? t.far_bytes : 0;
    }
    return sum;
}

// The step's share of it, over all ranks.
static void sum_traffic(struct trainer *t, const struct so_far *before)
{
    struct step_result *r = &t->result;
    struct so_far now = so_far();
    double waited[2] = {now.waited_s - before->waited_s, now.rows_s - before->rows_s};
    for (int i = 0; i < 4; i++) now.bytes[i] -= before->bytes[i];
    group_sum_f64(&t->grid.world, waited, 2);
    group_sum_long(&t->grid.world, now.bytes, 4);
    r->exposed = waited[0] / (double)t->grid.world.size;
    r->rows_exposed = waited[1] / (double)t->grid.world.size;
    r->sent = (struct sent){now.bytes[0], now.bytes[1]};
    r->experts = (struct sent){now.bytes[2], now.bytes[3]};
}

enum status trainer_step(struct trainer *t)
{
    struct step_result *r = &t->result;
    double begin = seconds_now();
    struct so_far before = so_far();
    long tokens = t->o.global_batch * t->o.S;
    r->step = t->state.step + 1;
    r->lr = schedule_lr(&t->schedule, r->step);
    alive_step(r->step);
    alive_phase(PHASE_LOAD);
    TRY(agree(read_samples(t)));
    group_sum_long(&t->grid.data, &t->targets, 1);
    TRY(forward_backward(t));
    summarise_balance(t);
    TRY(agree(update(t)));

    sum_traffic(t, &before);
    t->state.step++;
    t->state.samples += t->o.global_batch;
    t->state.tokens += tokens;
    r->seconds = seconds_now() - begin;
    t->state.seconds += r->seconds;
    r->tflops = config_train_flops_per_token(&t->config, t->o.S) * (double)tokens / r->seconds * 1e-12;
    TRY(agree(record_step(t)));
    if (t->state.skipped_in_row >= t->o.max_skipped) return agree(too_many_skipped(t));
    return OK;
}
