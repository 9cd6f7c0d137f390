// A model in memory (later: one pipeline stage of it), for training or for inference.
#ifndef SKYMOE_MODEL_MODEL_H
#define SKYMOE_MODEL_MODEL_H

#include "model/block.h"
#include "model/head.h"

struct model_options {
    enum dtype dtype;          // of the arithmetic: F32, BF16 (F64 in tests)
    bool training;             // gradients, optimizer, saved slots
    long B, S;                 // largest micro-batch; inference: B = 1, S = most rows of one forward
    long positions;            // rope table length; >= S
    enum recompute recompute;
    long recompute_layers;     // the first this many layers recompute; -1: all
    struct moe_rule rule;
    bool given_routing;        // room for the routing of a micro-batch that is decided elsewhere
    enum quant weights;        // QUANT_FP8: matrices are held as F8_E4M3 with scales (inference only)
    const struct model_params *mapped; // inference: fields with data lie in mapped files and are used where they are
                               // (they outlive the model, are only read, and aligned to their elements); NULL: none
};

struct model {
    struct config c;
    struct model_options o;
    struct context x;
    struct grid grid;
    struct model_params p;         // values
    struct model_params g;         // gradients (acc)
    struct model_params master, moment1, moment2; // of the optimizer (acc); masters only where values are not acc
    struct param_list params;      // the table, instantiated, with pointers into the arenas
    struct moe_balance *balance;   // [L]; NULL when dense or not training
    struct block_saved *saved;     // [L] (one slot); inference: all at one place
    struct block_scratch scratch;
    struct head_scratch head;
    el *out;                       // [T, D] of the last layer
    el *dy;                        // [T, D] gradient of a layer's output, while backward walks down
    int *given;                    // [L, T, K] of the largest micro-batch, for balance[l].given; NULL without room
    int *batch_ints;               // device copy of the batch: token, target, position, start, [T] each
    struct arena parameters, gradients, optimizer, activations, scratch_arena, host;
};

// Reserves everything; parameters are zero. ERR_MEMORY names the arena. The model must stay where it is (no copying).
MUST_USE enum status model_init(struct model *m, const struct config *c, const struct model_options *o);
void model_free(struct model *m);

// The same layouts in measuring mode: bytes of each arena without reserving.
struct model_bytes {
    long parameters, gradients, optimizer, saved, scratch;
};
MUST_USE enum status model_measure(struct model_bytes *bytes, const struct config *c, const struct model_options *o);

// Initial weights from (seed, global name, element): N(0, init_std), o_proj and w2 / sqrt(2L), norms 1, router
// N(0, router_std). Masters are set from the same draw before rounding.
void model_init_weights(struct model *m, long seed, double init_std, double router_std);
// Masters = values: called after weights were read into values (a checkpoint's own masters are read as they are).
void model_masters_from_values(struct model *m);

// Tokens must lie in the vocabulary, targets in it or be -1, positions and starts within the sequence (host memory; the
// caller has checked what it read). B may be smaller than o.B, also 0; S too.

// One micro-batch. Returns the sum of CE over unmasked tokens (nats). loss_scale = 1/N of the step. Gradients += .
// aux_weight = T_m / T_step.
double model_forward_backward(struct model *m, const struct batch *b, double loss_scale, double aux_weight);
// Forward only with the training attention path, dropless: sum of CE; losses[t] per token if not NULL (host). What the
// head starts from stays in m->out (head_logits).
double model_loss(struct model *m, const struct batch *b, float *losses);

void model_zero_gradients(struct model *m);

// The hidden states before the final norm for T <= o.S rows through KV pages (inference): into m->out. token: host;
// layer_kv [L]: device. Only rows from `first` on are wanted (T: none): the last layer does not finish those before.
void model_paged_forward(struct model *m, const int *token, const struct kv_view *layer_kv, long T, long first);

#endif
