// `skymoe plan --inference`: weights, room for keys and values, speed of generating by batch size, and the same for
// another model.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/command.h"
#include "cli/plan.h"

enum { MOST_BATCHES = 64 };

struct answer {
    struct decode_plan plan;
    struct decode_step step[MOST_BATCHES];
    long n;
};

static enum status answer_make(struct answer *a, const struct plan_request *q, const struct plan_options *o,
                               const long *batch, long n)
{
    enum quant weights = !strcmp(o->weights, "fp8") ? QUANT_FP8 : QUANT_NONE;
    TRY(decode_plan_make(&a->plan, &q->run, weights, o->context, q->wishes.limit));
    for (a->n = 0; a->n < n && a->n < MOST_BATCHES; a->n++) decode_step_of(&a->step[a->n], &a->plan, batch[a->n]);
    return OK;
}

// The batch at which the published speed would be reached; 0: at none of those asked for.
static double batch_for(const struct answer *a, double published)
{
    for (long i = 0; i < a->n; i++) {
        const struct decode_step *s = &a->step[i];
        if (s->tokens_per_s < published) continue;
        if (i == 0) return (double)s->batch;
        const struct decode_step *low = s - 1;
        double part = (published - low->tokens_per_s) / (s->tokens_per_s - low->tokens_per_s);
        return (double)low->batch + part * (double)(s->batch - low->batch);
    }
    return 0;
}

// ---- for people ----

static void print_heads(const struct run *r)
{
    printf("; heads");
    for (long i = 0; i < r->layout.tp; i++)
        printf("%c%ld", i ? ',' : ' ', layout_range(&r->layout, AXIS_HEAD, r->c->H, i).count);
}

static void print_memory(const struct answer *a, const struct plan_request *q)
{
    const struct decode_plan *p = &a->plan;
    const struct layout *l = &p->run.layout;
    printf("machine     %s\nlayout      tensor %ld", q->cluster.name, l->tp);
    if (q->c.E) printf(", expert %ld x expert tensor %ld", l->ep, l->etp);
    print_heads(&p->run);
    printf("\nmemory      %.2f GiB of weights on the fullest device of %.2f GiB", p->weight_bytes / 0x1p30,
           p->limit / 0x1p30);
    if (p->kv_tokens < 0) printf(": does not fit, %.2f GiB too much\n", (p->weight_bytes - p->limit) / 0x1p30);
    else
        printf("; %.0f tokens of keys and values (%.1f kB each), %ld sequences of %ld\n", p->kv_tokens,
               p->kv_bytes / 1e3,
               p->largest_batch, p->context);
}

// With a published speed, the last column is how much longer a step takes at that speed than in the plan.
static void print_steps(const struct answer *a, double published)
{
    static const enum term shown[] = {TERM_PROJECTIONS, TERM_ATTENTION, TERM_EXPERTS, TERM_HEAD,
                                      TERM_ELEMENTS,    TERM_TOKENS,    TERM_ROWS,    TERM_SLICES};
    enum { SHOWN = sizeof shown / sizeof *shown };
    printf("\n%6s %9s %9s %8s  ms:", "batch", "tokens/s", "step ms", "experts");
    for (int i = 0; i < SHOWN; i++) printf(" %11s", term_name(shown[i]));
    printf("%s\n", published > 0 ? " unexplained" : "");
    for (long i = 0; i < a->n; i++) {
        const struct decode_step *s = &a->step[i];
        printf("%6ld %9.1f %9.3f %8.1f     ", s->batch, s->tokens_per_s, 1e3 * s->seconds, s->experts_hit);
        for (int t = 0; t < SHOWN; t++) printf(" %11.3f", 1e3 * s->terms.t[shown[t]]);
        if (published > 0) printf(" %11.3f", 1e3 * ((double)s->batch / published - s->seconds));
        printf("%s\n", s->fits ? "" : "  does not fit");
    }
}

static void print_published(const struct answer *a, double published)
{
    if (published <= 0) return;
    double batch = batch_for(a, published);
    printf("\npublished   %.0f tokens/s", published);
    if (batch > 0) printf(": this plan reaches it at a batch of %.1f", batch);
    else printf(": none of these batches reaches it");
    printf("\n");
}

static void print_other(const struct answer *a, const struct answer *b, const char *name, const char *other)
{
    const struct answer *both[] = {a, b};
    const char *names[] = {name, other};
    printf("\nbeside another model, the same devices and batch; per generated token\n%-40s %6s %12s %12s %14s %9s\n",
           "",
           "batch", "GFLOPs", "MB read", "device-ms", "tokens/s");
    for (long i = 0; i < a->n; i++)
        for (int k = 0; k < 2; k++) {
            const struct decode_step *s = &both[k]->step[i];
            double devices = (double)both[k]->plan.run.layout.tp;
            printf("%-40.40s %6ld %12.2f %12.1f %14.3f %9.1f%s\n", names[k], s->batch, 1e-9 * s->flops, 1e-6 * s->bytes,
                   1e3 * devices / s->tokens_per_s, s->tokens_per_s, s->fits ? "" : "  does not fit");
        }
}

// ---- JSON ----

static void put_answer(struct json_out *o, const struct answer *a, double published)
{
    const struct decode_plan *p = &a->plan;
    json_put_bool(o, "fits", p->kv_tokens > 0);
    json_put_real(o, "weight_bytes", p->weight_bytes);
    json_put_real(o, "kv_bytes_per_token", p->kv_bytes);
    json_put_real(o, "kv_tokens", p->kv_tokens);
    json_put_long(o, "largest_batch", p->largest_batch);
    json_begin(o, "rows", '[');
    for (long i = 0; i < a->n; i++) {
        const struct decode_step *s = &a->step[i];
        json_begin(o, NULL, '{');
        json_put_long(o, "batch", s->batch);
        json_put_bool(o, "fits", s->fits);
        json_put_real(o, "tokens_per_s", s->tokens_per_s);
        json_put_real(o, "step_time_s", s->seconds);
        json_put_real(o, "weights_s", s->weights_s);
        json_put_real(o, "experts_hit", s->experts_hit);
        json_put_real(o, "flops_per_token", s->flops);
        json_put_real(o, "bytes_per_token", s->bytes);
        json_put_real(o, "device_s_per_token", (double)p->run.layout.tp / s->tokens_per_s);
        json_begin(o, "terms", '{');
        for (int t = 0; t < TERMS; t++)
            if (s->terms.t[t] != 0) json_put_real(o, term_name((enum term)t), s->terms.t[t]);
        json_end(o, '}');
        json_put_real(o, "unexplained", published > 0 ? (double)s->batch / published - s->seconds : NAN);
        json_end(o, '}');
    }
    json_end(o, ']');
}

static enum status print_json(const struct answer *a, const struct answer *other, double published)
{
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    put_answer(&o, a, published);
    if (other) {
        json_begin(&o, "compare", '{');
        put_answer(&o, other, 0);
        json_end(&o, '}');
    }
    json_begin(&o, "assumptions", '[');
    for (long i = 0; decode_assumption(i); i++) json_put_text(&o, NULL, decode_assumption(i));
    json_end(&o, ']');
    json_end(&o, '}');
    return command_print_json(&o);
}

static void print(const struct answer *a, const struct answer *b, const struct plan_request *q,
                  const struct plan_options *o)
{
    print_memory(a, q);
    print_steps(a, o->published);
    print_published(a, o->published);
    if (b) print_other(a, b, o->model, o->compare);
    printf("\nassumptions\n");
    for (long i = 0; decode_assumption(i); i++) printf("  %s\n", decode_assumption(i));
}

enum status plan_inference(const struct plan_request *q, const struct plan_options *o, const struct plan_request *other,
                           bool json)
{
    static struct answer a, b;
    long *batch, n;
    TRY(long_list(&batch, &n, o->batch_size, "batch-size", 1, 1 << 20));
    enum status status = answer_make(&a, q, o, batch, n);
    if (status == OK && other) status = answer_make(&b, other, o, batch, n);
    free(batch);
    if (status != OK) return status;
    if (json) return print_json(&a, other ? &b : NULL, o->published);
    print(&a, other ? &b : NULL, q, o);
    return OK;
}
