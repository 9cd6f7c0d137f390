#include "data/tokenizer_check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- protobuf wire format ----

struct wire {
    const uint8_t *at, *end;
};
struct field {
    uint32_t number;
    int type;       // 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes
    uint64_t value; // of types 0, 1, 5
    struct wire in; // of type 2
};

static bool take_varint(uint64_t *value, struct wire *w)
{
    *value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
        if (w->at == w->end) return false;
        uint8_t byte = *w->at++;
        *value |= (uint64_t)(byte & 0x7F) << (shift < 64 ? shift : 63);
        if (byte < 0x80) return true;
    }
    return false;
}

static bool take_fixed(uint64_t *value, struct wire *w, long bytes)
{
    if (w->end - w->at < bytes) return false;
    *value = 0;
    for (long i = 0; i < bytes; i++) *value |= (uint64_t)w->at[i] << (8 * i);
    w->at += bytes;
    return true;
}

static bool take_field(struct field *f, struct wire *w)
{
    uint64_t tag, length;
    if (!take_varint(&tag, w) || tag > UINT32_MAX || tag >> 3 == 0) return false;
    *f = (struct field){.number = (uint32_t)(tag >> 3), .type = (int)(tag & 7)};
    switch (f->type) {
    case 0: return take_varint(&f->value, w);
    case 1: return take_fixed(&f->value, w, 8);
    case 5: return take_fixed(&f->value, w, 4);
    case 2:
        if (!take_varint(&length, w) || length > (uint64_t)(w->end - w->at)) return false;
        f->in = (struct wire){w->at, w->at + length};
        w->at += length;
        return true;
    default: return false; // groups: no model has them
    }
}

static enum status malformed(const char *name)
{
    return fail(ERR_FORMAT, "%s: is not a SentencePiece model (expected the tokenizer.model of a model folder)", name);
}

// ---- pieces ----

enum { PIECE_NORMAL = 1, PIECE_USER_DEFINED = 4, PIECE_UNUSED = 5 };

static bool inner_space(const uint8_t *piece, long bytes)
{
    bool text = false;
    for (long i = 0; i < bytes; i++) {
        bool space = i + 2 < bytes && piece[i] == 0xE2 && piece[i + 1] == 0x96 && piece[i + 2] == 0x81;
        if (space && text) return true;
        if (space) i += 2;
        else text = true;
    }
    return false;
}

static enum status check_piece(struct tokenizer_facts *f, struct wire w, const char *name)
{
    struct wire piece = {0};
    uint64_t type = PIECE_NORMAL;
    float score = 0;
    struct field field;
    while (w.at < w.end) {
        if (!take_field(&field, &w)) return malformed(name);
        if (field.number == 1 && field.type == 2) piece = field.in;
        if (field.number == 3 && field.type == 0) type = field.value;
        if (field.number == 2 && field.type == 5) {
            uint32_t bits = (uint32_t)field.value;
            memcpy(&score, &bits, sizeof score);
            if (!isfinite(score))
                return fail(ERR_FORMAT, "%s: the score of piece %ld is not a number", name, f->pieces);
        }
    }
    long bytes = piece.end - piece.at;
    // SentencePiece finds user-defined pieces in a table of 64 nested prefixes.
    long limit = type == PIECE_USER_DEFINED ? 64 : TOKENIZER_PIECE_LIMIT;
    if (bytes == 0 || bytes > limit)
        return fail(ERR_FORMAT, "%s: piece %ld has %ld bytes, expected 1 to %ld", name, f->pieces, bytes, limit);
    if (memchr(piece.at, 0, (size_t)bytes)) return fail(ERR_FORMAT, "%s: piece %ld has a NUL in it", name, f->pieces);
    if (type == PIECE_USER_DEFINED || inner_space(piece.at, bytes)) f->words = false;
    if (type == PIECE_USER_DEFINED || type == PIECE_UNUSED) f->ranked = false;
    if (type == PIECE_NORMAL && score >= f->last_score) f->ranked = false;
    if (type == PIECE_NORMAL) f->last_score = score;
    f->pieces++;
    return OK;
}

// ---- normaliser ----

// The rules: u32 bytes of the double array (Darts: u32 units), the array, then NUL-ended replacements that its leaves
// give as offsets. A unit: bits 0-7 and 31 label, 8 has a leaf, 9 and 10-30 offset; a leaf: bits 0-30 value.
struct rules {
    const uint8_t *unit;
    long units;
    long text_bytes;
};

static uint32_t unit_at(const struct rules *r, long i)
{
    uint32_t unit;
    memcpy(&unit, r->unit + 4 * i, sizeof unit);
    return unit;
}

static long unit_offset(uint32_t unit)
{
    return (long)((unit >> 10) << ((unit & 1u << 9) >> 6));
}

// How many rules can end on one path: SentencePiece keeps that many matches on its stack.
enum { RULES_NESTED = 32 };

struct walk {
    uint8_t *state; // [units] 0: not reached, OPEN: its paths are being walked, else 1 + most rules on a path from here
    long *stack;    // [units] positions being walked
    int *next;      // [units] the byte to try next there
    int *best;      // [units] most rules on a path from there so far
};
enum { OPEN = 255 };

// Walks every string that the array accepts. Paths may join (the builder shares equal ends) but not run in circles.
static const char *walk_rules(const struct rules *r, struct walk *w)
{
    long depth = 0;
    w->stack[0] = 0;
    w->state[0] = OPEN;
    int below = 0; // most rules on a path from the child just finished
    while (depth >= 0) {
        long at = w->stack[depth];
        uint32_t unit = unit_at(r, at);
        long base = at ^ unit_offset(unit);
        if ((base | 255) >= r->units) return "points outside its table";
        int leaf = at != 0 && (unit >> 8 & 1);
        if (leaf && (long)(unit_at(r, base) & 0x7FFFFFFF) >= r->text_bytes) return "points outside its text";
        int most = w->best[depth];
        if (below > most) most = w->best[depth] = below;
        below = 0;
        int c = w->next[depth]++;
        if (c == 256) {
            below = leaf + most;
            if (below > RULES_NESTED) return "is nested too deeply";
            w->state[at] = (uint8_t)(1 + below);
            depth--;
            continue;
        }
        long child = base ^ c;
        if ((unit_at(r, child) & 0x800000FF) != (uint32_t)c) continue;
        if (w->state[child] == OPEN) return "runs in circles";
        if (w->state[child]) {
            below = w->state[child] - 1;
            continue;
        }
        depth++;
        w->stack[depth] = child;
        w->state[child] = OPEN;
        w->next[depth] = w->best[depth] = 0;
    }
    return NULL;
}

static enum status check_rules(struct wire w, const char *name)
{
    uint64_t bytes;
    if (w.at == w.end) return OK;
    if (!take_fixed(&bytes, &w, 4) || (long)bytes >= w.end - w.at || bytes % 4 != 0 || bytes < 1024)
        return fail(ERR_FORMAT, "%s: the normaliser's table is cut off", name);
    struct rules r = {.unit = w.at, .units = (long)bytes / 4, .text_bytes = w.end - w.at - (long)bytes};
    if (w.end[-1] != 0) return fail(ERR_FORMAT, "%s: the normaliser's text has no end", name);
    size_t n = (size_t)r.units;
    struct walk walk = {calloc(n, 1), calloc(n, sizeof(long)), calloc(n, sizeof(int)), calloc(n, sizeof(int))};
    bool memory = walk.state && walk.stack && walk.next && walk.best;
    const char *wrong = memory ? walk_rules(&r, &walk) : "does not fit in memory";
    free(walk.state);
    free(walk.stack);
    free(walk.next);
    free(walk.best);
    return wrong ? fail(ERR_FORMAT, "%s: the normaliser's table %s", name, wrong) : OK;
}

static enum status check_normalizer(struct tokenizer_facts *f, struct wire w, const char *name)
{
    bool escape = true, remove_extra = true;
    struct field field;
    while (w.at < w.end) {
        if (!take_field(&field, &w)) return malformed(name);
        if (field.number == 2 && field.type == 2) {
            TRY(check_rules(field.in, name));
            if (field.in.at < field.in.end) f->plain = false;
        }
        if (field.number == 3 && field.type == 0) f->dummy_prefix = field.value;
        if (field.number == 4 && field.type == 0) remove_extra = field.value;
        if (field.number == 5 && field.type == 0) escape = field.value;
    }
    if (!escape || remove_extra) f->plain = false;
    return OK;
}

enum { MODEL_UNIGRAM = 1, MODEL_BPE = 2 };

static enum status check_trainer(struct tokenizer_facts *f, struct wire w, const char *name)
{
    uint64_t type = MODEL_UNIGRAM, byte_fallback = 0;
    struct field field;
    while (w.at < w.end) {
        if (!take_field(&field, &w)) return malformed(name);
        if (field.number == 3 && field.type == 0) type = field.value;
        if (field.number == 35 && field.type == 0) byte_fallback = field.value;
        if (field.number == 24 && field.type == 0 && field.value) f->plain = false; // spaces as suffixes
    }
    if (type != MODEL_UNIGRAM && type != MODEL_BPE)
        return fail(ERR_FORMAT, "%s: is a SentencePiece model of whole words or characters, expected BPE or unigram",
                    name);
    if (type != MODEL_BPE || !byte_fallback) f->plain = false;
    return OK;
}

// Field 4, a self test, is cut out: SentencePiece would run it while loading and print what differs.
enum status tokenizer_check(struct tokenizer_facts *f, uint8_t *model, long *bytes, const char *name)
{
    *f = (struct tokenizer_facts){.dummy_prefix = true, .plain = true, .words = true, .ranked = true,
                                  .last_score = INFINITY};
    struct wire w = {model, model + *bytes};
    struct field field;
    long trainers = 0, normalizers = 0, kept = 0;
    while (w.at < w.end) {
        const uint8_t *start = w.at;
        if (!take_field(&field, &w)) return malformed(name);
        if (field.number == 4) continue;
        long taken = w.at - start;
        // Repeated structures would be merged, and then none of them is what was checked.
        if (field.type == 2 && field.number == 2 && trainers++) return malformed(name);
        if (field.type == 2 && field.number == 3 && normalizers++) return malformed(name);
        if (field.type == 2 && field.number == 1) TRY(check_piece(f, field.in, name));
        if (field.type == 2 && field.number == 2) TRY(check_trainer(f, field.in, name));
        if (field.type == 2 && field.number == 3) TRY(check_normalizer(f, field.in, name));
        if (field.type == 2 && field.number == 5) { // the same structure, for decoding
            struct tokenizer_facts other = *f;
            TRY(check_normalizer(&other, field.in, name));
        }
        memmove(model + kept, start, (size_t)taken);
        kept += taken;
    }
    if (f->pieces == 0) return malformed(name);
    if (normalizers == 0 || trainers == 0) f->plain = false; // SentencePiece's defaults: unigram, extra spaces removed
    *bytes = kept;
    return OK;
}
