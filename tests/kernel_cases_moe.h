// Cases of gating, routing, expert rows, and the losses over the vocabulary.
#ifndef SKYMOE_TESTS_KERNEL_CASES_MOE_H
#define SKYMOE_TESTS_KERNEL_CASES_MOE_H

#include <limits.h>

#include "kernel_check.h"

static const long gate_shapes[][3] = { // T E K
    {0, 4, 2}, {1, 2, 1}, {3, 2, 2}, {17, 5, 2}, {65, 8, 2}, {130, 16, 2}, {63, 16, 6}, {20, 65, 3}, {40, 128, 8},
    {32, 33, 33},
};
static const double gate_lambdas[] = {1, 0, 0.5, 2};
enum { GATE_SHAPES = sizeof gate_shapes / sizeof gate_shapes[0], GATES = GATE_SHAPES * 4 };

// Logits: random; every third row small integers, so ties; every fifth all equal; every eleventh one is NaN.
static void fill_logits(struct check *c, void *z, long T, long E)
{
    for (long t = 0; t < T; t++)
        for (long e = 0; e < E; e++) {
            double x = (double)(float)(3 * draw(c));
            x = t % 5 == 4 ? 0.75 : t % 3 == 2 ? floor(x) : x;
            put(z, (int)c->k->acc, t * E + e, t % 11 == 10 && e == t % E ? NAN : x);
        }
}

static bool case_gate(struct check *c, long shape)
{
    if (shape >= 2 * GATES) return false;
    const long *s = gate_shapes[shape % GATE_SHAPES];
    long T = s[0], E = s[1], K = s[2];
    double lambda = gate_lambdas[shape / GATE_SHAPES % 4];
    struct bound b = {.relative = 64 * c->eps_acc, .absolute = 4 * c->eps_acc};
    int type = (int)c->k->acc;
    void *bias = shape >= GATES ? in_acc(c, E) : NULL;
    void *z = in_out(c, "z", type, F32, T * E, b);
    fill_logits(c, z, T, E);
    void *g = out(c, "g", type, T * E, b), *inv_std = out(c, "inv_std", type, T, b);
    void *weight = out(c, "weight", type, T * K, b), *score = out(c, "score", type, T * K, b);
    int *expert = out(c, "expert", INT, T * K, (struct bound){0});
    seal(c, "T %ld E %ld K %ld lambda %g%s", T, E, K, lambda, bias ? " bias" : "");
    c->k->gate(g, inv_std, expert, weight, score, z, bias, lambda, T, E, K);
    return true;
}

static bool case_gate_backward(struct check *c, long shape)
{
    if (shape >= 4 * GATES) return false;
    const long *s = gate_shapes[shape % GATE_SHAPES];
    long T = s[0], E = s[1], K = s[2], how = shape / GATES; // dg: none, one group, groups of 7 tokens, behind 12 others
    long skip = how == 3 ? 12 : 0, group = how > 1 ? 7 : T ? T : 1, groups = (skip + T + group - 1) / group;
    double lambda = gate_lambdas[shape / GATE_SHAPES % 4];
    int type = (int)c->k->acc;
    void *z = in_acc(c, T * E), *g = in_values(c, type, T * E), *inv_std = in_values(c, type, T);
    int *expert = in_values(c, INT, T * K);
    void *weight = in_values(c, type, T * K), *score = in_values(c, type, T * K), *dweight = in_acc(c, T * K);
    void *dg = how ? in_acc(c, groups * E) : NULL;
    fill_logits(c, z, T, E);
    c->ref->gate(g, inv_std, expert, weight, score, z, NULL, lambda, T, E, K);
    double *m = magnitudes(T * E);
    for (long i = 0; i < T * E; i++) m[i] = 4 * (lambda ? acc_at(c, inv_std, i / E) : 1);
    void *dz = out(c, "dz", type, T * E, (struct bound){.relative = 64 * c->eps_acc, .absolute = 16 * c->eps_acc,
                                                        .magnitude = m});
    seal(c, "T %ld E %ld K %ld lambda %g, %ld groups, behind %ld", T, E, K, lambda, how ? groups : 0, skip);
    c->k->gate_backward(dz, dweight, dg, g, inv_std, z, expert, weight, lambda, skip, group, T, E, K);
    return true;
}

static bool case_z_loss(struct check *c, long shape)
{
    if (shape >= GATE_SHAPES) return false;
    long T = gate_shapes[shape][0], E = gate_shapes[shape][1];
    void *z = in_acc(c, T * E);
    fill_logits(c, z, T, E);
    void *lse = out(c, "lse", (int)c->k->acc, T, (struct bound){.relative = 16 * c->eps_acc,
                                                                .absolute = 16 * c->eps_acc});
    seal(c, "T %ld E %ld", T, E);
    c->k->z_loss(lse, z, T, E);
    return true;
}

static bool case_z_loss_backward(struct check *c, long shape)
{
    if (shape >= GATES) return false;
    const long *s = gate_shapes[shape % GATE_SHAPES];
    long T = s[0], E = s[1], K = s[2];
    double lambda = gate_lambdas[shape / GATE_SHAPES];
    int type = (int)c->k->acc;
    void *z = in_acc(c, T * E), *g = in_values(c, type, T * E), *inv_std = in_values(c, type, T);
    void *lse = in_values(c, type, T), *weight = in_values(c, type, T * K), *score = in_values(c, type, T * K);
    int *expert = in_values(c, INT, T * K);
    fill_logits(c, z, T, E);
    c->ref->z_loss(lse, z, T, E);
    c->ref->gate(g, inv_std, expert, weight, score, z, NULL, lambda, T, E, K);
    void *dz = in_out(c, "dz", type, F32, T * E, (struct bound){.relative = 64 * c->eps_acc,
                                                                .absolute = 64 * c->eps_acc});
    seal(c, "T %ld E %ld lambda %g", T, E, lambda);
    c->k->z_loss_backward(dz, lse, z, inv_std, lambda, 0.25, T, E);
    return true;
}

// Probabilities of T tokens over E experts; of many experts, one in nine has 0.
static void *in_probabilities(struct check *c, long T, long E)
{
    void *g = in_values(c, (int)c->k->acc, T * E);
    for (long t = 0; t < T; t++) {
        double sum = 0, p[256];
        for (long e = 0; e < E; e++) sum += p[e] = E < 16 || draw_below(c, 9) ? exp(2 * draw(c)) : 0;
        for (long e = 0; e < E; e++) put(g, (int)c->k->acc, t * E + e, (double)(float)(p[e] / sum));
    }
    return g;
}

static bool case_gate_sums(struct check *c, long shape)
{
    if (shape >= 4 * GATE_SHAPES) return false;
    long T = gate_shapes[shape / 4][0], E = gate_shapes[shape / 4][1], group = shape % 2 || !T ? 7 : T;
    long skip = shape / 2 % 2 * 17;
    void *g = in_probabilities(c, T, E);
    void *sum = out(c, "sum", (int)c->k->acc, (skip + T + group - 1) / group * E,
                    (struct bound){.relative = (2 + 0.5 * sqrt((double)group)) * c->eps_acc});
    seal(c, "T %ld E %ld group %ld, behind %ld", T, E, group, skip);
    c->k->gate_sums(sum, g, skip, group, T, E);
    return true;
}

static bool case_gate_statistics(struct check *c, long shape)
{
    if (shape >= GATE_SHAPES + 1) return false;
    long T = shape == GATE_SHAPES ? 1000 : gate_shapes[shape][0], E = shape == GATE_SHAPES ? 8 : gate_shapes[shape][1];
    void *g = in_probabilities(c, T, E);
    void *sum = out(c, "statistics", F64, 3, (struct bound){.relative = 64 * c->eps_acc});
    seal(c, "T %ld E %ld", T, E);
    c->k->gate_statistics(sum, g, T, E);
    return true;
}

static const long route_shapes[][4] = { // T E K pattern: 0 any, 1 all on expert 0 first, 2 upper half empty
    {0, 4, 2, 0}, {1, 2, 1, 0}, {3, 3, 2, 0}, {17, 5, 2, 2}, {65, 8, 2, 0}, {130, 16, 2, 0}, {63, 4, 4, 0},
    {200, 8, 2, 1}, {400, 8, 1, 1}, {130, 65, 3, 2},
};
enum { ROUTE_SHAPES = sizeof route_shapes / sizeof route_shapes[0] };

// K different experts for each token.
static int *in_experts(struct check *c, long T, long E, long K, long pattern)
{
    int *expert = in_values(c, INT, T * K);
    long limit = pattern == 2 && E / 2 >= K ? E / 2 : E;
    for (long t = 0; t < T; t++)
        for (long k = 0; k < K; k++) {
            bool again = true;
            while (again) {
                expert[t * K + k] = pattern == 1 && k == 0 ? 0 : (int)draw_below(c, limit);
                again = false;
                for (long j = 0; j < k; j++) again |= expert[t * K + j] == expert[t * K + k];
            }
        }
    return expert;
}

// A rank's tokens: all, the first, some in the middle, none.
enum { OWNERS = 4 };
static void own_tokens(long *from, long *own, long T, long how)
{
    *from = how == 2 ? T / 3 : how == 3 ? T / 2 : 0;
    *own = how == 0 ? T : how == 1 ? (T + 2) / 3 : how == 2 ? T / 2 : 0;
}

static bool case_route(struct check *c, long shape)
{
    if (shape >= ROUTE_SHAPES * 8 * OWNERS) return false;
    const long *s = route_shapes[shape % ROUTE_SHAPES];
    long T = s[0], E = s[1], K = s[2], how = shape / ROUTE_SHAPES % 8, from, own;
    own_tokens(&from, &own, T, shape / ROUTE_SHAPES / 8);
    long capacities[] = {0, 1, (11 * K * T + 10 * E - 1) / (10 * E), LONG_MAX}, capacity = capacities[how / 2];
    enum drop_policy policy = how % 2 ? DROP_POSITION : DROP_PROBS;
    struct bound same = {0};
    int *expert = in_experts(c, T, E, K, s[3]);
    void *score = in_values(c, (int)c->k->acc, T * K); // few values, so many ties
    for (long i = 0; i < T * K; i++) put(score, (int)c->k->acc, i, (double)draw_below(c, 6) / 8);
    for (long i = 0; i < T * K; i += 13) put(score, (int)c->k->acc, i, i % 2 ? NAN : 0.5 + 0x1p-20 * (double)(i % 7));
    int *source = out(c, "source", INT, own * K, same), *row = out(c, "row", INT, own * K, same);
    long *first = out(c, "first", LONG, E + 1, same), *count = out(c, "count", LONG, E, same);
    long *R = out(c, "R", LONG, 1, same);
    seal(c, "T %ld E %ld K %ld capacity %ld %s, own %ld from %ld", T, E, K, capacity,
         policy == DROP_PROBS ? "probs" : "position", own, from);
    *R = c->k->route(source, row, first, count, expert, score, capacity, policy, from, own, T, E, K);
    return true;
}

static bool case_route_given(struct check *c, long shape)
{
    if (shape >= ROUTE_SHAPES * 2 * OWNERS) return false;
    const long *s = route_shapes[shape % ROUTE_SHAPES];
    long T = s[0], E = s[1], K = s[2], from, own;
    bool drops = shape / ROUTE_SHAPES % 2 == 0;
    own_tokens(&from, &own, T, shape / ROUTE_SHAPES / 2);
    struct bound same = {0}, b = {.relative = 4 * c->eps_acc};
    int *given = in_experts(c, T, E, K, s[3]), *expert = in_values(c, INT, own * K), *mine = given + from * K;
    c->buffer[c->buffers - 1].name = "expert"; // chosen before, then an output
    c->buffer[c->buffers - 1].bound = same;
    for (long i = 0; i < own * K; i++) expert[i] = i / K % 3 ? mine[i] : (mine[i] + 1) % (int)E; // a third is changed
    for (long i = 0; i < T * K && drops; i++)
        if (draw_below(c, 4) == 0) given[i] = -1 - given[i];
    void *g = in_probabilities(c, own, E);
    void *weight = in_out(c, "weight", (int)c->k->acc, F32, own * K, b);
    int *source = out(c, "source", INT, own * K, same), *row = out(c, "row", INT, own * K, same);
    long *first = out(c, "first", LONG, E + 1, same), *count = out(c, "count", LONG, E, same);
    long *R = out(c, "R", LONG, 1, same);
    seal(c, "T %ld E %ld K %ld%s, own %ld from %ld", T, E, K, drops ? " with drops" : "", own, from);
    *R = c->k->route_given(source, row, first, count, expert, weight, given, g, from, own, T, E, K);
    return true;
}

// ---- rows of experts ----

static const long expert_shapes[][4] = { // T K D (or F), how many of 10 assignments are kept
    {0, 2, 16, 10}, {1, 1, 1, 10}, {3, 2, 17, 8}, {17, 2, 63, 9}, {65, 2, 130, 7}, {33, 6, 64, 10},
    {20, 3, 65, 0}, {64, 2, 96, 9}, {37, 2, 1030, 9},
};
enum { EXPERT_SHAPES = sizeof expert_shapes / sizeof expert_shapes[0] };

// A routing: row[t*K + k] or -1, and source[r] in shuffled order. Returns R.
static long in_rows(struct check *c, int **row, int **source, long T, long K, long kept)
{
    long R = 0, n = T * K;
    *row = in_values(c, INT, n);
    *source = in_values(c, INT, n);
    for (long i = 0; i < n; i++) (*source)[i] = 0;
    for (long i = 0; i < n; i++) {
        (*row)[i] = -1;
        if (draw_below(c, 10) < kept) (*source)[R++] = (int)i;
    }
    for (long r = R - 1; r > 0; r--) {
        long other = draw_below(c, r + 1);
        int swap = (*source)[r];
        (*source)[r] = (*source)[other];
        (*source)[other] = swap;
    }
    for (long r = 0; r < R; r++) (*row)[(*source)[r]] = (int)r;
    return R;
}

static bool case_pick(struct check *c, long shape)
{
    if (shape >= EXPERT_SHAPES + 1) return false;
    static const long many[] = {20011, 2};
    const long *s = shape < EXPERT_SHAPES ? expert_shapes[shape] : many;
    long T = s[0], K = s[1];
    int *row, *source;
    long R = in_rows(c, &row, &source, T, K, 8);
    void *from = in_acc(c, T * K), *to = out(c, "to", (int)c->k->acc, R, (struct bound){0});
    seal(c, "T %ld K %ld R %ld", T, K, R);
    c->k->pick(to, from, source, R);
    return true;
}

static bool case_place(struct check *c, long shape)
{
    if (shape >= EXPERT_SHAPES + 1) return false;
    static const long many[] = {20011, 2};
    const long *s = shape < EXPERT_SHAPES ? expert_shapes[shape] : many;
    long T = s[0], K = s[1];
    int *row, *source;
    long R = in_rows(c, &row, &source, T, K, 8);
    void *from = in_acc(c, R);
    void *to = in_out(c, "to", (int)c->k->acc, F32, T * K, (struct bound){0}); // dropped ones keep what they had
    seal(c, "T %ld K %ld R %ld", T, K, R);
    c->k->place(to, from, source, R);
    return true;
}

static bool case_permute(struct check *c, long shape)
{
    if (shape >= EXPERT_SHAPES) return false;
    long T = expert_shapes[shape][0], K = expert_shapes[shape][1], D = expert_shapes[shape][2];
    int *row, *source;
    long R = in_rows(c, &row, &source, T, K, expert_shapes[shape][3]);
    void *x = in_el(c, T * D), *rows = out(c, "rows", (int)c->k->el, R * D, (struct bound){0});
    seal(c, "T %ld K %ld D %ld R %ld", T, K, D, R);
    c->k->permute(rows, x, source, R, K, D);
    return true;
}

static bool case_combine(struct check *c, long shape)
{
    if (shape >= 5 * EXPERT_SHAPES) return false;
    const long *s = expert_shapes[shape % EXPERT_SHAPES];
    long T = s[0], K = s[1], D = s[2], how = shape / EXPERT_SHAPES; // residual: given, given, NULL, NULL, in place
    int *row, *source;
    long R = in_rows(c, &row, &source, T, K, s[3]);
    struct bound b = {.relative = c->eps_el, .absolute = (double)(8 * (K + 2)) * c->eps_acc};
    void *rows = in_el(c, R * D), *extra = how == 1 || how == 2 || how == 4 ? in_acc(c, T * D) : NULL;
    void *residual = how < 2 ? in_el(c, T * D) : how == 4 ? in_out(c, "y", (int)c->k->el, c->exact, T * D, b) : NULL;
    void *y = how == 4 ? residual : out(c, "y", (int)c->k->el, T * D, b);
    seal(c, "T %ld K %ld D %ld R %ld,%s%s%s", T, K, D, R, residual ? " residual" : "", extra ? " extra" : "",
         how == 4 ? " in place" : "");
    c->k->combine(y, residual, extra, rows, row, T, K, D);
    return true;
}

static void *in_ab(struct check *c, long R, long F)
{
    void *ab = in_random(c, (int)c->k->el, c->exact, R * 2 * F, 2);
    static const double extreme[] = {0, -30, 30, -90, 90, -1.28125};
    for (long i = 0; i < 6 && 2 * i < R * F; i++) put(ab, (int)c->k->el, 2 * i, extreme[i]);
    return ab;
}

// Rows, columns and the weights of both directions, which a dense shape has not.
static void expert_rows(struct check *c, long shape, long *R, long *F, void **weight)
{
    const long *s = expert_shapes[shape % EXPERT_SHAPES];
    *R = s[0] * s[1] * s[3] / 10;
    *F = s[2];
    *weight = shape < EXPERT_SHAPES ? in_acc(c, *R) : NULL;
}

static bool case_swiglu(struct check *c, long shape)
{
    if (shape >= 2 * EXPERT_SHAPES) return false;
    long R, F;
    void *weight;
    expert_rows(c, shape, &R, &F, &weight);
    void *ab = in_ab(c, R, F);
    void *h = out(c, "h", (int)c->k->el, R * F,
                  (struct bound){.relative = c->eps_el + 16 * c->eps_acc, .absolute = 1e-30});
    seal(c, "R %ld F %ld%s", R, F, weight ? "" : " dense");
    c->k->swiglu(h, ab, weight, R, F);
    return true;
}

static bool case_swiglu_backward(struct check *c, long shape)
{
    if (shape >= 2 * EXPERT_SHAPES) return false;
    long R, F;
    void *weight;
    expert_rows(c, shape, &R, &F, &weight);
    void *dh = in_el(c, R * F), *ab = in_ab(c, R, F), *dweight = NULL;
    if (weight) dweight = out(c, "dweight", (int)c->k->acc, R, (struct bound){.of_max = 16 * c->eps_acc});
    void *dab = out(c, "dab", (int)c->k->el, R * 2 * F,
                    (struct bound){.relative = c->eps_el + 16 * c->eps_acc, .absolute = 64 * c->eps_acc});
    seal(c, "R %ld F %ld%s", R, F, weight ? "" : " dense");
    c->k->swiglu_backward(dab, dweight, dh, ab, weight, R, F);
    return true;
}

static bool case_expert_similarity(struct check *c, long shape)
{
    static const long shapes[][3] = {{1, 1, 10}, {2, 1, 1}, {3, 2, 65}, {8, 2, 130}, {5, 3, 20000}, {16, 1, 257}};
    if (shape >= 6) return false;
    long E = shapes[shape][0], parts = shapes[shape][1], n[3];
    struct tensor w[3];
    for (long i = 0; i < parts; i++) {
        n[i] = shapes[shape][2] + 3 * i;
        w[i] = (struct tensor){.data = in_el(c, E * n[i]), .dtype = c->k->el};
        for (long j = 0; j < E * n[i] && shape % 2; j++) // alike, half of it
            put(w[i].data, (int)c->k->el, j, el_at(c, w[i].data, j % (n[i] / 2 + 1)));
    }
    double *similarity = out(c, "similarity", F64, 1, (struct bound){.absolute = 64 * c->eps_acc});
    seal(c, "E %ld, %ld parts", E, parts);
    *similarity = c->k->expert_similarity(w, n, parts, E);
    return true;
}

// ---- head ----

static const long head_shapes[][2] = {{0, 5}, {1, 1}, {3, 17}, {17, 63}, {5, 65}, {33, 130}, {4, 5003}};
enum { HEAD_SHAPES = sizeof head_shapes / sizeof head_shapes[0] };

static bool case_logits_parts(struct check *c, long shape)
{
    if (shape >= 2 * HEAD_SHAPES + 1) return false;
    bool none = shape == 2 * HEAD_SHAPES;
    long T = none ? 5 : head_shapes[shape / 2][0], V = none ? 0 : head_shapes[shape / 2][1];
    void *logits = in_random(c, (int)c->k->acc, F32, T * V, shape % 2 ? 40 : 2);
    int *target = in_ints(c, T, V + V / 2 + 1);
    for (long t = 0; t < T; t += 4) target[t] = -1;
    for (long i = 0; i < T * V; i++) { // rows without mass, with a NaN, with both
        long t = i / V, v = i % V;
        if (t % 8 == 2 || t % 8 == 4) put(logits, (int)c->k->acc, i, (double)-INFINITY);
        if ((t % 8 == 3 || t % 8 == 4) && v == V / 2) put(logits, (int)c->k->acc, i, (double)NAN);
    }
    void *part = out(c, "part", (int)c->k->acc, T * 3, (struct bound){.relative = 64 * c->eps_acc});
    seal(c, "T %ld V %ld%s", T, V, shape % 2 ? " confident" : "");
    c->k->logits_parts(part, logits, target, T, V);
    return true;
}

// The parts of `ranks` ranks, of which number `rank` has these logits and others a few columns: rank 0 none of its own
// if there are three. `target` becomes the rank's view of it.
static void *in_parts(struct check *c, const void *logits, int *target, long ranks, long rank, long T, long V,
                      double scale)
{
    long size = dtype_size(c->k->acc), end = 0;
    char *parts = in_values(c, (int)c->k->acc, ranks * T * 3);
    int *whole = in_values(c, INT, T), *seen = in_values(c, INT, T);
    for (long t = 0; t < T; t++) whole[t] = target[t] < 0 ? -1 : (int)draw_below(c, V + (ranks - 1) * 7);
    for (long i = 0; i < ranks; i++) {
        long columns = i == rank ? V : ranks == 3 && i == 0 ? 0 : 7;
        void *other = i == rank ? NULL : in_random(c, (int)c->k->acc, F32, T * columns, scale);
        for (long t = 0; t < T; t++) {
            seen[t] = whole[t] < end ? (int)columns + 3 : whole[t] - (int)end; // from `columns` on: elsewhere
            if (whole[t] < 0) seen[t] = -1;
            if (i == rank) target[t] = seen[t];
        }
        c->ref->logits_parts(parts + i * T * 3 * size, other ? other : logits, seen, T, columns);
        end += columns;
    }
    return parts;
}

static bool case_cross_entropy(struct check *c, long shape)
{
    if (shape >= 9 * HEAD_SHAPES + 2) return false;
    bool none = shape >= 9 * HEAD_SHAPES; // this rank has no column
    static const long places[][2] = {{1, 0}, {2, 0}, {3, 1}}; // ranks, this rank
    const long *place = none ? places[1] : places[shape / HEAD_SHAPES / 3];
    long T = none ? 9 : head_shapes[shape % HEAD_SHAPES][0], V = none ? 0 : head_shapes[shape % HEAD_SHAPES][1];
    long how = none ? shape % 2 : shape / HEAD_SHAPES % 3;
    double scale = how == 2 ? 40 : 2; // 2: confident
    void *logits = in_random(c, (int)c->k->acc, F32, T * V, scale);
    int *target = in_ints(c, T, V ? V : 1);
    for (long t = 0; t < T; t += 4) target[t] = -1;
    void *parts = place[0] > 1 ? in_parts(c, logits, target, place[0], place[1], T, V, scale) : NULL;
    void *loss = out(c, "loss", (int)c->k->acc, T, (struct bound){.relative = 4 * c->eps_acc,
                                                                  .absolute = (how == 2 ? 1000 : 64) * c->eps_acc});
    struct bound b = {.relative = c->eps_el + 128 * c->eps_acc, .absolute = c->eps_acc};
    void *dlogits = how == 1 ? NULL : out(c, "dlogits", (int)c->k->el, T * V, b);
    seal(c, "T %ld V %ld, %ld ranks%s", T, V, place[0], how == 1 ? " loss only" : how == 2 ? " confident" : "");
    c->k->cross_entropy(loss, dlogits, logits, parts, place[0], target, 0.125, T, V);
    return true;
}

static bool case_kl_divergence(struct check *c, long shape)
{
    if (shape >= 2 * HEAD_SHAPES) return false;
    long T = head_shapes[shape / 2][0], V = head_shapes[shape / 2][1];
    void *p = in_acc(c, T * V), *q = in_acc(c, T * V);
    for (long i = 0; i < T * V && shape % 2; i++) // nearly equal
        put(q, (int)c->k->acc, i, (double)(float)(acc_at(c, p, i) * 1.01));
    void *kl = out(c, "kl", (int)c->k->acc, T,
                   (struct bound){.relative = 64 * c->eps_acc, .absolute = 16 * c->eps_acc});
    seal(c, "T %ld V %ld%s", T, V, shape % 2 ? " nearly equal" : "");
    c->k->kl_divergence(kl, p, q, T, V);
    return true;
}

#endif
