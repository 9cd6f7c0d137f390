// Choosing the next token from logits. In this order: temperature, top-k, top-p, min-p; then one draw, which is a
// function of (seed, choice, position) alone, so a sequence does not depend on what else is generated beside it.
#ifndef SKYMOE_EVAL_SAMPLE_H
#define SKYMOE_EVAL_SAMPLE_H

#include "base/status.h"

struct sampling {
    double temperature; // 0: the largest logit, ties to the lowest id
    long top_k;         // keep the k most probable; 0: all. Ties at every cut: the lower id first
    double top_p;       // keep the fewest most probable whose sum reaches top_p; 1: all
    double min_p;       // keep those with at least min_p times the largest probability; 0: all
    long seed;
};

struct sampled {
    int token;
    double logprob; // natural, of the unmodified distribution over all V
};

enum { SAMPLER_ALSO = 48 };
// Room for one vocabulary, kept between calls.
struct sampler {
    struct sampling rule;
    long V;
    long allowed; // ids from here on are never drawn (beyond the tokenizer),
    int also[SAMPLER_ALSO]; // except these
    long also_n;
    struct candidate *list, *sorted;
};
MUST_USE enum status sampler_init(struct sampler *s, const struct sampling *rule, long V, long allowed); // ERR_CONFIG
void sampler_allow(struct sampler *s, int id); // may be drawn too; at most SAMPLER_ALSO ids, below V
void sampler_free(struct sampler *s);

// logits [V] stay as they are. choice: which of several completions of one prompt; position: tokens before the one
// drawn. Logits that are not finite are never drawn; ERR_FORMAT when none is left.
MUST_USE enum status sampler_draw(struct sampled *out, struct sampler *s, const float *logits, long choice,
                                  long position);

double log_sum_exp(const float *logits, long V); // in f64; NaN when any logit is NaN

#endif
