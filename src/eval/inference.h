// A model folder opened for inference, in the arithmetic of its stored dtype: f32 as f32; bf16, f16 and FP8 as bf16.
// FP8 weights stay FP8 in memory. Weights are used where they lie in the files wherever that is possible (folder.h,
// mapped_weights), so the first token does not wait for a copy, and two processes share what they read.
#ifndef SKYMOE_EVAL_INFERENCE_H
#define SKYMOE_EVAL_INFERENCE_H

#include "checkpoint/folder.h"
#include "data/tokenizer.h"

struct inference {
    struct mapped_weights weights;
    struct model model;
    struct config config;
    char folder[PATH_LENGTH];   // with tokenizer and generation files
    struct tokenizer tokenizer; // model NULL when the folder has no tokenizer.model
};

// path: a model folder or a run's folder (its newest checkpoint). rows: most tokens of one forward. positions 0: as
// many as rows; beyond max_position_embeddings is ERR_CONFIG. The struct must stay where it is. On failure nothing is
// held.
MUST_USE enum status inference_open(struct inference *i, const char *path, long rows, long positions);
// The same with the tokenizer's absence an error that says why text cannot be handled.
MUST_USE enum status inference_need_tokenizer(const struct inference *i);
void inference_close(struct inference *i);
// inference_open in two steps: shape and tokenizer, by which rows and positions may be chosen; then the weights. After
// either, whether it failed or not, inference_close.
MUST_USE enum status inference_start(struct inference *i, const char *path);
MUST_USE enum status inference_load(struct inference *i, long rows, long positions);

#endif
