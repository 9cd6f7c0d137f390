#include "train/optimizer.h"

#include <math.h>

static double param_squares(const struct model *m, const struct param *p)
{
    return m->x.k->sum_squares(p->grad, p->rows * p->columns);
}

double gradient_norm(const struct model *m)
{
    double sum = 0;
    for (long i = 0; i < m->params.n; i++) sum += param_squares(m, &m->params.item[i]);
    return sqrt(sum);
}

const char *gradient_not_finite(const struct model *m)
{
    for (long i = 0; i < m->params.n; i++)
        if (!isfinite(param_squares(m, &m->params.item[i]))) return m->params.item[i].name;
    return NULL;
}

void optimizer_step(const struct optimizer *o, struct model *m, double lr, double norm, long update)
{
    struct adamw_step s = {
        .lr = lr,
        .beta1 = o->beta1,
        .beta2 = o->beta2,
        .eps = o->eps,
        .correction1 = 1 - pow(o->beta1, (double)update),
        .correction2 = 1 - pow(o->beta2, (double)update),
        .grad_scale = o->clip > 0 && norm > o->clip ? o->clip / norm : 1,
    };
    for (long i = 0; i < m->params.n; i++) {
        const struct param *p = &m->params.item[i];
        if (p->kind->counted) continue;
        s.weight_decay = p->kind->decay ? o->weight_decay : 0;
        m->x.k->adamw(p->value, p->master, p->m, p->v, p->grad, p->rows * p->columns, s);
    }
}
