#include "eval/stream.h"

#include <stdlib.h>
#include <string.h>

// Text of the first n ids without an unfinished character at its end.
static enum status decode(char **text, long *bytes, const struct text_stream *s, long n)
{
    *bytes = 0;
    return tokenizer_decode_next(text, bytes, s->tokenizer, s->ids, n);
}

static enum status push(struct text_stream *s, int token)
{
    if (s->n == s->room) {
        long room = 2 * s->room + 64;
        int *grown = realloc(s->ids, (size_t)room * sizeof *grown);
        if (!grown) return fail(ERR_MEMORY, "memory: %ld tokens were refused (ask for fewer)", room);
        s->ids = grown;
        s->room = room;
    }
    s->ids[s->n++] = token;
    return OK;
}

static bool stop_found(long *at, const char *text, long from, long bytes, const char *stop)
{
    long n = (long)strlen(stop);
    for (long i = from; i + n <= bytes; i++) {
        if (memcmp(text + i, stop, (size_t)n)) continue;
        *at = i;
        return true;
    }
    return false;
}

// The longest end of text[from, bytes) that begins `stop`: more of it may follow.
static long stop_begun(const char *text, long from, long bytes, const char *stop)
{
    long most = (long)strlen(stop) - 1;
    for (long n = bytes - from < most ? bytes - from : most; n > 0; n--)
        if (!memcmp(text + bytes - n, stop, (size_t)n)) return n;
    return 0;
}

// Takes the decoded text over and finds how much of it is certain.
static void measure(struct text_stream *s, char *text, long bytes, bool ended)
{
    free(s->text);
    s->text = text;
    if (bytes < s->ready) s->ready = bytes; // only a tokenizer that rewrites what it said could do that
    if (s->begin > s->ready) s->begin = s->ready;
    if (s->taken > s->ready) s->taken = s->ready;
    s->stopped = s->stop && stop_found(&s->ready, text, s->begin, bytes, s->stop);
    if (!s->stopped) s->ready = bytes - (s->stop && !ended ? stop_begun(text, s->begin, bytes, s->stop) : 0);
}

enum status text_stream_open(struct text_stream *s, const struct tokenizer *t, const int *context, long n,
                             const char *stop)
{
    *s = (struct text_stream){.tokenizer = t, .stop = stop};
    for (long i = 0; i < n; i++) TRY(push(s, context[i]));
    TRY(decode(&s->text, &s->begin, s, s->n));
    s->ready = s->taken = s->begin;
    return OK;
}

void text_stream_close(struct text_stream *s)
{
    free(s->ids);
    free(s->text);
    *s = (struct text_stream){0};
}

enum status text_stream_add(struct text_stream *s, int token)
{
    char *text;
    long bytes;
    CHECK(!s->stopped);
    TRY(push(s, token));
    TRY(decode(&text, &bytes, s, s->n));
    measure(s, text, bytes, false);
    return OK;
}

enum status text_stream_end(struct text_stream *s)
{
    char *text;
    long bytes;
    if (s->stopped) return OK;
    TRY(tokenizer_decode(&text, &bytes, s->tokenizer, s->ids, s->n));
    measure(s, text, bytes, true);
    return OK;
}

const char *text_stream_take(struct text_stream *s, long *bytes)
{
    const char *more = s->text + s->taken;
    *bytes = s->ready - s->taken;
    s->taken = s->ready;
    return more;
}

enum status text_stream_whole(long *n, long *bytes, const struct text_stream *s)
{
    for (*n = s->n; *n > 0; --*n) {
        char *text;
        TRY(tokenizer_decode(&text, bytes, s->tokenizer, s->ids, *n));
        bool whole = *bytes <= s->ready && !memcmp(text, s->text, (size_t)*bytes);
        free(text);
        if (whole) return OK;
    }
    *bytes = 0;
    return OK;
}
