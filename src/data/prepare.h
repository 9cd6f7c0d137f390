// Text files -> token data to train on: PREFIX_train, PREFIX_valid, PREFIX_test (.bin and .idx each) and
// PREFIX_tokenizer/. The whole text is held in memory.
#ifndef SKYMOE_DATA_PREPARE_H
#define SKYMOE_DATA_PREPARE_H

#include <stdbool.h>

#include "data/split.h"

struct prepare_options {
    const char *const *input;
    long inputs;
    const char *output;     // PREFIX
    const char *tokenizer;  // folder or tokenizer.model; NULL: one is trained on the training part
    long vocab_size;        // of the one that is trained
    struct split_options split;
    bool write_text;        // PREFIX_valid.txt and PREFIX_test.txt: the documents of these parts, as they were read
    long threads;
};
struct prepare_part {
    long documents, tokens, bytes;
};
struct prepare_result {
    struct prepare_part part[SPLITS];
    double asked[SPLITS]; // shares of all bytes
    long empty;           // documents left out because they hold white space only
    long near_copies;     // documents kept in training because they copy another one
    long ignored;         // files in folders with other endings
    long vocab;
};
// Each document becomes [bos] tokens [eos] (those that the tokenizer has). A part that gets no document is not written,
// and files of that name from before are removed. ERR_CONFIG, ERR_IO, ERR_FORMAT.
MUST_USE enum status prepare(struct prepare_result *r, const struct prepare_options *o);

#endif
