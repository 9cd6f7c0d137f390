// Cases of the matrix products.
#ifndef SKYMOE_TESTS_KERNEL_CASES_PRODUCTS_H
#define SKYMOE_TESTS_KERNEL_CASES_PRODUCTS_H

#include "kernel_check.h"

static const long product_shapes[][3] = { // M N K
    {0, 5, 7},    {2, 0, 5},    {3, 4, 0},     {1, 1, 1},    {1, 17, 63},   {1, 130, 300}, {2, 64, 64},  {3, 65, 17},
    {17, 3, 130}, {63, 64, 65}, {130, 17, 64}, {65, 63, 257}, {33, 96, 128}, {8, 130, 512}, {5, 7, 1030}, {64, 128, 96},
    {600, 37, 70}, {20, 600, 45}, {9, 33, 2100}, {37, 50, 800}, {2100, 9, 17}, // more than a block each way
};
enum { PRODUCT_SHAPES = sizeof product_shapes / sizeof product_shapes[0] };

// A sum of n products whose absolute values add up to m.
static struct bound sum_bound(const struct check *c, long n, bool rounded, double *m)
{
    return (struct bound){.relative = rounded ? c->eps_el : 0, .absolute = (2 + 0.5 * sqrt((double)n)) * c->eps_acc,
                          .magnitude = m};
}

// |x| of n elements from `at` on, in rows of `columns`.
static double *absolute(struct tensor x, long at, long n, long columns)
{
    struct buffer b = {.data = x.data, .type = (int)x.dtype};
    double *a = magnitudes(n);
    for (long i = 0; i < n; i++)
        a[i] = fabs(value_at(&b, at + i)) * scale_at(x, (at + i) / columns, (at + i) % columns);
    return a;
}

// Of I rows of k numbers each and J rows of k numbers: m[i, j] += sum of |a[i, k] b[j, k]|, a and b from element
// a_at and b_at on. `form` says how they are stored: nt [I, k] and [J, k], nn [I, k] and [k, J], tn [k, I] and [k, J].
enum form { NT, NN, TN };

static void add_magnitudes(double *m, enum form form, struct tensor a, long a_at, struct tensor b, long b_at, long I,
                           long J, long K)
{
    double *x = absolute(a, a_at, I * K, 1), *y = absolute(b, b_at, J * K, K);
    for (long i = 0; i < I; i++)
        for (long k = 0; k < K; k++) {
            double z = x[form == TN ? k * I + i : i * K + k];
            const double *row = form == NT ? y + k : y + k * J;
            for (long j = 0, step = form == NT ? K : 1; j < J; j++) m[i * J + j] += z * row[j * step];
        }
    free(x);
    free(y);
}

static struct tensor el_tensor(const struct check *c, void *data)
{
    return (struct tensor){.data = data, .dtype = c->k->el};
}

static struct tensor acc_tensor(const struct check *c, void *data)
{
    return (struct tensor){.data = data, .dtype = c->k->acc};
}

// Row limits of E experts: none empty, some empty, all empty, everything on the first, on the last.
static long *in_groups(struct check *c, long E, long rows, long pattern)
{
    long *first = in_values(c, LONG, E + 1);
    first[0] = 0;
    for (long e = 0; e < E; e++) {
        long n = pattern == 0 ? rows + (e * 7) % 5 : pattern == 1 ? (e % 2 ? rows + e : 0) : pattern == 2 ? 0
               : pattern == 3 ? (e == 0 ? rows * E : 0) : (e == E - 1 ? rows * E : 0);
        first[e + 1] = first[e] + n;
    }
    return first;
}

static const long group_shapes[][5] = { // E rows pattern N K
    {1, 3, 0, 17, 65},  {3, 0, 0, 64, 64}, {5, 17, 0, 33, 63}, {4, 1, 0, 130, 17}, {8, 6, 1, 65, 130},
    {16, 2, 2, 16, 16}, {4, 12, 3, 64, 96}, {3, 21, 4, 63, 64}, {8, 33, 0, 128, 64}, {2, 64, 0, 96, 257},
    {2, 300, 4, 33, 400}, {3, 40, 1, 300, 50},
};
enum { GROUP_SHAPES = sizeof group_shapes / sizeof group_shapes[0] };

// ---- y = x w' ----

static bool nt_case(struct check *c, long shape, bool rounded)
{
    if (shape >= WEIGHTS * PRODUCT_SHAPES) return false;
    enum weight kind = (enum weight)(shape / PRODUCT_SHAPES);
    const long *s = product_shapes[shape % PRODUCT_SHAPES];
    long M = s[0], N = s[1], K = s[2];
    void *x = in_el(c, M * K);
    struct tensor w = in_weight(c, kind, N, K);
    double *m = magnitudes(M * N);
    add_magnitudes(m, NT, el_tensor(c, x), 0, w, 0, M, N, K);
    void *y = out(c, "y", (int)(rounded ? c->k->el : c->k->acc), M * N, sum_bound(c, K, rounded, m));
    seal(c, "M %ld N %ld K %ld%s", M, N, K, weight_names[kind]);
    if (rounded) c->k->matmul_nt(y, x, w, M, N, K);
    else c->k->matmul_nt_acc(y, x, w, M, N, K);
    return true;
}

static bool case_matmul_nt(struct check *c, long shape)
{
    return nt_case(c, shape, true);
}

static bool case_matmul_nt_acc(struct check *c, long shape)
{
    return nt_case(c, shape, false);
}

static bool case_grouped_nt(struct check *c, long shape)
{
    if (shape >= WEIGHTS * GROUP_SHAPES) return false;
    enum weight kind = (enum weight)(shape / GROUP_SHAPES);
    const long *s = group_shapes[shape % GROUP_SHAPES];
    long E = s[0], N = s[3], K = s[4], *first = in_groups(c, E, s[1], s[2]), R = first[E];
    void *x = in_el(c, R * K);
    struct tensor w = in_weight(c, kind, E * N, K);
    double *m = magnitudes(R * N);
    for (long e = 0; e < E; e++)
        add_magnitudes(m + first[e] * N, NT, el_tensor(c, x), first[e] * K, w, e * N * K,
                       first[e + 1] - first[e], N, K);
    void *y = out(c, "y", (int)c->k->el, R * N, sum_bound(c, K, true, m));
    seal(c, "E %ld R %ld N %ld K %ld%s", E, R, N, K, weight_names[kind]);
    c->k->grouped_nt(y, x, w, first, E, N, K);
    return true;
}

// ---- dx = dy w ----

static bool case_matmul_nn(struct check *c, long shape)
{
    if (shape >= PRODUCT_SHAPES) return false;
    long M = product_shapes[shape][0], N = product_shapes[shape][1], K = product_shapes[shape][2];
    void *dy = in_el(c, M * N);
    struct tensor w = in_weight(c, PLAIN, N, K);
    double *m = magnitudes(M * K);
    add_magnitudes(m, NN, el_tensor(c, dy), 0, w, 0, M, K, N);
    void *dx = out(c, "dx", (int)c->k->el, M * K, sum_bound(c, N, true, m));
    seal(c, "M %ld N %ld K %ld", M, N, K);
    c->k->matmul_nn(dx, dy, w, M, N, K);
    return true;
}

static bool case_grouped_nn(struct check *c, long shape)
{
    if (shape >= GROUP_SHAPES) return false;
    const long *s = group_shapes[shape];
    long E = s[0], N = s[3], K = s[4], *first = in_groups(c, E, s[1], s[2]), R = first[E];
    void *dy = in_el(c, R * N);
    struct tensor w = in_weight(c, PLAIN, E * N, K);
    double *m = magnitudes(R * K);
    for (long e = 0; e < E; e++)
        add_magnitudes(m + first[e] * K, NN, el_tensor(c, dy), first[e] * N, w, e * N * K,
                       first[e + 1] - first[e], K, N);
    void *dx = out(c, "dx", (int)c->k->el, R * K, sum_bound(c, N, true, m));
    seal(c, "E %ld R %ld N %ld K %ld", E, R, N, K);
    c->k->grouped_nn(dx, dy, w, first, E, N, K);
    return true;
}

// ---- dw += dy' x ----

static bool case_matmul_tn(struct check *c, long shape)
{
    if (shape >= PRODUCT_SHAPES) return false;
    long M = product_shapes[shape][0], N = product_shapes[shape][1], K = product_shapes[shape][2];
    void *dy = in_el(c, M * N), *x = in_el(c, M * K);
    double *m = magnitudes(N * K);
    for (long i = 0; i < N * K; i++) m[i] = 4; // what dw held
    add_magnitudes(m, TN, el_tensor(c, dy), 0, el_tensor(c, x), 0, N, K, M);
    void *dw = in_out(c, "dw", (int)c->k->acc, F32, N * K, sum_bound(c, M, false, m));
    seal(c, "M %ld N %ld K %ld", M, N, K);
    c->k->matmul_tn(dw, dy, x, M, N, K);
    return true;
}

static bool case_grouped_tn(struct check *c, long shape)
{
    if (shape >= GROUP_SHAPES) return false;
    const long *s = group_shapes[shape];
    long E = s[0], N = s[3], K = s[4], *first = in_groups(c, E, s[1], s[2]), R = first[E];
    void *dy = in_el(c, R * N), *x = in_el(c, R * K);
    double *m = magnitudes(E * N * K);
    for (long i = 0; i < E * N * K; i++) m[i] = 4;
    for (long e = 0; e < E; e++)
        add_magnitudes(m + e * N * K, TN, el_tensor(c, dy), first[e] * N, el_tensor(c, x), first[e] * K, N, K,
                       first[e + 1] - first[e]);
    void *dw = in_out(c, "dw", (int)c->k->acc, F32, E * N * K, sum_bound(c, R, false, m));
    seal(c, "E %ld R %ld N %ld K %ld", E, R, N, K);
    c->k->grouped_tn(dw, dy, x, first, E, N, K);
    return true;
}

// ---- router: M tokens, N experts, K hidden ----

static bool case_router_nt(struct check *c, long shape)
{
    if (shape >= PRODUCT_SHAPES) return false;
    long T = product_shapes[shape][0], E = product_shapes[shape][1], D = product_shapes[shape][2];
    void *x = in_el(c, T * D), *w = in_acc(c, E * D);
    double *m = magnitudes(T * E);
    add_magnitudes(m, NT, el_tensor(c, x), 0, acc_tensor(c, w), 0, T, E, D);
    void *z = out(c, "z", (int)c->k->acc, T * E, sum_bound(c, D, false, m));
    seal(c, "T %ld E %ld D %ld", T, E, D);
    c->k->router_nt(z, x, w, T, E, D);
    return true;
}

static bool case_router_nn(struct check *c, long shape)
{
    if (shape >= PRODUCT_SHAPES) return false;
    long T = product_shapes[shape][0], E = product_shapes[shape][1], D = product_shapes[shape][2];
    void *dz = in_acc(c, T * E), *w = in_acc(c, E * D);
    double *m = magnitudes(T * D);
    add_magnitudes(m, NN, acc_tensor(c, dz), 0, acc_tensor(c, w), 0, T, D, E);
    void *dx = out(c, "dx", (int)c->k->acc, T * D, sum_bound(c, E, false, m));
    seal(c, "T %ld E %ld D %ld", T, E, D);
    c->k->router_nn(dx, dz, w, T, E, D);
    return true;
}

static bool case_router_tn(struct check *c, long shape)
{
    if (shape >= PRODUCT_SHAPES) return false;
    long T = product_shapes[shape][0], E = product_shapes[shape][1], D = product_shapes[shape][2];
    void *dz = in_acc(c, T * E), *x = in_el(c, T * D);
    double *m = magnitudes(E * D);
    for (long i = 0; i < E * D; i++) m[i] = 4;
    add_magnitudes(m, TN, acc_tensor(c, dz), 0, el_tensor(c, x), 0, E, D, T);
    void *dw = in_out(c, "dw", (int)c->k->acc, F32, E * D, sum_bound(c, T, false, m));
    seal(c, "T %ld E %ld D %ld", T, E, D);
    c->k->router_tn(dw, dz, x, T, E, D);
    return true;
}

#endif
