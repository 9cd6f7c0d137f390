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

struct lines {
    struct sp_line *line;
    long n, room;
    long number; // of all lines seen so far: the counter of the choice
    double share;
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

static int compare_counts(const void *a, const void *b)
{
    long x = *(const long *)a, y = *(const long *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

static void count_characters(long *count, const struct lines *l)
{
    for (long i = 0; i < l->n; i++) {
        const unsigned char *c = (const unsigned char *)l->line[i].text, *end = c + l->line[i].bytes;
        while (c < end) {
            long length = *c < 0x80 ? 1 : *c < 0xE0 ? 2 : *c < 0xF0 ? 3 : 4;
            long code = length == 1 ? *c : *c & (0xFF >> (length + 1));
            for (long k = 1; k < length; k++) code = code << 6 | (c[k] & 0x3F);
            count[code < CODE_POINTS ? code : 0]++;
            c += length;
        }
        count[' ']++; // the dummy prefix
    }
}

// The share of all characters that the most frequent ones reach: 0.9995, or what half of the vocabulary reaches.
static double coverage(long *count, long vocab_size)
{
    double all = 0, reached = 0;
    qsort(count, CODE_POINTS, sizeof *count, compare_counts);
    for (long i = 0; i < CODE_POINTS && count[i] > 0; i++) all += (double)count[i];
    for (long i = 0; i < (vocab_size - META_PIECES) / 2 && count[i] > 0; i++) {
        if (reached >= 0.9995 * all) return 0.9995;
        reached += (double)count[i];
    }
    return reached < all ? reached / all : 0.9995;
}

static enum status choose_coverage(double *share, const struct lines *l, long vocab_size)
{
    long *count = calloc(CODE_POINTS, sizeof *count);
    if (!count) return fail(ERR_MEMORY, "tokenizer: no memory to count characters");
    count_characters(count, l);
    *share = coverage(count, vocab_size);
    free(count);
    return OK;
}

// ---- training ----

static struct sp_line line_at(const void *context, long i)
{
    return ((const struct lines *)context)->line[i];
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
    TRY(choose_coverage(&training.character_coverage, l, t->vocab_size));
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
    return status;
}
