// The double reference against formulas written out and against central differences: products, norm, rotary embedding,
// attention, head, optimizer, memory. (The other types are compared with double in test_kernels.)
#include "reference_check.h"

// ---- products ----

static void test_products(void **state)
{
    (void)state;
    enum { M = 5, N = 7, K = 21 };
    double *x = numbers(M * K, 1, 1), *w = numbers(N * K, 2, 1), *dy = numbers(M * N, 3, 1);
    double y[M * N], want[M * N] = {0}, dx[M * K], want_dx[M * K] = {0}, dw[N * K], want_dw[N * K];
    for (long i = 0; i < N * K; i++) want_dw[i] = dw[i] = (double)i; // += keeps what was there
    for (long m = 0; m < M; m++)
        for (long n = 0; n < N; n++)
            for (long k = 0; k < K; k++) {
                want[m * N + n] += x[m * K + k] * w[n * K + k];
                want_dx[m * K + k] += dy[m * N + n] * w[n * K + k];
                want_dw[n * K + k] += dy[m * N + n] * x[m * K + k];
            }
    k64.matmul_nt(y, x, f64_tensor(w), M, N, K);
    expect_near("matmul_nt", y, want, M * N, 1e-13);
    memset(y, 0xff, sizeof y);
    k64.matmul_nt_acc(y, x, f64_tensor(w), M, N, K);
    expect_near("matmul_nt_acc", y, want, M * N, 1e-13);
    memset(y, 0xff, sizeof y);
    k64.router_nt(y, x, w, M, N, K);
    expect_near("router_nt", y, want, M * N, 1e-13);
    k64.matmul_nn(dx, dy, f64_tensor(w), M, N, K);
    expect_near("matmul_nn", dx, want_dx, M * K, 1e-13);
    memset(dx, 0xff, sizeof dx);
    k64.router_nn(dx, dy, w, M, N, K);
    expect_near("router_nn", dx, want_dx, M * K, 1e-13);
    k64.matmul_tn(dw, dy, x, M, N, K);
    expect_near("matmul_tn", dw, want_dw, N * K, 1e-12);
    for (long i = 0; i < N * K; i++) dw[i] = (double)i;
    k64.router_tn(dw, dy, x, M, N, K);
    expect_near("router_tn", dw, want_dw, N * K, 1e-12);
    free(x);
    free(w);
    free(dy);
}

// Grouped products are the plain ones expert by expert, and FP8 weights are their values times their scales.
static void test_grouped_products(void **state)
{
    (void)state;
    enum { E = 4, N = 6, K = 19, R = 11 };
    static const long first[E + 1] = {0, 3, 3, 10, 11};
    double *x = numbers(R * K, 1, 1), *w = numbers(E * N * K, 2, 1), *dy = numbers(R * N, 3, 1);
    double y[R * N], want[R * N], dx[R * K], want_dx[R * K], dw[E * N * K] = {0}, want_dw[E * N * K] = {0};
    for (long e = 0; e < E; e++) {
        long r = first[e], n = first[e + 1] - r;
        struct tensor we = f64_tensor(w + e * N * K);
        k64.matmul_nt(want + r * N, x + r * K, we, n, N, K);
        k64.matmul_nn(want_dx + r * K, dy + r * N, we, n, N, K);
        k64.matmul_tn(want_dw + e * N * K, dy + r * N, x + r * K, n, N, K);
    }
    k64.grouped_nt(y, x, f64_tensor(w), first, E, N, K);
    k64.grouped_nn(dx, dy, f64_tensor(w), first, E, N, K);
    k64.grouped_tn(dw, dy, x, first, E, N, K);
    expect_near("grouped_nt", y, want, R * N, 0);
    expect_near("grouped_nn", dx, want_dx, R * K, 0);
    expect_near("grouped_tn", dw, want_dw, E * N * K, 0);

    uint8_t q[E * N * K];
    float scale[E * N];
    for (long i = 0; i < E * N; i++) scale[i] = 0.25f + (float)i * 0.01f;
    for (long i = 0; i < E * N * K; i++) {
        q[i] = e4m3_from_float((float)w[i] / scale[i / K]);
        w[i] = (double)e4m3_to_float(q[i]) * (double)scale[i / K];
    }
    k64.grouped_nt(y, x, (struct tensor){.data = q, .scale = scale, .dtype = F8_E4M3}, first, E, N, K);
    k64.grouped_nt(want, x, f64_tensor(w), first, E, N, K);
    expect_near("grouped_nt FP8", y, want, R * N, 1e-13);
    free(x);
    free(w);
    free(dy);
}

// A scale per row and block of 128 columns, the last block short: cast and products see the same values.
static void test_blocks(void **state)
{
    (void)state;
    enum { E = 2, N = 3, K = 300, R = 5, SCALES = E * N * 3 };
    static const long first[E + 1] = {0, 2, R};
    double *x = numbers(R * K, 1, 1), *w = numbers(E * N * K, 2, 1), *read = numbers(E * N * K, 3, 1);
    double y[R * N], want[R * N];
    uint8_t q[E * N * K], again[E * N * K];
    float scale[SCALES];
    for (long i = 0; i < SCALES; i++) scale[i] = 0.25f + (float)i * 0.125f; // codes times these are exact in f32
    for (long row = 0; row < E * N; row++)
        for (long k = 0; k < K; k++) {
            float s = scale[row * 3 + (k < 128 ? 0 : k < 256 ? 1 : 2)];
            q[row * K + k] = e4m3_from_float((float)w[row * K + k] / s);
            w[row * K + k] = (double)e4m3_to_float(q[row * K + k]) * (double)s;
        }
    struct tensor f8 = {.data = q, .scale = scale, .dtype = F8_E4M3, .scale_columns = 3};
    k64.cast(f64_tensor(read), f8, E * N, K);
    expect_near("cast from blocks", read, w, E * N * K, 0);
    f8.data = again;
    k64.cast(f8, f64_tensor(w), E * N, K);
    assert_memory_equal(again, q, sizeof q);
    k64.grouped_nt(y, x, f8, first, E, N, K);
    k64.grouped_nt(want, x, f64_tensor(w), first, E, N, K);
    expect_near("grouped_nt in blocks", y, want, R * N, 1e-12);
    double *row = numbers(K, 4, 1);
    k64.embed(row, f8, (int[]){4}, 1, K);
    expect_near("embed in blocks", row, w + 4 * K, K, 0);
    free(row);
    free(read);
    free(w);
    free(x);
}

// Each output is summed in an order fixed by K: one row alone has the bits it has among many.
static void test_rows_alone(void **state)
{
    (void)state;
    enum { M = 67, N = 33, K = 517 };
    for (int type = F32; type <= BF16; type++) {
        struct kernels k;
        kernels_reference(&k, (enum dtype)type);
        char *x = malloc(M * K * 4), *w = malloc(N * K * 4), *y = malloc(M * N * 4), *one = malloc(N * 4);
        struct tensor tx = {.data = x, .dtype = (enum dtype)type}, tw = {.data = w, .dtype = (enum dtype)type};
        long size = dtype_size((enum dtype)type);
        k.init_normal(tx, 0, 1, M * K, 1, 1, 0);
        k.init_normal(tw, 0, 1, N * K, 1, 2, 0);
        k.matmul_nt(y, x, tw, M, N, K);
        for (long m = 0; m < M; m++) {
            k.matmul_nt(one, x + m * K * size, tw, 1, N, K);
            assert_memory_equal(one, y + m * N * size, (size_t)(N * size));
        }
        free(x);
        free(w);
        free(y);
        free(one);
    }
}

// ---- norm ----

enum { T = 3, D = 9 };

struct norm {
    double *x, *w, *dy, y[T * D], rstd[T];
};

static double norm_loss(void *context)
{
    struct norm *n = context;
    k64.rmsnorm(n->y, n->rstd, n->x, n->w, 1e-3, T, D);
    return dot(n->y, n->dy, T * D);
}

static void test_rmsnorm(void **state)
{
    (void)state;
    struct norm n = {numbers(T * D, 1, 1), numbers(D, 2, 1), numbers(T * D, 3, 1), {0}, {0}};
    norm_loss(&n);
    for (long t = 0; t < T; t++) {
        double rstd = 1 / sqrt(dot(n.x + t * D, n.x + t * D, D) / D + 1e-3), want[D];
        for (long d = 0; d < D; d++) want[d] = n.x[t * D + d] * rstd * n.w[d];
        expect_near("rmsnorm", n.y + t * D, want, D, 1e-14);
        expect_near("rstd", n.rstd + t, &rstd, 1, 1e-14);
    }
    double dx[T * D], with_residual[T * D], sum[T * D], dw[D] = {0};
    double *residual = numbers(T * D, 4, 1);
    k64.rmsnorm_backward(dx, NULL, n.dy, n.x, n.w, n.rstd, T, D);
    k64.rmsnorm_backward_weight(dw, n.dy, n.x, n.rstd, T, D);
    k64.rmsnorm_backward(with_residual, residual, n.dy, n.x, n.w, n.rstd, T, D);
    k64.add(sum, dx, residual, T * D);
    expect_near("rmsnorm_backward + residual", with_residual, sum, T * D, 1e-14);
    expect_gradient("rmsnorm_backward", n.x, dx, T * D, norm_loss, &n);
    expect_gradient("rmsnorm_backward_weight", n.w, dw, D, norm_loss, &n);
    free(n.x);
    free(n.w);
    free(n.dy);
    free(residual);
}

// ---- rotary embedding ----

static void test_rope(void **state)
{
    (void)state;
    enum { ROWS = 3, HEADS = 2, C = 6, STRIDE = 15 };
    static const int position[ROWS] = {0, 4, 11};
    double angle[12 * C], *x = numbers(ROWS * STRIDE, 1, 1), *kept = numbers(ROWS * STRIDE, 1, 1), want[ROWS * STRIDE];
    k64.rope_angles(angle, 100, 12, C);
    memcpy(want, x, sizeof want);
    for (long t = 0; t < ROWS; t++)
        for (long h = 0; h < HEADS; h++)
            for (long c = 0; c < C / 2; c++) { // (a + ib) e^(i position theta^(-2c/C))
                double a = kept[t * STRIDE + h * C + c], b = kept[t * STRIDE + h * C + C / 2 + c];
                double turn = position[t] / pow(100, 2.0 * (double)c / C);
                want[t * STRIDE + h * C + c] = a * cos(turn) - b * sin(turn);
                want[t * STRIDE + h * C + C / 2 + c] = b * cos(turn) + a * sin(turn);
            }
    k64.rope(x, position, angle, 1, ROWS, HEADS, C, STRIDE);
    expect_near("rope", x, want, ROWS * STRIDE, 1e-14);
    k64.rope(x, position, angle, -1, ROWS, HEADS, C, STRIDE);
    expect_near("rope and back", x, kept, ROWS * STRIDE, 1e-14);
    free(x);
    free(kept);
}

// ---- attention ----

struct attend {
    struct attention_shape s;
    int start[2 * 40];
    double *qkv, *d_o, *o, *lse;
};

static void attend_init(struct attend *a, struct attention_shape s, const int *starts)
{
    a->s = s;
    a->qkv = numbers(s.B * s.S * (s.H + 2 * s.G) * s.C, 1, 1);
    a->d_o = numbers(s.B * s.S * s.H * s.C, 2, 1);
    a->o = numbers(s.B * s.S * s.H * s.C, 3, 1);
    a->lse = numbers(s.B * s.S * s.H, 4, 1);
    for (long i = 0; i < s.B * s.S; i++) a->start[i] = starts ? starts[i] : 0;
}

static void attend_free(struct attend *a)
{
    free(a->qkv);
    free(a->d_o);
    free(a->o);
    free(a->lse);
}

static bool visible(const struct attend *a, long b, long i, long j)
{
    return j <= i && j >= a->start[b * a->s.S + i] && (!a->s.window || j > i - a->s.window);
}

static double attend_loss(void *context)
{
    struct attend *a = context;
    k64.attention(a->o, a->lse, a->qkv, a->start, a->s);
    return dot(a->o, a->d_o, a->s.B * a->s.S * a->s.H * a->s.C);
}

static void expect_attention(struct attend *a)
{
    struct attention_shape s = a->s;
    long row = (s.H + 2 * s.G) * s.C;
    attend_loss(a);
    for (long b = 0; b < s.B; b++)
        for (long i = 0; i < s.S; i++)
            for (long h = 0; h < s.H; h++) {
                long at = (b * s.S + i) * s.H + h, g = (s.skip + h) / s.per_kv;
                double sum = 0, want[64] = {0}, *q = a->qkv + (b * s.S + i) * row + h * s.C;
                for (long j = 0; j < s.S; j++) {
                    if (!visible(a, b, i, j)) continue;
                    double *key = a->qkv + (b * s.S + j) * row + (s.H + g) * s.C;
                    double p = exp(s.scale * dot(q, key, s.C));
                    sum += p;
                    for (long c = 0; c < s.C; c++) want[c] += p * key[s.G * s.C + c];
                }
                for (long c = 0; c < s.C; c++) want[c] /= sum;
                expect_near("attention", a->o + at * s.C, want, s.C, 1e-13);
                expect_near("lse", a->lse + at, (double[]){log(sum)}, 1, 1e-13);
            }
}

static const struct attention_shape attend_shapes[] = {
    {1, 9, 2, 2, 4, 1, 0, 0, 0.5},  {2, 21, 4, 2, 6, 2, 0, 0, 0.4}, {1, 39, 3, 1, 4, 3, 0, 5, 0.5},
    {1, 40, 1, 1, 8, 1, 0, 1, 0.3}, {1, 35, 5, 3, 4, 2, 1, 0, 0.5}, // a part of the heads
};

static void test_attention(void **state)
{
    (void)state;
    int documents[2 * 40];
    for (int i = 0; i < 80; i++) documents[i] = i % 40 < 7 ? 0 : i % 40 < 17 ? 7 : 17;
    documents[21] = documents[22] = 0; // for S 21: the second sequence begins at row 21
    for (int i = 23; i < 42; i++) documents[i] = 2;
    for (int i = 0; i < 5; i++)
        for (int masked = 0; masked < 2; masked++) {
            struct attend a;
            attend_init(&a, attend_shapes[i], masked ? documents : NULL);
            expect_attention(&a);
            attend_free(&a);
        }
}

static void test_attention_backward(void **state)
{
    (void)state;
    static const int documents[9] = {0, 0, 0, 3, 3, 3, 3, 7, 7};
    static const struct {
        struct attention_shape s;
        bool masked;
        const char *name;
    } of[] = {
        {{1, 9, 2, 2, 4, 1, 0, 0, 0.5}, true, "attention, documents"},
        {{2, 19, 4, 2, 2, 2, 0, 0, 0.7}, false, "attention, grouped"},
        {{1, 19, 5, 3, 2, 2, 1, 0, 0.7}, false, "attention, a part of the heads"},
        {{1, 7, 3, 4, 2, 2, 3, 0, 0.7}, false, "attention, idle kv heads"},
        {{1, 35, 2, 1, 2, 2, 0, 4, 0.7}, false, "attention, window"},
    };
    for (int i = 0; i < 5; i++) {
        struct attend a;
        attend_init(&a, of[i].s, of[i].masked ? documents : NULL);
        long n = a.s.B * a.s.S * (a.s.H + 2 * a.s.G) * a.s.C;
        double *dqkv = numbers(n, 5, 1e30);
        attend_loss(&a);
        k64.attention_backward(dqkv, a.d_o, a.qkv, a.o, a.lse, a.start, a.s);
        expect_gradient(of[i].name, a.qkv, dqkv, n, attend_loss, &a);
        free(dqkv);
        attend_free(&a);
    }
}

// Rows over pages, in any order and split into any calls, attend as they do in one sequence.
static void test_attention_paged(void **state)
{
    (void)state;
    for (long window = 0; window <= 5; window += 5) {
        struct attend a;
        attend_init(&a, (struct attention_shape){2, 37, 4, 2, 6, 2, 0, window, 0.4}, NULL);
        attend_loss(&a);
        static const int table[2 * 4] = {5, 1, 4, 99, 0, 3, 2, 99};
        long row = (4 + 2 * 2) * 6;
        double *k = numbers(6 * PAGE_TOKENS * 2 * 6, 6, 1e30), *v = numbers(6 * PAGE_TOKENS * 2 * 6, 7, 1e30);
        for (long i = 0; i < 37; i++) { // one row of each sequence at a time
            int sequence[2] = {1, 0}, position[2] = {(int)i, (int)i};
            double qkv[2 * 48], o[2 * 24];
            struct kv_view kv = {k, v, table, 4, sequence, position};
            memcpy(qkv, a.qkv + (37 + i) * row, (size_t)row * sizeof *qkv);
            memcpy(qkv + row, a.qkv + i * row, (size_t)row * sizeof *qkv);
            k64.kv_store(kv, qkv, 2, 4, 2, 6);
            k64.attention_paged(o, qkv, kv, 2, 4, 2, 6, window, 0.4);
            expect_near("attention_paged", o, a.o + (37 + i) * 24, 24, 1e-13);
            expect_near("attention_paged", o + 24, a.o + i * 24, 24, 1e-13);
        }
        free(k);
        free(v);
        attend_free(&a);
    }
}

// ---- head ----

enum { TOKENS = 4, V = 11 };

struct head {
    double *logits, loss[TOKENS];
};
static const int targets[TOKENS] = {3, -1, 10, 0};

static double head_loss(void *context)
{
    struct head *h = context;
    k64.cross_entropy(h->loss, NULL, h->logits, NULL, 1, targets, 1, TOKENS, V);
    return 0.5 * (h->loss[0] + h->loss[1] + h->loss[2] + h->loss[3]);
}

static void test_cross_entropy(void **state)
{
    (void)state;
    struct head h = {numbers(TOKENS * V, 1, 2), {0}};
    double dlogits[TOKENS * V];
    k64.cross_entropy(h.loss, dlogits, h.logits, NULL, 1, targets, 0.5, TOKENS, V);
    for (long t = 0; t < TOKENS; t++) {
        double sum = 0;
        for (long v = 0; v < V; v++) sum += exp(h.logits[t * V + v]);
        double want = targets[t] < 0 ? 0 : -log(exp(h.logits[t * V + targets[t]]) / sum);
        expect_near("cross_entropy", h.loss + t, &want, 1, 1e-13);
    }
    expect_gradient("cross_entropy", h.logits, dlogits, TOKENS * V, head_loss, &h);
    head_loss(&h);
    for (long i = 0; i < TOKENS * V; i++) h.logits[i] += 5000; // would overflow without the maximum
    double shifted[TOKENS];
    k64.cross_entropy(shifted, NULL, h.logits, NULL, 1, targets, 1, TOKENS, V);
    expect_near("cross_entropy, shifted", shifted, h.loss, TOKENS, 1e-11);
    free(h.logits);
}

static void test_kl_divergence(void **state)
{
    (void)state;
    enum { N = 3, W = 13 };
    double *p = numbers(N * W, 1, 1), *q = numbers(N * W, 2, 1), kl[N], same[N], zero[N] = {0};
    k64.kl_divergence(kl, p, q, N, W);
    k64.kl_divergence(same, p, p, N, W);
    expect_near("KL(p || p)", same, zero, N, 1e-15);
    for (long t = 0; t < N; t++) {
        double sum_p = 0, sum_q = 0, want = 0;
        for (long v = t * W; v < (t + 1) * W; v++) sum_p += exp(p[v]), sum_q += exp(q[v]);
        for (long v = t * W; v < (t + 1) * W; v++)
            want += exp(p[v]) / sum_p * log(exp(p[v]) / sum_p / (exp(q[v]) / sum_q));
        expect_near("kl_divergence", kl + t, &want, 1, 1e-13);
        assert_true(want > 0.1);
    }
    free(p);
    free(q);
}

// ---- embedding, optimizer, memory ----

static void test_embedding(void **state)
{
    (void)state;
    double table[3 * 2] = {1, 2, 3, 4, 5, 6}, x[4 * 2], dtable[3 * 2] = {100, 0, 0, 0, 0, 0};
    static const int token[4] = {2, 0, 2, 2};
    k64.embed(x, f64_tensor(table), token, 4, 2);
    expect_near("embed", x, (double[]){5, 6, 1, 2, 5, 6, 5, 6}, 8, 0);
    double dx[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    k64.embed_backward(dtable, dx, token, 4, 2);
    expect_near("embed_backward", dtable, (double[]){104, 8, 0, 0, 81, 162}, 6, 0);
}

// Two steps written out.
static void test_adamw(void **state)
{
    (void)state;
    double p = 2, m = 0, v = 0, grad[2] = {4, -1}, want = 2, wm = 0, wv = 0;
    for (int t = 1; t <= 2; t++) {
        struct adamw_step s = {0.1, 0.9, 0.99, 1e-8, 0.05, 1 - pow(0.9, t), 1 - pow(0.99, t), 0.5};
        k64.adamw(f64_tensor(&p), NULL, &m, &v, &grad[t - 1], 1, s);
        double g = 0.5 * grad[t - 1];
        wm = 0.9 * wm + 0.1 * g;
        wv = 0.99 * wv + 0.01 * g * g;
        want = want - 0.1 * (wm / (1 - pow(0.9, t)) / (sqrt(wv / (1 - pow(0.99, t))) + 1e-8) + 0.05 * want);
        expect_near("adamw p", &p, &want, 1, 1e-15);
        expect_near("adamw m", &m, &wm, 1, 1e-15);
        expect_near("adamw v", &v, &wv, 1, 1e-15);
    }
    assert_true(p < 1.9);
}

static void test_sums(void **state)
{
    (void)state;
    enum { N = 150000 };
    double *x = numbers(N, 1, 1), squares = 0, sum = 0;
    for (long i = 0; i < N; i++) squares += x[i] * x[i], sum += x[i];
    double got[] = {k64.sum_squares(x, N), k64.sum(x, N)};
    expect_near("sums", got, (double[]){squares, sum}, 2, 1e-8);
    x[777] = -1000;
    assert_true(k64.amax(f64_tensor(x), N) == 1000);
    x[778] = NAN;
    assert_true(isnan(k64.amax(f64_tensor(x), N)) && isnan(k64.sum_squares(x, N)));
    free(x);
}

static void test_memory(void **state)
{
    (void)state;
    // x[i] is the value at counter offset + i, however the tensor is cut.
    float whole[1000], part[300];
    k64.init_normal((struct tensor){.data = whole, .dtype = F32}, 2, 3, 1000, 9, 11, 50);
    k64.init_normal((struct tensor){.data = part, .dtype = F32}, 2, 3, 300, 9, 11, 550);
    assert_memory_equal(part, whole + 500, sizeof part);
    for (long i = 0; i < 1000; i++) assert_true(whole[i] == (float)fma(3, rng_normal(9, 11, (uint64_t)(50 + i)), 2));
    // f64 to 16 bits is one rounding: through float this would round up twice.
    double near[] = {1 + 0x1p-8 + 0x1p-40, 1 + 0x1p-8 - 0x1p-40, 1e300, -1e300, 1 + 0x1.8p-7 - 0x1p-50};
    uint16_t b[5], h[5];
    k64.cast((struct tensor){.data = b, .dtype = BF16}, f64_tensor(near), 1, 5);
    k64.cast((struct tensor){.data = h, .dtype = F16}, f64_tensor(near), 1, 5);
    assert_int_equal(b[0], 0x3f81);
    assert_int_equal(b[1], 0x3f80);
    assert_int_equal(b[2], 0x7f80);
    assert_int_equal(b[3], 0xff80);
    assert_int_equal(b[4], 0x3f81);
    assert_int_equal(h[2], 0x7c00);
    // scales: to F8 divides, from F8 multiplies
    double x[4] = {896, -448, 3, 3000}, back[4];
    float scale[2] = {2, 1};
    uint8_t q[4];
    k64.cast((struct tensor){.data = q, .scale = scale, .dtype = F8_E4M3}, f64_tensor(x), 2, 2);
    k64.cast(f64_tensor(back), (struct tensor){.data = q, .scale = scale, .dtype = F8_E4M3}, 2, 2);
    expect_near("cast through F8", back, (double[]){896, -448, 3, 448}, 4, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),          cmocka_unit_test(test_grouped_products),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_rows_alone),        cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_rope),              cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_backward), cmocka_unit_test(test_attention_paged),
        cmocka_unit_test(test_cross_entropy),     cmocka_unit_test(test_kl_divergence),
        cmocka_unit_test(test_embedding),         cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_sums),              cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests_name("reference", tests, reference_start, NULL);
}
