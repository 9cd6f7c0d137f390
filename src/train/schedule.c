#include "train/schedule.h"

#include <math.h>

#include "base/status.h"

double schedule_lr(const struct schedule *s, long step)
{
    CHECK(step >= 1);
    if (step < s->warmup) return s->lr * (double)step / (double)s->warmup;
    if (s->kind == SCHEDULE_CONSTANT) return s->lr;
    if (step >= s->decay) return s->min_lr;
    long from = s->warmup; // last step at the full rate
    if (s->kind == SCHEDULE_WSD && s->decay - s->wsd_decay > from) from = s->decay - s->wsd_decay;
    if (step <= from) return s->lr;
    double done = (double)(step - from) / (double)(s->decay - from);
    double left = s->kind == SCHEDULE_COSINE ? 0.5 * (1 + cos(M_PI * done)) : 1 - done;
    return s->min_lr + (s->lr - s->min_lr) * left;
}
