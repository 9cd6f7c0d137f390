// AdamW over the parameter table, and the norm of all gradients.
#ifndef SKYMOE_TRAIN_OPTIMIZER_H
#define SKYMOE_TRAIN_OPTIMIZER_H

#include "model/model.h"

// sqrt of the sum of squares of every gradient element: f64 sums over fixed blocks of each tensor, added in table
// order, so it does not depend on how tensors lie in memory. Not finite exactly when some gradient is not.
double gradient_norm(const struct model *m);

// Name of the first tensor of the table whose gradient holds a NaN or infinity; NULL when none does.
const char *gradient_not_finite(const struct model *m);

struct optimizer {
    double beta1, beta2, eps;
    double weight_decay; // on matrices only (param_kind.decay)
    double clip;         // largest gradient norm applied; 0: no clipping
};

// One step from the gradients: masters, moments, and values rounded from the masters. `update` counts from 1 over
// applied steps (bias correction).
void optimizer_step(const struct optimizer *o, struct model *m, double lr, double norm, long update);

#endif
