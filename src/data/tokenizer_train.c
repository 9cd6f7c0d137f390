// What SentencePiece is given to train on: which lines, and how many characters get a piece.
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/rng.h"
#include "data/sentencepiece.h"
#include "data/tokenizer.h"

enum {
    LINE_BYTES = 4096,  // longer lines are cut: SentencePiece takes words of at most 65535 characters
    META_PIECES = 259,  // unk, bos, eos, 256 bytes
    SAMPLE_SEED = 1234,
};

struct character {
    long code, count;
};
struct lines {
    struct sp_line *line;
    long n, room;
    long number; // of all lines seen so far: the counter of the choice
    double share;
    bool *kept; // [CODE_POINTS] whether a character gets a piece
    char buffer[LINE_BYTES];
};

// The next line of the text at *from, at most LINE_BYTES long, cut at a space if there is one; *from moves behind it.
static struct sp_line next_line(const struct text *t, long *from)
{
    const char *start = t->data + *from;
    long left = t->bytes - *from;
    const char *newline = memchr(start, '\n', (size_t)left);
    long bytes = newline ? newline - start : left;
    if (bytes <= LINE_BYTES) {
        *from += bytes + 1;
        return (struct sp_line){start, bytes};
    }
    bytes = LINE_BYTES;
    for (long i = LINE_BYTES; i > LINE_BYTES / 2; i--) {
        if (start[i] != ' ') continue;
        *from += i + 1;
        return (struct sp_line){start, i};
    }
    while (((unsigned char)start[bytes] & 0xC0) == 0x80) bytes--; // not inside a character
    *from += bytes;
    return (struct sp_line){start, bytes};
}

static enum status sample(struct lines *l, const struct text *t)
{
    for (long from = 0; from < t->bytes;) {
        struct sp_line line = next_line(t, &from);
        if (line.bytes == 0) continue;
        if (rng_uniform(SAMPLE_SEED, 0, (uint64_t)l->number++) >= l->share) continue;
        if (l->n == l->room) {
            long room = 2 * l->room + 1024;
            struct sp_line *grown = realloc(l->line, (size_t)room * sizeof *grown);
            if (!grown) return fail(ERR_MEMORY, "tokenizer: no memory for %ld lines of text", room);
            l->line = grown;
            l->room = room;
        }
        l->line[l->n++] = line;
    }
    return OK;
}

// ---- characters ----

enum { CODE_POINTS = 0x110000 };

static long decode_character(long *code, const char *text)
{
    const unsigned char *c = (const unsigned char *)text;
    long length = *c < 0x80 ? 1 : *c < 0xE0 ? 2 : *c < 0xF0 ? 3 : 4;
    *code = length == 1 ? *c : *c & (0xFF >> (length + 1));
    for (long k = 1; k < length; k++) *code = *code << 6 | (c[k] & 0x3F);
    CHECK(*code < CODE_POINTS);
    return length;
}

static int compare_counts(const void *a, const void *b)
{
    const struct character *x = a, *y = b;
    if (x->count != y->count) return x->count < y->count ? 1 : -1;
    return x->code < y->code ? -1 : x->code > y->code;
}

// Marks the characters that get a piece: the most frequent that make up 0.9995 of the text, at most `most` of them.
static void choose_characters(bool *kept, struct character *character, const struct lines *l, long most)
{
    long code, all = 0, reached = 0;
    for (long i = 0; i < CODE_POINTS; i++) character[i].code = i;
    for (long i = 0; i < l->n; i++) {
        for (long at = 0; at < l->line[i].bytes; all++) {
            at += decode_character(&code, l->line[i].text + at);
            character[code].count++;
        }
    }
    qsort(character, CODE_POINTS, sizeof *character, compare_counts);
    for (long i = 0; i < most && character[i].count > 0 && (double)reached < 0.9995 * (double)all; i++) {
        kept[character[i].code] = true;
        reached += character[i].count;
    }
}

static enum status find_characters(struct lines *l, long vocab_size)
{
    struct character *character = calloc(CODE_POINTS, sizeof *character);
    l->kept = calloc(CODE_POINTS, sizeof *l->kept);
    enum status status = OK;
    if (character && l->kept) choose_characters(l->kept, character, l, (vocab_size - META_PIECES) / 2);
    else status = fail(ERR_MEMORY, "tokenizer: no memory to count characters");
    free(character);
    return status;
}

// ---- training ----

// The line with a tab for every character that gets no piece: SentencePiece builds no piece across a tab. (Its own
// setting, character coverage, cannot go below 0.98, and many Chinese texts need that with a small vocabulary.)
static struct sp_line line_at(void *context, long i)
{
    struct lines *l = context;
    struct sp_line line = l->line[i];
    long used = 0, code;
    for (long at = 0, length; at < line.bytes; at += length) {
        length = decode_character(&code, line.text + at);
        if (l->kept[code]) memcpy(l->buffer + used, line.text + at, (size_t)length);
        else l->buffer[used] = '\t';
        used += l->kept[code] ? length : 1;
    }
    return (struct sp_line){l->buffer, used};
}

static enum status explain(const struct sp_reason *why, long vocab_size)
{
    const char *at_most = strstr(why->text, "value <= ");
    if (at_most)
        return fail(ERR_CONFIG, "--vocab-size %ld: the text has pieces for only %ld (choose that or less, or add text)",
                    vocab_size, strtol(at_most + 9, NULL, 10));
    return fail(ERR_FORMAT, "tokenizer: SentencePiece cannot train it: %s", why->text);
}

static enum status train(struct lines *l, const struct tokenizer_training *t)
{
    struct sp_training training = {
        .line = line_at, .context = l, .vocab_size = t->vocab_size, .threads = t->threads > 0 ? t->threads : 1};
    struct sp_reason why;
    double bytes = 0;
    char *model;
    long model_bytes;
    for (long i = 0; i < t->texts; i++) bytes += (double)t->text[i].bytes;
    l->share = bytes > TOKENIZER_SAMPLE_BYTES ? TOKENIZER_SAMPLE_BYTES / bytes : 1;
    for (long i = 0; i < t->texts; i++) TRY(sample(l, &t->text[i]));
    if (l->n == 0) return fail(ERR_FORMAT, "tokenizer: there is no text to train on (give more input)");
    TRY(find_characters(l, t->vocab_size));
    training.lines = l->n;
    if (!sp_train(&model, &model_bytes, &training, &why)) return explain(&why, t->vocab_size);
    enum status status = file_write(t->path, model, model_bytes);
    free(model);
    return status;
}

enum status tokenizer_train(const struct tokenizer_training *t)
{
    struct lines lines = {0};
    enum status status = train(&lines, t);
    free(lines.line);
    free(lines.kept);
    return status;
}
