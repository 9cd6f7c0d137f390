// A step of a pipeline, event by event: the very lists that training follows (parallel/schedule.h), with a time for
// each forward and backward and for each message. Sends do not hold a stage up, receives do. Ranks of a stage are
// alike, so a stage is simulated once.
#ifndef SKYMOE_PLAN_SIMULATE_H
#define SKYMOE_PLAN_SIMULATE_H

#include "parallel/schedule.h"

// Seconds of one micro-batch on virtual stage chunk * stages + stage. A backward that is not parted takes both.
struct part_times {
    double forward, input, weight;
};

struct event { // work, not messages
    struct action action;
    double start, end;
};

struct simulator {
    struct pipeline p;
    struct pipeline_schedule *schedule; // [stages]
    double *arrival;                    // [stages, 2, messages] of activations and gradients, by sender
    long messages;                      // most of one kind that a stage sends
    long *at, *sent, *taken, *ready;    // state of a run
    bool *queued;
    // results of the last run:
    double *end, *busy;                 // [stages] when a stage is done; how long it worked
    struct event **events;              // [stages][events_n[stage]] with `record`; NULL
    long *events_n;
};
// ERR_CONFIG (pipeline_check), ERR_MEMORY.
MUST_USE enum status simulator_open(struct simulator *s, const struct pipeline *p, bool record);
void simulator_close(struct simulator *s);
// part [stages * chunks]; message [stages]: from a stage to the next, either direction. Returns the time of the last
// stage's end. Monotone: where a time grows, the result does not fall.
double simulator_run(struct simulator *s, const struct part_times *part, const double *message);
// Share of all stages' time until the last ends in which they had no work.
double simulator_bubble(const struct simulator *s);

#endif
