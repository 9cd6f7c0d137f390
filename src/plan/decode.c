#include "plan/decode.h"

#include <math.h>

#include "plan/plan.h"

// Elements of a rank's matrices, by what happens to them in a step.
struct matrices {
    double attention, expert, experts, ffn, head, embedding; // expert: of one; of each layer but head and embedding
    double others;                                           // f32: norms and router
};

static struct matrices matrices_of(const struct run *r)
{
    const struct config *c = r->c;
    struct share_most m = share_most_of(c, &r->layout);
    double D = (double)c->D;
    struct matrices x = {.attention = (2 * m.H + 2 * m.G) * (double)c->C * D, .head = m.V * D, .embedding = m.V * D,
                         .others = 2 * D + (double)c->E * D};
    if (c->E) x.expert = 3 * m.F * D;
    else x.ffn = 3 * m.F * D;
    x.experts = m.E * x.expert;
    if (c->tied) x.embedding = 0;
    return x;
}

static double matrix_size(const struct decode_plan *p)
{
    return p->weights == QUANT_FP8 ? 1 : (double)dtype_size(p->run.dtype);
}

enum status decode_plan_make(struct decode_plan *p, const struct run *r, enum quant weights, long context, double limit)
{
    const struct config *c = r->c;
    const struct layout *l = &r->layout;
    if (l->pp != 1 || l->dp != 1)
        return fail(ERR_CONFIG, "--inference: %ld stages x %ld data-parallel ranks (one of each: give "
                    "--tensor-parallel-size all devices)", l->pp, l->dp);
    TRY(run_check(r));
    *p = (struct decode_plan){.run = *r, .weights = weights, .context = context,
                              .limit = limit > 0 ? limit : r->cluster->memory_bytes.value};
    struct matrices x = matrices_of(r);
    double L = (double)c->L, size = (double)dtype_size(r->dtype);
    p->weight_bytes = L * (x.attention + x.experts + x.ffn) * matrix_size(p) + (x.head + x.embedding) * size +
                      (L * x.others + (double)c->D) * 4;
    p->kv_bytes = 2 * L * share_most_of(c, l).G * (double)c->C * size;
    p->kv_tokens = floor((p->limit - p->weight_bytes) / p->kv_bytes);
    p->largest_batch = p->kv_tokens > 0 ? (long)(p->kv_tokens / (double)context) : 0;
    return OK;
}

// Reading n elements of `size` bytes and multiplying `rows` rows with n of them.
static double product_seconds(struct decode_step *s, const struct decode_plan *p, double n, double rows_n, double size,
                              enum rate rate)
{
    double read = n * size / p->run.cluster->read_bytes_per_s.value;
    double compute = 2 * rows_n / cluster_flops(p->run.cluster, rate);
    s->weights_s += read;
    return read > compute ? read : compute;
}

// FLOPs and bytes of the whole model for one token: weights are read once for the batch, keys for each sequence.
static void count(struct decode_step *s, const struct decode_plan *p)
{
    const struct config *c = p->run.c;
    struct run whole = p->run;
    whole.layout = layout_of_one;
    struct matrices x = matrices_of(&whole);
    double L = (double)c->L, b = (double)s->batch, size = (double)dtype_size(p->run.dtype), ctx = (double)p->context;
    double active = L * (x.attention + (double)c->K * x.expert + x.ffn) + x.head;
    s->flops = 2 * active + 4 * L * (double)(c->H * c->C) * ctx;
    double read = L * (x.attention + x.ffn + s->experts_hit * x.expert) * matrix_size(p) + x.head * size;
    s->bytes = read / b + 2 * L * (double)(c->G * c->C) * ctx * size;
}

void decode_step_of(struct decode_step *s, const struct decode_plan *p, long batch)
{
    const struct config *c = p->run.c;
    struct matrices x = matrices_of(&p->run);
    struct share_most m = share_most_of(c, &p->run.layout);
    struct costs costs;
    struct run r = p->run;
    double b = (double)batch, L = (double)c->L, size = (double)dtype_size(r.dtype), all = matrix_size(p);
    r.B = batch; // rows of one position each
    r.S = 1;
    costs_of(&costs, &r);
    *s = (struct decode_step){.batch = batch, .fits = batch <= p->largest_batch};
    s->experts_hit = c->E ? (double)c->E * (1 - pow(1 - (double)c->K / (double)c->E, b)) : 0;
    double hit = c->E ? s->experts_hit / (double)c->E : 0, rows = c->E ? b * (double)c->K * m.E / (double)c->E : 0;
    s->terms.t[TERM_PROJECTIONS] = L * product_seconds(s, p, x.attention, b * x.attention, all, RATE_PRODUCT);
    s->terms.t[TERM_EXPERTS] = c->E ? L * product_seconds(s, p, hit * x.experts, rows * x.expert, all, RATE_GROUPED)
                                    : L * product_seconds(s, p, x.ffn, b * x.ffn, all, RATE_PRODUCT);
    s->weights_s *= L;
    s->terms.t[TERM_HEAD] = product_seconds(s, p, x.head, b * x.head, size, RATE_PRODUCT);
    s->terms.t[TERM_ATTENTION] = b * (double)p->context * p->kv_bytes / r.cluster->read_bytes_per_s.value;
    static const enum term of_layer[] = {TERM_ELEMENTS, TERM_TOKENS, TERM_ROWS, TERM_SLICES};
    for (size_t i = 0; i < sizeof of_layer / sizeof *of_layer; i++) {
        enum term t = of_layer[i];
        s->terms.t[t] = L * costs.layer.forward.t[t] + costs.first.forward.t[t] + costs.last.forward.t[t];
    }
    s->seconds = times_sum(&s->terms);
    s->tokens_per_s = b / s->seconds;
    count(s, p);
}

const char *decode_assumption(long index)
{
    static const char *const text[] = {
        ("products: each takes the longer of reading its weights once and computing; FP8 weights compute at the rate "
         "of 16-bit ones"),
        "experts: every set of experts is equally likely, so a batch reads E (1 - (1 - K/E)^batch) of them",
        "attention: reads keys and values of --context tokens for each sequence, and is bound by that",
        "time: prompts, sampling, scheduling and starting kernels take none",
        "memory: the rest beside the weights holds keys and values; activations and libraries take none",
        "wires: latencies that the cluster file does not give count 0",
    };
    return index < (long)(sizeof text / sizeof *text) ? text[index] : NULL;
}
