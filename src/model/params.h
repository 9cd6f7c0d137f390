// The parameter table: one row a kind of tensor. Allocation, initialisation, optimizer, clipping, checkpoints,
// upcycling, quantising and the memory plan walk this table; adding a tensor is one row and one field.
#ifndef SKYMOE_MODEL_PARAMS_H
#define SKYMOE_MODEL_PARAMS_H

#include "base/arena.h"
#include "comm/grid.h"
#include "kernels/kernels.h"
#include "model/config.h"

// Fields hold parts one behind the other, so that one product serves all of them.
struct layer_params {
    struct tensor attn_norm; // acc [D]
    struct tensor qkv;       // el [(H + 2G) C, D]: q, then k, then v
    struct tensor o;         // el [D, H C]
    struct tensor ffn_norm;  // acc [D]
    struct tensor router;    // acc [E, D]; absent when dense
    struct tensor gate_bias; // acc [E]: added to z~ where experts are chosen; only with config.gate_bias
    struct tensor w13;       // el [E, 2F, D]: of each expert w1 (gate), then w3 (up); E = 1 when dense
    struct tensor w2;        // el [E, D, F]
};
struct model_params {
    struct tensor embed;      // el [V, D]
    struct tensor final_norm; // acc [D]
    struct tensor head;       // el [V, D]; the same memory as embed when tied and both are here
    struct layer_params *layer; // [local layers]
};

enum param_scope { PER_MODEL, PER_LAYER, PER_EXPERT };
enum param_dim { DIM_NONE, DIM_V, DIM_D, DIM_HC, DIM_GC, DIM_F, DIM_E };
enum param_split { SPLIT_NONE, SPLIT_ROWS, SPLIT_COLUMNS }; // over the tensor (experts: expert tensor) group
enum param_unit { UNIT_ONE, UNIT_HEAD, UNIT_KV_HEAD };      // what may not be cut
enum param_reduce { REDUCE_DENSE, REDUCE_EVERYWHERE, REDUCE_EXPERT }; // whose ranks hold the same part
enum param_init { INIT_ONE, INIT_ZERO, INIT_STD, INIT_STD_OUT, INIT_ROUTER }; // STD_OUT: std / sqrt(2L)
enum param_when { WHEN_ALWAYS, WHEN_DENSE, WHEN_MOE, WHEN_GATE_BIAS, WHEN_UNTIED };

struct param_kind {
    const char *name;         // HF pattern, {l} layer and {e} expert: "model.layers.{l}.self_attn.q_proj.weight"
    enum param_when when;
    enum param_scope scope;
    long field;               // offsetof in layer_params (model_params for PER_MODEL)
    enum param_dim rows, columns; // columns DIM_NONE: a vector of `rows`
    enum param_dim before[2]; // rows of the field that stand before this part (within one expert)
    enum param_split split;
    enum param_unit unit;
    enum param_reduce reduce;
    enum param_init init;
    bool in_acc;              // held in acc (f32) whatever the model's dtype: norms, router
    bool decay;               // weight decay applies
    bool quantise;            // FP8 applies
    bool counted;             // follows from counts: no gradient, no optimizer; F32 in every folder
};
extern const struct param_kind param_kinds[];
extern const long param_kinds_n;

long config_dim(const struct config *c, enum param_dim d); // 1 for DIM_NONE

// One tensor of one model: a row of the table, instantiated. In order: embedding, layers ascending (table order, then
// expert by expert w1, w3, w2), final norm, head: the order of checkpoints, gradient norms and everything that walks.
struct param {
    char name[96];            // global HF name
    const struct param_kind *kind;
    long index;               // in the list of the whole model
    long layer, expert;       // -1 where none; of the whole model
    long local;               // local layer, -1 where none
    long rows, columns;       // held here; columns 1 for vectors
    long first_row, first_column, all_rows, all_columns; // where that lies in the whole tensor
    long borrowed;            // the first so many rows belong to a lower tensor rank, which sums their gradients
    long part;                // element offset of this part within the field
    struct tensor value;      // data points at the first element of this part; scale likewise
    void *grad;               // acc, or NULL in inference
};
// Element `at` of what p holds is which element of the whole tensor? *run: so many follow one another in both.
long param_global(const struct param *p, long at, long *run);

struct param_list {
    struct param *item;
    long n;
    long elements;            // of all
    long all;                 // tensors of the whole model
};

// Names and shapes only (no memory behind value/grad); param_list_free releases. Of what g's rank
// holds; NULL: the whole model. ERR_MEMORY.
MUST_USE enum status param_list_of(struct param_list *list, const struct config *c, const struct grid *g);
void param_list_free(struct param_list *list);

// NULL when absent. `name` is the global name.
struct param *param_find(const struct param_list *list, const char *name);

// Two-pass layout of all fields: matrices that FP8 may hold in `matrix` dtype (F8 adds scales as c->scaling says),
// embedding and head in `other` (16-bit beside F8 matrices), in_acc rows in `in_acc`; DTYPES leaves those fields out.
// For gradients call with acc for each. `layer` points at room for the local layers' layer_params (NULL when
// measuring). Fields that have data in `mapped` (NULL: none) keep their place and take no room; scales do. g NULL:
// the whole model.
void model_params_layout(struct model_params *p, struct layer_params *layer, struct arena *a, const struct config *c,
                         const struct grid *g, enum dtype matrix, enum dtype other, enum dtype in_acc,
                         const struct model_params *mapped);

// The scales of an FP8 matrix: one for each piece of its elements, the pieces at its edges may be smaller.
struct scale_grid {
    long rows, columns; // of scales
    long width;         // elements of a row of the matrix; of all of it where that has one scale
    long piece_rows, piece_columns;
};
struct scale_grid scale_grid_of(enum scaling scaling, long rows, long columns);
long scale_at(const struct scale_grid *g, long element);  // which scale is that element's
long scale_run(const struct scale_grid *g, long element); // from it on, so many elements in a row have the same

// Where `kind`'s field stands in p (local layer < 0 for PER_MODEL).
struct tensor *params_field(const struct model_params *p, const struct param_kind *kind, long layer);
// Where q's field stands: for a tied embedding that this rank holds for the head alone, the head.
struct tensor *param_field(const struct model_params *p, const struct param *q);

#endif
