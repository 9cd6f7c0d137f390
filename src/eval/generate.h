// Text from a model: a prompt is appended to a sequence of the KV cache, then one drawn token after the other.
#ifndef SKYMOE_EVAL_GENERATE_H
#define SKYMOE_EVAL_GENERATE_H

#include "eval/sample.h"
#include "model/decode.h"

enum finish { FINISH_STOP, FINISH_LENGTH, FINISH_INTERRUPTED };
const char *finish_name(enum finish f); // "stop", "length", "interrupted"

enum { END_IDS = 40 };
struct end_ids {
    int id[END_IDS];
    long n;
};
// Ids that end a text: eos_token_id of DIR/generation_config.json (one or a list), else the config's.
MUST_USE enum status end_ids_read(struct end_ids *ends, const struct config *c, const char *folder);
MUST_USE enum status end_ids_add(struct end_ids *ends, int id, const char *source); // ERR_FORMAT: too many

struct generation {
    const int *prompt;
    long prompt_n;       // >= 1
    long max_tokens;     // most tokens to generate
    long choice;
    const struct end_ids *ends;
    // Called with each token that is part of the text (end ids are not), in order; *stop true ends the text with it.
    enum status (*on_token)(void *user, struct sampled token, bool *stop);
    void *user;
};
// The prompt goes behind what the sequence holds. Afterwards that holds prompt and text too, but not the last token if
// nothing was drawn after it. ERR_CONFIG for a prompt that does not fit.
MUST_USE enum status generate(enum finish *finish, struct kv_cache *kv, long sequence, struct sampler *s,
                              const struct generation *g);

#endif
