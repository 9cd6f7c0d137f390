// Inference of sequences over KV pages: prefill in chunks and one token at a time, one code path (serving adds a
// scheduler). Pages of 16 tokens of all layers lie behind a block table.
#ifndef SKYMOE_MODEL_DECODE_H
#define SKYMOE_MODEL_DECODE_H

#include "model/model.h"

struct kv_cache {
    struct model *m;
    long pages;           // of PAGE_TOKENS tokens, all layers
    long sequences;       // rows of the table
    long max_tokens;      // of one sequence
    long table_stride;    // pages a sequence may have
    int *table;           // host copy [sequences, table_stride]
    long *length;         // [sequences] tokens stored
    int *free_page;       // stack of free pages
    long free_n;
    int *row_ints;        // host: sequence, then position of each row of one forward
    struct arena arena;   // k and v of all layers, and the device's ints
    struct kv_view *view; // [L]
    int *device_table;    // [sequences, table_stride]
    int *device_rows;     // row_ints on the device
};
// Room for `tokens` tokens in all, at most `max_tokens` in one sequence (ERR_CONFIG beyond m->o.positions). ERR_MEMORY.
MUST_USE enum status kv_cache_init(struct kv_cache *kv, struct model *m, long sequences, long tokens, long max_tokens);
void kv_cache_free(struct kv_cache *kv);
void kv_cache_drop(struct kv_cache *kv, long sequence);         // its pages become free
void kv_cache_cut(struct kv_cache *kv, long sequence, long n);  // only its first n tokens stay

// Appends n tokens to a sequence (in chunks of at most m->o.S rows) and gives the logits (host, f32) of the last one
// [V] and of every one [n, V]; either may be NULL. ERR_CONFIG when pages or max_tokens run out, ERR_FORMAT when a token
// is not in the vocabulary: its tokenizer has it, the model has not. Either way nothing is appended.
MUST_USE enum status kv_append(struct kv_cache *kv, long sequence, const int *token, long n, float *last_logits,
                               float *all_logits);

#endif
