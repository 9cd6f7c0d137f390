// Indexed token data, Megatron's .bin/.idx pair (facts: formats.md; docs/formats.md).
#ifndef SKYMOE_DATA_DATASET_H
#define SKYMOE_DATA_DATASET_H

#include <stdint.h>

#include "base/files.h"

struct dataset {
    char prefix[PATH_LENGTH];
    struct file_map bin, idx;
    int token_bytes;          // 2 (u16) or 4 (i32)
    long documents, tokens;
    long sequences;           // a document may be several of them in foreign files; they lie one behind the other
    const uint8_t *offsets;   // i64[sequences] byte offsets in .bin, unaligned
    const uint8_t *first;     // i64[documents + 1] first sequence of each document, unaligned
};
// Opens PREFIX.bin and PREFIX.idx and checks every number in them. ERR_IO, ERR_FORMAT.
MUST_USE enum status dataset_open(struct dataset *d, const char *prefix);
MUST_USE enum status dataset_parse_idx(struct dataset *d, const uint8_t *idx, long idx_bytes, long bin_bytes,
                                       const char *name); // the parser alone (fuzzed)
void dataset_close(struct dataset *d);

// Where a document begins among all tokens; document = documents gives their number.
long dataset_document_start(const struct dataset *d, long document);
long dataset_document_tokens(const struct dataset *d, long document);
// Tokens [from, from + n) of a document, as ints. The range must lie within it.
void dataset_read(int *token, const struct dataset *d, long document, long from, long n);

// Writer: documents are appended; u16 when vocab < 65500, else i32. Both files appear at commit; if that fails, the old
// pair is still there or the index is missing, never tokens with another index. The caller ends with exactly one of
// commit and abort.
struct dataset_writer {
    char prefix[PATH_LENGTH];
    struct output bin; // PREFIX.bin.new
    int token_bytes;
    int32_t *size;
    long documents, room, tokens;
};
MUST_USE enum status dataset_writer_open(struct dataset_writer *w, const char *prefix, long vocab);
MUST_USE enum status dataset_writer_add(struct dataset_writer *w, const int *token, long n);
MUST_USE enum status dataset_writer_commit(struct dataset_writer *w);
void dataset_writer_abort(struct dataset_writer *w);

#endif
