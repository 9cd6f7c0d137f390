// A model in memory, or what one rank holds of it: the layers of its pipeline stage, and of those its share. For
// training or for inference. A rank alone holds everything.
#ifndef SKYMOE_MODEL_MODEL_H
#define SKYMOE_MODEL_MODEL_H

#include "model/block.h"
#include "model/head.h"

// Micro-batches that a chunk of layers keeps at the same time (parallel/schedule.h).
struct model_slots {
    long saved;    // from forward until nothing reads what it kept
    long backward; // the same of layers that recompute, whose weights' half of backward follows the other at once
    long weight;   // between the two halves of backward; 0: they are one
};

struct model_options {
    enum dtype dtype;          // of the arithmetic: F32, BF16 (F64 in tests)
    bool training;             // gradients, optimizer, saved slots
    long B, S;                 // largest micro-batch; inference: B = 1, S = most rows of one forward
    long positions;            // rope table length; >= S
    enum recompute recompute;
    long recompute_layers;     // the first this many local layers recompute; -1: all
    const struct grid *grid;   // who this rank is; NULL: the only one
    const struct model_slots *slots; // [virtual stages]; NULL: one of each
    long exchange_chunks;      // rows go to experts of other ranks in so many pieces; 0: 1
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
    struct param_list params;      // what is held of the table, with pointers into the arenas
    struct moe_balance *balance;   // [L] of the whole model, sums in those held here; NULL when dense or not training
    struct layer_slots {           // of each local layer:
        long layer;                // in the whole model
        enum recompute level;
        struct block_saved *saved; // [saved_n]
        long saved_n;
        struct block_gradients *gradients; // [gradients_n], or the one that all share
        long gradients_n;          // 0: shared
    } *slots;                      // [local layers]
    struct block_saved *saved;     // of all layers and slots; inference: all at one place
    struct block_gradients shared; // of layers whose halves of backward are one
    struct block_scratch scratch;
    struct head_scratch head;
    el *out;                       // [own, D] of a chunk's last layer
    el *dx;                        // [own, D] gradient of a chunk's input
    int *given;                    // [local layers, T, K] for balance[l].given; NULL without room
    int *batch_ints;               // device copies of batches [chunks, slots]: token, target, position, start, [T] each
    long batch_slots, batch_stride; // ints from one batch to the next
    acc *drawn;                    // where random weights are drawn
    struct arena parameters, gradients, activations, scratch_arena, host;
    // After the last micro-batch of a step has added to a local layer's gradients; NULL: nobody wants to know.
    void (*layer_done)(void *whom, long local_layer);
    void *whom;
};

// Reserves everything; parameters are zero. ERR_MEMORY names the arena. The model must stay where it is (no copying).
MUST_USE enum status model_init(struct model *m, const struct config *c, const struct model_options *o);
void model_free(struct model *m);

// Everything of model_init but the memory: layouts in measuring mode, their sizes in the arenas' `peak`, and the table
// of parameters. model_free releases.
MUST_USE enum status model_outline(struct model *m, const struct config *c, const struct model_options *o);

// The bytes of each arena alone.
struct model_bytes {
    long parameters, gradients, saved, scratch;
};
MUST_USE enum status model_measure(struct model_bytes *bytes, const struct config *c, const struct model_options *o);

// Initial weights: a function of (seed, global name, element of the whole tensor), so the same in every layout.
// N(0, std), o_proj and w2 / sqrt(2L), norms 1, router N(0, router_std).
struct init_rule {
    long seed;
    double std, router_std;
};
void model_init_weights(struct model *m, const struct init_rule *rule);
// Elements [at, at + n) of what p holds, as they are before rounding, to m->drawn; n <= DRAW_CHUNK.
enum { DRAW_CHUNK = 1 << 14 };
void param_draw(const struct model *m, const struct param *p, const struct init_rule *rule, long at, long n);

// Tokens must lie in the vocabulary, targets in it or be -1, positions and starts within the sequence (host memory; the
// caller has checked what it read). B may be smaller than o.B, also 0; S too. All ranks of a stage call together.

// One micro-batch where the whole model is one chunk: forward and backward. Returns the sum of CE over unmasked tokens
// (nats). loss_scale = 1/N of the step. Gradients += . aux_weight = T_m / T_step. last: of the step (layer_done).
double model_forward_backward(struct model *m, const struct batch *b, double loss_scale, double aux_weight, bool last);

// The same in the parts that a schedule arranges, by chunk of layers and micro-batch (its number in the step). A chunk
// that does not begin with the embedding takes its input from model_input, which the caller fills [own tokens, D]; one
// that does not end with the head leaves its output in m->out, and its backward takes the gradient from
// model_output_gradient. Backward leaves the gradient of the input in m->dx.
struct micro {
    long chunk, number;
    double loss_scale, aux_weight;
    bool last;
};
el *model_input(const struct model *m, const struct micro *i);
el *model_output_gradient(struct model *m, const struct micro *i);
bool model_begins(const struct model *m, long chunk); // with the embedding
bool model_ends(const struct model *m, long chunk);   // with the head
// CE sum in the chunk that ends with the head, whose backward must come next; 0 in others.
double model_forward(struct model *m, const struct micro *i, const struct batch *b);
void model_backward(struct model *m, const struct micro *i, const struct batch *b); // both halves
void model_backward_input(struct model *m, const struct micro *i, const struct batch *b);
void model_backward_weight(struct model *m, const struct micro *i, const struct batch *b);

// Forward only with the training attention path, dropless, of one chunk; its input as above. Sum of CE, the same on all
// tensor ranks; losses[t] per token if not NULL (host). What the head starts from stays in m->out (head_logits).
double model_chunk_loss(struct model *m, long chunk, const struct batch *b, float *losses);
double model_loss(struct model *m, const struct batch *b, float *losses); // the whole model is one chunk
// Sequences of S tokens that fit into one such forward: at most o.B, at least 1.
long model_loss_sequences(const struct model *m, long S);

void model_zero_gradients(struct model *m);

// Which local layer is layer l of the model; -1: it is on another stage.
long model_local_layer(const struct model *m, long l);

// The hidden states before the final norm for T <= o.S rows through KV pages (inference): into m->out. token: host;
// layer_kv [L]: device. Only rows from `first` on are wanted (T: none): the last layer does not finish those before.
void model_paged_forward(struct model *m, const int *token, const struct kv_view *layer_kv, long T, long first);

#endif
