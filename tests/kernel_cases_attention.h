// Cases of attention over a batch of sequences and over KV pages.
#ifndef SKYMOE_TESTS_KERNEL_CASES_ATTENTION_H
#define SKYMOE_TESTS_KERNEL_CASES_ATTENTION_H

#include "kernel_check.h"

static const struct attention_shape attention_shapes[] = { // B S H G C per_kv skip window scale
    {0, 5, 2, 1, 8, 2, 0, 0, 0.35},     {2, 0, 2, 1, 8, 2, 0, 0, 0.35},     {1, 1, 1, 1, 2, 1, 0, 0, 0.7},
    {2, 17, 4, 2, 8, 2, 0, 0, 0.35},    {1, 65, 3, 1, 16, 3, 0, 0, 0.25},   {2, 130, 2, 2, 64, 1, 0, 0, 0.125},
    {1, 70, 4, 4, 80, 1, 0, 0, 0.11},   {3, 33, 6, 2, 6, 3, 0, 5, 0.4},     {1, 200, 2, 1, 128, 2, 0, 0, 0.09},
    {1, 140, 2, 1, 32, 2, 0, 1, 0.18},  {1, 150, 3, 3, 10, 1, 0, 70, 0.3},  {1, 37, 2, 1, 192, 2, 0, 0, 0.07},
    {1, 530, 1, 1, 16, 1, 0, 0, 0.25},  {1, 300, 2, 1, 24, 2, 0, 130, 0.2}, {1, 40, 2, 1, 7, 2, 0, 0, 0.4},
    {1, 260, 3, 1, 40, 3, 0, 0, 0.16},  {2, 70, 5, 1, 12, 5, 0, 0, 0.29},   {1, 66, 7, 7, 16, 1, 0, 9, 0.25},
    {1, 90, 12, 2, 32, 6, 0, 33, 0.18},
    // parts of the heads: kv heads shared at both ends, at one, with an odd C, a large one; kv heads that nobody reads
    {1, 70, 5, 3, 16, 2, 1, 0, 0.25},   {2, 33, 3, 2, 8, 4, 3, 0, 0.35},    {1, 140, 4, 2, 32, 3, 2, 0, 0.18},
    {1, 66, 7, 3, 12, 3, 1, 9, 0.29},   {1, 40, 3, 2, 7, 2, 1, 0, 0.4},     {1, 37, 3, 2, 192, 2, 1, 0, 0.07},
    {2, 35, 4, 4, 16, 2, 3, 0, 0.25},   {1, 50, 1, 3, 8, 4, 2, 0, 0.35},    {1, 9, 0, 1, 8, 2, 0, 0, 0.35},
};
enum { ATTENTION_SHAPES = sizeof attention_shapes / sizeof attention_shapes[0] };

// Document starts: one document, then (odd shapes of `documents`) new ones at random places.
static int *in_starts(struct check *c, const struct attention_shape *s, bool documents)
{
    int *start = in_values(c, INT, s->B * s->S);
    for (long b = 0; b < s->B; b++)
        for (long i = 0, from = 0; i < s->S; i++) {
            if (documents && i && draw_below(c, 20) == 0) from = i;
            start[b * s->S + i] = (int)from;
        }
    return start;
}

// Half a step of a bf16 number (of 1: 2^-8), by which kernels may round probabilities and the scores' gradients before
// they multiply, beside what f32 sums lose.
static double attention_eps(const struct check *c)
{
    return 64 * c->eps_acc + (c->k->el == BF16 || c->exact == BF16 ? 0x1p-8 : 0);
}

static double *in_double(const struct check *c, const void *data, long n)
{
    double *x = magnitudes(n);
    for (long i = 0; i < n && data; i++) x[i] = el_at(c, data, i);
    return x;
}

static double absolute_dot(const double *a, const double *b, long n)
{
    double sum = 0;
    for (long i = 0; i < n; i++) sum += fabs(a[i] * b[i]);
    return sum;
}

static void add_absolute(double *m, double factor, const double *x, long n)
{
    for (long i = 0; i < n; i++) m[i] += factor * fabs(x[i]);
}

// A query's probabilities by the definition; k: its sequence's keys, `row` apart. Returns the first key it sees.
static long probabilities(double *p, const double *q, const double *k, long row, long i, long start,
                          const struct attention_shape *s)
{
    long from = s->window && i - s->window + 1 > start ? i - s->window + 1 : start;
    double max = -INFINITY, sum = 0;
    for (long j = from; j <= i; j++) {
        p[j] = 0;
        for (long c = 0; c < s->C; c++) p[j] += s->scale * q[c] * k[j * row + c];
        if (p[j] > max) max = p[j];
    }
    for (long j = from; j <= i; j++) sum += p[j] = exp(p[j] - max);
    for (long j = from; j <= i; j++) p[j] /= sum;
    return from;
}

// The sums of absolute values behind o (d_o NULL) or dqkv: what a relative error of p or ds is multiplied by. |ds|
// counts as p (|do| |v| + |do| |o|), for its two terms cancel.
static double *attention_magnitudes(const struct check *c, const void *qkv_, const void *d_o_, const void *o_,
                                    const int *start, const struct attention_shape *s)
{
    long C = s->C, row = (s->H + 2 * s->G) * C, T = s->B * s->S, n = T * s->H * C;
    double *m = magnitudes(d_o_ ? T * row : n), *p = magnitudes(s->S), *qkv = in_double(c, qkv_, T * row);
    double *d_o = in_double(c, d_o_, n), *o = in_double(c, o_, n);
    for (long at = 0; at < T * s->H; at++) { // at: which of o's [B, S, H]
        long h = at % s->H, t = at / s->H, i = t % s->S, first = (t - i) * row, q = t * row + h * C;
        long k = first + (s->H + (s->skip + h) / s->per_kv) * C, v = k + s->G * C;
        double od = absolute_dot(d_o + at * C, o + at * C, C);
        for (long j = probabilities(p, qkv + q, qkv + k, row, i, start[t], s); j <= i; j++) {
            double ds = p[j] * (absolute_dot(d_o + at * C, qkv + v + j * row, C) + od) * s->scale;
            if (!d_o_) add_absolute(m + at * C, p[j], qkv + v + j * row, C);
            if (!d_o_) continue;
            add_absolute(m + q, ds, qkv + k + j * row, C);
            add_absolute(m + k + j * row, ds, qkv + q, C);
            add_absolute(m + v + j * row, p[j], d_o + at * C, C);
        }
    }
    free(p);
    free(qkv);
    free(d_o);
    free(o);
    return m;
}

static void describe_attention(struct check *c, const struct attention_shape *s, bool documents)
{
    seal(c, "B %ld S %ld H %ld G %ld C %ld, %ld per kv from %ld, window %ld%s", s->B, s->S, s->H, s->G, s->C,
         s->per_kv, s->skip, s->window, documents ? " documents" : "");
}

static bool case_attention(struct check *c, long shape)
{
    if (shape >= 2 * ATTENTION_SHAPES) return false;
    struct attention_shape s = attention_shapes[shape / 2];
    long T = s.B * s.S;
    void *qkv = in_el(c, T * (s.H + 2 * s.G) * s.C);
    int *start = in_starts(c, &s, shape % 2);
    void *o = out(c, "o", (int)c->k->el, T * s.H * s.C,
                  (struct bound){.relative = c->eps_el, .absolute = attention_eps(c),
                                 .magnitude = attention_magnitudes(c, qkv, NULL, NULL, start, &s)});
    void *lse = out(c, "lse", (int)c->k->acc, T * s.H, (struct bound){.absolute = 64 * c->eps_acc});
    describe_attention(c, &s, shape % 2);
    c->k->attention(o, lse, qkv, start, s);
    return true;
}

static bool case_attention_backward(struct check *c, long shape)
{
    if (shape >= 2 * ATTENTION_SHAPES) return false;
    struct attention_shape s = attention_shapes[shape / 2];
    long T = s.B * s.S, row = (s.H + 2 * s.G) * s.C;
    void *qkv = in_el(c, T * row), *d_o = in_el(c, T * s.H * s.C);
    int *start = in_starts(c, &s, shape % 2);
    void *o = in_values(c, (int)c->k->el, T * s.H * s.C), *lse = in_values(c, (int)c->k->acc, T * s.H);
    c->ref->attention(o, lse, qkv, start, s);
    void *dqkv = out(c, "dqkv", (int)c->k->el, T * row,
                     (struct bound){.relative = c->eps_el, .absolute = attention_eps(c),
                                    .magnitude = attention_magnitudes(c, qkv, d_o, o, start, &s)});
    describe_attention(c, &s, shape % 2);
    c->k->attention_backward(dqkv, d_o, qkv, o, lse, start, s);
    return true;
}

// ---- pages ----

static const long paged_shapes[][7] = { // T sequences longest H G C window
    {0, 1, 1, 2, 1, 8, 0},     {1, 1, 1, 1, 1, 2, 0},     {1, 1, 100, 4, 2, 16, 0},  {17, 3, 63, 6, 3, 10, 0},
    {65, 5, 130, 2, 2, 64, 0}, {33, 2, 129, 2, 1, 80, 7}, {9, 2, 300, 2, 1, 128, 40}, {40, 4, 33, 3, 1, 6, 16},
    {21, 3, 70, 5, 1, 12, 0},  {13, 2, 66, 7, 7, 16, 9},  {11, 2, 90, 12, 2, 32, 33},
};
enum { PAGED_SHAPES = sizeof paged_shapes / sizeof paged_shapes[0] };

// Pages in shuffled order; table entries beyond a sequence's length name no page. `written`: how many of the pages'
// slots hold numbers; everything later is NaN and must not be read.
static struct kv_view in_pages(struct check *c, const long *s, bool store)
{
    long T = s[0], sequences = s[1], longest = s[2], G = s[4], C = s[5];
    long stride = (longest + PAGE_TOKENS - 1) / PAGE_TOKENS + 1, pages = sequences * stride;
    struct bound same = {0};
    struct kv_view kv = {.table_stride = stride};
    int *table = in_values(c, INT, pages), *sequence = in_ints(c, T, sequences), *position = in_ints(c, T, longest);
    long *length = calloc((size_t)sequences, sizeof *length), n = pages * PAGE_TOKENS * G * C;
    assert_non_null(length);
    for (long t = 0; t < T; t++) {
        if (store) { // rows of one call go to different places
            sequence[t] = (int)(t % sequences);
            position[t] = (int)(t / sequences);
        }
        if (position[t] >= length[sequence[t]]) length[sequence[t]] = position[t] + 1;
    }
    if (store) {
        kv.k = in_out(c, "k", (int)c->k->el, c->exact, n, same);
        kv.v = in_out(c, "v", (int)c->k->el, c->exact, n, same);
    } else {
        kv.k = in_el(c, n);
        kv.v = in_el(c, n);
    }
    for (long i = 0; i < pages; i++) {
        long page = (i * 7 + 3) % pages, at = i % stride * PAGE_TOKENS, have = length[i / stride] - at;
        while (pages % 7 == 0 && page != i) page = i; // 7 must not divide for a permutation
        table[i] = have > 0 ? (int)page : 1 << 30;
        for (long j = 0; j < PAGE_TOKENS * G * C && !store; j++)
            if (j / (G * C) >= have) {
                put(kv.k, (int)c->k->el, page * PAGE_TOKENS * G * C + j, NAN);
                put(kv.v, (int)c->k->el, page * PAGE_TOKENS * G * C + j, NAN);
            }
    }
    free(length);
    kv.table = table;
    kv.sequence = sequence;
    kv.position = position;
    return kv;
}

static bool case_kv_store(struct check *c, long shape)
{
    if (shape >= PAGED_SHAPES) return false;
    const long *s = paged_shapes[shape];
    void *qkv = in_el(c, s[0] * (s[3] + 2 * s[4]) * s[5]);
    struct kv_view kv = in_pages(c, s, true);
    seal(c, "T %ld sequences %ld G %ld C %ld", s[0], s[1], s[4], s[5]);
    c->k->kv_store(kv, qkv, s[0], s[3], s[4], s[5]);
    return true;
}

static bool case_attention_paged(struct check *c, long shape)
{
    if (shape >= PAGED_SHAPES) return false;
    const long *s = paged_shapes[shape];
    void *qkv = in_el(c, s[0] * (s[3] + 2 * s[4]) * s[5]);
    struct kv_view kv = in_pages(c, s, false);
    void *o = out(c, "o", (int)c->k->el, s[0] * s[3] * s[5],
                  (struct bound){.relative = c->eps_el, .absolute = 2 * attention_eps(c)});
    seal(c, "T %ld sequences %ld longest %ld H %ld G %ld C %ld window %ld", s[0], s[1], s[2], s[3], s[4], s[5], s[6]);
    c->k->attention_paged(o, qkv, kv, s[0], s[3], s[4], s[5], s[6], 1 / sqrt((double)s[5]));
    return true;
}

#endif
