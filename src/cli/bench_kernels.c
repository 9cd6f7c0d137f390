// Rows of single kernels: matrix products in their three forms, attention.
#include <math.h>
#include <stdio.h>

#include "cli/bench.h"

struct product {
    const struct kernels *k;
    el *y, *x;
    struct tensor w;
    acc *dw;
    long M, N, K;
};

static void forward(void *context)
{
    const struct product *p = context;
    p->k->matmul_nt(p->y, p->x, p->w, p->M, p->N, p->K);
}
static void input_gradient(void *context)
{
    const struct product *p = context;
    p->k->matmul_nn(p->x, p->y, p->w, p->M, p->N, p->K);
}
static void weight_gradient(void *context)
{
    const struct product *p = context;
    p->k->matmul_tn(p->dw, p->y, p->x, p->M, p->N, p->K);
}

static const struct form {
    const char *name;
    void (*call)(void *);
    double target;
} forms[] = {
    {"forward", forward, 0.82}, {"input gradient", input_gradient, 0.78}, {"weight gradient", weight_gradient, 0.75}};

static void product_rows(struct product *p, bool targets)
{
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s product, %s", p->k->el == F32 ? "f32" : "bf16", forms[i].name);
        double flops = 2 * (double)p->M * (double)p->N * (double)p->K;
        struct bench_row *r = bench_add(name, "GFLOP/s", targets ? forms[i].target : 0);
        bench_measure(r, &(struct bench_work){forms[i].call, p, bench_product_peak(p->k->el), flops, 1e-9 * flops}, 4);
        snprintf(r->shape, sizeof r->shape, "M=%ld N=%ld K=%ld", p->M, p->N, p->K);
    }
}

static void fill(const struct kernels *k, void *data, long n, long stream)
{
    k->init_normal((struct tensor){.data = data, .dtype = k->el}, 0, 1, n, 1, (uint64_t)stream, 0);
}

static enum status bench_product(enum dtype type, long M, long N, long K)
{
    struct product p = {.k = kernels_for(type), .w.dtype = type, .M = M, .N = N, .K = K};
    struct arena a = arena_measure("a product", DEVICE_CPU);
    for (int pass = 0; pass < 2; pass++) {
        p.y = arena_take(&a, M * N, dtype_size(type));
        p.x = arena_take(&a, M * K, dtype_size(type));
        p.w.data = arena_take(&a, N * K, dtype_size(type));
        p.dw = arena_take(&a, N * K, dtype_size(p.k->acc));
        if (pass == 0) TRY(arena_reserve(&a));
    }
    fill(p.k, p.y, M * N, 0);
    fill(p.k, p.x, M * K, 1);
    fill(p.k, p.w.data, N * K, 2);
    product_rows(&p, type == BF16);
    arena_release(&a);
    return OK;
}

struct attention_call {
    const struct kernels *k;
    struct attention_shape s;
    el *qkv, *o, *d_o, *dqkv;
    acc *lse;
    int *start;
};

static void attend(void *context)
{
    const struct attention_call *c = context;
    c->k->attention(c->o, c->lse, c->qkv, c->start, c->s);
}
static void attend_backward(void *context)
{
    const struct attention_call *c = context;
    c->k->attention_backward(c->dqkv, c->d_o, c->qkv, c->o, c->lse, c->start, c->s);
}

// Causal: half of the products count; forward has two, backward five.
static enum status bench_attention(long S, long H, long C)
{
    struct attention_call c = {.k = kernels_for(BF16),
                               .s = {.B = 1, .S = S, .H = H, .G = H, .C = C, .per_kv = 1,
                                     .scale = 1 / sqrt((double)C)}};
    struct arena a = arena_measure("attention", DEVICE_CPU);
    for (int pass = 0; pass < 2; pass++) {
        c.qkv = arena_take(&a, S * 3 * H * C, dtype_size(BF16));
        c.dqkv = arena_take(&a, S * 3 * H * C, dtype_size(BF16));
        c.o = arena_take(&a, S * H * C, dtype_size(BF16));
        c.d_o = arena_take(&a, S * H * C, dtype_size(BF16));
        c.lse = arena_take(&a, S * H, dtype_size(c.k->acc));
        c.start = arena_take(&a, S, sizeof *c.start);
        if (pass == 0) TRY(arena_reserve(&a));
    }
    fill(c.k, c.qkv, S * 3 * H * C, 0);
    fill(c.k, c.d_o, S * H * C, 1);
    double product = (double)S * (double)S * (double)(H * C);
    for (int backward = 0; backward < 2; backward++) {
        double flops = product * (backward ? 5 : 2);
        struct bench_row *r = bench_add(backward ? "attention, backward" : "attention, forward", "GFLOP/s",
                                        backward ? 0.40 : 0.45);
        bench_measure(r, &(struct bench_work){backward ? attend_backward : attend, &c, bench_product_peak(BF16), flops,
                                              1e-9 * flops}, 4);
        snprintf(r->shape, sizeof r->shape, "bf16, S=%ld, %ld heads x %ld", S, H, C);
    }
    arena_release(&a);
    return OK;
}

enum status bench_kernels(void)
{
    static const long shape[][2] = {{2816, 1024}, {1024, 2816}, {12288, 4608}, {4608, 12288}};
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) TRY(bench_product(BF16, 2048, shape[i][0], shape[i][1]));
    TRY(bench_product(F32, 2048, 2816, 1024));
    return bench_attention(2048, 16, 64);
}
