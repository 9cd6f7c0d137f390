// The double reference on parts of a model, as ranks hold them: what the parts give together is what the whole gives.
#include "reference_check.h"

static void test_add_parts(void **state)
{
    (void)state;
    double a[3] = {1, 2, 3}, b[3] = {1e16, 20, -3}, c[3] = {-1e16, 200, 5};
    k64.add_parts(b, (const void *[]){a, b, c}, 3, F64, 3);
    expect_near("f64", b, (double[]){0, 222, 5}, 3, 0); // 1 is lost in 1e16 before that goes
    // bf16 is summed in f32: 256 + 1 + 1 would stay 256.
    uint16_t x[3] = {bf16_from_float(256), bf16_from_float(1), bf16_from_float(1)}, y;
    k64.add_parts(&y, (const void *[]){x, x + 1, x + 2}, 3, BF16, 1);
    assert_true(bf16_to_float(y) == 258);
    float f[2] = {0x1p24f, 1}, z;
    k64.add_parts(&z, (const void *[]){f, f + 1, f + 1}, 3, F32, 1);
    assert_true(z == 0x1p24f);
}

// ---- vocabulary ----

static void test_embedding(void **state)
{
    (void)state;
    double table[3 * 2] = {1, 2, 3, 4, 5, 6}, x[3 * 2], dtable[3 * 2] = {100, 0, 0, 0, 0, 0};
    static const int token[3] = {2, -1, 0};
    k64.embed(x, f64_tensor(table), token, 3, 2);
    expect_near("embed", x, (double[]){5, 6, 0, 0, 1, 2}, 6, 0);
    double dx[6] = {1, 2, 4, 8, 16, 32};
    k64.embed_backward(dtable, dx, token, 3, 2);
    expect_near("embed_backward", dtable, (double[]){116, 32, 0, 0, 1, 2}, 6, 0);
}

enum { TOKENS = 5, V = 11, RANKS = 4 };
static const int columns[RANKS + 1] = {0, 4, 4, 9, V}; // rank 1 has none

static void columns_of(double *to, const double *from, int rank)
{
    long n = columns[rank + 1] - columns[rank];
    for (long t = 0; t < TOKENS; t++)
        for (long v = 0; v < n; v++) to[t * n + v] = from[t * V + columns[rank] + v];
}

static void test_cross_entropy(void **state)
{
    (void)state;
    static const int target[TOKENS] = {3, -1, 10, 4, 8};
    double *logits = numbers(TOKENS * V, 1, 2), own[TOKENS * V], parts[RANKS * TOKENS * 3];
    double loss[TOKENS], dlogits[TOKENS * V], whole[TOKENS], dwhole[TOKENS * V], want[TOKENS * V];
    int seen[RANKS][TOKENS];
    for (long v = 0; v < 4; v++) logits[2 * V + v] = -INFINITY; // no mass at all on rank 0
    k64.cross_entropy(whole, dwhole, logits, NULL, 1, target, 0.5, TOKENS, V);
    for (int r = 0; r < RANKS; r++) {
        for (int t = 0; t < TOKENS; t++) {
            bool here = target[t] >= columns[r] && target[t] < columns[r + 1];
            seen[r][t] = target[t] < 0 ? -1 : here ? target[t] - columns[r] : columns[r + 1] - columns[r];
        }
        columns_of(own, logits, r);
        k64.logits_parts(parts + r * TOKENS * 3, own, seen[r], TOKENS, columns[r + 1] - columns[r]);
    }
    double *none = parts + TOKENS * 3;
    assert_true(isinf(none[0]) && none[0] < 0 && none[1] == 0 && none[2] == 0);
    for (int r = 0; r < RANKS; r++) {
        long n = columns[r + 1] - columns[r];
        columns_of(own, logits, r);
        columns_of(want, dwhole, r);
        k64.cross_entropy(loss, dlogits, own, parts, RANKS, seen[r], 0.5, TOKENS, n);
        expect_near("loss", loss, whole, TOKENS, 1e-14);
        expect_near("dlogits", dlogits, want, TOKENS * n, 1e-15);
    }
    free(logits);
}

// ---- heads ----

enum { S = 21, HEADS = 6, KV = 3, C = 4, ROW = (HEADS + 2 * KV) * C };

// Heads [from, to) of the whole and the kv heads they read: rows of the part's qkv, in whichever direction.
static void heads_of(double *part, double *whole, long from, long to, bool add)
{
    long per_kv = HEADS / KV, first = from / per_kv, kv = (to - 1) / per_kv - first + 1, n = to - from + 2 * kv;
    for (long t = 0; t < S; t++)
        for (long i = 0; i < n; i++) {
            long h = i < to - from ? from + i : i < to - from + kv ? HEADS + first + i - (to - from)
                                                                   : HEADS + KV + first + i - (to - from) - kv;
            for (long c = 0; c < C; c++) {
                double *p = part + (t * n + i) * C + c, *w = whole + t * ROW + h * C + c;
                if (add) *w += *p;
                else *p = *w;
            }
        }
}

static void test_heads(void **state)
{
    (void)state;
    static const long cuts[] = {0, 1, 5, HEADS}; // kv heads 0 and 2 are read by two ranks each
    double *qkv = numbers(S * ROW, 1, 1), *d_o = numbers(S * HEADS * C, 2, 1), sum[S * ROW] = {0}, dqkv[S * ROW];
    double o[S * HEADS * C], lse[S * HEADS], part[S * ROW], dpart[S * ROW], po[S * HEADS * C], plse[S * HEADS];
    double dpo[S * HEADS * C];
    int start[S];
    for (int i = 0; i < S; i++) start[i] = i < 6 ? 0 : 6;
    struct attention_shape s = {1, S, HEADS, KV, C, HEADS / KV, 0, 0, 0.5};
    k64.attention(o, lse, qkv, start, s);
    k64.attention_backward(dqkv, d_o, qkv, o, lse, start, s);
    for (int r = 0; r < 3; r++) {
        long from = cuts[r], n = cuts[r + 1] - from;
        struct attention_shape p = s;
        p.H = n;
        p.skip = from % s.per_kv;
        p.G = (from + n - 1) / s.per_kv - from / s.per_kv + 1;
        heads_of(part, qkv, from, from + n, false);
        for (long t = 0; t < S; t++)
            memcpy(dpo + t * n * C, d_o + (t * HEADS + from) * C, (size_t)(n * C) * sizeof *dpo);
        k64.attention(po, plse, part, start, p);
        k64.attention_backward(dpart, dpo, part, po, plse, start, p);
        heads_of(dpart, sum, from, from + n, true);
        for (long t = 0; t < S; t++)
            assert_memory_equal(po + t * n * C, o + (t * HEADS + from) * C, (size_t)(n * C) * sizeof *po);
    }
    expect_near("dqkv", sum, dqkv, S * ROW, 1e-14);
    free(qkv);
    free(d_o);
}

// ---- tokens ----

enum { T = 90, E = 5, K = 2, CAPACITY = 30 };

struct routed {
    int source[T * K], row[T * K];
    long first[E + 1], count[E], R;
};

// A part's rows of an expert are the whole's that belong to its tokens, in the same order.
static void expect_parts(const struct routed *whole, const struct routed *part, long from, long own)
{
    long R = 0;
    assert_memory_equal(part->count, whole->count, sizeof whole->count);
    for (long e = 0; e < E; e++) {
        assert_int_equal(part->first[e], R);
        for (long r = whole->first[e]; r < whole->first[e + 1]; r++) {
            long at = whole->source[r] - from * K;
            if (at < 0 || at >= own * K) continue;
            assert_int_equal(part->source[R], at);
            assert_int_equal(part->row[at], R++);
        }
    }
    assert_int_equal(part->first[E], R);
    assert_int_equal(part->R, R);
    for (long i = 0; i < own * K; i++) assert_int_equal(part->row[i] < 0, whole->row[from * K + i] < 0);
}

static void test_route(void **state)
{
    (void)state;
    static const long cuts[] = {0, 17, 17, 60, T};
    double *u = numbers(T * K, 1, 1), g[T * E], weight[T * K];
    int expert[T * K], given[T * K], chosen[T * K];
    for (int i = 0; i < T * K; i++) expert[i] = i % K ? (expert[i - 1] + 1 + i % (E - 1)) % E : i * 7 / 3 % 3;
    for (int i = 0; i < T * E; i++) g[i] = 0.2;
    for (int policy = DROP_PROBS; policy <= DROP_POSITION; policy++) {
        struct routed whole, part;
        whole.R = k64.route(whole.source, whole.row, whole.first, whole.count, expert, u, CAPACITY,
                            (enum drop_policy)policy, 0, T, T, E, K);
        assert_in_range(whole.R, 1, T * K - 1); // some were dropped
        for (int i = 0; i < T * K; i++) given[i] = whole.row[i] < 0 ? -1 - expert[i] : expert[i];
        for (int r = 0; r < 4; r++) {
            long from = cuts[r], own = cuts[r + 1] - from;
            part.R = k64.route(part.source, part.row, part.first, part.count, expert, u, CAPACITY,
                               (enum drop_policy)policy, from, own, T, E, K);
            expect_parts(&whole, &part, from, own);
            for (int i = 0; i < T * K; i++) weight[i] = 9, chosen[i] = i < own * K ? expert[from * K + i] : -77;
            if (own) chosen[0] = (chosen[1] + 1) % E == expert[from * K] ? (chosen[1] + 2) % E : (chosen[1] + 1) % E;
            part.R = k64.route_given(part.source, part.row, part.first, part.count, chosen, weight, given, g, from,
                                     own, T, E, K);
            expect_parts(&whole, &part, from, own);
            for (int i = 0; i < T * K; i++) {
                assert_int_equal(chosen[i], i < own * K ? expert[from * K + i] : -77);
                assert_true(weight[i] == (own && i < K ? 0.5 : 9)); // only the first token's had changed
            }
        }
    }
    free(u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add_parts), cmocka_unit_test(test_embedding), cmocka_unit_test(test_cross_entropy),
        cmocka_unit_test(test_heads),     cmocka_unit_test(test_route),
    };
    return cmocka_run_group_tests_name("parts", tests, reference_start, NULL);
}
