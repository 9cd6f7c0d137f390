// Weights to FP8, folder to folder (docs/numerics.md, docs/formats.md).
#ifndef SKYMOE_QUANT_QUANTIZE_H
#define SKYMOE_QUANT_QUANTIZE_H

#include "checkpoint/folder.h"

struct tensor_error {
    char name[96];
    double rel_error; // |w - w'| / |w|, Frobenius
    double max_error;
};
struct quantize_result {
    struct tensor_error *tensor; // freed by the caller
    long n;
};
// Of scales per tensor, SkyworkForCausalLM's w1 and w3 share one, and so do q, k and v. ERR_FORMAT: weights that are
// not finite, or FP8 already.
MUST_USE enum status quantize_fp8(struct quantize_result *r, const struct model_folder *from, const char *to,
                                  enum scaling scaling);

#endif
