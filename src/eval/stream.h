// Generated tokens as text while they come. Nothing is given out before it is certain: bytes of an unfinished character
// wait, and so does what may be the beginning of a text that ends the answer.
#ifndef SKYMOE_EVAL_STREAM_H
#define SKYMOE_EVAL_STREAM_H

#include "data/tokenizer.h"

struct text_stream {
    const struct tokenizer *tokenizer;
    const char *stop;  // text that ends the answer; NULL: none
    int *ids;          // context and answer
    long n, room;
    char *text;        // of all ids, NUL-terminated
    long begin, ready; // text[begin, ready) is what is certain of the answer
    long taken;
    bool stopped;      // the stop text has come: the answer ends at `ready`
};
// context: ids before the answer, which decide whether it begins with a space; n 0: it begins without. The caller
// closes it, also after a failure.
MUST_USE enum status text_stream_open(struct text_stream *s, const struct tokenizer *t, const int *context, long n,
                                      const char *stop);
void text_stream_close(struct text_stream *s);
MUST_USE enum status text_stream_add(struct text_stream *s, int token);
MUST_USE enum status text_stream_end(struct text_stream *s); // nothing follows: what waited is text

// What is certain and was not taken yet, valid until the next call; *bytes may be 0.
const char *text_stream_take(struct text_stream *s, long *bytes);
// How many of the ids (context included) stand for text that ends at or before `ready`, and how long that text is.
MUST_USE enum status text_stream_whole(long *n, long *bytes, const struct text_stream *s);

#endif
