// How long the parts of a step take: FLOPs over a rate, bytes over a bandwidth, messages over a wire. Each time belongs
// to a term, and a term depends on constants of one kind, so that each can be checked alone. Nothing is fitted.
#ifndef SKYMOE_PLAN_COST_H
#define SKYMOE_PLAN_COST_H

#include "model/block.h"
#include "parallel/schedule.h"
#include "plan/cluster.h"

enum term {
    TERM_PROJECTIONS, // products of attention and router
    TERM_ATTENTION,
    TERM_EXPERTS,     // or the dense ffn
    TERM_HEAD,        // product with the vocabulary
    TERM_ELEMENTS,    // what memory bounds: norms, residuals, swiglu, permuting, embedding, softmax of the head
    TERM_TOKENS,      // tensor group: gather tokens, add up parts
    TERM_ROWS,        // expert group: rows to the experts and back
    TERM_SLICES,      // expert tensor group: rows to all slices, add up parts
    TERM_MESSAGES,    // between stages, as far as a stage waits for them
    TERM_BUBBLE,      // stages without work
    TERM_GRADIENTS,   // reduce gradients over their holders
    TERM_WEIGHTS,     // new weights to their holders
    TERM_OPTIMIZER,
    TERM_HIDDEN,      // negative: exchange and reduction behind computing
    TERMS
};
const char *term_name(enum term t);    // "projections" ...
const char *term_meaning(enum term t); // a line: from what it is computed

struct times {
    double t[TERMS]; // seconds
};
double times_sum(const struct times *x);
void times_add(struct times *sum, double factor, const struct times *x);

// A run: shape, machine, who holds what, and the micro-batch.
struct run {
    const struct config *c;
    const struct cluster *cluster;
    struct layout layout;
    enum pipeline_kind schedule;   // layout.virtual_stages chunks
    enum dtype dtype;
    long B, S;                     // of a micro-batch
    long global_batch;             // sequences of a step
    enum recompute recompute;
    const long *recompute_layers;  // [PP] first layers of each stage that recompute; NULL: all of them
    struct decimal capacity;       // of experts, as a multiple of the mean; 0: dropless
    enum aux_scope scope;          // of the auxiliary loss
    long exchange_chunks;
    bool zero;                     // optimizer state is spread over the holders
};
long run_micro_batches(const struct run *r); // of each data-parallel rank: a step's rounds

// Three kinds of work, as schedules part them.
struct work {
    struct times forward, input, weight;
};

// What each part of a model costs a stage, in one micro-batch; the slowest rank of the stage counts.
struct costs {
    struct work layer;
    struct times again[RECOMPUTE_FULL + 1]; // joins input: what a recomputing layer does once more
    struct work first, last;                // embedding; final norm, head and loss
    double message[2];                      // activation to the next stage: within a host, between hosts
};
void costs_of(struct costs *costs, const struct run *r);
double message_seconds(const struct costs *costs, const struct run *r, long stage); // from it to the next

// Seconds in which a rank of a group sends `bytes` to each other member: near and far wires work at the same time.
struct place {
    long near, far; // other members on the same host, on others: of the worst placed rank
};
double place_seconds(const struct cluster *c, struct place p, double bytes);
double place_overlap(const struct cluster *c, struct place p); // what of it can hide behind computing
// Of the groups of a layout.
struct places {
    struct place tensor, data, expert, expert_tensor, replicas, plane;
};
void places_of(struct places *p, const struct cluster *c, const struct layout *l);

// The slowest rank's share of what is split.
struct share_most {
    double H, G, V, E, F;
};
struct share_most share_most_of(const struct config *c, const struct layout *l);

// Parameters that a rank of such a stage holds, by the ranks that hold the same; and how many of them it owns.
struct held {
    double dense, everywhere, experts;
};
struct held held_by(const struct run *r, double layers, bool first, bool last);
double owned_of(const struct run *r, const struct places *p, struct held h);

// Ends of a step, for a stage with so many layers.
struct ends {
    struct times t;       // TERM_GRADIENTS, TERM_WEIGHTS, TERM_OPTIMIZER
    double last_gradient; // the part of TERM_GRADIENTS that no backward can hide: one layer's
    double overlap;       // what of the rest can hide
};
void ends_of(struct ends *e, const struct run *r, long layers, bool first, bool last);

#endif
