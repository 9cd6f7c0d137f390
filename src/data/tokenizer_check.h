// A look through the bytes of a tokenizer.model (a protobuf, ModelProto) before SentencePiece gets them: it trusts the
// normaliser's double array, the nesting of user-defined pieces and the scores blindly. Internal to data/.
#ifndef SKYMOE_DATA_TOKENIZER_CHECK_H
#define SKYMOE_DATA_TOKENIZER_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

enum { TOKENIZER_MODEL_LIMIT = 64 << 20, TOKENIZER_PIECE_LIMIT = 1024 };

struct tokenizer_facts {
    long pieces;
    bool dummy_prefix;  // a space is put before the text
    bool plain;         // byte-fallback BPE whose normaliser only does that and ' ' -> U+2581
    bool words;         // no piece has U+2581 behind another character: pieces never reach across words
    bool ranked;        // only normal, unknown, control and byte pieces, and the scores of normal ones fall with the id
    float last_score;
};
// ERR_FORMAT. Cuts a self test out of the bytes; *bytes (at most TOKENIZER_MODEL_LIMIT) becomes what is left.
MUST_USE enum status tokenizer_check(struct tokenizer_facts *f, uint8_t *model, long *bytes, const char *name);

#endif
