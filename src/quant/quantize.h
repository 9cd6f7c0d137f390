// Weights to FP8, folder to folder (facts: skywork.md 2.3; docs/formats.md).
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
// Per tensor scales; SkyworkForCausalLM: w1/w3 share one and q/k/v share one.
MUST_USE enum status quantize_fp8(struct quantize_result *r, const struct model_folder *from, const char *to);

#endif
