#include "model/decode.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>

// ---- life ----

static long pages_for(long tokens)
{
    return (tokens + PAGE_TOKENS - 1) / PAGE_TOKENS;
}

static void cache_layout(struct kv_cache *kv)
{
    const struct model *m = kv->m;
    long page = PAGE_TOKENS * m->x.local.G * m->c.C, el_size = dtype_size(m->x.k->el);
    kv->device_table = arena_take(&kv->arena, kv->sequences * kv->table_stride, sizeof *kv->device_table);
    kv->device_rows = arena_take(&kv->arena, 2 * m->o.S, sizeof *kv->device_rows);
    for (long l = 0; l < m->c.L; l++) {
        kv->view[l] = (struct kv_view){.table = kv->device_table, .table_stride = kv->table_stride};
        kv->view[l].k = arena_take(&kv->arena, kv->pages * page, el_size);
        kv->view[l].v = arena_take(&kv->arena, kv->pages * page, el_size);
    }
}

static enum status cache_reserve(struct kv_cache *kv)
{
    const struct model *m = kv->m;
    kv->view = calloc((size_t)m->c.L, sizeof *kv->view);
    kv->table = calloc((size_t)(kv->sequences * kv->table_stride), sizeof *kv->table);
    kv->length = calloc((size_t)kv->sequences, sizeof *kv->length);
    kv->free_page = calloc((size_t)kv->pages, sizeof *kv->free_page);
    kv->row_ints = calloc((size_t)(2 * m->o.S), sizeof *kv->row_ints);
    if (!kv->view || !kv->table || !kv->length || !kv->free_page || !kv->row_ints)
        return fail(ERR_MEMORY, "memory: the table of %ld KV pages was refused (use a smaller KV cache)", kv->pages);
    cache_layout(kv);
    TRY(arena_reserve(&kv->arena));
    cache_layout(kv);
    while (kv->free_n < kv->pages) { // page 0 is taken first
        kv->free_page[kv->free_n] = (int)(kv->pages - 1 - kv->free_n);
        kv->free_n++;
    }
    return OK;
}

enum status kv_cache_init(struct kv_cache *kv, struct model *m, long sequences, long tokens, long max_tokens)
{
    enum { MOST_BITS = 58 };
    CHECK(sequences >= 1 && tokens >= 0 && max_tokens >= 0 && m->o.S >= 1);
    *kv = (struct kv_cache){.m = m};
    if (max_tokens > m->o.positions)
        return fail(ERR_CONFIG, "sequence: %ld tokens are more than the model's %ld positions (ask for fewer)",
                    max_tokens, m->o.positions);
    double elements = ((double)tokens + PAGE_TOKENS * (double)sequences) * (double)(m->c.L * m->c.G * m->c.C);
    if (elements > ldexp(1, MOST_BITS) || (double)sequences * (double)max_tokens > INT_MAX || tokens > INT_MAX)
        return fail(ERR_MEMORY, "memory: a KV cache of %ld tokens is not possible (use a smaller one)", tokens);
    kv->sequences = sequences;
    kv->max_tokens = max_tokens;
    kv->table_stride = pages_for(max_tokens);
    kv->pages = (tokens + (PAGE_TOKENS - 1) * sequences) / PAGE_TOKENS; // the last page of each may be almost empty
    kv->arena = arena_measure("the KV cache", m->x.k->device);
    enum status s = cache_reserve(kv);
    if (s != OK) kv_cache_free(kv);
    return s;
}

void kv_cache_free(struct kv_cache *kv)
{
    arena_release(&kv->arena);
    free(kv->view);
    free(kv->table);
    free(kv->length);
    free(kv->free_page);
    free(kv->row_ints);
    *kv = (struct kv_cache){0};
}

void kv_cache_cut(struct kv_cache *kv, long sequence, long n)
{
    CHECK(sequence >= 0 && sequence < kv->sequences && n >= 0 && n <= kv->length[sequence]);
    const int *page = kv->table + sequence * kv->table_stride;
    for (long i = pages_for(kv->length[sequence]); i > pages_for(n); i--) kv->free_page[kv->free_n++] = page[i - 1];
    kv->length[sequence] = n;
}

void kv_cache_drop(struct kv_cache *kv, long sequence)
{
    kv_cache_cut(kv, sequence, 0);
}

// ---- appending ----

// Gives the sequence the pages that n more tokens need, or refuses.
static enum status pages_take(struct kv_cache *kv, long sequence, long n)
{
    long length = kv->length[sequence], have = pages_for(length);
    if (n > kv->max_tokens - length)
        return fail(ERR_CONFIG, "sequence: %ld and %ld more tokens are more than the %ld it may have (ask for fewer)",
                    length, n, kv->max_tokens);
    long need = pages_for(length + n) - have;
    if (need > kv->free_n)
        return fail(ERR_CONFIG, "KV cache: %ld pages are needed and %ld are free (use a larger cache)", need,
                    kv->free_n);
    int *page = kv->table + sequence * kv->table_stride;
    for (long i = have; i < have + need; i++) page[i] = kv->free_page[--kv->free_n];
    kv->m->x.k->from_host(kv->device_table + sequence * kv->table_stride, page,
                          kv->table_stride * (long)sizeof *page);
    return OK;
}

// One forward of n <= o.S rows behind what the sequence has; logits are wanted of those from `first` on.
static void rows_forward(struct kv_cache *kv, long sequence, const int *token, long n, long first)
{
    struct model *m = kv->m;
    int *of_sequence = kv->row_ints, *position = kv->row_ints + m->o.S;
    for (long t = 0; t < n; t++) {
        of_sequence[t] = (int)sequence;
        position[t] = (int)(kv->length[sequence] + t);
    }
    m->x.k->from_host(kv->device_rows, kv->row_ints, 2 * m->o.S * (long)sizeof *kv->row_ints);
    for (long l = 0; l < m->c.L; l++) {
        kv->view[l].sequence = kv->device_rows;
        kv->view[l].position = kv->device_rows + m->o.S;
    }
    model_paged_forward(m, token, kv->view, n, first);
    kv->length[sequence] += n;
}

// Logits of rows [first, first + n) of the last forward.
static void rows_logits(struct model *m, float *logits, long first, long n)
{
    for (long i = 0; i < n; i += HEAD_CHUNK) {
        long rows = n - i < HEAD_CHUNK ? n - i : HEAD_CHUNK;
        head_logits(&m->x, &m->p, &m->head, m->out, first + i, rows);
        head_values(&m->x, logits + i * m->c.V, m->head.logits, rows * m->c.V);
    }
}

enum status kv_append(struct kv_cache *kv, long sequence, const int *token, long n, float *last_logits,
                      float *all_logits)
{
    struct model *m = kv->m;
    CHECK(sequence >= 0 && sequence < kv->sequences && n >= 0);
    for (long t = 0; t < n; t++)
        if (token[t] < 0 || token[t] >= m->c.V)
            return fail(ERR_FORMAT, "token %d: not in the model's vocabulary of %ld (use ids from 0 to %ld)", token[t],
                        m->c.V, m->c.V - 1);
    TRY(pages_take(kv, sequence, n));
    for (long t = 0; t < n; t += m->o.S) {
        long rows = n - t < m->o.S ? n - t : m->o.S;
        bool last = last_logits && t + rows == n;
        rows_forward(kv, sequence, token + t, rows, all_logits ? 0 : last ? rows - 1 : rows);
        if (all_logits) rows_logits(m, all_logits + t * m->c.V, 0, rows);
        if (last) rows_logits(m, last_logits, rows - 1, 1);
    }
    return OK;
}
