// Generating with a model on one host's devices: weights, room for keys and values, time of one step in which each of
// `batch` sequences gets a token. Every product takes the longer of reading its weights and computing.
#ifndef SKYMOE_PLAN_DECODE_H
#define SKYMOE_PLAN_DECODE_H

#include "plan/cost.h"

struct decode_plan {
    struct run run;          // layout of one stage, dp 1; dtype of activations, keys and values
    enum quant weights;
    long context;            // tokens of a sequence whose keys are read, on average
    double limit;            // bytes of a rank
    double weight_bytes;     // of the fullest rank
    double kv_bytes;         // of one token, on the rank with most kv heads
    double kv_tokens;        // that fit beside the weights; negative: the weights do not fit
    long largest_batch;      // sequences of `context` tokens
};
// r: model, cluster, layout, dtype. ERR_CONFIG.
MUST_USE enum status decode_plan_make(struct decode_plan *p, const struct run *r, enum quant weights, long context,
                                      double limit);

struct decode_step {
    long batch;
    bool fits;
    struct times terms;      // their sum is the step
    double seconds, tokens_per_s;
    double weights_s;        // share of the step that is reading weights
    double experts_hit;      // of each layer, on average
    double flops, bytes;     // of one token: of the whole model, all ranks together
};
void decode_step_of(struct decode_step *s, const struct decode_plan *p, long batch);

// What it takes for granted; NULL after the last.
const char *decode_assumption(long index);

#endif
