// The double reference of the mixture of experts: gating, routing, expert rows, by hand and by central differences; and
// the choice of kernel levels.
#include <limits.h>

#include "reference_check.h"

static void gate(double *g, int *expert, double *weight, double *z, const double *bias, double lambda, long T, long E,
                 long K)
{
    double *inv_std = numbers(T, 9, 1), *score = numbers(T * K, 8, 1);
    k64.gate(g, inv_std, expert, weight, score, z, bias, lambda, T, E, K);
    for (long i = 0; i < T * K; i++) assert_true(!memcmp(&score[i], &g[i / K * E + expert[i]], sizeof *g));
    free(inv_std);
    free(score);
}

// ---- gating ----

static void test_gate_golden(void **state)
{
    (void)state;
    double z[4] = {1, 2, 3, 6}, g[4], weight[2], score[2], inv_std;
    int expert[2];
    k64.gate(g, &inv_std, expert, weight, score, z, NULL, 1, 1, 4, 2);
    double error = expect_near("z~", z, (double[]){-.9258201, -.46291, 0, 1.3887301}, 4, 6e-8);
    error += expect_near("g", g, (double[]){.065647, .1042927, .1656888, .6643715}, 4, 6e-8);
    print_message("  published values to %.2g\n", error);
    assert_true(expert[0] == 3 && expert[1] == 2);
    expect_near("weight", weight, (double[]){.6643715 / .8300603, .1656888 / .8300603}, 2, 2e-7);
    expect_near("score", score, (double[]){.6643715, .1656888}, 2, 6e-8);
    expect_near("inv_std", &inv_std, (double[]){1 / sqrt(14.0 / 3)}, 1, 1e-14);
}

static void test_gate_edges(void **state)
{
    (void)state;
    // No variance: z~ = 0, uniform g, the lowest experts; just above 1e-12 it is normalised.
    double z[2][4] = {{7, 7, 7, 7 + 1e-6}, {7, 7, 7, 7 + 3e-6}}, g[8], weight[4], score[4], inv_std[2];
    int expert[4];
    k64.gate(g, inv_std, expert, weight, score, z, NULL, 1, 2, 4, 2);
    expect_near("flat", g, (double[]){.25, .25, .25, .25}, 4, 0);
    expect_near("flat z~", z[0], (double[]){0, 0, 0, 0}, 4, 0);
    assert_true(inv_std[0] == 0 && expert[0] == 0 && expert[1] == 1 && weight[0] == .5 && weight[1] == .5);
    expect_near("steep z~", z[1], (double[]){-.5, -.5, -.5, 1.5}, 4, 1e-8);
    assert_true(expert[2] == 3 && expert[3] == 0);

    // lambda 0: the logits themselves. Bias chooses but does not weigh.
    double raw[3] = {1, 3, 2}, bias[3] = {2.5, 0, 0}, gr[3], wr[2], sum = exp(1) + exp(3) + exp(2);
    int er[2];
    gate(gr, er, wr, raw, bias, 0, 1, 3, 2);
    expect_near("raw z", raw, (double[]){1, 3, 2}, 3, 0);
    expect_near("raw g", gr, (double[]){exp(1) / sum, exp(3) / sum, exp(2) / sum}, 3, 1e-15);
    assert_true(er[0] == 0 && er[1] == 1); // 3.5 and 3 before 2
    expect_near("raw weight", wr, (double[]){exp(1) / (exp(1) + exp(3)), exp(3) / (exp(1) + exp(3))}, 2, 1e-15);

    // NaN logits still choose K different experts.
    double bad[4] = {NAN, 1, NAN, 2}, gb[4], wb[3];
    int eb[3];
    gate(gb, eb, wb, bad, NULL, 1, 1, 4, 3);
    for (int i = 0; i < 3; i++) {
        assert_true(eb[i] >= 0 && eb[i] < 4);
        for (int j = 0; j < i; j++) assert_int_not_equal(eb[i], eb[j]);
    }
}

// Normalised logits of 16 experts: no probability above 0.785 (lambda 1), and no scale of the logits changes anything.
static void test_gate_bounds(void **state)
{
    (void)state;
    enum { T = 2000, E = 16 };
    double *z = numbers(T * E, 1, 1), *scaled = numbers(T * E, 1, 37.5);
    double *g = numbers(T * E, 2, 1), *gs = numbers(T * E, 2, 1);
    int *expert = malloc(sizeof(int) * T * 2), *es = malloc(sizeof(int) * T * 2);
    double *weight = numbers(T * 2, 3, 1), *ws = numbers(T * 2, 3, 1), largest = 0;
    for (long e = 0; e < E; e++) z[e] = scaled[e] = e == 5 ? 100 : 0; // the extreme case
    gate(g, expert, weight, z, NULL, 1, T, E, 2);
    gate(gs, es, ws, scaled, NULL, 1, T, E, 2);
    for (long i = 0; i < T * E; i++) largest = g[i] > largest ? g[i] : largest;
    print_message("  largest probability %.6f\n", largest);
    assert_true(largest <= 0.785 && largest > 0.78);
    expect_near("scaled g", gs, g, T * E, 1e-12);
    expect_near("scaled weight", ws, weight, T * 2, 1e-12);
    assert_memory_equal(es, expert, sizeof(int) * T * 2);
    free(z);
    free(scaled);
    free(g);
    free(gs);
    free(expert);
    free(es);
    free(weight);
    free(ws);
}

// ---- gradient of gating ----

enum { TOKENS = 5, EXPERTS = 6, CHOSEN = 3, GROUP = 2, GROUPS = 3 };

struct gating {
    double *logits, *dweight, *dg, lambda;
    bool balance;
    long skip;
    double z[TOKENS * EXPERTS], g[TOKENS * EXPERTS], inv_std[TOKENS], weight[TOKENS * CHOSEN], score[TOKENS * CHOSEN];
    int expert[TOKENS * CHOSEN];
};

// Choices stay: the differences are too small to change them.
static double gating_loss(void *context)
{
    struct gating *a = context;
    memcpy(a->z, a->logits, sizeof a->z);
    k64.gate(a->g, a->inv_std, a->expert, a->weight, a->score, a->z, NULL, a->lambda, TOKENS, EXPERTS, CHOSEN);
    double loss = dot(a->weight, a->dweight, TOKENS * CHOSEN);
    for (long i = 0; i < TOKENS * EXPERTS && a->balance; i++)
        loss += a->g[i] * a->dg[(a->skip + i / EXPERTS) / GROUP * EXPERTS + i % EXPERTS];
    return loss;
}

static void test_gate_backward(void **state)
{
    (void)state;
    static const double lambdas[] = {1, 0, 0.5, 2};
    for (int i = 0; i < 12; i++) { // without a balance loss, with one, behind 3 other tokens
        struct gating a = {.logits = numbers(TOKENS * EXPERTS, 1, 2), .dweight = numbers(TOKENS * CHOSEN, 2, 1),
                           .dg = numbers((GROUPS + 2) * EXPERTS, 3, 1), .lambda = lambdas[i / 3], .balance = i % 3,
                           .skip = i % 3 == 2 ? 3 : 0};
        double dz[TOKENS * EXPERTS];
        char name[64];
        snprintf(name, sizeof name, "gate, lambda %g%s", a.lambda,
                 a.skip ? ", part of the balance" : a.balance ? ", balance" : "");
        gating_loss(&a);
        k64.gate_backward(dz, a.dweight, a.balance ? a.dg : NULL, a.g, a.inv_std, a.z, a.expert, a.weight, a.lambda,
                          a.skip, GROUP, TOKENS, EXPERTS, CHOSEN);
        expect_gradient(name, a.logits, dz, TOKENS * EXPERTS, gating_loss, &a);
        free(a.logits);
        free(a.dweight);
        free(a.dg);
    }
    // No variance: no gradient.
    double g[4] = {.25, .25, .25, .25}, z[4] = {0}, inv_std = 0, weight[2] = {.5, .5}, dw[2] = {1, -1};
    double dz[4] = {9, 9, 9, 9};
    int expert[2] = {0, 1};
    k64.gate_backward(dz, dw, g, g, &inv_std, z, expert, weight, 1, 0, 1, 1, 4, 2);
    expect_near("flat gradient", dz, (double[]){0, 0, 0, 0}, 4, 0);
}

// What the z-loss adds to dz is the derivative of scale/2 sum lse(z)^2 of the raw logits, however gate changed them.
static double z_loss_of(void *context)
{
    struct gating *a = context;
    double lse[TOKENS];
    k64.z_loss(lse, a->logits, TOKENS, EXPERTS);
    return 0.5 * 0.7 * dot(lse, lse, TOKENS);
}

static void test_z_loss(void **state)
{
    (void)state;
    double big[3] = {1000, 1000, -1000}, lse;
    k64.z_loss(&lse, big, 1, 3);
    expect_near("lse", &lse, (double[]){1000 + log(2)}, 1, 1e-12);
    static const double lambdas[] = {1, 0, 0.5};
    for (int i = 0; i < 3; i++) {
        struct gating a = {.logits = numbers(TOKENS * EXPERTS, 1, 2), .lambda = lambdas[i]};
        double dz[TOKENS * EXPERTS] = {0}, saved[TOKENS], twice[TOKENS * EXPERTS];
        k64.z_loss(saved, a.logits, TOKENS, EXPERTS);
        memcpy(a.z, a.logits, sizeof a.z);
        k64.gate(a.g, a.inv_std, a.expert, a.weight, a.score, a.z, NULL, a.lambda, TOKENS, EXPERTS, CHOSEN);
        k64.z_loss_backward(dz, saved, a.z, a.inv_std, a.lambda, 0.7, TOKENS, EXPERTS);
        expect_gradient("z_loss", a.logits, dz, TOKENS * EXPERTS, z_loss_of, &a);
        memcpy(twice, dz, sizeof twice);
        k64.z_loss_backward(twice, saved, a.z, a.inv_std, a.lambda, 0.7, TOKENS, EXPERTS);
        for (long j = 0; j < TOKENS * EXPERTS; j++) dz[j] *= 2;
        expect_near("z_loss adds", twice, dz, TOKENS * EXPERTS, 1e-13);
        free(a.logits);
    }
    double z[4] = {0}, inv_std = 0, dz[4] = {0}, flat = 2; // no variance: softmax is uniform
    k64.z_loss_backward(dz, &flat, z, &inv_std, 1, 1, 1, 4);
    expect_near("flat z_loss", dz, (double[]){.5, .5, .5, .5}, 4, 1e-15);
}

static void test_route_given(void **state)
{
    (void)state;
    // Tokens 0 and 1 as gate chose them, token 2 otherwise; assignment (0, 1) and (2, 0) are dropped.
    double g[3 * 3] = {.5, .3, .2, .2, .2, .6, .1, .3, .6}, weight[6] = {9, 8, 7, 6, 5, 4};
    int expert[6] = {0, 1, 2, 0, 2, 1}, given[6] = {0, -2, 2, 0, -1, 1}, source[6], row[6];
    long first[4], count[3];
    long R = k64.route_given(source, row, first, count, expert, weight, given, g, 0, 3, 3, 3, 2);
    assert_int_equal(R, 4);
    assert_memory_equal(expert, ((int[]){0, 1, 2, 0, 0, 1}), sizeof expert);
    assert_memory_equal(row, ((int[]){0, -1, 3, 1, -1, 2}), sizeof row);
    assert_memory_equal(source, ((int[]){0, 3, 5, 2}), 4 * sizeof *source);
    assert_memory_equal(first, ((long[]){0, 2, 3, 4}), sizeof first);
    assert_memory_equal(count, ((long[]){3, 2, 1}), sizeof count);
    expect_near("weight", weight, (double[]){9, 8, 7, 6, .25, .75}, 6, 1e-15);
}

static void test_gate_sums(void **state)
{
    (void)state;
    double g[5 * 3] = {.5, .3, .2, .2, .2, .6, 1, 0, 0, .1, .8, .1, .4, .4, .2}, sum[9];
    k64.gate_sums(sum, g, 0, 2, 5, 3);
    expect_near("gate_sums", sum, (double[]){.7, .5, .8, 1.1, .8, .1, .4, .4, .2}, 9, 1e-15);
    k64.gate_sums(sum, g, 0, 5, 5, 3);
    expect_near("gate_sums", sum, (double[]){2.2, 1.7, 1.1}, 3, 1e-15);
    k64.gate_sums(sum, g, 5, 3, 4, 3); // a group of others, then tokens 5 | 6 7 8
    expect_near("gate_sums", sum, (double[]){0, 0, 0, .5, .3, .2, 1.3, 1, .7}, 9, 1e-15);
    struct gate_statistics s;
    k64.gate_statistics(&s, g, 2, 3);
    double entropy = 0;
    for (int i = 0; i < 6; i++) entropy -= g[i] * log(g[i]);
    expect_near("gate_statistics", (double[]){s.entropy, s.max1_max2, s.max2_max3},
                (double[]){entropy, .5 / .3 + .6 / .2, .3 / .2 + 1}, 3, 1e-14);
    k64.gate_statistics(&s, g + 6, 1, 3); // 1, 0, 0: ratios without a number, but finite
    assert_true(s.entropy == 0 && isfinite(s.max1_max2) && s.max1_max2 > 1e30 && s.max2_max3 == 1);
    double sharp[3] = {.99989, 1e-4, 1e-5};
    k64.gate_statistics(&s, sharp, 1, 3);
    expect_near("sharp gate", (double[]){s.entropy, s.max1_max2, s.max2_max3},
                (double[]){-.99989 * log(.99989) - 1e-4 * log(1e-4) - 1e-5 * log(1e-5), 9998.9, 10}, 3, 1e-10);
    k64.gate_statistics(&s, g, 1, 2);
    assert_true(s.max2_max3 == 0);
}

// ---- routing, by hand ----

struct routed {
    int source[16], row[16];
    long first[5], count[4], R;
};

static void expect_route(const struct routed *r, long R, const int *source, const int *row, const long *first,
                         const long *count, long T, long E, long K)
{
    assert_int_equal(r->R, R);
    assert_memory_equal(r->first, first, (size_t)(E + 1) * sizeof(long));
    assert_memory_equal(r->count, count, (size_t)E * sizeof(long));
    assert_memory_equal(r->row, row, (size_t)(T * K) * sizeof(int));
    assert_memory_equal(r->source, source, (size_t)R * sizeof(int));
}

static void test_route(void **state)
{
    (void)state;
    // 4 tokens, 3 experts, 2 choices: expert 0 gets tokens 0 1 2 3, expert 1 gets 0 2, expert 2 gets 1 3.
    static const int expert[8] = {0, 1, 2, 0, 0, 1, 0, 2};
    static const double score[8] = {.6, .3, .6, .3, .6, .3, .5, .4};
    struct routed r;
    r.R = k64.route(r.source, r.row, r.first, r.count, expert, score, LONG_MAX, DROP_PROBS, 0, 4, 4, 3, 2);
    expect_route(&r, 8, (int[]){0, 3, 4, 6, 1, 5, 2, 7}, (int[]){0, 4, 6, 1, 2, 5, 3, 7}, (long[]){0, 4, 6, 8},
                 (long[]){4, 2, 2}, 4, 3, 2);
    // Capacity 2, by probability: expert 0 keeps tokens 0 and 2 (.6), not 1 (.3) and 3 (.5).
    r.R = k64.route(r.source, r.row, r.first, r.count, expert, score, 2, DROP_PROBS, 0, 4, 4, 3, 2);
    expect_route(&r, 6, (int[]){0, 4, 1, 5, 2, 7}, (int[]){0, 2, 4, -1, 1, 3, -1, 5}, (long[]){0, 2, 4, 6},
                 (long[]){4, 2, 2}, 4, 3, 2);
    // Capacity 2, by position: the first two tokens.
    r.R = k64.route(r.source, r.row, r.first, r.count, expert, score, 2, DROP_POSITION, 0, 4, 4, 3, 2);
    expect_route(&r, 6, (int[]){0, 3, 1, 5, 2, 7}, (int[]){0, 2, 4, 1, -1, 3, -1, 5}, (long[]){0, 2, 4, 6},
                 (long[]){4, 2, 2}, 4, 3, 2);
    // Capacity 1: expert 0 has .6 twice, the earlier token stays; expert 1 .3 twice; expert 2 .6 before .4.
    r.R = k64.route(r.source, r.row, r.first, r.count, expert, score, 1, DROP_PROBS, 0, 4, 4, 3, 2);
    expect_route(&r, 3, (int[]){0, 1, 2}, (int[]){0, 1, 2, -1, -1, -1, -1, -1}, (long[]){0, 1, 2, 3},
                 (long[]){4, 2, 2}, 4, 3, 2);
    r.R = k64.route(r.source, r.row, r.first, r.count, expert, score, 0, DROP_POSITION, 0, 4, 4, 3, 2);
    expect_route(&r, 0, NULL, (int[]){-1, -1, -1, -1, -1, -1, -1, -1}, (long[]){0, 0, 0, 0},
                 (long[]){4, 2, 2}, 4, 3, 2);
    r.R = k64.route(r.source, r.row, r.first, r.count, expert, score, 2, DROP_PROBS, 0, 0, 0, 3, 2);
    expect_route(&r, 0, NULL, NULL, (long[]){0, 0, 0, 0}, (long[]){0, 0, 0}, 0, 3, 2);
}

// 200 tokens on one expert, capacity 55: exactly the 55 largest g stay, in order of token.
static void test_route_capacity(void **state)
{
    (void)state;
    enum { T = 200, CAPACITY = 55 };
    int expert[T], source[T], row[T];
    double g[T];
    long first[2], count[1];
    for (int t = 0; t < T; t++) expert[t] = 0, g[t] = (double)(t * 37 % 101) / 128; // ties: t and t + 101
    for (int policy = DROP_PROBS; policy <= DROP_POSITION; policy++) {
        long R = k64.route(source, row, first, count, expert, g, CAPACITY, (enum drop_policy)policy, 0, T, T, 1,
                           1);
        assert_int_equal(R, CAPACITY);
        assert_int_equal(count[0], T);
        for (long t = 0; t < T; t++) {
            long better = 0; // assignments that go before this one
            for (long u = 0; u < T; u++)
                better += policy == DROP_PROBS ? g[u] > g[t] || (g[u] == g[t] && u < t) : u < t;
            assert_int_equal(row[t] >= 0, better < CAPACITY);
            if (row[t] >= 0) assert_int_equal(source[row[t]], t);
            for (long u = 0; u < t; u++) assert_true(row[t] < 0 || row[u] < row[t]);
        }
    }
}

// ---- expert rows ----

enum { ROWS = 4, F = 5 };

struct rows {
    double *ab, *dh, *weight, h[ROWS * F];
    bool dense;
};

static double rows_loss(void *context)
{
    struct rows *r = context;
    k64.swiglu(r->h, r->ab, r->dense ? NULL : r->weight, ROWS, F);
    return dot(r->h, r->dh, ROWS * F);
}

static void test_swiglu(void **state)
{
    (void)state;
    for (int dense = 0; dense < 2; dense++) {
        struct rows r = {numbers(ROWS * 2 * F, 1, 2), numbers(ROWS * F, 2, 1), numbers(ROWS, 3, 1), {0}, dense};
        double dab[ROWS * 2 * F], dweight[ROWS], want[ROWS * F];
        rows_loss(&r);
        for (long i = 0; i < ROWS * F; i++) {
            double a = r.ab[i / F * 2 * F + i % F], b = r.ab[i / F * 2 * F + F + i % F];
            want[i] = a / (1 + exp(-a)) * b * (dense ? 1 : r.weight[i / F]);
        }
        expect_near("swiglu", r.h, want, ROWS * F, 1e-14);
        k64.swiglu_backward(dab, dense ? NULL : dweight, r.dh, r.ab, dense ? NULL : r.weight, ROWS, F);
        expect_gradient(dense ? "swiglu, dense" : "swiglu", r.ab, dab, ROWS * 2 * F, rows_loss, &r);
        if (!dense) expect_gradient("swiglu, weight", r.weight, dweight, ROWS, rows_loss, &r);
        free(r.ab);
        free(r.dh);
        free(r.weight);
    }
}

static void test_pick_place(void **state)
{
    (void)state;
    static const int source[4] = {4, 1, 0, 5}; // 2 and 3 were dropped
    double weight[6] = {.1, .2, .3, .4, .5, .6}, row[4], back[6] = {7, 7, 7, 7, 7, 7};
    k64.pick(row, weight, source, 4);
    expect_near("pick", row, (double[]){.5, .2, .1, .6}, 4, 0);
    k64.place(back, row, source, 4);
    expect_near("place", back, (double[]){.1, .2, 7, 7, .5, .6}, 6, 0); // not theirs to write
}

static void test_permute_combine(void **state)
{
    (void)state;
    double x[3 * 2] = {1, 2, 3, 4, 5, 6}, rows[4 * 2], y[6], residual[6] = {100, 200, 300, 400, 500, 600};
    double extra[6] = {.5, .5, .5, .5, .5, .5};
    static const int source[4] = {1, 3, 2, 5}, row[6] = {-1, 0, 2, 1, -1, 3}; // K = 2
    k64.permute(rows, x, source, 4, 2, 2);
    expect_near("permute", rows, (double[]){1, 2, 3, 4, 3, 4, 5, 6}, 8, 0);
    k64.combine(y, NULL, NULL, rows, row, 3, 2, 2);
    expect_near("combine", y, (double[]){1, 2, 6, 8, 5, 6}, 6, 0);
    k64.combine(residual, residual, extra, rows, row, 3, 2, 2);
    expect_near("combine", residual, (double[]){101.5, 202.5, 306.5, 408.5, 505.5, 606.5}, 6, 0);
}

static void test_expert_similarity(void **state)
{
    (void)state;
    enum { N0 = 30, N1 = 301 };
    double *a = numbers(EXPERTS * N0, 1, 1), *b = numbers(EXPERTS * N1, 2, 1), want = 0;
    struct tensor w[2] = {f64_tensor(a), f64_tensor(b)};
    static const long n[2] = {N0, N1};
    for (int i = 0; i < EXPERTS; i++)
        for (int j = 0; j < i; j++) {
            double ij = dot(a + i * N0, a + j * N0, N0) + dot(b + i * N1, b + j * N1, N1);
            double ii = dot(a + i * N0, a + i * N0, N0) + dot(b + i * N1, b + i * N1, N1);
            double jj = dot(a + j * N0, a + j * N0, N0) + dot(b + j * N1, b + j * N1, N1);
            want += ij / sqrt(ii * jj) / ((double)(EXPERTS * (EXPERTS - 1)) / 2);
        }
    double got = k64.expert_similarity(w, n, 2, EXPERTS);
    expect_near("expert_similarity", &got, &want, 1, 1e-14);
    assert_true(fabs(want) > 1e-4);
    for (int e = 1; e < EXPERTS; e++) {
        for (int i = 0; i < N0; i++) a[e * N0 + i] = 2 * e * a[i]; // the same direction
        for (int i = 0; i < N1; i++) b[e * N1 + i] = 2 * e * b[i];
    }
    got = k64.expert_similarity(w, n, 2, EXPERTS);
    expect_near("equal experts", &got, (double[]){1}, 1, 1e-14);
    double units[4] = {1, 0, 0, 3}; // at right angles
    struct tensor two = f64_tensor(units);
    got = k64.expert_similarity(&two, (long[]){2}, 1, 2);
    expect_near("orthogonal experts", &got, (double[]){0}, 1, 0);
    free(a);
    free(b);
}

// ---- levels ----

static void test_levels(void **state)
{
    (void)state;
    for (long i = 0; i < kernel_rows_n; i++)
        for (long j = 0; j < i; j++) assert_int_not_equal(kernel_rows[i].offset, kernel_rows[j].offset);
    char *kept = getenv("SKYMOE_KERNELS");
    if (kept) kept = strdup(kept);
    setenv("SKYMOE_KERNELS", "fast", 1);
    assert_int_equal(kernels_init(1), ERR_CONFIG);
    assert_string_equal(fail_message(),
                        "SKYMOE_KERNELS: unknown level 'fast' (use ref, dnnl, avx2, avx512 or avx512bf16)");
    setenv("SKYMOE_KERNELS", "ref", 1);
    assert_int_equal(kernels_init(1), OK);
    assert_int_equal(kernels_threads(), 1);
    for (int type = F32; type <= F64; type++)
        for (long i = 0; i < kernel_rows_n; i++) {
            struct kernels reference;
            kernels_reference(&reference, (enum dtype)type);
            assert_string_equal(kernel_source((enum dtype)type, i), "ref");
            assert_memory_equal(kernels_for((enum dtype)type), &reference, sizeof reference);
        }
    setenv("SKYMOE_KERNELS", "dnnl", 1);
    assert_int_equal(kernels_init(0), OK);
    assert_true(kernels_threads() >= 1);
    for (long i = 0; i < kernel_rows_n; i++)
        if (!strcmp(kernel_rows[i].name, "matmul_nt")) assert_string_equal(kernel_source(F32, i), "dnnl");
    if (kept) setenv("SKYMOE_KERNELS", kept, 1);
    else unsetenv("SKYMOE_KERNELS");
    free(kept);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gate_golden),    cmocka_unit_test(test_gate_edges),
        cmocka_unit_test(test_gate_bounds),    cmocka_unit_test(test_gate_backward),
        cmocka_unit_test(test_gate_sums),
        cmocka_unit_test(test_z_loss),
        cmocka_unit_test(test_route_given),      cmocka_unit_test(test_route),
        cmocka_unit_test(test_route_capacity), cmocka_unit_test(test_swiglu), cmocka_unit_test(test_pick_place),
        cmocka_unit_test(test_permute_combine), cmocka_unit_test(test_expert_similarity),
        cmocka_unit_test(test_levels),
    };
    return cmocka_run_group_tests_name("reference of experts", tests, reference_start, NULL);
}
