// Learning rate of each step. Steps count from 1.
//
//     warm-up:   lr s / warmup, from 0 before the first step to lr at step `warmup`
//     cosine:    then lr .. min_lr along half a cosine, reached at step `decay`
//     linear:    then lr .. min_lr along a line, reached at step `decay`
//     wsd:       then lr, and the last `wsd_decay` steps before `decay` along a line to min_lr (warm-up, stable, decay)
//     constant:  then lr
// and min_lr after step `decay` (constant: lr).
#ifndef SKYMOE_TRAIN_SCHEDULE_H
#define SKYMOE_TRAIN_SCHEDULE_H

enum schedule_kind { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT, SCHEDULE_WSD };

struct schedule {
    enum schedule_kind kind;
    double lr, min_lr;
    long warmup, decay, wsd_decay; // steps
};

double schedule_lr(const struct schedule *s, long step);

#endif
