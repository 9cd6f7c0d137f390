#include "train/optimizer.h"

#include <math.h>

struct adamw_step optimizer_at(const struct optimizer *o, double lr, double norm, long update)
{
    return (struct adamw_step){
        .lr = lr,
        .beta1 = o->beta1,
        .beta2 = o->beta2,
        .eps = o->eps,
        .weight_decay = o->weight_decay,
        .correction1 = 1 - pow(o->beta1, (double)update),
        .correction2 = 1 - pow(o->beta2, (double)update),
        .grad_scale = o->clip > 0 && norm > o->clip ? o->clip / norm : 1,
    };
}
