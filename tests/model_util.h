// Tiny models, random batches, host views of tensors and measured errors, for the tests of src/model.
#ifndef SKYMOE_TESTS_MODEL_UTIL_H
#define SKYMOE_TESTS_MODEL_UTIL_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "model/decode.h"
#include "model/model.h"
#include "parallel/zero.h"

#include <cmocka.h> // last: it defines fail as a macro

#define UNUSED __attribute__((unused))

#define OK_OR_FAIL(call)                                                                                               \
    do {                                                                                                               \
        if ((call) != OK) fail_msg("%s: %s", #call, fail_message());                                                   \
    } while (0)

// ---- shapes ----

// Odd sizes everywhere: nothing divides anything it need not.
static UNUSED struct config tiny_dense(void)
{
    return (struct config){.arch = ARCH_LLAMA, .D = 10, .F = 7, .L = 2, .H = 4, .G = 2, .C = 6, .V = 13,
                           .max_positions = 64, .norm_eps = 1e-5, .rope_theta = 100, .dtype = F32,
                           .bos = 1, .eos = 2, .pad = -1};
}

static UNUSED struct config tiny_moe(void)
{
    struct config c = tiny_dense();
    c.arch = ARCH_SKYWORK;
    c.E = 5;
    c.K = 2;
    c.gate_norm_std = 1.0;
    return c;
}

static UNUSED struct decimal factor(long numerator, long denominator)
{
    return (struct decimal){numerator, denominator};
}

static UNUSED struct model_options training(enum dtype dtype, long B, long S)
{
    return (struct model_options){.dtype = dtype, .training = true, .B = B, .S = S, .positions = S,
                                  .recompute_layers = -1,
                                  .rule = {.capacity = {0}, .virtual_capacity = {11, 10}, .aux = AUX_SKYWORK}};
}

static UNUSED struct model_options inference(enum dtype dtype, long S, long positions)
{
    return (struct model_options){.dtype = dtype, .B = 1, .S = S, .positions = positions};
}

// ---- host views ----

static UNUSED double *host_of(const struct kernels *k, const void *data, enum dtype dtype, long n)
{
    char *raw = malloc((size_t)(n * dtype_size(dtype)) + 1);
    double *x = malloc((size_t)n * sizeof *x + 1);
    k->to_host(raw, data, n * dtype_size(dtype));
    for (long i = 0; i < n; i++)
        x[i] = dtype == F64 ? ((double *)raw)[i]
             : dtype == F32 ? (double)((float *)raw)[i]
                            : (double)bf16_to_float(((uint16_t *)raw)[i]);
    free(raw);
    return x;
}

static UNUSED void device_set(const struct kernels *k, void *data, enum dtype dtype, const double *x, long n)
{
    char *raw = malloc((size_t)(n * dtype_size(dtype)) + 1);
    for (long i = 0; i < n; i++) {
        if (dtype == F64) ((double *)raw)[i] = x[i];
        if (dtype == F32) ((float *)raw)[i] = (float)x[i];
        if (dtype == BF16) ((uint16_t *)raw)[i] = bf16_from_float((float)x[i]);
    }
    k->from_host(data, raw, n * dtype_size(dtype));
    free(raw);
}

static UNUSED double dot(const double *a, const double *b, long n)
{
    double s = 0;
    for (long i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}

static UNUSED void draw(double *x, long n, double std, const char *stream)
{
    for (long i = 0; i < n; i++) x[i] = std * rng_normal(7, rng_stream(stream), (uint64_t)i);
}

static UNUSED long param_elements(const struct param *p)
{
    return p->rows * p->columns;
}

// ---- models and batches ----

// Every parameter random, norms around 1: no gradient is small because a weight is.
static UNUSED void model_randomise(struct model *m, double std)
{
    for (long i = 0; i < m->params.n; i++) {
        const struct param *p = &m->params.item[i];
        long n = param_elements(p);
        double *x = malloc((size_t)n * sizeof *x);
        draw(x, n, p->columns == 1 ? 0.3 : std, p->name);
        for (long j = 0; j < n; j++) x[j] += p->columns == 1 ? 1 : 0;
        device_set(m->x.k, p->value.data, p->value.dtype, x, n);
        free(x);
    }
}

static UNUSED void model_start(struct model *m, const struct config *c, const struct model_options *o)
{
    OK_OR_FAIL(model_init(m, c, o));
    model_randomise(m, 0.4);
    for (long l = 0; m->balance && l < c->L; l++) m->balance[l].alpha = 0.3 + 0.1 * (double)l;
}

// The optimizer's state of p; a rank alone has it in one piece. NULL for what follows from counts.
static UNUSED const struct zero_piece *piece_of(const struct zero *z, const struct param *p)
{
    for (long i = 0; i < z->pieces; i++)
        if (z->piece[i].param == p) return &z->piece[i];
    return NULL;
}

static const struct zero_options zero_spread = {.spread = true};

struct owned_batch {
    struct batch b;
    long T, targets; // unmasked
};
// documents: sequences hold more than one document. masked: some targets are -1.
static UNUSED struct owned_batch batch_make(long B, long S, long V, bool documents, bool masked, long seed)
{
    long T = B * S;
    struct owned_batch o = {.b = {.B = B, .S = S}, .T = T};
    int **array[] = {&o.b.token, &o.b.target, &o.b.position, &o.b.start};
    for (int i = 0; i < 4; i++) *array[i] = calloc((size_t)T + 1, sizeof(int));
    for (long t = 0, first = 0; t < T; t++) {
        long s = t % S;
        if (s == 0) first = 0;
        if (s > 0 && documents && rng_uniform((uint64_t)seed, 3, (uint64_t)t) < 0.25) first = s;
        o.b.token[t] = (int)(rng_bits((uint64_t)seed, 1, (uint64_t)t) % (uint64_t)V);
        o.b.target[t] = (int)(rng_bits((uint64_t)seed, 2, (uint64_t)t) % (uint64_t)V);
        if (masked && rng_uniform((uint64_t)seed, 4, (uint64_t)t) < 0.3) o.b.target[t] = -1;
        o.targets += o.b.target[t] >= 0;
        o.b.position[t] = (int)(s - first);
        o.b.start[t] = (int)first;
    }
    return o;
}

static UNUSED void batch_free(struct owned_batch *o)
{
    free(o->b.token);
    free(o->b.target);
    free(o->b.position);
    free(o->b.start);
}

// ---- errors ----

// Largest difference relative to the largest value: NaN counts as infinite.
struct measured {
    double difference, scale;
    long n, equal;
};
static UNUSED void measure(struct measured *m, double got, double want)
{
    double d = fabs(got - want), s = fabs(want);
    if (!(d <= m->difference)) m->difference = d == d ? d : INFINITY;
    if (!(s <= m->scale)) m->scale = s == s ? s : INFINITY;
    m->n++;
    m->equal += got == want;
}

static UNUSED double measured_error(const struct measured *m)
{
    return m->scale > 0 && m->scale < INFINITY ? m->difference / m->scale : INFINITY;
}

// Below `limit` and not suspiciously exact.
static UNUSED void measured_expect(const struct measured *m, const char *what, double limit)
{
    double error = measured_error(m);
    printf("  %-44s error %.2e of %.2e, %ld values\n", what, error, m->scale, m->n);
    if (!(error <= limit)) fail_msg("%s: error %g, at most %g", what, error, limit);
    if (m->equal == m->n) fail_msg("%s: all %ld values are exactly equal", what, m->n);
}

static UNUSED void expect_same_bits(const char *what, const void *a, const void *b, long bytes)
{
    if (memcmp(a, b, (size_t)bytes) != 0) fail_msg("%s: bits differ", what);
}

static UNUSED int tests_start(void **state)
{
    (void)state;
    return kernels_init(1) == OK ? 0 : -1;
}

// For what holds bit for bit with the reference kernels only.
static UNUSED int tests_start_reference(void **state)
{
    (void)state;
    return setenv("SKYMOE_KERNELS", "ref", 1) == 0 && kernels_init(1) == OK ? 0 : -1;
}

#endif
