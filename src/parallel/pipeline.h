// Follows a schedule's list: runs the model's parts and moves activations and their gradients between stages. One stage
// needs no messages; then it is a loop over micro-batches.
#ifndef SKYMOE_PARALLEL_PIPELINE_H
#define SKYMOE_PARALLEL_PIPELINE_H

#include "model/model.h"
#include "parallel/schedule.h"

// Where the micro-batches of a step come from: the number-th of this data-parallel rank, on the host. The same for
// every call with the same number; stays as it is for the step.
struct micro_source {
    void *whom;
    struct batch (*batch)(void *whom, long number, double *aux_weight);
    // Before a chunk's forward. May be NULL.
    void (*before)(void *whom, struct model *m, const struct micro *i, const struct batch *b);
    // After a chunk's forward, while what it kept is there; in the one that ends with the head also the losses. May be
    // NULL.
    MUST_USE enum status (*forwarded)(void *whom, const struct model *m, const struct micro *i, const struct batch *b);
    double loss_scale;
};

struct pipeline_engine {
    struct model *m;
    struct pipeline_schedule schedule;
    struct arena messages;
    struct mailbox {
        struct outbox { // what is sent lies here until it has arrived
            el *place;          // [n] of [own tokens, D]
            struct transfer **transfer; // [n]
            long n, next;
        } out;
        struct inbox {  // asked for as soon as the last one was taken, so that it comes while a stage computes
            el *place;          // [own tokens, D]
            struct transfer *transfer;
            const struct action *awaited;
        } in;
    } forward, back;        // activations, their gradients
};

// m has the slots of s; s belongs to the engine from now on (ERR_MEMORY: it is released).
MUST_USE enum status pipeline_init(struct pipeline_engine *e, struct model *m, struct pipeline_schedule s);
void pipeline_free(struct pipeline_engine *e);
long pipeline_message_bytes(const struct model_options *o, const struct config *c, const struct pipeline_schedule *s);

// All micro-batches of a step, forward and backward. *sum: CE over unmasked tokens where the head is, 0 elsewhere. A
// failed callback ends it: then ranks no longer agree, and the caller ends the job.
MUST_USE enum status pipeline_step(struct pipeline_engine *e, const struct micro_source *source, double *sum);

// Forward only over all stages: the sum of CE of one batch where the head is, 0 elsewhere. All stages call.
double pipeline_loss(struct model *m, const struct batch *b);

#endif
