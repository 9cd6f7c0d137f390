// How the next token is chosen: the settings that generate and chat have in common.
#ifndef SKYMOE_CLI_SAMPLING_H
#define SKYMOE_CLI_SAMPLING_H

#include <stddef.h>

#include "base/setting.h"
#include "eval/sample.h"

struct sampling_options {
    long max_tokens;
    double temperature, top_p, min_p;
    long top_k;
};

// at: where the struct lies in the options; max: default of --max-tokens.
#define SAMPLING_AT(at, field) ((at) + (long)offsetof(struct sampling_options, field))
#define SAMPLING_ROWS(at, max)                                                                                         \
    {"max-tokens", SETTING_LONG, SAMPLING_AT(at, max_tokens), max, 0, 1 << 24, NULL, "most tokens to generate"},       \
    {"temperature", SETTING_REAL, SAMPLING_AT(at, temperature), "0.8", 0, 1000, NULL,                                  \
     "0: always the most probable token"},                                                                             \
    {"top-k", SETTING_LONG, SAMPLING_AT(at, top_k), "0", 0, 1 << 24, NULL,                                             \
     "draw from the k most probable tokens; 0: all"},                                                                  \
    {"top-p", SETTING_REAL, SAMPLING_AT(at, top_p), "1", 0, 1, NULL,                                                   \
     "draw from the most probable tokens that make up this share"},                                                    \
    {"min-p", SETTING_REAL, SAMPLING_AT(at, min_p), "0", 0, 1, NULL,                                                   \
     "draw from tokens with this share of the largest probability"}

static inline struct sampling sampling_rule(const struct sampling_options *o, long seed)
{
    return (struct sampling){o->temperature, o->top_k, o->top_p, o->min_p, seed};
}

#endif
