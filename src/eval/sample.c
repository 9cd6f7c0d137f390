#include "eval/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

struct candidate {
    int id;
    double p; // exp((logit - largest) / temperature): not normalised
};

enum status sampler_init(struct sampler *s, const struct sampling *rule, long V, long allowed)
{
    *s = (struct sampler){.rule = *rule, .V = V, .allowed = allowed < V ? allowed : V};
    if (!(rule->temperature >= 0) || isinf(rule->temperature))
        return fail(ERR_CONFIG, "--temperature %g: expected 0 or more", rule->temperature);
    if (!(rule->top_p > 0 && rule->top_p <= 1))
        return fail(ERR_CONFIG, "--top-p %g: expected above 0, up to 1", rule->top_p);
    if (!(rule->min_p >= 0 && rule->min_p <= 1)) return fail(ERR_CONFIG, "--min-p %g: expected 0 to 1", rule->min_p);
    if (rule->top_k < 0) return fail(ERR_CONFIG, "--top-k %ld: expected 0 (all) or more", rule->top_k);
    s->list = malloc((size_t)V * sizeof *s->list);
    s->sorted = malloc((size_t)V * sizeof *s->sorted);
    if (s->list && s->sorted) return OK;
    sampler_free(s);
    return fail(ERR_MEMORY, "memory: sampling from %ld tokens was refused (free some memory)", V);
}

void sampler_free(struct sampler *s)
{
    free(s->list);
    free(s->sorted);
    s->list = s->sorted = NULL;
}

double log_sum_exp(const float *logits, long V)
{
    double most = -INFINITY, sum = 0;
    for (long i = 0; i < V; i++)
        if ((double)logits[i] > most) most = (double)logits[i];
    if (!isfinite(most)) return NAN;
    for (long i = 0; i < V; i++) sum += exp((double)logits[i] - most);
    return most + log(sum);
}

void sampler_allow(struct sampler *s, int id)
{
    CHECK(id >= 0 && id < s->V);
    if (id < s->allowed) return;
    long at = 0;
    while (at < s->also_n && s->also[at] < id) at++;
    if (at < s->also_n && s->also[at] == id) return;
    CHECK(s->also_n < SAMPLER_ALSO);
    memmove(s->also + at + 1, s->also + at, (size_t)(s->also_n - at) * sizeof *s->also);
    s->also[at] = id;
    s->also_n++;
}

// The finite logits that may be drawn, in order of ids; returns how many. list[*best] is the largest, the lowest id of
// equals.
static long collect(struct sampler *s, const float *logits, long *best)
{
    long n = 0;
    for (long i = 0; i < s->allowed + s->also_n; i++) {
        long id = i < s->allowed ? i : s->also[i - s->allowed];
        if (!isfinite(logits[id])) continue;
        s->list[n] = (struct candidate){.id = (int)id, .p = (double)logits[id]};
        if (n == 0 || s->list[n].p > s->list[*best].p) *best = n;
        n++;
    }
    return n;
}

// The more probable first, then the lower id.
static int order(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->p != y->p) return x->p > y->p ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

// Keeps of list[0..n), in place and in order of ids, what does not come after `last`.
static long keep_to(struct candidate *list, long n, struct candidate last)
{
    long kept = 0;
    for (long i = 0; i < n; i++)
        if (order(&list[i], &last) <= 0) list[kept++] = list[i];
    return kept;
}

// The k-th of list[0..n) in that order, by a heap whose root comes last among the k kept. heap: room for k.
static struct candidate kth(struct candidate *heap, const struct candidate *list, long n, long k)
{
    long size = 0;
    for (long i = 0; i < n; i++) {
        long at;
        if (size < k) {
            for (at = size++; at && order(&heap[(at - 1) / 2], &list[i]) < 0; at = (at - 1) / 2)
                heap[at] = heap[(at - 1) / 2];
            heap[at] = list[i];
            continue;
        }
        if (order(&list[i], &heap[0]) >= 0) continue;
        for (at = 0;;) {
            long child = 2 * at + 1;
            if (child >= size) break;
            if (child + 1 < size && order(&heap[child + 1], &heap[child]) > 0) child++;
            if (order(&heap[child], &list[i]) <= 0) break;
            heap[at] = heap[child];
            at = child;
        }
        heap[at] = list[i];
    }
    return heap[0];
}

static double mass(const struct candidate *list, long n)
{
    double sum = 0;
    for (long i = 0; i < n; i++) sum += list[i].p;
    return sum;
}

// Top-p: only those that may be inside are sorted. All candidates below (1 - top_p)/n of the mass weigh less than
// 1 - top_p together, so the cut lies before them.
static long keep_top_p(struct sampler *s, long n)
{
    double total = mass(s->list, n), floor = (1 - s->rule.top_p) * total / (double)n, sum = 0;
    long sorted = 0, at = 0;
    for (long i = 0; i < n; i++)
        if (s->list[i].p >= floor) s->sorted[sorted++] = s->list[i];
    qsort(s->sorted, (size_t)sorted, sizeof *s->sorted, order);
    while (at < sorted - 1 && (sum += s->sorted[at].p) < s->rule.top_p * total) at++;
    return keep_to(s->list, n, s->sorted[at]);
}

static int draw(struct sampler *s, long n, double most, long choice, long position)
{
    for (long i = 0; i < n; i++) s->list[i].p = exp((s->list[i].p - most) / s->rule.temperature);
    if (s->rule.top_k && s->rule.top_k < n) n = keep_to(s->list, n, kth(s->sorted, s->list, n, s->rule.top_k));
    if (s->rule.top_p < 1) n = keep_top_p(s, n);
    long kept = 0;
    for (long i = 0; i < n; i++)
        if (s->list[i].p >= s->rule.min_p) s->list[kept++] = s->list[i]; // the largest p is 1
    double at = rng_uniform((uint64_t)s->rule.seed, (uint64_t)choice, (uint64_t)position) * mass(s->list, kept);
    long i = 0;
    while (i < kept - 1 && (at -= s->list[i].p) >= 0) i++;
    return s->list[i].id;
}

enum status sampler_draw(struct sampled *out, struct sampler *s, const float *logits, long choice, long position)
{
    long best = 0, n = collect(s, logits, &best);
    if (n == 0) return fail(ERR_FORMAT, "model: no logit is finite (check its weights with skymoe inspect --verify)");
    out->token = s->rule.temperature > 0 ? draw(s, n, s->list[best].p, choice, position) : s->list[best].id;
    out->logprob = (double)logits[out->token] - log_sum_exp(logits, s->V);
    return OK;
}
