// Loss, perplexity, bits per byte, KL.
#ifndef SKYMOE_EVAL_EVALUATE_H
#define SKYMOE_EVAL_EVALUATE_H

#include "data/loader.h"
#include "data/tokenizer.h"
#include "model/model.h"

struct evaluation {
    double loss;          // mean nats of an unmasked token
    double perplexity;
    long tokens;          // scored
    long bytes;           // of text they stand for; 0 without a tokenizer
    double bits_per_byte; // NaN without a tokenizer
    double accuracy;      // NaN here; tasks set it
};
// How one batch's sum of CE is found: model_sum, or what follows a pipeline. On the ranks that do not have the head, 0.
typedef double loss_sum(struct model *m, const struct batch *b);
double model_sum(struct model *m, const struct batch *b);

// Over at most max_tokens tokens (0: all) of the loader's sources in stored order, dropless, documents masked as the
// loader says. t may be NULL. All ranks of a job call; batches go round the data-parallel ranks, and the result is the
// same on all.
MUST_USE enum status evaluate_loss(struct evaluation *e, struct model *m, struct loader *l, const struct tokenizer *t,
                                   long max_tokens, loss_sum *sum);

// KL(p || q) of next-token distributions over the same tokens.
struct divergence {
    double mean, max;
    long tokens;
};
MUST_USE enum status evaluate_kl(struct divergence *d, struct model *p, struct model *q, struct loader *l,
                                 long max_tokens);

#endif
