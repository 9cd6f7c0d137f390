// Load balance over steps: drop rates, the adaptive coefficient of the auxiliary loss [Skywork-MoE report, 4.2], and
// the statistics that scope `global` carries from one step to the next.
#ifndef SKYMOE_TRAIN_BALANCE_H
#define SKYMOE_TRAIN_BALANCE_H

#include "checkpoint/checkpoint.h"

struct balance_rule {
    bool adaptive;
    double alpha_max;  // also where every coefficient starts
    double xi, beta;
    bool keep_global;  // scope global
    double bias_rate;  // how far a step moves the bias of each gate; 0: it stays
};

// alpha of the next step from this step's drop rate d: beta alpha + (1 - beta) min(xi d, alpha_max).
double alpha_next(const struct balance_rule *r, double alpha, double drop_rate);

// One step of loss-free balancing [Wang et al., arXiv 2408.15664]: bias[e] += rate sign(mean load - load of e), from
// the step's counts of assignments.
void bias_move(double *bias, const long *count, long E, double rate);

// Share of this step's assignments that were over the capacity; 0 before any.
double drop_rate(const struct moe_balance *b, long K);

// At the start of a step: sums to zero. Dense models have no balance; then this and the next do nothing.
void balance_begin(struct model *m);
// After the last micro-batch: sums of the whole world's micro-batches and layers, on every rank. All ranks call.
// ERR_MEMORY.
MUST_USE enum status balance_sum(struct model *m);
// After that, when the step was not skipped: coefficients, biases and statistics of all layers, on every rank.
void balance_end(struct model *m, const struct balance_rule *r);

// The balance's bias of each gate is what the model's tensor holds. All ranks call.
void balance_from_model(struct model *m);

// Between the model and the arrays of a checkpoint's state.
MUST_USE enum status balance_state_init(struct training_state *s, const struct model *m, const struct balance_rule *r);
void balance_state_free(struct training_state *s);
void balance_to_state(struct training_state *s, const struct model *m);
void balance_from_state(struct model *m, const struct training_state *s);

#endif
