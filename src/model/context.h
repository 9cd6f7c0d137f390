// What every module's functions need and none changes: kernels, shape, groups, and this rank's share of the shape.
#ifndef SKYMOE_MODEL_CONTEXT_H
#define SKYMOE_MODEL_CONTEXT_H

#include "comm/exchange.h"
#include "comm/grid.h"
#include "kernels/kernels.h"
#include "model/config.h"

// This rank's share of what is split (partition lists); a rank alone has everything. Counts, and where they begin.
struct local {
    long H, G;     // heads, and the kv heads they read: tensor group
    long borrowed; // the first so many kv heads (0 or 1) are read by a lower rank too, which sums their gradients
    long lender;   // that rank of the tensor group
    long V;        // vocabulary rows: tensor group
    long E;        // experts: expert group
    long F;        // ffn columns: tensor group; of an expert: expert tensor group
    long L;        // layers of the stage: those of its first chunk, then of the next
    long first_head, first_kv, first_row, first_expert, first_column;
    bool embeds, ends; // the embedding, and the final norm and head, are here
};
struct local local_of(const struct config *c, const struct grid *g);
// Which layer of the model local layer l is; which layers are chunk v's.
long layer_of(const struct config *c, const struct grid *g, long l);
struct range chunk_layers(const struct config *c, const struct grid *g, long v);

// How many items of the model each axis of a layout splits.
void config_items(long items[AXES], const struct config *c);

// What modules use in turn while rows change ranks; but for `score`, NULL in groups of one.
struct room {
    el *all;      // [T, D] a micro-batch's rows, gathered over the tensor group
    el *part;     // [T, D] this rank's part of a sum over the tensor group
    el *others;   // [tensor ranks - 1, own, D] the other ranks' parts of what this rank keeps
    int *row;     // [T] tokens as rows of this rank's part of the vocabulary
    acc *parts;   // [tensor ranks, HEAD_CHUNK, 3] of the head's softmax
    int *expert;  // [T, K] what all tokens chose
    acc *score;   // [T, K] how much they wanted it: who is dropped follows from it
    el *sent;     // [own tokens K, D] rows on their way to experts and back
    acc *weights; // [own tokens K] with them
    el *slices;   // [expert tensor ranks - 1, rows, D] parts of the experts' results
    acc *weight_slices;
};

struct context {
    const struct kernels *k;
    const struct config *c;
    const struct grid *grid;
    struct local local;
    long rows;   // of experts that there is room for here
    long chunks; // rows go to the experts in so many pieces (--exchange-chunks)
    struct room room;
    acc *angle;  // rope [positions, 2, C/2]
};

// Of T tokens, those whose rows this rank keeps between the halves of a layer (sequence parallel).
static inline struct range own_tokens(const struct context *x, long T)
{
    return partition(T, x->grid->tensor.size, x->grid->tensor.rank);
}
// Most of them in any micro-batch of up to T tokens.
static inline long own_most(const struct context *x, long T)
{
    return (T + x->grid->tensor.size - 1) / x->grid->tensor.size;
}

// Tokens (host: the same on the host) as rows of this rank's part of the vocabulary; `absent` stands for rows that
// other ranks hold, -1 stays. On the device: `token` itself in a group of one.
const int *vocabulary_rows(const struct context *x, const int *token, const int *host, long n, int absent);

// Where this rank writes its part of a sum over the tensor group that ends in `own`; and rows that were gathered.
static inline el *part_of(const struct context *x, el *own)
{
    return x->grid->tensor.size == 1 ? own : x->room.part;
}
static inline const el *all_or(const struct context *x, const el *all, const el *own)
{
    return x->grid->tensor.size == 1 ? own : all;
}

// Where element i of device memory is; only kernels read it.
static inline el *el_at(const struct context *x, const el *data, long i)
{
    return (char *)data + i * dtype_size(x->k->el);
}
static inline acc *acc_at(const struct context *x, const acc *data, long i)
{
    return (char *)data + i * dtype_size(x->k->acc);
}

// Element i of a copy on the host.
static inline double acc_get(const struct context *x, const acc *host, long i)
{
    return x->k->acc == F64 ? ((const double *)host)[i] : (double)((const float *)host)[i];
}
static inline void acc_set(const struct context *x, acc *host, long i, double value)
{
    if (x->k->acc == F64)
        ((double *)host)[i] = value;
    else
        ((float *)host)[i] = (float)value;
}

#endif
