// Sampling: the kept set against a plain definition, the draw's distribution and reproducibility, damaged logits.
#include "train_util.h"

#include "eval/sample.h"

enum { V = 200 };

static void random_logits(float *logits, uint64_t seed, double width, bool coarse)
{
    for (long i = 0; i < V; i++) {
        double z = width * rng_normal(seed, 9, (uint64_t)i);
        logits[i] = (float)(coarse ? floor(z * 2) / 2 : z); // coarse: many ties
    }
}

// The definition, by repeated selection of the largest: kept[i] after top-k, top-p, min-p.
static void kept_set(bool *kept, const float *logits, const struct sampling *s, long allowed)
{
    long order[V], n = 0;
    double p[V], total = 0, sum = 0;
    bool used[V] = {false};
    for (long i = 0; i < V; i++) kept[i] = false;
    for (long r = 0; r < allowed; r++) {
        long best = -1;
        for (long i = 0; i < allowed; i++)
            if (!used[i] && (best < 0 || logits[i] > logits[best])) best = i;
        used[best] = true;
        order[n++] = best;
    }
    if (s->top_k && s->top_k < n) n = s->top_k;
    for (long r = 0; r < n; r++) {
        p[r] = exp(((double)logits[order[r]] - (double)logits[order[0]]) / s->temperature);
        total += p[r];
    }
    for (long r = 0; r < n; r++) {
        bool inside = s->top_p == 1 || sum < s->top_p * total;
        sum += p[r];
        if (inside && p[r] >= s->min_p) kept[order[r]] = true;
    }
}

static void test_kept_set(void **state)
{
    (void)state;
    const struct sampling rules[] = {
        {1, 0, 1, 0, 1},      {0.7, 5, 1, 0, 1},    {1.3, 0, 0.9, 0, 1},  {1, 0, 0.5, 0, 1},     {1, 0, 1, 0.1, 1},
        {0.8, 40, 0.95, 0, 1}, {1, 1, 1, 0, 1},     {2, 100, 0.6, 0.3, 1}, {1, 0, 1e-9, 0, 1},
        {1, 0, 0.999, 0.001, 1},
        {5, 199, 0.99, 0, 1}, {0.01, 0, 0.9, 0, 1}, {1, 500, 1, 1, 1},
    };
    for (size_t r = 0; r < sizeof rules / sizeof *rules; r++) {
        for (uint64_t seed = 0; seed < 6; seed++) {
            float logits[V];
            bool kept[V], seen[V] = {false};
            struct sampler s;
            struct sampled out;
            long allowed = seed == 5 ? 150 : V;
            random_logits(logits, seed, 0.5 + (double)seed, seed % 2);
            kept_set(kept, logits, &rules[r], allowed);
            OK_OR_FAIL(sampler_init(&s, &rules[r], V, allowed));
            for (long position = 0; position < 4000; position++) {
                OK_OR_FAIL(sampler_draw(&out, &s, logits, 0, position));
                if (!kept[out.token])
                    fail_msg("rule %zu, seed %lu: %d is drawn, but cut", r, (unsigned long)seed, out.token);
                seen[out.token] = true;
            }
            double total = 0;
            for (long i = 0; i < V; i++)
                if (kept[i]) total += exp((double)logits[i] / rules[r].temperature);
            for (long i = 0; i < V; i++) {
                double p = kept[i] ? exp((double)logits[i] / rules[r].temperature) / total : 0;
                if (p > 0.005 && !seen[i]) // of 4000 draws
                    fail_msg("rule %zu, seed %lu: %ld is never drawn (p %g)", r, (unsigned long)seed, i, p);
            }
            sampler_free(&s);
        }
    }
}

static void test_distribution(void **state)
{
    (void)state;
    enum { DRAWS = 40000 };
    const struct sampling rule = {0.9, 20, 1, 0, 3};
    float logits[V];
    bool kept[V];
    long count[V] = {0};
    struct sampler s;
    struct sampled out;
    random_logits(logits, 11, 1.5, false);
    kept_set(kept, logits, &rule, V);
    OK_OR_FAIL(sampler_init(&s, &rule, V, V));
    for (long i = 0; i < DRAWS; i++) {
        OK_OR_FAIL(sampler_draw(&out, &s, logits, i % 3, i / 3));
        count[out.token]++;
    }
    double total = 0, worst = 0;
    for (long i = 0; i < V; i++)
        if (kept[i]) total += exp((double)logits[i] / 0.9);
    for (long i = 0; i < V; i++) {
        double p = kept[i] ? exp((double)logits[i] / 0.9) / total : 0;
        double z = kept[i] ? fabs((double)count[i] - p * DRAWS) / sqrt(p * DRAWS * (1 - p)) : (double)count[i];
        if (!(z <= worst)) worst = z;
    }
    printf("  largest deviation %.2f standard deviations\n", worst);
    assert_true(worst < 4.5);
    sampler_free(&s);
}

static void test_greedy_and_logprob(void **state)
{
    (void)state;
    const struct sampling rule = {0, 0, 1, 0, 3};
    float logits[V];
    struct sampler s;
    struct sampled out;
    random_logits(logits, 2, 1, true);
    logits[77] = logits[150] = logits[60] = 9;
    OK_OR_FAIL(sampler_init(&s, &rule, V, V));
    OK_OR_FAIL(sampler_draw(&out, &s, logits, 0, 5));
    assert_int_equal(out.token, 60);
    double sum = 0;
    for (long i = 0; i < V; i++) sum += exp((double)logits[i]);
    assert_true(fabs(out.logprob - (9 - log(sum))) < 1e-9);
    logits[60] = NAN;
    logits[77] = INFINITY;
    OK_OR_FAIL(sampler_draw(&out, &s, logits, 0, 5));
    assert_int_equal(out.token, 150);
    sampler_free(&s);
    OK_OR_FAIL(sampler_init(&s, &rule, V, 100)); // beyond the tokenizer
    OK_OR_FAIL(sampler_draw(&out, &s, logits, 0, 5));
    assert_true(out.token < 100);
    sampler_allow(&s, 150);
    sampler_allow(&s, 120);
    sampler_allow(&s, 120);
    sampler_allow(&s, 3); // is allowed anyway
    assert_int_equal(s.also_n, 2);
    OK_OR_FAIL(sampler_draw(&out, &s, logits, 0, 5)); // single ids beyond it: the largest of them is 150
    assert_int_equal(out.token, 150);
    for (long i = 0; i < V; i++) logits[i] = NAN;
    assert_int_equal(sampler_draw(&out, &s, logits, 0, 5), ERR_FORMAT);
    sampler_free(&s);
}

// f(seed, choice, position), and nothing else.
static void test_reproducible(void **state)
{
    (void)state;
    struct sampling rule = {1, 0, 1, 0, 3};
    float logits[V];
    struct sampler a, b;
    struct sampled x, y;
    int same_position = 0, same_choice = 0, same_seed = 0;
    random_logits(logits, 4, 1, false);
    OK_OR_FAIL(sampler_init(&a, &rule, V, V));
    rule.seed = 4;
    OK_OR_FAIL(sampler_init(&b, &rule, V, V));
    for (long i = 0; i < 200; i++) {
        OK_OR_FAIL(sampler_draw(&x, &a, logits, 0, i));
        OK_OR_FAIL(sampler_draw(&y, &a, logits, 0, i));
        assert_int_equal(x.token, y.token);
        OK_OR_FAIL(sampler_draw(&y, &a, logits, 0, i + 1));
        same_position += x.token == y.token;
        OK_OR_FAIL(sampler_draw(&y, &a, logits, 1, i));
        same_choice += x.token == y.token;
        OK_OR_FAIL(sampler_draw(&y, &b, logits, 0, i));
        same_seed += x.token == y.token;
    }
    assert_true(same_position < 40 && same_choice < 40 && same_seed < 40);
    sampler_free(&a);
    sampler_free(&b);
}

static void test_refused(void **state)
{
    (void)state;
    const struct sampling wrong[] = {{-1, 0, 1, 0, 0}, {NAN, 0, 1, 0, 0}, {1, -1, 1, 0, 0}, {1, 0, 0, 0, 0},
                                     {1, 0, 1.5, 0, 0}, {1, 0, 1, -0.1, 0}, {1, 0, 1, 2, 0}, {INFINITY, 0, 1, 0, 0}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct sampler s;
        assert_int_equal(sampler_init(&s, &wrong[i], V, V), ERR_CONFIG);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kept_set),           cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_greedy_and_logprob), cmocka_unit_test(test_reproducible),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
