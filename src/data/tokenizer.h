// Text <-> token ids through SentencePiece (tokenizer.model). sentencepiece.cc is the only C++ file and the only one
// that includes its header.
#ifndef SKYMOE_DATA_TOKENIZER_H
#define SKYMOE_DATA_TOKENIZER_H

#include <stdbool.h>

#include "base/status.h"

struct tokenizer {
    void *model;     // SentencePieceProcessor
    long pieces;
    int bos, eos, unk, pad; // -1: none
    short *piece_bytes;     // [pieces] bytes of text each id stands for (0: control and unknown)
    bool dummy_prefix;      // encoding puts a space before the text: its ids sum to one byte more than the text has
    bool parts;             // encoding word by word gives the same ids (no piece reaches across a single space)
    bool ranked;            // plain BPE whose merges follow from the order of the pieces: tokenizer.json can say it
};

// `path`: a tokenizer.model, or a folder holding one. ERR_IO, ERR_FORMAT (also for a folder with only tokenizer.json).
MUST_USE enum status tokenizer_open(struct tokenizer *t, const char *path);
void tokenizer_close(struct tokenizer *t);

// The caller frees *ids. No bos/eos. Text may contain NUL; it must be UTF-8 (ERR_FORMAT).
MUST_USE enum status tokenizer_encode(int **ids, long *n, const struct tokenizer *t, const char *text, long bytes);
// The same with bos in front, where there is one: for text that begins a sequence.
MUST_USE enum status tokenizer_encode_begin(int **ids, long *n, const struct tokenizer *t, const char *text,
                                            long bytes);
// The same for text that goes on behind other text: without the space that encoding puts before a text. ERR_FORMAT also
// for a tokenizer that joins a line end with what follows.
MUST_USE enum status tokenizer_encode_more(int **ids, long *n, const struct tokenizer *t, const char *text, long bytes);
int tokenizer_find(const struct tokenizer *t, const char *piece); // the id of that piece; -1: there is none
// The caller frees *text (NUL-terminated). Ids beyond the pieces are ERR_FORMAT. Incomplete UTF-8 becomes U+FFFD.
MUST_USE enum status tokenizer_decode(char **text, long *bytes, const struct tokenizer *t, const int *ids, long n);

// Streaming: gives the text that ids[0..n) add beyond the first `shown` bytes, holding back incomplete UTF-8.
MUST_USE enum status tokenizer_decode_next(char **more, long *shown, const struct tokenizer *t, const int *ids, long n);

// Trains byte-fallback BPE (Llama conventions: identity normalisation, dummy prefix, digits split, unk 0, bos 1, eos 2)
// on the lines of UTF-8 texts and writes the model to `path`. About TOKENIZER_SAMPLE_BYTES are used: lines drawn by a
// counter-based choice (10 MB instead take four times as long and save 0.2 % of the tokens). The most frequent
// characters that make up 0.9995 of the text get a piece each, but at most half of the vocabulary; others are spelled
// in bytes.
// The same texts give the same model. ERR_CONFIG when the texts are too small for the vocabulary.
enum { TOKENIZER_SAMPLE_BYTES = 4 << 20 };
struct text {
    const char *data;
    long bytes;
};
struct tokenizer_training {
    const struct text *text;
    long texts;
    long vocab_size;
    long threads;
    const char *path;
};
MUST_USE enum status tokenizer_train(const struct tokenizer_training *t);

// Writes into `folder` what makes transformers' AutoTokenizer load it: tokenizer.model, tokenizer_config.json,
// special_tokens_map.json, generation_config.json, and tokenizer.json where it can say the same (t->ranked); or copies
// these files from another folder as they are. model_file NULL: tokenizer.model is there already.
MUST_USE enum status tokenizer_write_folder(const char *folder, const char *model_file, const struct tokenizer *t);
MUST_USE enum status tokenizer_copy_folder(const char *to, const char *from); // those that exist; none is fine
// tokenizer.json alone [transformers' format of BPE]; t->ranked.
MUST_USE enum status tokenizer_write_json(const char *folder, const struct tokenizer *t);

#endif
