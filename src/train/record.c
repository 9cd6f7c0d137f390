// What a run leaves behind of each step: a row of metrics.jsonl (fields in docs/formats.md) and lines of progress.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>

#include "base/log.h"
#include "train/trainer.h"

static double wall_time(void)
{
    struct timeval now;
    gettimeofday(&now, NULL);
    return (double)now.tv_sec + (double)now.tv_usec * 1e-6;
}

// What a gate's bias does is in its differences: adding a number to all of them changes nothing.
static double range_of(const double *bias, long E)
{
    double low = bias[0], high = bias[0];
    for (long e = 1; e < E; e++) {
        low = bias[e] < low ? bias[e] : low;
        high = bias[e] > high ? bias[e] : high;
    }
    return high - low;
}

static void put_layer(struct json_out *o, const struct trainer *t, long l)
{
    const struct moe_balance *b = &t->model.balance[l];
    long E = t->config.E, most = 0, sum = 0;
    for (long e = 0; e < E; e++) {
        if (b->count[e] > most) most = b->count[e];
        sum += b->count[e];
    }
    double tokens = (double)b->tokens;
    json_begin(o, NULL, '{');
    json_put_real(o, "drop_rate", t->result.drop[l]);
    json_put_real(o, "aux_coeff", t->result.alpha[l]);
    json_put_real(o, "aux_loss", b->aux);
    if (t->o.z_coeff > 0) json_put_real(o, "z_loss", b->z);
    if (t->config.gate_bias) json_put_real(o, "bias_range", range_of(b->bias, E));
    json_begin(o, "tokens_per_expert", '[');
    for (long e = 0; e < E; e++) json_put_long(o, NULL, b->count[e]);
    json_end(o, ']');
    json_put_real(o, "overload", sum ? (double)most * (double)E / (double)sum : NAN);
    json_put_real(o, "router_entropy", b->statistics.entropy / tokens);
    json_put_real(o, "max1_max2", b->statistics.max1_max2 / tokens);
    json_put_real(o, "max2_max3", E < 3 ? NAN : b->statistics.max2_max3 / tokens);
    json_end(o, '}');
}

static void put_step(struct json_out *o, const struct trainer *t)
{
    const struct step_result *r = &t->result;
    json_begin(o, NULL, '{');
    json_put_long(o, "step", r->step);
    json_put_long(o, "tokens", t->state.tokens);
    json_put_real(o, "flops", (double)t->state.tokens * config_train_flops_per_token(&t->config, t->o.S));
    json_put_real(o, "seconds", t->state.seconds);
    json_put_real(o, "loss", r->loss);
    if (t->data.sources > 1) {
        json_begin(o, "source_loss", '[');
        for (long s = 0; s < t->data.sources; s++) json_put_real(o, NULL, r->source_loss[s]);
        json_end(o, ']');
    }
    json_put_real(o, "aux_loss", r->aux_loss);
    if (t->o.z_coeff > 0) json_put_real(o, "z_loss", r->z_loss);
    json_put_real(o, "lr", r->lr);
    json_put_real(o, "grad_norm", r->norm);
    json_put_bool(o, "skipped", r->skipped);
    json_put_real(o, "step_time_s", r->seconds);
    json_put_real(o, "tokens_per_s", (double)(t->o.global_batch * t->o.S) / r->seconds);
    json_put_real(o, "tflops", r->tflops);
    if (t->o.peak_tflops > 0) json_put_real(o, "mfu", r->tflops / (t->o.peak_tflops * (double)t->grid.world.size));
    else json_put_null(o, "mfu");
    json_put_real(o, "exposed_comm_s", r->exposed);
    if (t->grid.world.size > 1) {
        json_put_long(o, "sent_bytes", r->sent.near + r->sent.far);
        json_put_long(o, "sent_between_hosts_bytes", r->sent.far);
        json_put_long(o, "expert_rows_bytes", r->experts.near + r->experts.far);
        json_put_long(o, "expert_rows_between_hosts_bytes", r->experts.far);
        json_put_real(o, "expert_rows_exposed_s", r->rows_exposed);
    }
    json_put_long(o, "rss_bytes", resident_bytes());
    json_begin(o, "layers", '[');
    for (long l = 0; l < (t->model.balance ? t->config.L : 0); l++) put_layer(o, t, l);
    json_end(o, ']');
    json_end(o, '}');
}

static enum status write_row(struct trainer *t, struct json_out *o)
{
    enum status status = json_out_status(o);
    if (status == OK && t->metrics.jsonl >= 0) status = metrics_write(&t->metrics, t->state.step, o->text, wall_time());
    json_out_free(o);
    return status;
}

enum status record_step(struct trainer *t)
{
    struct json_out o = {0};
    put_step(&o, t);
    return write_row(t, &o);
}

// Mean pairwise cosine of each layer's experts; null where no rank has them all (inspect --similarity tells it from the
// checkpoint).
static void put_similarity(struct json_out *o, const struct trainer *t)
{
    const struct model *m = &t->model;
    long E = t->config.E, F = t->config.F, D = t->config.D;
    json_begin(o, "expert_similarity", '[');
    for (long l = 0; l < (E ? t->config.L : 0); l++) {
        long local = model_local_layer(m, l);
        double similarity = moe_alone(&m->x) ? 0 : NAN;
        if (local >= 0 && moe_alone(&m->x) && m->grid.dp == 0 && m->grid.tp == 0) {
            const struct tensor w[] = {m->p.layer[local].w13, m->p.layer[local].w2};
            const long n[] = {2 * F * D, D * F};
            similarity = m->x.k->expert_similarity(w, n, 2, E);
        }
        group_sum_f64(&m->grid.world, &similarity, 1);
        json_put_real(o, NULL, similarity);
    }
    json_end(o, ']');
}

enum status record_evaluation(struct trainer *t, const struct evaluation *e, double seconds)
{
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_put_long(&o, "step", t->state.step);
    json_put_real(&o, "eval_loss", e->loss);
    json_put_real(&o, "eval_ppl", e->perplexity);
    put_similarity(&o, t);
    json_put_real(&o, "bits_per_byte", e->bits_per_byte);
    json_put_long(&o, "eval_tokens", e->tokens);
    json_put_real(&o, "eval_time_s", seconds);
    json_end(&o, '}');
    log_line("step %ld: evaluation loss %.4f, perplexity %.2f over %ld tokens, %.1f s", t->state.step, e->loss,
             e->perplexity, e->tokens, seconds);
    return write_row(t, &o);
}

static void duration(char text[32], double seconds)
{
    long s = (long)(seconds + 0.5);
    if (s >= 3600) snprintf(text, 32, "%ldh%02ldm", s / 3600, s / 60 % 60);
    else if (s >= 60) snprintf(text, 32, "%ldm%02lds", s / 60, s % 60);
    else snprintf(text, 32, "%lds", s);
}

void record_progress(const struct trainer *t)
{
    const struct step_result *r = &t->result;
    char left[32], moe[96] = "";
    double each = (seconds_now() - t->started) / (double)(r->step - t->started_step);
    duration(left, each * (double)(t->o.train_steps - r->step));
    if (t->model.balance) {
        double drop = 0, alpha = 0;
        for (long l = 0; l < t->config.L; l++) {
            drop += t->result.drop[l] / (double)t->config.L;
            alpha += t->result.alpha[l] / (double)t->config.L;
        }
        snprintf(moe, sizeof moe, ", dropped %.1f%%, aux coeff %.2g", 100 * drop, alpha);
    }
    log_line("step %ld/%ld: loss %.4f, lr %.3g, grad norm %.3g%s%s, %.0f tokens/s, %s left", r->step, t->o.train_steps,
             r->loss, r->lr, r->norm, r->skipped ? " (skipped)" : "", moe,
             (double)(t->o.global_batch * t->o.S) / r->seconds, left);
}

void record_start(const struct trainer *t)
{
    const struct config *c = &t->config;
    char experts[64] = "dense";
    if (c->E) snprintf(experts, sizeof experts, "%ld experts, top-%ld", c->E, c->K);
    log_line("model: %s, %ld layers, hidden %ld, ffn %ld, heads %ld/%ld x %ld, vocabulary %ld, %s", arch_name(c->arch),
             c->L, c->D, c->F, c->H, c->G, c->C, c->V, experts);
    log_line("parameters: %.2f M, active %.2f M; arithmetic %s", (double)config_params_total(c) / 1e6,
             (double)config_params_active(c) / 1e6, t->o.dtype);
    log_line("model FLOPs per token: 6 (active non-embedding parameters + head) + 6 L H C S = %.4g (peak unknown)",
             config_train_flops_per_token(c, t->o.S));
    for (long s = 0; s < t->data.sources; s++) {
        const struct dataset *d = &t->data.source[s].data;
        double wanted = (double)t->o.global_batch * (double)t->o.S * (double)t->o.train_steps;
        double weights = 0;
        for (long i = 0; i < t->data.sources; i++) weights += t->data.source[i].weight;
        log_line("data: %s, %ld documents, %ld tokens, %.2f epochs in this run", d->prefix, d->documents, d->tokens,
                 wanted * t->data.source[s].weight / weights / (double)d->tokens);
    }
    log_line("batch: %ld x %ld tokens in micro-batches of %ld; %ld steps", t->o.global_batch, t->o.S, t->model.o.B,
             t->o.train_steps);
    const struct layout *l = &t->grid.layout;
    if (t->grid.world.size > 1)
        log_line("ranks: %ld = %ld stages x %ld data x %ld tensor; experts: %ld replicas x %ld expert x %ld slices; %s",
                 t->grid.world.size, l->pp, l->dp, l->tp, l->dp * l->tp / (l->ep * l->etp), l->ep, l->etp,
                 pipeline_kind_name(t->layout.schedule));
}
