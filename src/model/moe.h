// Mixture-of-experts half of a block [Skywork-MoE report, arXiv 2406.06563]:
//
//     n = norm(x);  z = Wg n;  z~ = lambda (z - mean z)/std z  (4.1);  g = softmax(z~);  E_t = top-K of z~
//     y = x + sum_{e in E_t, kept} (g_e / sum_{E_t} g) Expert_e(n)                       (eq 1-3)
//     L_aux = sum_e (1/E - P_e)^2,  P_e = mean over tokens of g_e                        (eq 4)
//     L_z = mean over tokens of logsumexp(z)^2                                           [ST-MoE, 2022, eq 5]
//
// cut where expert parallelism exchanges rows: route -> dispatch | experts | return -> combine. The combine weight
// travels with its row and multiplies inside the expert, so backward needs no returned rows. Routing decisions are
// always kept; what leads from them to the experts' hidden rows can be recomputed.
//
// A rank routes its own tokens, but who is dropped is decided over the micro-batch: every tensor rank learns all
// choices and comes to the same decision. R rows leave this rank, `plan` says how many lie here for its experts.
#ifndef SKYMOE_MODEL_MOE_H
#define SKYMOE_MODEL_MOE_H

#include "base/decimal.h"
#include "model/attention.h"

enum aux_loss { AUX_NONE, AUX_SKYWORK, AUX_SWITCH };
enum aux_scope { SCOPE_MICRO, SCOPE_SEQUENCE, SCOPE_GLOBAL };

// How a MoE layer routes and balances; the same for every layer but alpha and the global statistics.
struct moe_rule {
    struct decimal capacity;         // capacity factor; 0: dropless
    struct decimal virtual_capacity; // dropless training: factor for the drop rate statistic
    enum drop_policy policy;
    enum aux_loss aux;
    enum aux_scope scope;
    double z_coeff;                  // of the router z-loss; 0: none
};
extern const struct moe_rule moe_rule_inference; // dropless, no aux loss

// Per layer, over a step; the trainer resets the sums at its start and reads them at its end. Host memory.
struct moe_balance {
    double alpha;                // coefficient of L_aux, constant within a step
    double aux_weight;           // T_m / T_step of the micro-batch (model_forward_backward sets it)
    double *global_p, *global_f; // [E] statistics of the previous step (scope global); valid if has_global
    bool has_global;
    double *bias;                // [E] of the gate, what p->gate_bias holds rounded; moved once a step by the trainer
    const int *given;            // [T, K] device: replayed routing of this micro-batch (route_given); NULL: route
    // sums over the step's micro-batches; of own tokens: z and statistics, of all tokens of the micro-batch: the
    // others.
    long *count;                 // [E] assignments before dropping
    double *p_sum;               // [E] sum of g over tokens
    long dropped;                // assignments over the capacity (or the virtual one)
    long tokens;
    double aux;                  // sum of aux_weight * L_aux
    double z;                    // sum of aux_weight * L_z
    struct gate_statistics statistics;
};
MUST_USE enum status moe_balance_init(struct moe_balance *b, long E, double alpha);
void moe_balance_free(struct moe_balance *b);
void moe_balance_reset(struct moe_balance *b, long E);

// ceil(factor K T / E) in integers; LONG_MAX for factor 0.
long moe_capacity(struct decimal factor, long K, long T, long E);

// Kept by forward for backward. A second instance holds the gradients of the same values (scratch of backward).
struct moe_saved {
    acc *z;         // [own, E] z~
    acc *g;         // [own, E]
    acc *inv_std;   // [own]
    acc *aux_dg;    // [groups, E] gradient of alpha*aux_weight*L_aux for g, one row per group of `aux_group` tokens
    long aux_group;
    acc *lse;       // [own] logsumexp of z, with a z-loss
    double z_scale; // its gradient is z_scale lse softmax(z)
    int *expert;    // [own, K]
    acc *weight;    // [own, K]
    int *row;       // [own, K]
    int *source;    // [own K]
    acc *row_weight; // [rows here] weight of each row
    long *first;    // [E+1] host: own rows of each expert
    long *count;    // [E] host: assignments of the micro-batch
    long R;         // own rows
    struct row_plan plan;
    acc *sums;      // [groups, E] host: work space of moe_balance_add, and with more than one group
    int *chosen;    // [T, K] host copy of expert
    long *chosen_n; // [groups, E] host: count of each group
    el *xr;         // [rows here, D]  droppable, see moe_saved_layout
    acc *rstd;      // [own]           droppable from here
    el *xn;         // [own, D]
    el *ab;         // [rows here, 2F]
    el *h;          // [rows here, F]
};
// groups: most groups of tokens whose balance is judged apart (scope sequence: sequences; else 1). rows: where xr lies;
// what is dropped there must travel again.
void moe_saved_layout(struct moe_saved *s, struct arena *kept, struct arena *rows, struct arena *droppable,
                      struct arena *host, const struct context *x, long T, long groups);
// Most rows that a micro-batch of up to T tokens can bring here.
long moe_rows_most(const struct context *x, const struct moe_rule *rule, long T);
bool moe_alone(const struct context *x); // this rank has all experts: no row travels

// y, in [own, D]. rows: scratch el [rows here, D]. balance NULL: inference, no statistics and no auxiliary loss.
void moe_forward(const struct context *x, const struct layer_params *p, const struct moe_rule *rule,
                 struct moe_balance *balance, struct moe_saved *s, el *y, const el *in, long B, long S, el *rows);
// dispatch: xr was dropped.
void moe_recompute(const struct context *x, const struct layer_params *p, struct moe_saved *s, const el *in, long T,
                   bool dispatch);

// Backward in two parts, experts and then routing, each with a half for its input and one for its weights: what the
// experts found travels back while their weights' half is computed, if that comes before the route's.
// rows: the gradient of the experts' results, for the weights' half. dxn: scratch acc [own, D].
struct travel { // pieces under way
    struct transfer *rows[MOST_CHUNKS], *weights[MOST_CHUNKS];
};
struct travel moe_backward_experts(const struct context *x, const struct layer_params *p, const struct moe_saved *s,
                                   struct moe_saved *ds, const el *dy, el *rows);
void moe_backward_experts_weight(const struct context *x, struct layer_params *g, const struct moe_saved *s,
                                 const struct moe_saved *ds, const el *rows);
void moe_backward_route(const struct context *x, const struct layer_params *p, const struct moe_rule *rule,
                        const struct moe_saved *s, struct moe_saved *ds, el *dx, const el *dy, const el *in, long T,
                        acc *dxn, struct travel *t);
void moe_backward_route_weight(const struct context *x, struct layer_params *g, const struct moe_saved *s,
                               const struct moe_saved *ds, const el *in, long T);

// Adds a routed micro-batch to the step's sums and sets the gradients of its auxiliary losses, s->aux_dg and s->z_scale
// (moe_balance.c).
void moe_balance_add(const struct context *x, const struct moe_rule *rule, struct moe_balance *b, struct moe_saved *s,
                     const int *expert, long B, long S); // expert: of all T tokens

#endif
