#include "data/split.h"

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

// ---- fingerprints ----

enum { WINDOW = 48, MOST_FINGERPRINTS = 1 << 24 };
static const uint64_t factor = 0x9E3779B97F4A7C15u; // of the rolling hash: sum of byte * factor^place, modulo 2^64

static uint64_t mixed(uint64_t h)
{
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
}

// Calls visit(context, fingerprint) for each one of the text.
static void visit_fingerprints(const struct text *t, uint64_t divisor, void (*visit)(void *, uint64_t), void *context)
{
    unsigned char ring[WINDOW] = {0};
    uint64_t rolling = 0, leaving = 1;
    long seen = 0;
    for (int i = 0; i < WINDOW; i++) leaving *= factor;
    for (long i = 0; i < t->bytes; i++) {
        unsigned char c = (unsigned char)t->data[i];
        if (c == ' ' || (c >= '\t' && c <= '\r')) continue;
        unsigned char *slot = &ring[seen % WINDOW];
        rolling = rolling * factor + c - leaving * *slot;
        *slot = c;
        if (++seen < WINDOW) continue;
        uint64_t h = mixed(rolling);
        if (h % divisor == 0) visit(context, h | 1); // 0 marks a free slot
    }
}

// Open addressing: which document has a fingerprint, or that several have.
enum { SEVERAL = -1 };
struct table {
    uint64_t *key;
    int32_t *owner;
    uint8_t *counted; // in the document being counted, so that each counts once
    uint64_t mask, used;
    int32_t document;
    long distinct, shared;
};

static uint64_t find(const struct table *t, uint64_t key)
{
    uint64_t slot = key >> 8 & t->mask;
    while (t->key[slot] && t->key[slot] != key) slot = (slot + 1) & t->mask;
    return slot;
}

static void add_fingerprint(void *context, uint64_t key)
{
    struct table *t = context;
    uint64_t slot = find(t, key);
    if (!t->key[slot]) {
        if (4 * t->used > 3 * t->mask) return; // a text made for it could fill the table
        t->used++;
        t->key[slot] = key;
        t->owner[slot] = t->document;
    } else if (t->owner[slot] != t->document) {
        t->owner[slot] = SEVERAL;
    }
}

static void count_fingerprint(void *context, uint64_t key)
{
    struct table *t = context;
    uint64_t slot = find(t, key);
    if (!t->key[slot] || t->counted[slot]) return;
    t->counted[slot] = 1;
    t->distinct++;
    t->shared += t->owner[slot] == SEVERAL;
}

static void uncount_fingerprint(void *context, uint64_t key)
{
    struct table *t = context;
    t->counted[find(t, key)] = 0;
}

static void mark_copies(bool *copy, const struct corpus *c, struct table *t, uint64_t divisor, double near_copy)
{
    for (long i = 0; i < c->documents; i++) {
        t->document = (int32_t)i;
        visit_fingerprints(&c->document[i].text, divisor, add_fingerprint, t);
    }
    for (long i = 0; i < c->documents; i++) {
        t->distinct = t->shared = 0;
        visit_fingerprints(&c->document[i].text, divisor, count_fingerprint, t);
        visit_fingerprints(&c->document[i].text, divisor, uncount_fingerprint, t);
        copy[i] = (double)t->shared > near_copy * (double)t->distinct;
    }
}

static enum status find_copies(bool *copy, const struct corpus *c, double near_copy)
{
    uint64_t divisor = 8, room = 1024;
    while ((uint64_t)c->bytes / divisor > MOST_FINGERPRINTS) divisor *= 2;
    while (room < 3 * ((uint64_t)c->bytes / divisor)) room *= 2;
    if (c->documents > INT32_MAX) return fail(ERR_MEMORY, "input: more than %d documents", INT32_MAX);
    struct table t = {.key = calloc(room, sizeof *t.key), .owner = calloc(room, sizeof *t.owner),
                      .counted = calloc(room, 1), .mask = room - 1};
    enum status status = OK;
    if (t.key && t.owner && t.counted) mark_copies(copy, c, &t, divisor, near_copy);
    else status = fail(ERR_MEMORY, "input: no memory to look for near copies (--near-copy 0 leaves that out)");
    free(t.key);
    free(t.owner);
    free(t.counted);
    return status;
}

// ---- choice ----

struct draw {
    uint64_t number, hash;
    long document;
};

static int compare_draws(const void *a, const void *b)
{
    const struct draw *x = a, *y = b;
    if (x->number != y->number) return x->number < y->number ? -1 : 1;
    if (x->hash != y->hash) return x->hash < y->hash ? -1 : 1;
    return x->document < y->document ? -1 : 1;
}

static void choose(struct corpus *c, const struct split_options *o, const struct draw *draw, const bool *copy,
                   long *kept)
{
    double sum = o->share[SPLIT_TRAIN] + o->share[SPLIT_VALID] + o->share[SPLIT_TEST];
    double left[SPLITS];
    for (int s = 0; s < SPLITS; s++) left[s] = o->share[s] / sum * (double)c->bytes;
    for (long i = 0; i < c->documents; i++) {
        struct document *d = &c->document[draw[i].document];
        double bytes = (double)d->text.bytes;
        bool twice = (i > 0 && draw[i - 1].hash == d->hash) || (i + 1 < c->documents && draw[i + 1].hash == d->hash);
        bool held = o->near_copy > 0 && (twice || copy[draw[i].document]);
        d->split = SPLIT_TRAIN;
        for (int s = SPLIT_TEST; s > SPLIT_TRAIN; s--) {
            if (bytes > left[s]) continue;
            if (held) {
                ++*kept;
            } else {
                d->split = s;
                left[s] -= bytes;
            }
            break;
        }
    }
}

static enum status split_with(struct corpus *c, const struct split_options *o, long *kept, struct draw *draw,
                              bool *copy)
{
    if (!draw || !copy) return fail(ERR_MEMORY, "input: no memory to split %ld documents", c->documents);
    for (long i = 0; i < c->documents; i++) {
        uint64_t hash = c->document[i].hash;
        draw[i] = (struct draw){rng_bits((uint64_t)o->seed, hash, 0), hash, i};
    }
    qsort(draw, (size_t)c->documents, sizeof *draw, compare_draws);
    if (o->near_copy > 0 && o->share[SPLIT_VALID] + o->share[SPLIT_TEST] > 0) TRY(find_copies(copy, c, o->near_copy));
    choose(c, o, draw, copy, kept);
    return OK;
}

enum status split_documents(struct corpus *c, const struct split_options *o, long *kept)
{
    *kept = 0;
    struct draw *draw = malloc((size_t)c->documents * sizeof *draw + 1);
    bool *copy = calloc((size_t)c->documents + 1, sizeof *copy);
    enum status status = split_with(c, o, kept, draw, copy);
    free(draw);
    free(copy);
    return status;
}
