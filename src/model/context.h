// What every module's functions need and none changes: kernels, shape, groups, and this rank's share of the shape.
#ifndef SKYMOE_MODEL_CONTEXT_H
#define SKYMOE_MODEL_CONTEXT_H

#include "comm/exchange.h"
#include "comm/grid.h"
#include "kernels/kernels.h"
#include "model/config.h"

// This rank's share of what is split (partition lists); a rank alone has everything. Counts, and where they begin.
struct local {
    long H, G; // heads, and the kv heads they read (ranks may share one): tensor group
    long V;    // vocabulary rows: tensor group
    long E;    // experts: expert group
    long F;    // ffn columns: tensor group; of an expert: expert tensor group
    long first_head, first_kv, first_row, first_expert, first_column;
};
struct local local_of(const struct config *c, const struct grid *g);

// How many items of the model each axis of a layout splits.
void config_items(long items[AXES], const struct config *c);

struct context {
    const struct kernels *k;
    const struct config *c;
    struct grid *grid;
    struct local local;
    acc *angle; // rope [positions, 2, C/2]
};

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
