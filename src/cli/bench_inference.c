// Rows of inference: one sequence token by token, and a prompt of 512 tokens at once.
#include <stdio.h>
#include <stdlib.h>

#include "cli/bench.h"
#include "model/decode.h"

enum { CONTEXT = 512, ROOM = 512 };

struct decoding {
    struct model m;
    struct kv_cache kv;
    int token[CONTEXT];
    float *logits;
};

// ---- weights ----

// Random numbers for every weight, the same block again and again: only their kind matters here.
static enum status fill_weights(struct model *m)
{
    enum { BLOCK = 1 << 20 };
    const struct kernels *k = m->x.k;
    struct arena a = arena_measure("random numbers", DEVICE_CPU);
    struct tensor block = {.dtype = BF16};
    for (int pass = 0; pass < 2; pass++) {
        block.data = arena_take(&a, BLOCK, dtype_size(BF16));
        if (pass == 0) TRY(arena_reserve(&a));
    }
    k->init_normal(block, 0, 0.02, BLOCK, 1, 0, 0);
    for (const struct param *q = m->params.item; q < m->params.item + m->params.n; q++) {
        long rows = q->rows < BLOCK / q->columns ? q->rows : BLOCK / q->columns;
        for (long r = 0; r < q->rows; r += rows) {
            struct tensor to = q->value;
            long some = q->rows - r < rows ? q->rows - r : rows;
            to.data = (char *)to.data + r * q->columns * dtype_size(to.dtype);
            if (to.scale) to.scale += r;
            if (to.scale) k->fill((struct tensor){.data = to.scale, .dtype = F32}, 0.1 / 448, some);
            k->cast(to, block, some, q->columns);
        }
    }
    arena_release(&a);
    return OK;
}

static enum status open_model(struct decoding *d, const struct config *c, enum quant weights)
{
    struct model_options o = {.dtype = BF16, .B = 1, .S = CONTEXT, .positions = CONTEXT + ROOM,
                              .rule = moe_rule_inference, .weights = weights};
    TRY(model_init(&d->m, c, &o));
    d->m.x.k = bench_sliced(d->m.x.k);
    TRY(fill_weights(&d->m));
    for (int i = 0; i < CONTEXT; i++) d->token[i] = (int)((i * 7919L + 13) % c->V);
    d->logits = malloc((size_t)c->V * sizeof *d->logits);
    if (!d->logits) return fail(ERR_MEMORY, "memory: %ld logits were refused", c->V);
    return kv_cache_init(&d->kv, &d->m, 1, CONTEXT + ROOM, CONTEXT + ROOM);
}

static void close_model(struct decoding *d)
{
    if (d->kv.m) kv_cache_free(&d->kv);
    free(d->logits);
    model_free(&d->m);
    *d = (struct decoding){0};
}

// ---- rows ----

static void prefill_call(void *context)
{
    struct decoding *d = context;
    kv_cache_drop(&d->kv, 0);
    CHECK(kv_append(&d->kv, 0, d->token, CONTEXT, d->logits, NULL) == OK);
}

static void decode_call(void *context)
{
    struct decoding *d = context;
    if (d->kv.length[0] == CONTEXT + ROOM) prefill_call(d);
    CHECK(kv_append(&d->kv, 0, d->token, 1, d->logits, NULL) == OK);
}

static const char *type_name(enum quant weights)
{
    return weights == QUANT_NONE ? "bf16" : "FP8";
}

// What a token has to read: every active matrix once, of the embedding one row; keys and values of its context.
static double decode_bytes(const struct config *c, enum quant weights)
{
    double head = (double)c->V * (double)c->D, layers = (double)config_params_active(c) - head * (c->tied ? 1 : 2);
    double kv = 4.0 * CONTEXT * (double)(c->L * c->G * c->C);
    return layers * (weights == QUANT_NONE ? 2 : 1) + 2 * head + kv;
}

static void decode_row(struct decoding *d, const char *what, double target)
{
    char name[64];
    snprintf(name, sizeof name, "decode, %s, %s", what, type_name(d->m.o.weights));
    struct bench_row *r = bench_add(name, "tokens/s", target);
    double bytes = decode_bytes(&d->m.c, d->m.o.weights);
    prefill_call(d);
    bench_measure(r, &(struct bench_work){decode_call, d, PEAK_READ, bytes, 1}, 4);
    snprintf(r->shape, sizeof r->shape, "L=%ld D=%ld F=%ld V=%ld E=%ld, context %d, %.2f GB read a token", d->m.c.L,
             d->m.c.D, d->m.c.F, d->m.c.V, d->m.c.E, CONTEXT, 1e-9 * bytes);
}

// FLOPs of a prompt: every active matrix for every token, but the last layer's feed-forward part and the head for the
// last token only; causal attention.
static void prefill_row(struct decoding *d, double target)
{
    const struct config *c = &d->m.c;
    char name[64];
    snprintf(name, sizeof name, "prefill of %d tokens, %s", CONTEXT, type_name(d->m.o.weights));
    struct bench_row *r = bench_add(name, "tokens/s", target);
    double head = (double)c->V * (double)c->D, layers = (double)config_params_active(c) - head * (c->tied ? 1 : 2);
    double ffn = 3.0 * (double)(c->D * c->F * (c->E ? c->K : 1));
    double attention = 2.0 * CONTEXT * CONTEXT * (double)(c->L * c->H * c->C);
    double flops = 2 * layers * CONTEXT - 2 * ffn * (CONTEXT - 1) + 2 * head + attention;
    bench_measure(r, &(struct bench_work){prefill_call, d, bench_product_peak(BF16), flops, CONTEXT}, 6);
    snprintf(r->shape, sizeof r->shape, "L=%ld D=%ld F=%ld V=%ld E=%ld K=%ld, %.0f GFLOP", c->L, c->D, c->F, c->V, c->E,
             c->K, 1e-9 * flops);
}

enum status bench_decode(const struct config *given)
{
    static struct decoding d;
    for (int fp8 = 0; fp8 < 2; fp8++) {
        struct config c = {.arch = ARCH_LLAMA, .D = 2048, .F = 5632, .L = fp8 ? 40 : 24, .H = 32, .G = 32, .C = 64,
                           .V = 32000, .max_positions = 2048, .norm_eps = 1e-6, .rope_theta = 1e4, .dtype = BF16,
                           .bos = 1, .eos = 2, .pad = -1};
        enum status status = open_model(&d, given ? given : &c, fp8 ? QUANT_FP8 : QUANT_NONE);
        if (status == OK) decode_row(&d, "one sequence", 0.88);
        close_model(&d);
        TRY(status);
    }
    return OK;
}

// Two layers of Skywork-MoE as it was released.
enum status bench_prefill(const struct config *given)
{
    static struct decoding d;
    struct config c = {.arch = ARCH_SKYWORK, .D = 4608, .F = 12288, .L = 2, .H = 36, .G = 36, .C = 128, .E = 16, .K = 2,
                       .gate_norm_std = 1.0, .V = 65532, .max_positions = 8192, .norm_eps = 1e-6, .rope_theta = 1e4,
                       .dtype = BF16, .bos = 1, .eos = 2, .pad = -1};
    for (int fp8 = 0; fp8 < 2; fp8++) {
        enum status status = open_model(&d, given ? given : &c, fp8 ? QUANT_FP8 : QUANT_NONE);
        if (status == OK) prefill_row(&d, fp8 ? 0.65 : 0.70);
        if (status == OK) decode_row(&d, given ? "this model" : "Skywork-MoE's shape", 0);
        close_model(&d);
        TRY(status);
    }
    return OK;
}
