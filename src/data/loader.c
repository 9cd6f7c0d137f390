#include "data/loader.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

// ---- opening ----

static enum status malformed(const char *list)
{
    return fail(ERR_CONFIG, "--data \"%s\": is not a list (give PREFIX, or WEIGHT1 PREFIX1 WEIGHT2 PREFIX2 ...)", list);
}

static enum status add_source(struct loader *l, double weight, const char *prefix, const char *suffix)
{
    char path[PATH_LENGTH], idx[PATH_LENGTH + 8];
    struct source *s = &l->source[l->sources];
    *s = (struct source){.weight = weight, .index = l->sources, .epoch = -1};
    snprintf(idx, sizeof idx, "%s.idx", prefix);
    bool as_given = path_exists(idx);
    if (snprintf(path, PATH_LENGTH, "%s%s", prefix, as_given ? "" : suffix) >= PATH_LENGTH)
        return fail(ERR_IO, "%.200s...: the path is longer than %d bytes (use a shorter one)", prefix, PATH_LENGTH - 1);
    snprintf(idx, sizeof idx, "%s.idx", path);
    if (!path_exists(idx))
        return fail(ERR_IO, "%s: there is no %s.idx or %s%s.idx (make it with `skymoe prepare`)", prefix, prefix,
                    prefix, suffix);
    TRY(dataset_open(&s->data, path));
    l->sources++; // from here on loader_close closes it
    if (s->data.tokens < l->S + 1)
        return fail(ERR_FORMAT, "%s: has %ld tokens, fewer than one sample of %ld + 1 (add text or lower --seq-length)",
                    path, s->data.tokens, l->S);
    s->start = malloc((size_t)(s->data.documents + 1) * sizeof *s->start);
    if (!s->start) return fail(ERR_MEMORY, "%s: no memory for the order of %ld documents", path, s->data.documents);
    return OK;
}

static enum status parse_weight(double *weight, const char *word, const char *list)
{
    char *end;
    *weight = strtod(word, &end);
    if (end == word || *end || !isfinite(*weight)) return malformed(list);
    if (*weight <= 0) return fail(ERR_CONFIG, "--data \"%s\": the weight %s is not above 0", list, word);
    return OK;
}

static enum status add_sources(struct loader *l, char **word, long words, const char *list, const char *suffix)
{
    if (words == 1) return add_source(l, 1, word[0], suffix);
    if (words == 0 || words % 2 != 0) return malformed(list);
    double sum = 0, weight;
    for (long i = 0; i < words; i += 2) {
        TRY(parse_weight(&weight, word[i], list));
        TRY(add_source(l, weight, word[i + 1], suffix));
        sum += weight;
    }
    if (!isfinite(sum)) return malformed(list);
    for (long i = 0; i < l->sources; i++) l->source[i].weight /= sum;
    return OK;
}

static enum status open_list(struct loader *l, char *words, char **word, const char *list, const char *suffix)
{
    long n = 0;
    char *rest;
    for (char *w = strtok_r(words, " \t\n", &rest); w; w = strtok_r(NULL, " \t\n", &rest)) word[n++] = w;
    l->source = calloc((size_t)n / 2 + 1, sizeof *l->source);
    l->blend_count = calloc((size_t)n / 2 + 1, sizeof *l->blend_count);
    if (!l->source || !l->blend_count) return fail(ERR_MEMORY, "--data: no memory for %ld sources", n);
    return add_sources(l, word, n, list, suffix);
}

enum status loader_open(struct loader *l, const char *list, const char *suffix, long S, long seed, bool document_mask)
{
    struct loader result = {.S = S, .seed = seed, .document_mask = document_mask};
    CHECK(S > 0);
    char *words = strdup(list);
    char **word = malloc((strlen(list) / 2 + 1) * sizeof *word);
    enum status status = words && word ? open_list(&result, words, word, list, suffix)
                                       : fail(ERR_MEMORY, "--data: no memory for the list");
    free(words);
    free(word);
    if (status == OK) *l = result;
    else loader_close(&result);
    return status;
}

void loader_close(struct loader *l)
{
    for (long i = 0; i < l->sources; i++) {
        dataset_close(&l->source[i].data);
        free(l->source[i].start);
    }
    free(l->source);
    free(l->blend_count);
    *l = (struct loader){0};
}

// ---- the order of documents ----

static long document_at(const struct loader *l, const struct source *s, long place)
{
    uint64_t stream = (uint64_t)s->index << 40 ^ (uint64_t)s->epoch;
    return (long)rng_permute((uint64_t)place, (uint64_t)s->data.documents, (uint64_t)l->seed, stream);
}

static void order_epoch(const struct loader *l, struct source *s, long epoch)
{
    if (s->epoch == epoch) return;
    s->epoch = epoch;
    s->start[0] = 0;
    for (long p = 0; p < s->data.documents; p++)
        s->start[p + 1] = s->start[p] + dataset_document_tokens(&s->data, document_at(l, s, p));
}

// Largest place with start(place) <= at, so that empty documents are passed over. at < tokens.
static long find_place(const struct source *s, bool stored, long at)
{
    long low = 0, high = s->data.documents;
    while (high - low > 1) {
        long middle = low + (high - low) / 2;
        long start = stored ? dataset_document_start(&s->data, middle) : s->start[middle];
        if (start <= at) low = middle;
        else high = middle;
    }
    return low;
}

// ---- one sample ----

struct sample {
    int *token, *target, *position, *start;
    long S;
    bool document_mask;
    long filled;    // tokens so far, of S + 1: the last one is only a target
    long part;      // index within the sample of the first token that this document's tokens see
};

// Appends tokens [from, from + n) of a document.
static void add_part(struct sample *a, const struct dataset *d, long document, long from, long n)
{
    long t = a->filled, kept = t + n > a->S ? a->S - t : n; // without the token S
    dataset_read(a->token + t, d, document, from, kept);
    if (a->document_mask) a->part = t;
    for (long i = t; i < t + kept; i++) {
        a->start[i] = a->document_mask ? (int)a->part : 0;
        a->position[i] = (int)(i - a->start[i]);
        if (i > 0) a->target[i - 1] = a->token[i];
    }
    if (kept < n) dataset_read(&a->target[a->S - 1], d, document, from + n - 1, 1);
    if (a->document_mask && t > 0) a->target[t - 1] = -1; // only the first part can begin inside a document
    a->filled = t + n;
}

static void fill_from(struct sample *a, const struct loader *l, struct source *s, bool stored, long at, long want)
{
    long place = find_place(s, stored, at);
    for (; a->filled < want && place < s->data.documents; place++) {
        long document = stored ? place : document_at(l, s, place);
        long start = stored ? dataset_document_start(&s->data, place) : s->start[place];
        long size = dataset_document_tokens(&s->data, document);
        long from = at - start, n = size - from;
        if (n > want - a->filled) n = want - a->filled;
        if (n > 0) add_part(a, &s->data, document, from, n);
        at += n;
    }
}

// ---- training ----

// Which source sample n is from: the one furthest behind its share; the lowest index among equals.
static long blend_next(const struct loader *l)
{
    long best = 0;
    double most = -INFINITY, n = l->blend_n > 1 ? (double)l->blend_n : 1;
    for (long s = 0; s < l->sources; s++) {
        double behind = l->source[s].weight * n - (double)l->blend_count[s];
        if (behind > most) {
            most = behind;
            best = s;
        }
    }
    return best;
}

static long blend_at(struct loader *l, long i)
{
    if (l->sources == 1) {
        l->blend_count[0] = i;
        return 0;
    }
    if (i < l->blend_n) {
        memset(l->blend_count, 0, (size_t)l->sources * sizeof *l->blend_count);
        l->blend_n = 0;
    }
    for (; l->blend_n < i; l->blend_n++) l->blend_count[blend_next(l)]++;
    return blend_next(l);
}

enum status loader_sample(struct loader *l, long i, int *token, int *target, int *position, int *start, long *which)
{
    CHECK(i >= 0);
    *which = blend_at(l, i);
    struct source *s = &l->source[*which];
    struct sample a = {token, target, position, start, l->S, l->document_mask, 0, 0};
    long at;
    if (__builtin_mul_overflow(l->blend_count[*which], l->S, &at))
        return fail(ERR_CONFIG, "sample %ld: lies beyond the largest position", i);
    long epoch = at / s->data.tokens;
    at %= s->data.tokens;
    while (a.filled < l->S + 1) { // at most two epochs
        order_epoch(l, s, epoch++);
        fill_from(&a, l, s, false, at, l->S + 1);
        at = 0;
    }
    return OK;
}

// ---- evaluation ----

static long eval_samples(const struct source *s, long S)
{
    return (s->data.tokens - 1 + S - 1) / S;
}

enum status loader_eval_count(const struct loader *l, long *samples)
{
    *samples = 0;
    for (long i = 0; i < l->sources; i++) *samples += eval_samples(&l->source[i], l->S);
    return OK;
}

enum status loader_eval_sample(struct loader *l, long i, int *token, int *target, int *position, int *start)
{
    struct source *s = l->source;
    CHECK(i >= 0);
    while (i >= eval_samples(s, l->S)) {
        i -= eval_samples(s++, l->S);
        CHECK(s < l->source + l->sources);
    }
    struct sample a = {token, target, position, start, l->S, l->document_mask, 0, 0};
    fill_from(&a, l, s, true, i * l->S, l->S + 1);
    for (long t = a.filled; t < l->S; t++) { // behind the end of the data
        token[t] = 0;
        start[t] = (int)a.part;
        position[t] = (int)(t - a.part);
    }
    for (long t = a.filled - 1; t < l->S; t++) target[t] = -1;
    return OK;
}
