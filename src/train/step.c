// One optimizer step.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "train/trainer.h"

enum status step_init(struct trainer *t)
{
    size_t GB = (size_t)t->o.global_batch, S = (size_t)t->o.S, sources = (size_t)t->data.sources;
    size_t L = (size_t)t->config.L;
    t->ints = malloc(4 * GB * S * sizeof *t->ints);
    t->which = malloc(GB * sizeof *t->which);
    t->losses = malloc((size_t)(t->model.o.B * t->model.o.S) * sizeof *t->losses);
    t->source_sum = malloc(sources * sizeof *t->source_sum);
    t->source_n = malloc(sources * sizeof *t->source_n);
    t->result.source_loss = malloc(sources * sizeof *t->result.source_loss);
    t->result.alpha = malloc(L * sizeof *t->result.alpha);
    t->result.drop = malloc(L * sizeof *t->result.drop);
    if (t->ints && t->which && t->losses && t->source_sum && t->source_n && t->result.source_loss && t->result.alpha &&
        t->result.drop)
        return OK;
    return fail(ERR_MEMORY, "memory: a batch of %ld sequences of %ld tokens was refused (use smaller ones)",
                t->o.global_batch, t->o.S);
}

void step_free(struct trainer *t)
{
    free(t->ints);
    free(t->which);
    free(t->losses);
    free(t->source_sum);
    free(t->source_n);
    free(t->result.source_loss);
    free(t->result.alpha);
    free(t->result.drop);
}

// Sequences [first, first + B) of the step's samples.
static struct batch batch_of(const struct trainer *t, long first, long B)
{
    long S = t->o.S, all = t->o.global_batch * S;
    int *at = t->ints + first * S;
    return (struct batch){
        .B = B, .S = S, .token = at, .target = at + all, .position = at + 2 * all, .start = at + 3 * all};
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

// Reads the step's samples; *targets = unmasked targets among them.
static enum status read_samples(struct trainer *t, long *targets)
{
    *targets = 0;
    for (long i = 0; i < t->o.global_batch; i++) {
        struct batch b = batch_of(t, i, 1);
        TRY(loader_sample(&t->data, t->state.samples + i, b.token, b.target, b.position, b.start, &t->which[i]));
        TRY(check_tokens(t, &b, t->which[i]));
        for (long s = 0; s < b.S; s++) *targets += b.target[s] >= 0;
    }
    return OK;
}

static void add_source_losses(struct trainer *t, const struct batch *b, long first)
{
    head_values(&t->model.x, t->losses, t->model.head.loss, b->B * b->S);
    for (long i = 0; i < b->B * b->S; i++) {
        if (b->target[i] < 0) continue;
        long source = t->which[first + i / b->S];
        t->source_sum[source] += (double)t->losses[i];
        t->source_n[source]++;
    }
}

// Gradients of the whole step, and in *sum the CE over its unmasked targets.
static enum status forward_backward(struct trainer *t, long targets, double *sum)
{
    *sum = 0;
    if (t->replayed.given) TRY(routing_read(&t->replayed, t->result.step));
    model_zero_gradients(&t->model);
    balance_begin(&t->model);
    for (long s = 0; s < t->data.sources; s++) {
        t->source_sum[s] = 0;
        t->source_n[s] = 0;
    }
    for (long first = 0; first < t->o.global_batch; first += t->model.o.B) {
        long left = t->o.global_batch - first;
        struct batch b = batch_of(t, first, left < t->model.o.B ? left : t->model.o.B);
        double share = (double)b.B / (double)t->o.global_batch; // T_m / T_step
        if (t->replayed.given) routing_force(&t->replayed, &t->model, first * b.S, b.B * b.S);
        *sum += model_forward_backward(&t->model, &b, targets ? 1 / (double)targets : 0, share);
        if (t->routing.expert) TRY(routing_write(&t->routing, &t->model, t->result.step, first * b.S, b.B * b.S));
        if (t->data.sources > 1) add_source_losses(t, &b, first);
    }
    for (long s = 0; s < t->data.sources; s++)
        t->result.source_loss[s] = t->source_n[s] ? t->source_sum[s] / (double)t->source_n[s] : NAN;
    if (t->o.dump_gradients && t->state.step == t->started_step) TRY(gradients_write(t->o.dump_gradients, &t->model));
    return OK;
}

static void summarise_balance(struct trainer *t)
{
    t->result.aux_loss = 0;
    for (long l = 0; l < (t->model.balance ? t->config.L : 0); l++) {
        const struct moe_balance *b = &t->model.balance[l];
        t->result.alpha[l] = b->alpha;
        t->result.drop[l] = drop_rate(b, t->config.K);
        t->result.aux_loss += b->alpha * b->aux + t->o.z_coeff * b->z;
    }
}

// What the optimizer does with the gradients, or why it leaves them.
static void update(struct trainer *t)
{
    struct step_result *r = &t->result;
    r->norm = gradient_norm(&t->model);
    r->skipped = !isfinite(r->norm) || (t->o.skip_grad_norm > 0 && r->norm > t->o.skip_grad_norm);
    r->culprit = isfinite(r->norm) ? NULL : gradient_not_finite(&t->model);
    if (r->skipped) {
        t->state.skipped_in_row++;
        return;
    }
    t->state.skipped_in_row = 0;
    t->state.updates++;
    optimizer_step(&t->optimizer, &t->model, r->lr, r->norm, t->state.updates);
    balance_end(&t->model, &t->balance);
}

static enum status too_many_skipped(const struct trainer *t)
{
    const struct step_result *r = &t->result;
    char path[PATH_LENGTH], kept[PATH_LENGTH + 64] = "no checkpoint was written";
    if (checkpoint_latest(path, t->o.output) == OK) snprintf(kept, sizeof kept, "%s is untouched", path);
    if (r->culprit)
        return fail(ERR_FORMAT, "step %ld: %ld steps in a row were skipped, the gradient of %s is not finite (%s; use "
                    "a lower --lr)", r->step, t->state.skipped_in_row, r->culprit, kept);
    return fail(ERR_FORMAT, "step %ld: %ld steps in a row were skipped, gradient norm %.4g is above --skip-grad-norm "
                "%g (%s; use a lower --lr or a higher bound)", r->step, t->state.skipped_in_row, r->norm,
                t->o.skip_grad_norm, kept);
}

enum status trainer_step(struct trainer *t)
{
    struct step_result *r = &t->result;
    double begin = seconds_now();
    long targets, tokens = t->o.global_batch * t->o.S;
    r->step = t->state.step + 1;
    r->lr = schedule_lr(&t->schedule, r->step);
    TRY(read_samples(t, &targets));
    double sum;
    TRY(forward_backward(t, targets, &sum));
    r->loss = targets ? sum / (double)targets : NAN;
    summarise_balance(t);
    update(t);

    t->state.step++;
    t->state.samples += t->o.global_batch;
    t->state.tokens += tokens;
    r->seconds = seconds_now() - begin;
    t->state.seconds += r->seconds;
    r->tflops = config_train_flops_per_token(&t->config, t->o.S) * (double)tokens / r->seconds * 1e-12;
    TRY(record_step(t));
    if (t->state.skipped_in_row >= t->o.max_skipped) return too_many_skipped(t);
    return OK;
}
