#include "data/dataset.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HEADER_BYTES = 34, CODE_I32 = 4, CODE_U16 = 8 };
static const char magic[9] = "MMIDIDX\0"; // 9 bytes with the second NUL

// The arrays of an .idx are not aligned: its header has 34 bytes.
static int32_t i32_at(const uint8_t *array, long i)
{
    int32_t value;
    memcpy(&value, array + 4 * i, sizeof value);
    return value;
}

static int64_t i64_at(const uint8_t *array, long i)
{
    int64_t value;
    memcpy(&value, array + 8 * i, sizeof value);
    return value;
}

// ---- opening ----

static enum status parse_header(struct dataset *d, const uint8_t *idx, long bytes, const char *name)
{
    if (bytes < HEADER_BYTES || memcmp(idx, magic, sizeof magic) != 0)
        return fail(ERR_FORMAT, "%s: is not an index of token data (expected the .idx that `skymoe prepare` writes)",
                    name);
    int64_t version = i64_at(idx + 9, 0), sequences = i64_at(idx + 18, 0), entries = i64_at(idx + 26, 0);
    int code = idx[17];
    if (version != 1) return fail(ERR_FORMAT, "%s: has version %ld, expected 1", name, (long)version);
    if (code != CODE_U16 && code != CODE_I32)
        return fail(ERR_FORMAT, "%s: tokens have type code %d, expected %d (u16) or %d (i32)", name, code, CODE_U16,
                    CODE_I32);
    long most = bytes / 8; // so that no product below overflows
    if (sequences < 0 || sequences > most || entries < 1 || entries > most ||
        bytes != HEADER_BYTES + 12 * sequences + 8 * entries)
        return fail(ERR_FORMAT, "%s: %ld bytes do not hold %ld sequences and %ld document entries (the file is cut off "
                    "or damaged: prepare it again)", name, bytes, (long)sequences, (long)entries);
    d->token_bytes = code == CODE_U16 ? 2 : 4;
    d->sequences = sequences;
    d->documents = entries - 1;
    d->offsets = idx + HEADER_BYTES + 4 * sequences;
    d->first = d->offsets + 8 * sequences;
    return OK;
}

// Sequences must lie in .bin one behind the other and fill it.
static enum status check_sequences(struct dataset *d, const uint8_t *sizes, long bin_bytes, const char *name)
{
    long at = 0;
    for (long s = 0; s < d->sequences; s++) {
        long size = i32_at(sizes, s);
        if (size < 0) return fail(ERR_FORMAT, "%s: sequence %ld has %ld tokens", name, s, size);
        if (i64_at(d->offsets, s) != at)
            return fail(ERR_FORMAT, "%s: sequence %ld begins at byte %ld, expected %ld", name, s,
                        (long)i64_at(d->offsets, s), at);
        at += size * d->token_bytes; // at most bin_bytes + 8 GiB
        if (at > bin_bytes) break;
    }
    if (at != bin_bytes)
        return fail(ERR_FORMAT, "%s: its sequences need %s%ld bytes, but the .bin beside it has %ld (the two do not "
                    "belong together: prepare them again)", name, at > bin_bytes ? "at least " : "", at, bin_bytes);
    d->tokens = bin_bytes / d->token_bytes;
    return OK;
}

static enum status check_documents(const struct dataset *d, const char *name)
{
    for (long i = 0; i <= d->documents; i++) {
        int64_t at = i64_at(d->first, i), before = i > 0 ? i64_at(d->first, i - 1) : 0;
        if (at < before || (i == 0 && at != 0))
            return fail(ERR_FORMAT, "%s: document %ld begins at sequence %ld, before the one in front of it", name, i,
                        (long)at);
        if (i == d->documents && at != d->sequences)
            return fail(ERR_FORMAT, "%s: its documents end at sequence %ld, expected %ld", name, (long)at,
                        d->sequences);
    }
    return OK;
}

enum status dataset_parse_idx(struct dataset *d, const uint8_t *idx, long idx_bytes, long bin_bytes, const char *name)
{
    struct dataset result = *d;
    TRY(parse_header(&result, idx, idx_bytes, name));
    TRY(check_sequences(&result, idx + HEADER_BYTES, bin_bytes, name));
    TRY(check_documents(&result, name));
    *d = result;
    return OK;
}

static enum status path_with(char path[PATH_LENGTH], const char *prefix, const char *ending)
{
    if (snprintf(path, PATH_LENGTH, "%s%s", prefix, ending) >= PATH_LENGTH)
        return fail(ERR_IO, "%.200s...: the path is longer than %d bytes (use a shorter one)", prefix, PATH_LENGTH - 1);
    return OK;
}

static enum status open_maps(struct dataset *d, const char *prefix)
{
    char idx[PATH_LENGTH], bin[PATH_LENGTH];
    TRY(path_with(d->prefix, prefix, ""));
    TRY(path_with(idx, prefix, ".idx"));
    TRY(path_with(bin, prefix, ".bin"));
    TRY(file_map_open(&d->idx, idx));
    TRY(file_map_open(&d->bin, bin));
    return dataset_parse_idx(d, d->idx.data, d->idx.bytes, d->bin.bytes, idx);
}

enum status dataset_open(struct dataset *d, const char *prefix)
{
    struct dataset result = {0};
    enum status status = open_maps(&result, prefix);
    if (status == OK) *d = result;
    else dataset_close(&result);
    return status;
}

void dataset_close(struct dataset *d)
{
    file_map_close(&d->bin);
    file_map_close(&d->idx);
    *d = (struct dataset){0};
}

// ---- reading ----

long dataset_document_start(const struct dataset *d, long document)
{
    CHECK(document >= 0 && document <= d->documents);
    long sequence = i64_at(d->first, document);
    return sequence == d->sequences ? d->tokens : i64_at(d->offsets, sequence) / d->token_bytes;
}

long dataset_document_tokens(const struct dataset *d, long document)
{
    CHECK(document < d->documents);
    return dataset_document_start(d, document + 1) - dataset_document_start(d, document);
}

void dataset_read(int *token, const struct dataset *d, long document, long from, long n)
{
    long start = dataset_document_start(d, document);
    CHECK(from >= 0 && n >= 0 && from + n <= dataset_document_tokens(d, document));
    if (n == 0) return;
    const uint8_t *at = d->bin.data + (start + from) * d->token_bytes;
    if (d->token_bytes == 4) {
        memcpy(token, at, (size_t)n * sizeof *token);
        return;
    }
    for (long i = 0; i < n; i++) token[i] = at[2 * i] | at[2 * i + 1] << 8;
}

// ---- writing ----

enum status dataset_writer_open(struct dataset_writer *w, const char *prefix, long vocab)
{
    struct dataset_writer result = {.token_bytes = vocab < 65500 ? 2 : 4};
    char bin[PATH_LENGTH];
    TRY(path_with(result.prefix, prefix, ""));
    TRY(path_with(bin, prefix, ".bin.new"));
    TRY(output_open(&result.bin, bin));
    *w = result;
    return OK;
}

static enum status write_tokens(struct dataset_writer *w, const int *token, long n)
{
    if (w->token_bytes == 4) return output_write(&w->bin, token, n * 4);
    uint16_t part[1024];
    for (long i = 0; i < n;) {
        long m = 0;
        for (; m < 1024 && i < n; m++, i++) {
            CHECK(token[i] >= 0 && token[i] <= UINT16_MAX);
            part[m] = (uint16_t)token[i];
        }
        TRY(output_write(&w->bin, part, m * 2));
    }
    return OK;
}

enum status dataset_writer_add(struct dataset_writer *w, const int *token, long n)
{
    if (n > INT32_MAX)
        return fail(ERR_FORMAT, "%s: document %ld has %ld tokens, more than the format allows (split it)", w->prefix,
                    w->documents, n);
    if (w->documents == w->room) {
        long room = 2 * w->room + 1024;
        int32_t *grown = realloc(w->size, (size_t)room * sizeof *grown);
        if (!grown) return fail(ERR_MEMORY, "%s: no memory for the sizes of %ld documents", w->prefix, room);
        w->size = grown;
        w->room = room;
    }
    TRY(write_tokens(w, token, n));
    w->size[w->documents++] = (int32_t)n;
    w->tokens += n;
    return OK;
}

static enum status write_idx(struct output *o, const struct dataset_writer *w)
{
    uint8_t header[HEADER_BYTES] = {0};
    int64_t version = 1, sequences = w->documents, entries = w->documents + 1, at = 0;
    memcpy(header, magic, sizeof magic);
    memcpy(header + 9, &version, 8);
    header[17] = w->token_bytes == 2 ? CODE_U16 : CODE_I32;
    memcpy(header + 18, &sequences, 8);
    memcpy(header + 26, &entries, 8);
    TRY(output_write(o, header, HEADER_BYTES));
    if (w->documents > 0) TRY(output_write(o, w->size, w->documents * 4));
    for (long i = 0; i < w->documents; i++) {
        TRY(output_write(o, &at, 8));
        at += (int64_t)w->size[i] * w->token_bytes;
    }
    for (int64_t i = 0; i <= w->documents; i++) TRY(output_write(o, &i, 8));
    return OK;
}

struct pair_names {
    char bin[PATH_LENGTH], idx[PATH_LENGTH], new_bin[PATH_LENGTH], new_idx[PATH_LENGTH];
};

static enum status name_pair(struct pair_names *n, const char *prefix)
{
    TRY(path_with(n->bin, prefix, ".bin"));
    TRY(path_with(n->idx, prefix, ".idx"));
    TRY(path_with(n->new_bin, prefix, ".bin.new"));
    return path_with(n->new_idx, prefix, ".idx.new");
}

static enum status write_both(struct dataset_writer *w, const struct pair_names *n)
{
    struct output idx;
    TRY(output_commit(&w->bin, NULL));
    TRY(output_open(&idx, n->new_idx));
    enum status status = write_idx(&idx, w);
    if (status == OK) return output_commit(&idx, NULL);
    output_abort(&idx);
    return status;
}

// Both are whole on the disk before an old pair is touched; then its index goes first, because new tokens with an old
// index would be read as something else.
static enum status put_in_place(const struct pair_names *n)
{
    if (unlink(n->idx) != 0 && errno != ENOENT)
        return fail(ERR_IO, "%s: cannot be replaced: %s", n->idx, strerror(errno));
    TRY(path_rename(n->bin, n->new_bin));
    return path_rename(n->idx, n->new_idx);
}

enum status dataset_writer_commit(struct dataset_writer *w)
{
    struct pair_names n;
    enum status status = name_pair(&n, w->prefix);
    if (status != OK) {
        dataset_writer_abort(w);
        return status;
    }
    status = write_both(w, &n);
    if (status == OK) status = put_in_place(&n);
    if (status != OK) {
        unlink(n.new_bin);
        unlink(n.new_idx);
    }
    free(w->size);
    *w = (struct dataset_writer){0};
    return status;
}

void dataset_writer_abort(struct dataset_writer *w)
{
    output_abort(&w->bin);
    free(w->size);
    *w = (struct dataset_writer){0};
}
