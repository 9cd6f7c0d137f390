// A pipeline schedule is data: for each stage the list of what it does in a step, in order. It knows nothing of models
// or of ranks' memory; the trainer follows it, the planner simulates it, tests execute it symbolically.
//
//     1f1b         one chunk of layers a stage; after a warm-up, a forward and a backward in turn
//     interleaved  several chunks a stage (virtual stages), so warming up takes that much less [Narayanan et al., 2021]
//     zero-bubble  ZB-H1 [Qi et al., 2024]: backward is parted in two; the weights' half waits until the stage would
//                  idle, and never keeps more micro-batches alive than the first stage of 1f1b does
//
// Virtual stage v = chunk * stages + stage holds the v-th part of the layers. Micro-batches come in order: in every
// chunk F, B and W each go 0, 1, 2 ... So those in flight are always neighbours, and slot = micro-batch % slots.
#ifndef SKYMOE_PARALLEL_SCHEDULE_H
#define SKYMOE_PARALLEL_SCHEDULE_H

#include <stdbool.h>

#include "base/status.h"

enum pipeline_kind { PIPELINE_1F1B, PIPELINE_INTERLEAVED, PIPELINE_ZERO_BUBBLE };
const char *pipeline_kind_name(enum pipeline_kind kind);                     // "1f1b", "interleaved", "zero-bubble"
bool pipeline_kind_from_name(enum pipeline_kind *kind, const char *name);    // false for other words

struct pipeline {
    enum pipeline_kind kind;
    long stages;
    long chunks;        // of layers, each stage; 1 unless interleaved
    long micro_batches; // of a step; may be 0, or fewer than stages
};

enum action_kind {
    ACTION_FORWARD,
    ACTION_BACKWARD,        // of inputs and weights
    ACTION_BACKWARD_INPUT,  // zero-bubble parts the two
    ACTION_BACKWARD_WEIGHT,
    ACTION_RECEIVE_ACTIVATION, // the input of the forward that follows
    ACTION_SEND_ACTIVATION,    // the output of the forward before
    ACTION_RECEIVE_GRADIENT,   // of the output, for the backward that follows
    ACTION_SEND_GRADIENT,      // of the input, from the backward before
};
struct action {
    enum action_kind kind;
    int chunk; // whose forward or backward it is, or before or after whose it stands
    long micro;
};

// Micro-batches a chunk must hold at the same time.
struct pipeline_slots {
    long saved;    // from F until nothing reads what it kept: B; with zero-bubble W
    long backward; // from F to B: for what a part whose W follows B at once keeps (recomputed layers)
    long weight;   // from B to W: gradients that W reads; 0 where B does both
};

struct pipeline_schedule {
    struct pipeline p;
    long stage;
    struct action *action;
    long n;
    struct pipeline_slots *slots; // [chunks]
};

// ERR_CONFIG names the option: chunks without interleaved.
MUST_USE enum status pipeline_check(const struct pipeline *p);
// The list of one stage. ERR_MEMORY. What a stage receives from another was sent in the same order, activations and
// gradients taken apart; sends need not be waited for. Where the last virtual stage's backward follows its forward,
// nothing stands between them, so the head may do both at once. With one stage there are no messages: the chunks of a
// micro-batch follow one another.
MUST_USE enum status pipeline_schedule_make(struct pipeline_schedule *s, const struct pipeline *p, long stage);
void pipeline_schedule_free(struct pipeline_schedule *s);

bool action_sends(enum action_kind kind);
bool action_receives(enum action_kind kind);
// The stage at the other end of a send or receive.
long action_peer(const struct pipeline_schedule *s, const struct action *a);
// "F3", "B3", "I3" (input), "W3", ">F3" (sends the activation), "<F3", ">B3", "<B3"; with chunks "F3.1".
enum { ACTION_TEXT = 32 };
void action_text(char text[ACTION_TEXT], const struct pipeline_schedule *s, const struct action *a);

#endif
