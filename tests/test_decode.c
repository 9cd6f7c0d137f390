// Inference over KV pages: the training forward's logits, the same bits however the tokens are cut, pages given back.
#include "model_util.h"

enum { TOKENS = 53 }; // more than three pages

static bool same_bits; // with the reference kernels: the order of sums depends on nothing but the row

enum { SHAPES = 7 };

// Dense with GQA; moe; dense with MHA and a window; tied moe; and other ratios of heads, with windows.
static struct config shape(int i)
{
    struct config c = i % 2 ? tiny_moe() : tiny_dense();
    if (i == 2) {
        c.G = c.H;
        c.window = 20;
    }
    c.tied = i == 3;
    if (i > 3) {
        static const long heads[][3] = {{6, 2, 17}, {5, 1, 0}, {7, 7, 5}}; // H G window
        c.H = heads[i - 4][0];
        c.G = heads[i - 4][1];
        c.window = heads[i - 4][2];
    }
    return c;
}

static void prompt(int *token, long n, long V, uint64_t seed)
{
    for (long t = 0; t < n; t++) token[t] = (int)(rng_bits(seed, 8, (uint64_t)t) % (uint64_t)V);
}

// Logits [n, V] of one sequence appended in pieces of `piece` tokens to a model that takes S rows at a time.
static float *logits_of(const struct config *c, enum dtype dtype, const int *token, long n, long S, long piece)
{
    struct model m;
    struct model_options o = inference(dtype, S, 64);
    struct kv_cache kv;
    float *logits = malloc((size_t)(n * c->V) * sizeof *logits), last[600];
    model_start(&m, c, &o);
    OK_OR_FAIL(kv_cache_init(&kv, &m, 1, n, n));
    for (long t = 0; t < n; t += piece) {
        long take = n - t < piece ? n - t : piece;
        OK_OR_FAIL(kv_append(&kv, 0, token + t, take, last, logits + t * c->V));
        const float *of_all = logits + (t + take - 1) * c->V;
        for (long v = 0; v < c->V; v++) assert_true(fabsf(last[v] - of_all[v]) <= 1e-5f * (1 + fabsf(of_all[v])));
        if (same_bits) expect_same_bits("last logits", last, of_all, c->V * 4);
    }
    assert_int_equal(kv.length[0], n);
    kv_cache_free(&kv);
    model_free(&m);
    return logits;
}

static float *training_logits(const struct config *c, enum dtype dtype, const int *token, long n)
{
    struct model m;
    struct model_options o = training(dtype, 1, n);
    model_start(&m, c, &o);
    struct owned_batch b = batch_make(1, n, c->V, false, false, 1);
    memcpy(b.b.token, token, (size_t)n * sizeof *token);
    model_loss(&m, &b.b, NULL);
    float *logits = malloc((size_t)(n * c->V) * sizeof *logits);
    head_logits(&m.x, &m.p, &m.head, m.out, 0, n);
    head_values(&m.x, logits, m.head.logits, n * c->V);
    batch_free(&b);
    model_free(&m);
    return logits;
}

static void test_equals_training(void **state)
{
    (void)state;
    const double limit[] = {[F32] = 2e-6, [BF16] = 2e-2, [F64] = 1.2e-7}; // logits are given as f32
    for (int i = 0; i < SHAPES * 3; i++) {
        struct config c = shape(i % SHAPES);
        enum dtype dtype = (enum dtype[]){F32, BF16, F64}[i / SHAPES];
        int token[TOKENS];
        prompt(token, TOKENS, c.V, 3);
        float *paged = logits_of(&c, dtype, token, TOKENS, TOKENS, TOKENS);
        float *whole = training_logits(&c, dtype, token, TOKENS);
        struct measured error = {0};
        char label[64];
        snprintf(label, sizeof label, "%s, shape %d: paged against training", dtype_name(dtype), i % SHAPES);
        for (long j = 0; j < TOKENS * c.V; j++) measure(&error, (double)paged[j], (double)whole[j]);
        error.equal -= dtype != F32; // the difference may well be rounded away
        measured_expect(&error, label, limit[dtype]);
        free(paged);
        free(whole);
    }
}

static void test_chunks(void **state)
{
    (void)state;
    const long cut[][2] = {{1, 1}, {1, TOKENS}, {7, TOKENS}, {16, 5}, {64, 17}};
    for (int i = 0; i < SHAPES * 2; i++) {
        struct config c = shape(i % SHAPES);
        enum dtype dtype = i / SHAPES ? BF16 : F32;
        int token[TOKENS];
        prompt(token, TOKENS, c.V, 4);
        float *whole = logits_of(&c, dtype, token, TOKENS, TOKENS, TOKENS);
        for (int j = 0; j < 5; j++) {
            float *cuts = logits_of(&c, dtype, token, TOKENS, cut[j][0], cut[j][1]);
            expect_same_bits("in pieces", cuts, whole, TOKENS * c.V * 4);
            free(cuts);
        }
        free(whole);
    }
}

// Sequences side by side give what each gives alone, on whatever pages.
static void test_sequences(void **state)
{
    (void)state;
    struct config c = shape(1);
    struct model m;
    struct model_options o = inference(BF16, 10, 64);
    struct kv_cache kv;
    int token[3][TOKENS];
    float *alone[3], *logits[3];
    for (int i = 0; i < 3; i++) {
        prompt(token[i], TOKENS, c.V, 10 + (uint64_t)i);
        alone[i] = logits_of(&c, BF16, token[i], TOKENS, 10, TOKENS);
        logits[i] = malloc((size_t)(TOKENS * c.V) * sizeof(float));
    }
    model_start(&m, &c, &o);
    OK_OR_FAIL(kv_cache_init(&kv, &m, 3, 3 * TOKENS, TOKENS));
    for (int round = 0; round < 3; round++) {
        for (long t = 0; t < TOKENS; t++)
            for (int i = 0; i < 3; i++)
                OK_OR_FAIL(kv_append(&kv, i, &token[i][t], 1, NULL, logits[i] + t * c.V));
        for (int i = 0; i < 3; i++) expect_same_bits("side by side", logits[i], alone[i], TOKENS * c.V * 4);
        for (int i = 0; i < 3; i++) kv_cache_drop(&kv, (i + round) % 3); // pages come back in another order
        assert_int_equal(kv.free_n, kv.pages);
    }
    kv_cache_free(&kv);
    model_free(&m);
    for (int i = 0; i < 3; i++) {
        free(alone[i]);
        free(logits[i]);
    }
}

// A sequence that was cut goes on as if what was cut had never been there; its pages are free again.
static void test_cut(void **state)
{
    (void)state;
    struct config c = shape(1);
    struct model m;
    struct model_options o = inference(F32, 10, 64);
    struct kv_cache kv;
    static const long keep[] = {0, 1, 15, 16, 17, 32, 40};
    int token[TOKENS], other[TOKENS];
    prompt(token, TOKENS, c.V, 4);
    prompt(other, TOKENS, c.V, 5);
    model_start(&m, &c, &o);
    OK_OR_FAIL(kv_cache_init(&kv, &m, 1, TOKENS, TOKENS));
    for (size_t i = 0; i < sizeof keep / sizeof *keep; i++) {
        float got[13], want[13];
        kv_cache_drop(&kv, 0);
        OK_OR_FAIL(kv_append(&kv, 0, token, 40, NULL, NULL));
        kv_cache_cut(&kv, 0, keep[i]);
        assert_int_equal(kv.length[0], keep[i]);
        assert_int_equal(kv.free_n, kv.pages - (keep[i] + PAGE_TOKENS - 1) / PAGE_TOKENS);
        OK_OR_FAIL(kv_append(&kv, 0, other, TOKENS - keep[i], got, NULL));
        kv_cache_drop(&kv, 0);
        OK_OR_FAIL(kv_append(&kv, 0, token, keep[i], NULL, NULL));
        OK_OR_FAIL(kv_append(&kv, 0, other, TOKENS - keep[i], want, NULL));
        expect_same_bits("after a cut", got, want, c.V * 4);
    }
    kv_cache_free(&kv);
    model_free(&m);
}

static void test_refused(void **state)
{
    (void)state;
    struct config c = shape(0);
    struct model m;
    struct model_options o = inference(F32, 8, 40);
    struct kv_cache kv;
    int token[64];
    float logits[13];
    prompt(token, 64, c.V, 3);
    model_start(&m, &c, &o);
    assert_int_equal(kv_cache_init(&kv, &m, 1, 64, 41), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "positions"));
    assert_int_equal(kv_cache_init(&kv, &m, 1, 1L << 50, 40), ERR_MEMORY);
    assert_int_equal(kv_cache_init(&kv, &m, 1L << 40, 64, 40), ERR_MEMORY);
    OK_OR_FAIL(kv_cache_init(&kv, &m, 2, 48, 40)); // (48 + 30) / 16 = 4 pages
    assert_int_equal(kv.pages, 4);

    assert_int_equal(kv_append(&kv, 0, token, 41, logits, NULL), ERR_CONFIG); // one too many for a sequence
    token[5] = 13;
    assert_int_equal(kv_append(&kv, 0, token, 9, logits, NULL), ERR_FORMAT);
    assert_non_null(strstr(fail_message(), "token 13"));
    token[5] = -1;
    assert_int_equal(kv_append(&kv, 0, token, 9, logits, NULL), ERR_FORMAT);
    token[5] = 3;
    assert_true(kv.length[0] == 0 && kv.free_n == 4);

    OK_OR_FAIL(kv_append(&kv, 0, token, 33, NULL, NULL)); // three pages
    assert_int_equal(kv_append(&kv, 1, token, 17, logits, NULL), ERR_CONFIG); // two, of one free
    assert_non_null(strstr(fail_message(), "KV cache: 2 pages"));
    assert_true(kv.length[1] == 0 && kv.free_n == 1);
    OK_OR_FAIL(kv_append(&kv, 1, token, 16, logits, NULL));
    OK_OR_FAIL(kv_append(&kv, 0, token, 7, logits, NULL)); // 40 tokens: the page is there, the sequence is full
    OK_OR_FAIL(kv_append(&kv, 0, token, 0, NULL, NULL));
    assert_int_equal(kv_append(&kv, 0, token, 1, logits, NULL), ERR_CONFIG);
    assert_int_equal(kv_append(&kv, 1, token, 1, logits, NULL), ERR_CONFIG);
    for (int v = 0; v < 13; v++) assert_true(isfinite(logits[v]));
    kv_cache_drop(&kv, 0);
    OK_OR_FAIL(kv_append(&kv, 1, token, 1, logits, NULL));
    kv_cache_free(&kv);
    model_free(&m);
}

// Matrices held as e4m3 with scales compute what their dequantised values compute, and only matrices are.
static void test_fp8(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct config c = shape(i);
        struct model_options o = inference(F32, 8, 64), held = o;
        held.weights = QUANT_FP8;
        struct model m, n;
        model_start(&m, &c, &o);
        OK_OR_FAIL(model_init(&n, &c, &held));
        long quantised = 0;
        for (long j = 0; j < m.params.n; j++) {
            const struct param *p = &m.params.item[j], *q = &n.params.item[j];
            const struct kernels *k = m.x.k;
            assert_int_equal(q->value.dtype, p->kind->quantise ? F8_E4M3 : F32);
            assert_true((q->value.scale != NULL) == p->kind->quantise);
            for (long r = 0; q->value.scale && r < q->rows; r++)
                q->value.scale[r] = (float)(k->amax(p->value, param_elements(p)) / 448);
            k->cast(q->value, p->value, p->rows, p->columns);
            k->cast(p->value, q->value, p->rows, p->columns); // what is left of it
            quantised += p->kind->quantise;
        }
        assert_int_equal(quantised, c.L * (4 + 3 * (c.E ? c.E : 1)));
        struct kv_cache a, b;
        int token[20];
        float *x = malloc((size_t)(20 * c.V) * 4), *y = malloc((size_t)(20 * c.V) * 4);
        prompt(token, 20, c.V, 5);
        OK_OR_FAIL(kv_cache_init(&a, &m, 1, 20, 20));
        OK_OR_FAIL(kv_cache_init(&b, &n, 1, 20, 20));
        OK_OR_FAIL(kv_append(&a, 0, token, 20, NULL, x));
        OK_OR_FAIL(kv_append(&b, 0, token, 20, NULL, y));
        struct measured error = {0};
        for (long j = 0; j < 20 * c.V; j++) measure(&error, (double)y[j], (double)x[j]);
        measured_expect(&error, "e4m3 in place against dequantised", 5e-6);
        free(x);
        free(y);
        kv_cache_free(&a);
        kv_cache_free(&b);
        model_free(&m);
        model_free(&n);
    }
}

// More rows in one forward than the head takes at once.
static void test_many_rows(void **state)
{
    (void)state;
    enum { N = HEAD_CHUNK + 44 };
    struct config c = shape(1);
    struct model m;
    struct model_options o = inference(F32, N, N);
    struct kv_cache kv;
    int token[N];
    prompt(token, N, c.V, 5);
    model_start(&m, &c, &o);
    OK_OR_FAIL(kv_cache_init(&kv, &m, 1, N, N));
    float *all = malloc((size_t)(N * c.V) * 4), *one = malloc((size_t)(N * c.V) * 4);
    OK_OR_FAIL(kv_append(&kv, 0, token, N, NULL, all));
    kv_cache_drop(&kv, 0);
    for (long t = 0; t < N; t++) OK_OR_FAIL(kv_append(&kv, 0, token + t, 1, one + t * c.V, NULL));
    expect_same_bits("300 rows or one at a time", all, one, N * c.V * 4);
    free(all);
    free(one);
    kv_cache_free(&kv);
    model_free(&m);
}

// A prompt of which only the last logits are asked for, in pieces that end anywhere, then a token at a time.
static void test_last_only(void **state)
{
    (void)state;
    enum { N = 45, S = 16 };
    for (int i = 0; i < SHAPES; i++) {
        struct config c = shape(i);
        struct model m;
        struct model_options o = inference(F32, S, 64);
        struct kv_cache kv;
        int token[N];
        prompt(token, N, c.V, 6);
        model_start(&m, &c, &o);
        OK_OR_FAIL(kv_cache_init(&kv, &m, 1, N, N));
        float *all = malloc((size_t)(N * c.V) * 4), *last = malloc((size_t)c.V * 4);
        OK_OR_FAIL(kv_append(&kv, 0, token, N, NULL, all));
        kv_cache_drop(&kv, 0);
        OK_OR_FAIL(kv_append(&kv, 0, token, 19, NULL, NULL));
        for (long t = 19, n = 21; t < N; t += n, n = 1) {
            OK_OR_FAIL(kv_append(&kv, 0, token + t, n, last, NULL));
            expect_same_bits("the last logits alone", last, all + (t + n - 1) * c.V, c.V * 4);
        }
        free(all);
        free(last);
        kv_cache_free(&kv);
        model_free(&m);
    }
}

static int start_same_bits(void **state)
{
    same_bits = true;
    return tests_start_reference(state);
}

int main(void)
{
    const struct CMUnitTest any[] = {
        cmocka_unit_test(test_equals_training),
        cmocka_unit_test(test_cut), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_fp8),
    };
    const struct CMUnitTest reference[] = {
        cmocka_unit_test(test_equals_training),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_sequences),
        cmocka_unit_test(test_many_rows),
        cmocka_unit_test(test_last_only),
    };
    int failed = cmocka_run_group_tests_name("decode", any, tests_start, NULL);
    return failed + cmocka_run_group_tests_name("decode, reference kernels", reference, start_same_bits, NULL);
}
