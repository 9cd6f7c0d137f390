// Inference's attention of bfloat16 by vdpbf16ps: see attention_avx512bf16.c for the products.
//
// A row's bits are the same alone and among any rows. Keys come in tiles at absolute positions, and each output is one
// chain: a score over its pairs of channels, a channel of o over pairs of keys, the sum of p over keys.
// Many rows run a strip's chains in the lanes of queries (strip_*), few rows in the lanes of keys and channels
// (few_*); the instructions of a chain and their order are the same. A key that a row does not see adds 0, which
// changes no sum; zeros of either sign become +0 at the end.
#include "kernels/x86/simd16.h"

#include "kernels/x86/attention_pairs.inc"

enum {
    FEW = 8,             // queries of a run that share a kv head, at most
    STRIPS = 4,          // of queries that share the loading of keys
    NUMBERS = 2 * LANES, // bf16 of a vector
    SHORT = 64,          // rows of a call whose tasks take several heads each, so that they read pages along
};
static const float NOTHING = -0x1p126f; // the largest score before the first key

static void (*paged_any)(el *o, const el *qkv, struct kv_view kv, long T, long H, long G, long C, long window,
                         double scale);

struct paged {
    const uint16_t *qkv, *keys, *values;
    uint16_t *o;
    const struct kv_view *kv;
    long H, G, C, group, wide, window;
    float scale; // of scores in units of log 2
};

struct run { // rows [t, t + n) of one sequence with the queries of kv head g: query i is row t + i / group
    const int *table;
    long t, n, queries, first, last; // the keys that any of them sees
};

static long position(const struct paged *x, const struct run *r, long i)
{
    return x->kv->position[r->t + i / x->group];
}

static long first_seen(const struct paged *x, long at)
{
    return x->window && at >= x->window ? at - x->window + 1 : 0;
}

static const uint16_t *query(const struct paged *x, const struct run *r, long g, long i)
{
    return x->qkv + ((r->t + i / x->group) * (x->H + 2 * x->G) + g * x->group + i % x->group) * x->C;
}

static uint16_t *result(const struct paged *x, const struct run *r, long g, long i)
{
    return x->o + ((r->t + i / x->group) * x->H + g * x->group + i % x->group) * x->C;
}

static struct run run_of(const struct paged *x, long t, long n)
{
    struct run r = {.table = x->kv->table + x->kv->sequence[t] * x->kv->table_stride, .t = t, .n = n,
                    .queries = n * x->group, .first = LONG_MAX};
    for (long i = t; i < t + n; i++) {
        long at = x->kv->position[i];
        r.first = least(r.first, first_seen(x, at));
        r.last = at > r.last ? at : r.last;
    }
    return r;
}

struct tile_rows { // of the keys of a tile, at the first of a task's kv heads; NULL where no query sees the key: nobody
    const uint16_t *k[K_TILE], *v[K_TILE]; // may have written it
};

static void find_rows(struct tile_rows *rows, const struct paged *x, const struct run *r, long g, long tile)
{
    for (long page = 0; page < K_TILE; page += PAGE_TOKENS) {
        bool any = tile + page <= r->last && tile + page + PAGE_TOKENS > r->first;
        long at = any ? (r->table[(tile + page) / PAGE_TOKENS] * (long)PAGE_TOKENS * x->G + g) * x->C : 0;
        for (long j = page; j < page + PAGE_TOKENS; j++, at += x->G * x->C) {
            bool seen = tile + j >= r->first && tile + j <= r->last;
            rows->k[j] = seen ? x->keys + at : NULL;
            rows->v[j] = seen ? x->values + at : NULL;
        }
    }
}

static inline vf pairs_or_zero(const uint16_t *row, long c, long C)
{
    return row ? row_pairs(row + c, C - c) : vf_zero();
}

// The values of a tile, two rows interleaved.
static void load_values(float *v, const struct paged *x, const uint16_t *const row[K_TILE])
{
    for (long j = 0; j < K_TILE; j += 2) {
        const uint16_t *a = row[j], *b = row[j + 1];
        for (long c = 0; c < x->wide; c += NUMBERS)
            store_interleaved(v + j / 2 * x->wide + c, pairs_or_zero(a, c, x->C), pairs_or_zero(b, c, x->C));
    }
}

// ---- steps of the chains ----
// What a compiler might contract to a multiply-add in one place and not in another is written as one instruction.

static inline vf times(vf a, vf b)
{
    return _mm512_mul_round_ps(a, b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline vf scaled(vf score, float scale)
{
    return times(score, vf_all(scale));
}

static inline vf probability(vf score, float scale, vf max) // max: scaled
{
    return vf_exp2(_mm512_fmsub_ps(score, vf_all(scale), max));
}

static inline vf shrinking(vf before, vf max)
{
    return vf_exp2(vf_sub(before, max));
}

static inline vf weighted(vf sum, vf part)
{
    return vf_fma(sum, part, vf_zero());
}

// ---- many rows ----

struct strip {
    struct strip_keys seen;
    vf max[2], top[2], sum[2]; // the largest score; the same scaled
    long first, last; // the first and the last key that any of its queries sees
    float *q, *o;     // [C / 2], [wide] times STRIP
};

static void strip_start(struct strip *s, const struct paged *x, const struct run *r, long g, long i, long n)
{
    const uint16_t *row[STRIP];
    int from[STRIP], own[STRIP];
    s->first = LONG_MAX;
    s->last = 0;
    s->seen.last_first = n < STRIP ? LONG_MAX : 0;
    for (long a = 0; a < STRIP; a++) {
        long at = a < n ? position(x, r, i + a) : -1, first = a < n ? first_seen(x, at) : INT_MAX;
        from[a] = (int)first;
        own[a] = (int)at;
        if (a >= n) continue;
        row[a] = query(x, r, g, i + a);
        s->first = least(s->first, first);
        s->last = at > s->last ? at : s->last;
    }
    for (int j = 0; j < 2; j++) {
        s->seen.from[j] = _mm512_loadu_si512(from + j * LANES);
        s->seen.own[j] = _mm512_loadu_si512(own + j * LANES);
        s->max[j] = vf_all(NOTHING);
        s->top[j] = scaled(s->max[j], x->scale);
        s->sum[j] = vf_zero();
    }
    turn_rows(s->q, row, n, x->C);
    memset(s->o, 0, (size_t)(x->wide * STRIP) * sizeof *s->o);
}

// Scores of n keys of a tile, of which those that a query does not see are -infinity; max grows along.
static void strip_scores(struct strip *x, float *scores, const float *k, long tile, long n, long C)
{
    for (long r = 0; r < n; r += ROWS) {
        vf s[ROWS][2];
        zero_vectors(s);
        multiply(s, 2, k + r * (C / 2), C / 2, 1, x->q, STRIP, C / 2);
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < 2; j++) {
                vf t = _mm512_mask_mov_ps(vf_all(-INFINITY), sees(&x->seen, j, tile + r + i), s[i][j]);
                x->max[j] = vf_max(x->max[j], t);
                store_f32(scores + (r + i) * STRIP + j * LANES, t);
            }
    }
}


static void strip_meet(struct strip *s, const struct paged *x, float *scores, float *p, const float *k, const float *v,
                       long tile)
{
    long n = round_up(least(K_TILE, s->last + 1 - tile), ROWS);
    if (n <= 0 || s->first >= tile + K_TILE) return;
    vf shrink[2], max[2], sum[2];
    strip_scores(s, scores, k, tile, n, x->C);
    for (int j = 0; j < 2; j++) {
        max[j] = scaled(s->max[j], x->scale);
        shrink[j] = shrinking(s->top[j], max[j]);
        s->top[j] = max[j];
        sum[j] = times(s->sum[j], shrink[j]);
    }
    for (long r = 0; r < n; r += 2) {
        vf pair[2][2];
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++) {
                pair[i][j] = probability(load_f32(scores + (r + i) * STRIP + j * LANES), x->scale, max[j]);
                sum[j] = vf_add(sum[j], pair[i][j]);
            }
        store_interleaved(p + r / 2 * STRIP, round_strip(pair[0]), round_strip(pair[1]));
    }
    for (int j = 0; j < 2; j++) s->sum[j] = sum[j];
    for (long c = 0; c < x->C; c += ROWS)
        multiply_add(s->o + c * STRIP, STRIP, 2, shrink, v + c, 1, x->wide, p, STRIP, n / 2);
}

static void strip_finish(struct strip *s, const struct paged *x, const struct run *r, long g, long i, long n)
{
    uint16_t *row[STRIP];
    for (long a = 0; a < n; a++) row[a] = result(x, r, g, i + a);
    const vf part[2] = {vf_div(vf_all(1.0f), s->sum[0]), vf_div(vf_all(1.0f), s->sum[1])};
    for (long c = 0; c < x->C; c++)
        for (int j = 0; j < 2; j++) {
            float *o = s->o + c * STRIP + j * LANES;
            store_f32(o, weighted(load_f32(o), part[j]));
        }
    const vf one[2] = {vf_all(1.0f), vf_all(1.0f)};
    store_turned(row, s->o, one, n, x->C);
}

static void run_strips(const struct paged *x, const struct run *r, long g, char *base)
{
    long C = x->C, strips = (r->queries + STRIP - 1) / STRIP;
    char *at = base;
    struct strip *strip = (struct strip *)take(&at, strips * (long)(sizeof *strip / sizeof(float)));
    float *k = take(&at, K_TILE * (C / 2)), *v = take(&at, K_TILE / 2 * x->wide), *scores = take(&at, K_TILE * STRIP);
    float *p = take(&at, K_TILE / 2 * STRIP);
    for (long i = 0; i < strips; i++) {
        strip[i].q = take(&at, C / 2 * STRIP);
        strip[i].o = take(&at, x->wide * STRIP);
        strip_start(&strip[i], x, r, g, i * STRIP, least(STRIP, r->queries - i * STRIP));
    }
    for (long tile = r->first / K_TILE * K_TILE; tile <= r->last; tile += K_TILE) {
        struct tile_rows rows;
        find_rows(&rows, x, r, g, tile);
        for (long j = 0; j < K_TILE; j++)
            if (rows.k[j]) memcpy(k + j * (C / 2), rows.k[j], (size_t)C * sizeof *rows.k[j]);
            else memset(k + j * (C / 2), 0, (size_t)C * sizeof *rows.k[j]);
        load_values(v, x, rows.v);
        for (long i = 0; i < strips; i++) strip_meet(&strip[i], x, scores, p, k, v, tile);
    }
    for (long i = 0; i < strips; i++)
        strip_finish(&strip[i], x, r, g, i * STRIP, least(STRIP, r->queries - i * STRIP));
}

// ---- few rows ----

struct few { // what one query has so far
    float max, top, sum; // as struct strip's
    long first, last;
    float *q, *o; // [C / 2], [wide]
};

// Asks for the lines of a tile's keys or values, along its rows, before their turn comes: one at a time between other
// work, for memory takes only so many requests at once.
struct fetch {
    const uint16_t *at, *end; // the next line; the row's end
    const uint16_t *const *row, *const *beyond;
    long channels; // of the heads that are wanted
};

static struct fetch fetch_of(const uint16_t *const row[K_TILE], long channels)
{
    return (struct fetch){.row = row, .beyond = row + K_TILE, .channels = channels};
}

static inline __attribute__((always_inline)) void fetch_line(struct fetch *f)
{
    if (f->at >= f->end) {
        if (f->row == f->beyond) return;
        f->at = *f->row++;
        f->end = f->at + f->channels;
    }
    _mm_prefetch((const char *)f->at, _MM_HINT_T1);
    f->at += NUMBERS;
}

// Numbers of a row from c on, C of the head (whole: a multiple of NUMBERS). Memory drops requests that it has no room
// for: the line that comes `ahead` numbers later is asked for again.
static inline __attribute__((always_inline)) vf fetching(const bool whole, struct fetch *f, const uint16_t *row, long c,
                                                         long C, long ahead)
{
    fetch_line(f);
    _mm_prefetch((const char *)(row + c + ahead), _MM_HINT_T1);
    return whole ? load_bytes(row + c) : row_pairs(row + c, C);
}

enum { PARTS = K_TILE / LANES };

// Scores of n queries with the keys of a tile, whose head begins at channel `at`. Keys are turned in registers.
static inline __attribute__((always_inline)) void few_scores(const int n, const bool whole, vf score[FEW][PARTS],
                                                             const struct few *s, const struct paged *x,
                                                             const uint16_t *const row[K_TILE], long at,
                                                             struct fetch *fetch)
{
    struct fetch f = *fetch;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < PARTS; j++) score[i][j] = vf_zero();
    for (long c = 0; c < x->C; c += NUMBERS)
        for (int j = 0; j < PARTS; j++) {
            const long pairs = whole ? LANES : least(LANES, (x->C - c) / 2);
            vf v[LANES];
#pragma GCC unroll 16
            for (long i = 0; i < LANES; i++) v[i] = fetching(whole, &f, row[j * LANES + i], at + c, x->C - c, NUMBERS);
            transpose(v);
            for (int i = 0; i < n; i++) {
                vf sum = score[i][j];
                if (pairs == LANES)
#pragma GCC unroll 16
                    for (long p = 0; p < LANES; p++)
                        sum = _mm512_dpbf16_ps(sum, (__m512bh)v[p], (__m512bh)vf_all(s[i].q[c / 2 + p]));
                else
                    for (long p = 0; p < pairs; p++)
                        sum = _mm512_dpbf16_ps(sum, (__m512bh)v[p], (__m512bh)vf_all(s[i].q[c / 2 + p]));
                score[i][j] = sum;
            }
        }
    *fetch = f;
}

// What a query makes of its scores: the factor of what it had, and p in pairs of keys.
static vf few_weights(struct few *s, float pairs[K_TILE / 2], vf score[PARTS], const struct paged *x, long tile)
{
    vf most = vf_all(s->max);
    for (int j = 0; j < PARTS; j++) {
        long from = s->first - tile - j * LANES, to = s->last + 1 - tile - j * LANES;
        __mmask16 hidden = lanes_below(from < 0 ? 0 : least(from, LANES));
        hidden |= (__mmask16)~lanes_below(to < 0 ? 0 : least(to, LANES));
        score[j] = _mm512_mask_mov_ps(score[j], hidden, vf_all(-INFINITY));
        most = vf_max(most, score[j]);
    }
    s->max = vf_largest(most);
    vf max = scaled(vf_all(s->max), x->scale), shrink = shrinking(vf_all(s->top), max);
    float p[K_TILE];
    for (int j = 0; j < PARTS; j++) {
        score[j] = probability(score[j], x->scale, max);
        store_f32(p + j * LANES, score[j]);
    }
    for (int j = 0; j < PARTS; j += 2) store_f32(pairs + j * LANES / 2, round_strip(score + j));
    s->top = _mm512_cvtss_f32(max);
    s->sum = _mm512_cvtss_f32(times(vf_all(s->sum), shrink));
    for (long j = 0; j < K_TILE; j++) s->sum += p[j];
    return shrink;
}

// The channels of o from c on, `chunks` times NUMBERS, of n queries go on over the pairs of a tile.
static inline __attribute__((always_inline)) void few_values(const int n, const int chunks, const bool whole,
                                                             struct few *s, const vf shrink[FEW],
                                                             float (*pairs)[K_TILE / 2], const struct paged *x,
                                                             const uint16_t *const row[K_TILE], long at, long c,
                                                             struct fetch *fetch)
{
    struct fetch f = *fetch;
    vf sum[FEW][8];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < 2 * chunks; j++) sum[i][j] = vf_mul(load_f32(s[i].o + c + j * LANES), shrink[i]);
    for (long r = 0; r < K_TILE; r += 2) {
        vf v[8];
        for (int j = 0; j < chunks; j++) {
            long from = c + j * NUMBERS;
            vf first = fetching(whole, &f, row[r], at + from, x->C - from, chunks * NUMBERS);
            interleave(v + 2 * j, first, fetching(whole, &f, row[r + 1], at + from, x->C - from, chunks * NUMBERS));
        }
        for (int i = 0; i < n; i++) {
            __m512bh p = (__m512bh)vf_all(pairs[i][r / 2]);
            for (int j = 0; j < 2 * chunks; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], (__m512bh)v[j], p);
        }
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < 2 * chunks; j++) store_f32(s[i].o + c + j * LANES, sum[i][j]);
    *fetch = f;
}

// n queries of a kv head, which begins at channel `at`, meet a tile.
static inline __attribute__((always_inline)) void few_meet(const int n, const bool whole, struct few *s,
                                                           const struct paged *x, const struct tile_rows *rows,
                                                           long at, long tile, struct fetch *k, struct fetch *v)
{
    const int most = n <= 2 ? 4 : n <= 5 ? 2 : 1; // chunks whose sums fit into registers
    vf score[FEW][PARTS], shrink[FEW];
    float pairs[FEW][K_TILE / 2];
    few_scores(n, whole, score, s, x, rows->k, at, k);
    for (int i = 0; i < n; i++) shrink[i] = few_weights(&s[i], pairs[i], score[i], x, tile);
    long c = 0;
    for (; most >= 4 && c + 4 * NUMBERS <= x->wide; c += 4 * NUMBERS)
        few_values(n, 4, whole, s, shrink, pairs, x, rows->v, at, c, v);
    for (; most >= 2 && c + 2 * NUMBERS <= x->wide; c += 2 * NUMBERS)
        few_values(n, 2, whole, s, shrink, pairs, x, rows->v, at, c, v);
    for (; c < x->wide; c += NUMBERS) few_values(n, 1, whole, s, shrink, pairs, x, rows->v, at, c, v);
}

static void few_queries(long n, bool whole, struct few *s, const struct paged *x, const struct tile_rows *rows, long at,
                        long tile, struct fetch *k, struct fetch *v)
{
    switch (2 * n + whole) {
#define QUERIES(n)                                                                                                     \
    case 2 * (n): few_meet(n, false, s, x, rows, at, tile, k, v); break;                                               \
    case 2 * (n) + 1: few_meet(n, true, s, x, rows, at, tile, k, v); break;
        QUERIES(1) QUERIES(2) QUERIES(3) QUERIES(4) QUERIES(5) QUERIES(6) QUERIES(7) QUERIES(8)
#undef QUERIES
    default: CHECK(!"1 to FEW queries");
    }
}

// Rows that nobody sees become rows of zeros, which are as good as any.
static void find_few_rows(struct tile_rows *rows, const struct paged *x, const struct run *r, long g, long tile,
                          const uint16_t *zeros)
{
    find_rows(rows, x, r, g, tile);
    for (long j = 0; j < K_TILE; j++)
        if (!rows->k[j]) rows->k[j] = rows->v[j] = zeros;
}

// kv heads [g, g + heads)
static void run_few(const struct paged *x, const struct run *r, long g, long heads, char *base)
{
    char *at = base;
    struct few *few = (struct few *)take(&at, heads * FEW * (long)(sizeof *few / sizeof(float)));
    for (long i = 0; i < heads * r->queries; i++) {
        struct few *s = &few[i];
        long last = position(x, r, i % r->queries);
        *s = (struct few){.max = NOTHING, .top = _mm512_cvtss_f32(scaled(vf_all(NOTHING), x->scale)),
                          .first = first_seen(x, last), .last = last, .q = take(&at, x->C / 2),
                          .o = take(&at, x->wide)};
        memcpy(s->q, query(x, r, g + i / r->queries, i % r->queries), (size_t)x->C * sizeof *x->qkv);
        memset(s->o, 0, (size_t)x->wide * sizeof *s->o);
    }
    struct tile_rows rows[2];
    long first = r->first / K_TILE * K_TILE, channels = heads * x->C;
    const uint16_t *zeros = memset(take(&at, channels / 2), 0, (size_t)channels * sizeof *zeros);
    find_few_rows(&rows[first / K_TILE % 2], x, r, g, first, zeros);
    for (long tile = first; tile <= r->last; tile += K_TILE) {
        const struct tile_rows *now = &rows[tile / K_TILE % 2];
        struct tile_rows *next = &rows[(tile / K_TILE + 1) % 2];
        find_few_rows(next, x, r, g, tile + K_TILE, zeros);
        struct fetch k = fetch_of(next->k, channels), v = fetch_of(next->v, channels);
        for (long h = 0; h < heads; h++)
            few_queries(r->queries, x->C % NUMBERS == 0, &few[h * r->queries], x, now, h * x->C, tile, &k, &v);
    }
    for (long i = 0; i < heads * r->queries; i++) {
        vf part = vf_div(vf_all(1.0f), vf_all(few[i].sum));
        uint16_t *to = result(x, r, g + i / r->queries, i % r->queries);
        for (long c = 0; c < x->C; c += LANES) put_bf16(to + c, weighted(load_f32(few[i].o + c), part), x->C - c);
    }
}

// ---- all rows ----

static long scratch_bytes(const struct paged *x, long rows, long heads)
{
    long C = x->C, strips = rows * x->group / STRIP + 1, few = heads * FEW;
    long tiles = K_TILE * C + K_TILE / 2 * x->wide + 2 * K_TILE * STRIP + 1024;
    return 4 * (tiles + strips * ((C / 2 + x->wide) * STRIP + 256) + few * (C + x->wide + 128) + heads * C);
}

static void attention_paged(el *o, const el *qkv, struct kv_view kv, long T, long H, long G, long C, long window,
                            double scale)
{
    if (C % 2) {
        paged_any(o, qkv, kv, T, H, G, C, window, scale);
        return;
    }
    const struct paged x = {.qkv = qkv, .keys = kv.k, .values = kv.v, .o = o, .kv = &kv, .H = H, .G = G, .C = C,
                            .group = G ? H / G : 0, .wide = round_up(C, STRIP), .window = window,
                            .scale = (float)scale * LOG2_E};
    long rows = x.group && x.group < STRIPS * STRIP ? STRIPS * STRIP / x.group : 1, chunks = (T + rows - 1) / rows;
    long wanted = T <= SHORT ? least(G, kernels_threads()) : G, heads = wanted ? (G + wanted - 1) / wanted : 1;
#pragma omp parallel if (T && T * H * C * (kv.position[T - 1] + 1L) > 1 << 18)
    {
        char *base = x86_scratch(scratch_bytes(&x, rows, heads));
#pragma omp for collapse(2) schedule(dynamic)
        for (long chunk = chunks - 1; chunk >= 0; chunk--) // a prompt's last rows see most
            for (long g = 0; g < G; g += heads)
                for (long t = chunk * rows, end = least(T, t + rows), n; t < end; t += n) { // a run after the other
                    for (n = 1; t + n < end && kv.sequence[t + n] == kv.sequence[t];) n++;
                    const struct run r = run_of(&x, t, n);
                    long some = least(heads, G - g);
                    if (r.queries <= FEW) run_few(&x, &r, g, some, base);
                    for (long h = g; h < g + some && r.queries > FEW; h++) run_strips(&x, &r, h, base);
                }
    }
}

void fill_paged_avx512bf16(struct kernels *k, enum dtype type)
{
    if (type != BF16) return;
    if (k->attention_paged != attention_paged) paged_any = k->attention_paged;
    k->attention_paged = attention_paged;
}
