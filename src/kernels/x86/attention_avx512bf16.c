// Attention of bfloat16 by vdpbf16ps, where that instruction is twice as fast as multiply-adds in f32. [Dao,
// FlashAttention-2, arXiv 2307.08691]
//
// Scores lie turned, [key][query]: the lanes of two vectors are the 32 queries of a strip, so the running softmax works
// lane by lane and nothing is summed across lanes. The instruction multiplies and adds pairs; each product reads `a` a
// pair at a time, spread over the lanes, and `b` by whole vectors of pairs:
//
//     s'[key][q] = sum of k[key][c] q[q][c]      a: k as it lies                     b: q turned
//     o'[c][q] = sum of v[key][c] p[q][key]      a: v, two rows interleaved          b: p', two rows interleaved
//     dp'[key][q] = sum of v[key][c] do[q][c]    a: v as it lies                     b: do turned
//     dv[key][c] = sum of p[q][key] do[q][c]     a: p' as it lies                    b: do, two rows interleaved
//     dk[key][c] = sum of ds[q][key] q[q][c]     a: ds' as it lies                   b: q, two rows interleaved
//     dq'[c][q] = sum of k[key][c] ds[q][key]    a: k, two rows interleaved          b: ds', two rows interleaved
//
// p and ds are rounded to bf16 before they multiply; maxima, sums, log-sum-exp and all outputs' sums are f32.
#include <float.h>

#include "kernels/x86/simd16.h"

#include "kernels/x86/attention_pairs.inc"

enum {
    Q_TILE = 2 * STRIP,       // queries of a tile of backward
    TASK_QUERIES = 8 * STRIP, // of a task of forward, at least
};

static void (*attention_any)(el *o, acc *lse, const el *qkv, const int *start, struct attention_shape s);
static void (*backward_any)(el *dqkv, const el *d_o, const el *qkv, const el *o, const acc *lse, const int *start,
                            struct attention_shape s);

static struct strip_keys keys_of_strip(const int *start, long query, long n, long window)
{
    int from[STRIP];
    struct strip_keys s = {.first = LONG_MAX, .last_first = n < STRIP ? LONG_MAX : 0};
    for (long i = 0; i < STRIP; i++) {
        long first = i < n ? first_key(start, query + i, window) : INT_MAX;
        from[i] = (int)first;
        if (i >= n) continue;
        s.first = least(s.first, first);
        s.last_first = first > s.last_first ? first : s.last_first;
    }
    const __m512i count = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int j = 0; j < 2; j++) {
        s.from[j] = _mm512_loadu_si512(from + j * LANES);
        s.own[j] = _mm512_add_epi32(count, _mm512_set1_epi32((int)query + j * LANES));
    }
    return s;
}

// ---- one head of one sequence ----

struct head { // at the sequence's first row; rows are `row` apart
    const uint16_t *q, *k, *v;
    const int *start;
    long row;
};

static struct head head_of(const uint16_t *qkv, const int *start, const struct attention_shape *s, long b, long h)
{
    long row = (s->H + 2 * s->G) * s->C, g = (s->skip + h) / s->per_kv;
    const uint16_t *first = qkv + b * s->S * row;
    return (struct head){first + h * s->C, first + (s->H + g) * s->C, first + (s->H + s->G + g) * s->C,
                         start + b * s->S, row};
}

static void turn_strip(float *to, const uint16_t *x, long n, long stride, long C)
{
    const uint16_t *row[STRIP];
    for (long i = 0; i < STRIP && i < n; i++) row[i] = x + i * stride;
    turn_rows(to, row, n, C);
}

static void store_strip(uint16_t *x, const float *from, const vf factor[2], long n, long stride, long C)
{
    uint16_t *row[STRIP];
    for (long i = 0; i < n; i++) row[i] = x + i * stride;
    store_turned(row, from, factor, n, C);
}

// ---- forward ----

struct forward {
    float *k, *v;       // of the task's keys, as they lie and interleaved
    float *q, *s, *p, *o; // of a strip: [C / 2], [K_TILE], [K_TILE / 2], [wide], each times STRIP
    vf max[2], sum[2];
    long wide;          // C up to whole pairs of vectors
};

static long forward_place(struct forward *x, long keys, long C, char *base)
{
    char *at = base;
    x->wide = round_up(C, STRIP);
    x->k = take(&at, round_up(keys, K_TILE) * (C / 2));
    x->v = take(&at, round_up(keys, K_TILE) / 2 * x->wide);
    x->q = take(&at, C / 2 * STRIP);
    x->s = take(&at, K_TILE * STRIP);
    x->p = take(&at, K_TILE / 2 * STRIP);
    x->o = take(&at, x->wide * STRIP);
    return at - base;
}

// A strip's scores in units of log 2 against n keys, the first of which is `key` and lies at k; max grows along.
static void forward_scores(struct forward *x, const struct strip_keys *seen, bool all, const float *k, long key, long n,
                           long C, float scale)
{
    for (long r = 0; r < n; r += ROWS) {
        vf s[ROWS][2];
        zero_vectors(s);
        multiply(s, 2, k + r * (C / 2), C / 2, 1, x->q, STRIP, C / 2);
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < 2; j++) {
                vf t = vf_mul(s[i][j], vf_all(scale));
                if (!all) t = _mm512_mask_mov_ps(vf_all(-INFINITY), sees(seen, j, key + r + i), t);
                x->max[j] = vf_max(x->max[j], t);
                store_f32(x->s + (r + i) * STRIP + j * LANES, t);
            }
    }
}

// Scores of n keys become p = 2^(score - max), interleaved, and join the sums.
static void forward_probabilities(struct forward *x, long n)
{
    for (long r = 0; r < n; r += 2) {
        vf p[2][2];
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++) {
                p[i][j] = vf_exp2(vf_sub(load_f32(x->s + (r + i) * STRIP + j * LANES), x->max[j]));
                x->sum[j] = vf_add(x->sum[j], p[i][j]);
            }
        store_interleaved(x->p + r / 2 * STRIP, round_strip(p[0]), round_strip(p[1]));
    }
}

// n queries from `query` on; x->k and x->v begin with key `base`.
static void forward_strip(struct forward *x, uint16_t *o, float *lse, const struct head *head, long query, long n,
                          long base, const struct attention_shape *s)
{
    long C = s->C;
    struct strip_keys seen = keys_of_strip(head->start, query, n, s->window);
    turn_strip(x->q, head->q + query * head->row, n, head->row, C);
    memset(x->o, 0, (size_t)(x->wide * STRIP) * sizeof *x->o);
    for (int j = 0; j < 2; j++) {
        x->max[j] = vf_all(-FLT_MAX);
        x->sum[j] = vf_zero();
    }
    for (long key = seen.first / ROWS * ROWS; key < query + n; key += K_TILE) {
        long keys = round_up(least(K_TILE, query + n - key), ROWS);
        vf before[2] = {x->max[0], x->max[1]}, shrink[2];
        forward_scores(x, &seen, sees_all(&seen, query, key, keys), x->k + (key - base) * (C / 2), key, keys, C,
                       (float)s->scale * LOG2_E);
        for (int j = 0; j < 2; j++) {
            shrink[j] = vf_exp2(vf_sub(before[j], x->max[j]));
            x->sum[j] = vf_mul(x->sum[j], shrink[j]);
        }
        forward_probabilities(x, keys);
        for (long c = 0; c < C; c += ROWS)
            multiply_add(x->o + c * STRIP, STRIP, 2, shrink, x->v + (key - base) / 2 * x->wide + c, 1, x->wide, x->p,
                         STRIP, keys / 2);
    }
    vf part[2];
    float max[STRIP], sum[STRIP];
    for (int j = 0; j < 2; j++) {
        part[j] = vf_div(vf_all(1.0f), x->sum[j]);
        store_f32(max + j * LANES, x->max[j]);
        store_f32(sum + j * LANES, x->sum[j]);
    }
    store_strip(o, x->o, part, n, s->H * C, C);
    for (long i = 0; i < n; i++) lse[i * s->H] = max[i] * LN_2 + logf(sum[i]);
}

static void forward_task(uint16_t *o, float *lse, const struct head *head, long first, long n,
                         const struct attention_shape *s)
{
    struct forward x;
    long base = LONG_MAX;
    for (long i = first; i < first + n; i++) base = least(base, first_key(head->start, i, s->window));
    base = base / K_TILE * K_TILE;
    long keys = first + n - base;
    forward_place(&x, keys, s->C, x86_scratch(forward_place(&x, keys, s->C, NULL)));
    copy_rows(x.k, head->k + base * head->row, keys, head->row, s->C);
    interleave_rows(x.v, head->v + base * head->row, keys, head->row, s->C, x.wide);
    for (long i = first; i < first + n; i += STRIP)
        forward_strip(&x, o + (i - first) * s->H * s->C, lse + (i - first) * s->H, head, i, least(STRIP, first + n - i),
                      base, s);
}

static void attention(el *o_, acc *lse_, const el *qkv, const int *start, struct attention_shape s)
{
    if (s.C % 2) {
        attention_any(o_, lse_, qkv, start, s);
        return;
    }
    uint16_t *o = o_;
    float *lse = lse_;
    long heads = s.B * s.H, parts = heads ? (4 * kernels_threads() + heads - 1) / heads : 1;
    long step = round_up((s.S + parts - 1) / parts, STRIP);
    if (step < TASK_QUERIES) step = TASK_QUERIES;
    long tasks = (s.S + step - 1) / step;
#pragma omp parallel for collapse(3) schedule(dynamic) if (heads * s.S > STRIP)
    for (long task = tasks - 1; task >= 0; task--) // the longest first
        for (long b = 0; b < s.B; b++)
            for (long h = 0; h < s.H; h++) {
                struct head head = head_of(qkv, start, &s, b, h);
                long first = task * step, at = (b * s.S + first) * s.H + h;
                forward_task(o + at * s.C, lse + at, &head, first, least(step, s.S - first), &s);
                between_tasks();
            }
}

// ---- backward ----
// p = exp(score - lse), dp = do v', ds = p (dp - delta), delta_i = do_i o_i: dq = scale ds k, dk = scale ds' q,
// dv = p' do. One task owns one kv head of a sequence with all its queries.

struct backward {
    float *k, *v, *k_pairs;         // as they lie: [S][C / 2]; interleaved: [S / 2][wide]
    float *q, *d_o;                 // turned: [strips][C / 2][STRIP]
    float *q_pairs, *d_o_pairs;     // interleaved: [S / 2][wide]
    float *dq;                      // [strips][wide][STRIP]
    float *dk, *dv;                 // [S][wide], the sum over the heads that share them
    float *lse, *delta;             // [S]; lse in units of log 2
    float *p, *ds;                  // of a tile, as they lie: [K_TILE][Q_TILE / 2]
    float *ds_pairs;                // interleaved: [Q_TILE / STRIP][K_TILE / 2][STRIP]
    float *exact;                   // p before it is rounded: [ROWS][STRIP]
    struct strip_keys *seen;        // [strips]
    long wide, rows;                // C and S up to whole strips and tiles
};

static long backward_place(struct backward *x, long S, long C, char *base)
{
    char *at = base;
    long rows = round_up(S, K_TILE), wide = round_up(C, STRIP);
    x->rows = rows;
    x->wide = wide;
    x->k = take(&at, rows * (C / 2));
    x->v = take(&at, rows * (C / 2));
    x->q = take(&at, rows * (C / 2));
    x->d_o = take(&at, rows * (C / 2));
    x->k_pairs = take(&at, rows / 2 * wide);
    x->q_pairs = take(&at, rows / 2 * wide);
    x->d_o_pairs = take(&at, rows / 2 * wide);
    x->dq = take(&at, rows * wide);
    x->dk = take(&at, rows * wide);
    x->dv = take(&at, rows * wide);
    x->lse = take(&at, rows);
    x->delta = take(&at, rows);
    x->p = take(&at, K_TILE * Q_TILE / 2);
    x->ds = take(&at, K_TILE * Q_TILE / 2);
    x->ds_pairs = take(&at, K_TILE * Q_TILE / 2);
    x->exact = take(&at, ROWS * STRIP);
    x->seen = (struct strip_keys *)take(&at, rows / STRIP * (long)(sizeof *x->seen / sizeof(float)));
    return at - base;
}

// p and ds of a strip of queries, the first of which is `query`, against ROWS keys. Their rows go to x->p + at and
// x->ds + at, those of ds also interleaved to `pairs`.
static inline __attribute__((always_inline)) void backward_rows(struct backward *x, const struct strip_keys *seen,
                                                                const bool all, long query, long key, long at,
                                                                float *pairs, long C, float scale)
{
    const float *q = x->q + query * (C / 2), *d_o = x->d_o + query * (C / 2);
    vf s[ROWS][2];
    zero_vectors(s);
    multiply(s, 2, x->k + key * (C / 2), C / 2, 1, q, STRIP, C / 2);
    for (int i = 0; i < ROWS; i++) {
        for (int j = 0; j < 2; j++) {
            vf lse = load_f32(x->lse + query + j * LANES);
            s[i][j] = vf_exp2(_mm512_fmsub_ps(s[i][j], vf_all(scale), lse));
            if (!all) s[i][j] = _mm512_maskz_mov_ps(sees(seen, j, key + i), s[i][j]);
            store_f32(x->exact + i * STRIP + j * LANES, s[i][j]);
        }
        store_f32(x->p + at + i * (Q_TILE / 2), round_strip(s[i]));
    }
    zero_vectors(s);
    multiply(s, 2, x->v + key * (C / 2), C / 2, 1, d_o, STRIP, C / 2);
    for (int i = 0; i < ROWS; i += 2) {
        vf rounded[2];
        for (int r = 0; r < 2; r++) {
            for (int j = 0; j < 2; j++) {
                vf delta = load_f32(x->delta + query + j * LANES);
                s[i + r][j] = vf_mul(load_f32(x->exact + (i + r) * STRIP + j * LANES), vf_sub(s[i + r][j], delta));
            }
            rounded[r] = round_strip(s[i + r]);
            store_f32(x->ds + at + (i + r) * (Q_TILE / 2), rounded[r]);
        }
        store_interleaved(pairs + i / 2 * STRIP, rounded[0], rounded[1]);
    }
}

// Which keys of the tile at `key` a strip's queries see: [from, to) in whole rows of the products' tiles.
struct range {
    long from, to;
};

static struct range range_of(const struct strip_keys *seen, long query, long key)
{
    long from = seen->first > key ? least(seen->first - key, K_TILE) / ROWS * ROWS : 0;
    return (struct range){from, round_up(least(K_TILE, query + STRIP - key), ROWS)};
}

static void zero_rows(struct backward *x, long part, long from, long to)
{
    for (long r = from; r < to; r++) {
        store_f32(x->p + r * (Q_TILE / 2) + part * LANES, vf_zero());
        store_f32(x->ds + r * (Q_TILE / 2) + part * LANES, vf_zero());
    }
}

// p and ds of a strip of queries against the keys of a tile, and what they give dq; `part`: which strip of the tile of
// queries it is.
static void backward_strip(struct backward *x, const struct strip_keys *seen, long query, long part, long key, long C,
                           float scale)
{
    struct range some = range_of(seen, query, key);
    float *pairs = x->ds_pairs + part * (K_TILE / 2) * STRIP;
    bool all = sees_all(seen, query, key + some.from, some.to - some.from);
    zero_rows(x, part, 0, some.from);
    for (long r = some.from; r < some.to; r += ROWS) {
        long at = r * (Q_TILE / 2) + part * LANES;
        if (all) backward_rows(x, seen, true, query, key + r, at, pairs + r / 2 * STRIP, C, scale);
        else backward_rows(x, seen, false, query, key + r, at, pairs + r / 2 * STRIP, C, scale);
    }
    zero_rows(x, part, some.to, K_TILE);
    if (some.from >= some.to) return;
    const float *k = x->k_pairs + (key + some.from) / 2 * x->wide;
    for (long c = 0; c < C; c += ROWS)
        multiply_add(x->dq + query * x->wide + c * STRIP, STRIP, 2, NULL, k + c, 1, x->wide,
                     pairs + some.from / 2 * STRIP, STRIP, (some.to - some.from) / 2);
}

// to[key][c] += sum over a tile's queries of a[key][q] b[q][c], for the keys from row `from` on. The first query is
// `late` after the first key; queries before a key do not see it. `pairs` of queries.
static void backward_keys(float *to, const float *a, const float *b, long wide, long from, long late, long pairs,
                          long C)
{
    for (long c = 0; c < C; c += STRIP)
        for (long r = from; r < K_TILE; r += ROWS) {
            long skip = r > late ? (r - late) / 2 : 0, depth = pairs - skip;
            const float *rows = a + r * (Q_TILE / 2) + skip, *panel = b + skip * wide + c;
            float *sums = to + r * wide + c;
            if (C - c > LANES) multiply_add(sums, wide, 2, NULL, rows, Q_TILE / 2, 1, panel, wide, depth);
            else multiply_add(sums, wide, 1, NULL, rows, Q_TILE / 2, 1, panel, wide, depth);
        }
}

// One head's queries as both kinds of operand, and what their softmax left.
static void backward_load(struct backward *x, const struct head *head, const uint16_t *d_o, const uint16_t *o,
                          const float *lse, const struct attention_shape *s)
{
    long C = s->C, row = s->H * C;
    for (long i = 0; i < x->rows; i += STRIP) {
        turn_strip(x->q + i * (C / 2), head->q + i * head->row, s->S - i, head->row, C);
        turn_strip(x->d_o + i * (C / 2), d_o + i * row, s->S - i, row, C);
    }
    interleave_rows(x->q_pairs, head->q, s->S, head->row, C, x->wide);
    interleave_rows(x->d_o_pairs, d_o, s->S, row, C, x->wide);
    memset(x->dq, 0, (size_t)(x->rows * x->wide) * sizeof *x->dq);
    for (long i = 0; i < x->rows; i++) {
        vf sum = vf_zero();
        for (long c = 0; c < C && i < s->S; c += LANES)
            sum = vf_fma(get_bf16(d_o + i * row + c, C - c), get_bf16(o + i * row + c, C - c), sum);
        x->delta[i] = vf_sum(sum);
        x->lse[i] = i < s->S ? lse[i * s->H] * LOG2_E : 0;
    }
}

static void backward_head(struct backward *x, uint16_t *dq, const struct head *head, const struct attention_shape *s)
{
    long C = s->C, strips = (s->S + STRIP - 1) / STRIP;
    float scale = (float)s->scale * LOG2_E;
    for (long key = 0; key < s->S; key += K_TILE)
        for (long query = key; query < s->S; query += Q_TILE) { // earlier queries see none of these keys
            const struct strip_keys *seen = x->seen + query / STRIP;
            long parts = least(Q_TILE / STRIP, strips - query / STRIP), from = K_TILE;
            for (long part = 0; part < parts; part++)
                from = least(from, range_of(&seen[part], query + part * STRIP, key).from);
            if (from == K_TILE) continue;
            for (long part = 0; part < parts; part++)
                backward_strip(x, &seen[part], query + part * STRIP, part, key, C, scale);
            long late = query - key, pairs = parts * STRIP / 2;
            const float *q = x->q_pairs + query / 2 * x->wide, *d_o = x->d_o_pairs + query / 2 * x->wide;
            backward_keys(x->dv + key * x->wide, x->p, d_o, x->wide, from, late, pairs, C);
            backward_keys(x->dk + key * x->wide, x->ds, q, x->wide, from, late, pairs, C);
        }
    const vf factor[2] = {vf_all((float)s->scale), vf_all((float)s->scale)};
    for (long i = 0; i < s->S; i += STRIP)
        store_strip(dq + i * head->row, x->dq + i * x->wide, factor, least(STRIP, s->S - i), head->row, C);
}

static void store_rows(uint16_t *x, const float *from, float factor, long n, long stride, long C, long wide)
{
    for (long i = 0; i < n; i++)
        for (long c = 0; c < C; c += LANES)
            put_bf16(x + i * stride + c, vf_mul(load_f32(from + i * wide + c), vf_all(factor)), C - c);
}

static void attention_backward(el *dqkv_, const el *d_o_, const el *qkv, const el *o_, const acc *lse_,
                               const int *start, struct attention_shape s)
{
    if (s.C % 2) {
        backward_any(dqkv_, d_o_, qkv, o_, lse_, start, s);
        return;
    }
    uint16_t *dqkv = dqkv_;
    const uint16_t *d_o = d_o_, *o = o_;
    const float *lse = lse_;
    long row = (s.H + 2 * s.G) * s.C;
#pragma omp parallel for collapse(2) schedule(dynamic) if (s.B * s.H * s.S > STRIP)
    for (long b = 0; b < s.B; b++)
        for (long g = 0; g < s.G; g++) {
            struct readers readers = readers_of(g, &s);
            struct backward x;
            backward_place(&x, s.S, s.C, x86_scratch(backward_place(&x, s.S, s.C, NULL)));
            for (long i = 0; i < s.S; i += STRIP)
                x.seen[i / STRIP] = keys_of_strip(start + b * s.S, i, least(STRIP, s.S - i), s.window);
            memset(x.dk, 0, (size_t)(x.rows * x.wide) * sizeof *x.dk);
            memset(x.dv, 0, (size_t)(x.rows * x.wide) * sizeof *x.dv);
            for (long h = readers.from; h < readers.to; h++) {
                struct head head = head_of(qkv, start, &s, b, h);
                long at = b * s.S * s.H + h;
                if (h == readers.from) {
                    copy_rows(x.k, head.k, s.S, row, s.C);
                    copy_rows(x.v, head.v, s.S, row, s.C);
                    interleave_rows(x.k_pairs, head.k, s.S, row, s.C, x.wide);
                }
                backward_load(&x, &head, d_o + at * s.C, o + at * s.C, lse + at, &s);
                backward_head(&x, dqkv + b * s.S * row + h * s.C, &head, &s);
                between_tasks();
            }
            uint16_t *out = dqkv + b * s.S * row + (s.H + g) * s.C;
            store_rows(out, x.dk, (float)s.scale, s.S, row, s.C, x.wide);
            store_rows(out + s.G * s.C, x.dv, 1, s.S, row, s.C, x.wide);
        }
}

void fill_attention_avx512bf16(struct kernels *k, enum dtype type)
{
    if (type != BF16) return;
    if (k->attention != attention) {
        attention_any = k->attention;
        backward_any = k->attention_backward;
    }
    k->attention = attention;
    k->attention_backward = attention_backward;
}
