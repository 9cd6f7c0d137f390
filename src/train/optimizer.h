// What AdamW is told at a step. Who holds which moments: parallel/zero.h.
#ifndef SKYMOE_TRAIN_OPTIMIZER_H
#define SKYMOE_TRAIN_OPTIMIZER_H

#include "kernels/kernels.h"

struct optimizer {
    double beta1, beta2, eps;
    double weight_decay; // on matrices only (param_kind.decay)
    double clip;         // largest gradient norm applied; 0: no clipping
};

// `update` counts from 1 over applied steps (bias correction); norm: of all gradients.
struct adamw_step optimizer_at(const struct optimizer *o, double lr, double norm, long update);

#endif
