#include "model/context.h"
#include "model/params.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODEL(f) PER_MODEL, offsetof(struct model_params, f)
#define LAYER(f) PER_LAYER, offsetof(struct layer_params, f)
#define EXPERT(f) PER_EXPERT, offsetof(struct layer_params, f)
#define LAYERS "model.layers.{l}."
#define EXPERTS "model.layers.{l}.block_sparse_moe.experts.{e}."

// Rows of one layer stand together, its per-expert rows last; per-model rows before and after them.
const struct param_kind param_kinds[] = {
    {"model.embed_tokens.weight", WHEN_ALWAYS, MODEL(embed), DIM_V, DIM_D, {0},
     SPLIT_ROWS, UNIT_ONE, REDUCE_DENSE, INIT_STD, .decay = true},

    {LAYERS "input_layernorm.weight", WHEN_ALWAYS, LAYER(attn_norm), DIM_D, DIM_NONE, {0},
     SPLIT_NONE, UNIT_ONE, REDUCE_EVERYWHERE, INIT_ONE, .in_acc = true},
    {LAYERS "self_attn.q_proj.weight", WHEN_ALWAYS, LAYER(qkv), DIM_HC, DIM_D, {0},
     SPLIT_ROWS, UNIT_HEAD, REDUCE_DENSE, INIT_STD, .decay = true, .quantise = true},
    {LAYERS "self_attn.k_proj.weight", WHEN_ALWAYS, LAYER(qkv), DIM_GC, DIM_D, {DIM_HC},
     SPLIT_ROWS, UNIT_KV_HEAD, REDUCE_DENSE, INIT_STD, .decay = true, .quantise = true},
    {LAYERS "self_attn.v_proj.weight", WHEN_ALWAYS, LAYER(qkv), DIM_GC, DIM_D, {DIM_HC, DIM_GC},
     SPLIT_ROWS, UNIT_KV_HEAD, REDUCE_DENSE, INIT_STD, .decay = true, .quantise = true},
    {LAYERS "self_attn.o_proj.weight", WHEN_ALWAYS, LAYER(o), DIM_D, DIM_HC, {0},
     SPLIT_COLUMNS, UNIT_HEAD, REDUCE_DENSE, INIT_STD_OUT, .decay = true, .quantise = true},
    {LAYERS "post_attention_layernorm.weight", WHEN_ALWAYS, LAYER(ffn_norm), DIM_D, DIM_NONE, {0},
     SPLIT_NONE, UNIT_ONE, REDUCE_EVERYWHERE, INIT_ONE, .in_acc = true},

    {LAYERS "mlp.gate_proj.weight", WHEN_DENSE, LAYER(w13), DIM_F, DIM_D, {0},
     SPLIT_ROWS, UNIT_ONE, REDUCE_DENSE, INIT_STD, .decay = true, .quantise = true},
    {LAYERS "mlp.up_proj.weight", WHEN_DENSE, LAYER(w13), DIM_F, DIM_D, {DIM_F},
     SPLIT_ROWS, UNIT_ONE, REDUCE_DENSE, INIT_STD, .decay = true, .quantise = true},
    {LAYERS "mlp.down_proj.weight", WHEN_DENSE, LAYER(w2), DIM_D, DIM_F, {0},
     SPLIT_COLUMNS, UNIT_ONE, REDUCE_DENSE, INIT_STD_OUT, .decay = true, .quantise = true},

    {LAYERS "block_sparse_moe.gate.weight", WHEN_MOE, LAYER(router), DIM_E, DIM_D, {0},
     SPLIT_NONE, UNIT_ONE, REDUCE_EVERYWHERE, INIT_ROUTER, .in_acc = true},
    {LAYERS "block_sparse_moe.gate.e_score_correction_bias", WHEN_GATE_BIAS, LAYER(gate_bias), DIM_E, DIM_NONE, {0},
     SPLIT_NONE, UNIT_ONE, REDUCE_EVERYWHERE, INIT_ZERO, .in_acc = true, .counted = true},
    {EXPERTS "w1.weight", WHEN_MOE, EXPERT(w13), DIM_F, DIM_D, {0},
     SPLIT_ROWS, UNIT_ONE, REDUCE_EXPERT, INIT_STD, .decay = true, .quantise = true},
    {EXPERTS "w3.weight", WHEN_MOE, EXPERT(w13), DIM_F, DIM_D, {DIM_F},
     SPLIT_ROWS, UNIT_ONE, REDUCE_EXPERT, INIT_STD, .decay = true, .quantise = true},
    {EXPERTS "w2.weight", WHEN_MOE, EXPERT(w2), DIM_D, DIM_F, {0},
     SPLIT_COLUMNS, UNIT_ONE, REDUCE_EXPERT, INIT_STD_OUT, .decay = true, .quantise = true},

    {"model.norm.weight", WHEN_ALWAYS, MODEL(final_norm), DIM_D, DIM_NONE, {0},
     SPLIT_NONE, UNIT_ONE, REDUCE_EVERYWHERE, INIT_ONE, .in_acc = true},
    {"lm_head.weight", WHEN_UNTIED, MODEL(head), DIM_V, DIM_D, {0},
     SPLIT_ROWS, UNIT_ONE, REDUCE_DENSE, INIT_STD, .decay = true},
};
const long param_kinds_n = sizeof param_kinds / sizeof *param_kinds;

long config_dim(const struct config *c, enum param_dim d)
{
    switch (d) {
    case DIM_NONE: return 1;
    case DIM_V: return c->V;
    case DIM_D: return c->D;
    case DIM_HC: return c->H * c->C;
    case DIM_GC: return c->G * c->C;
    case DIM_F: return c->F;
    case DIM_E: return c->E;
    }
    CHECK(!"a dimension of the table");
}

static bool present(const struct param_kind *kind, const struct config *c)
{
    switch (kind->when) {
    case WHEN_ALWAYS: return true;
    case WHEN_DENSE: return c->E == 0;
    case WHEN_MOE: return c->E > 0;
    case WHEN_GATE_BIAS: return c->gate_bias;
    case WHEN_UNTIED: return !c->tied;
    }
    CHECK(!"a condition of the table");
}

// What this rank holds of a dimension of the table; NULL: the whole model.
static struct range held_of(const struct config *c, const struct local *n, enum param_dim d)
{
    if (!n) return (struct range){0, config_dim(c, d)};
    switch (d) {
    case DIM_V: return (struct range){n->first_row, n->V};
    case DIM_HC: return (struct range){n->first_head * c->C, n->H * c->C};
    case DIM_GC: return (struct range){n->first_kv * c->C, n->G * c->C};
    case DIM_F: return (struct range){n->first_column, n->F};
    default: return (struct range){0, config_dim(c, d)};
    }
}

static struct range experts_of(const struct config *c, const struct local *n)
{
    return n ? (struct range){n->first_expert, n->E} : (struct range){0, c->E};
}

static long copies(const struct param_kind *kind, const struct config *c, const struct local *n)
{
    return kind->scope == PER_EXPERT ? experts_of(c, n).count : 1;
}

static long rows_before(const struct param_kind *kind, const struct config *c, const struct local *n)
{
    long rows = 0;
    for (long i = 0; i < 2; i++)
        if (kind->before[i] != DIM_NONE) rows += held_of(c, n, kind->before[i]).count;
    return rows;
}

// Rows of the whole field (of one expert): where its last part ends.
static long field_rows(const struct param_kind *kind, const struct config *c, const struct local *n)
{
    long rows = 0;
    for (const struct param_kind *k = param_kinds; k < param_kinds + param_kinds_n; k++) {
        if (k->scope != kind->scope || k->field != kind->field || !present(k, c)) continue;
        long end = rows_before(k, c, n) + held_of(c, n, k->rows).count;
        if (end > rows) rows = end;
    }
    return rows;
}

// Is it the first part of its field?
static bool leads(const struct param_kind *kind)
{
    return kind->before[0] == DIM_NONE;
}

static bool is_embedding(const struct param_kind *kind)
{
    return kind->scope == PER_MODEL && kind->field == offsetof(struct model_params, embed);
}

// A tied embedding is the last stage's head, too.
static bool held_model_wide(const struct param_kind *kind, const struct config *c, const struct local *n)
{
    if (!n) return true;
    return is_embedding(kind) ? n->embeds || (c->tied && n->ends) : n->ends;
}

struct tensor *params_field(const struct model_params *p, const struct param_kind *kind, long layer)
{
    char *base = kind->scope == PER_MODEL ? (char *)(uintptr_t)p : (char *)&p->layer[layer];
    return (struct tensor *)(base + kind->field);
}

struct tensor *param_field(const struct model_params *p, const struct param *q)
{
    struct tensor *t = params_field(p, q->kind, q->local);
    return is_embedding(q->kind) && !t->data && p->head.data ? (struct tensor *)(uintptr_t)&p->head : t;
}

long param_global(const struct param *p, long at, long *run)
{
    bool whole_rows = p->columns == p->all_columns;
    long column = p->columns ? at % p->columns : 0, row = p->columns ? at / p->columns : 0;
    *run = whole_rows ? p->rows * p->columns - at : p->columns - column;
    return (p->first_row + row) * p->all_columns + p->first_column + column;
}

// ---- FP8 ----

struct scale_grid scale_grid_of(enum scaling scaling, long rows, long columns)
{
    struct scale_grid g = {.width = columns, .piece_rows = 1, .piece_columns = columns};
    if (scaling == SCALING_BLOCK) g.piece_rows = g.piece_columns = SCALE_BLOCK;
    if (scaling == SCALING_TENSOR) {
        g.width = g.piece_columns = rows * columns;
        rows = 1;
    }
    g.rows = (rows + g.piece_rows - 1) / g.piece_rows;
    g.columns = (g.width + g.piece_columns - 1) / g.piece_columns;
    return g;
}

long scale_at(const struct scale_grid *g, long element)
{
    return element / g->width / g->piece_rows * g->columns + element % g->width / g->piece_columns;
}

long scale_run(const struct scale_grid *g, long element)
{
    long column = element % g->width, of_piece = g->piece_columns - column % g->piece_columns;
    return of_piece < g->width - column ? of_piece : g->width - column;
}

// ---- layout ----

struct dtypes {
    enum dtype matrix, other, acc;
};

// The whole field, when `kind` is its first part. place: where its data are already, or NULL.
static void field_layout(struct tensor *t, struct arena *a, const struct config *c, const struct local *n,
                         const struct param_kind *kind, struct dtypes d, void *place)
{
    if (!present(kind, c) || !leads(kind)) return;
    *t = (struct tensor){.dtype = kind->in_acc ? d.acc : kind->quantise ? d.matrix : d.other};
    if (t->dtype == DTYPES) return;
    long rows = copies(kind, c, n) * field_rows(kind, c, n), columns = held_of(c, n, kind->columns).count;
    t->data = place ? place : arena_take(a, rows * columns, dtype_size(t->dtype));
    if (t->dtype != F8_E4M3) return;
    t->scale_columns = (int)scale_grid_of(c->scaling, rows, columns).columns;
    t->scale = arena_take(a, rows * t->scale_columns, sizeof *t->scale);
}

void model_params_layout(struct model_params *p, struct layer_params *layer, struct arena *a, const struct config *c,
                         const struct grid *g, enum dtype matrix, enum dtype other, enum dtype in_acc,
                         const struct model_params *mapped)
{
    struct layer_params measured = {0}; // where the pointers of a measuring run go
    struct dtypes d = {matrix, other, in_acc};
    struct local local, *n = NULL;
    const struct param_kind *kind = param_kinds, *end = param_kinds + param_kinds_n;
    *p = (struct model_params){.layer = layer ? layer : &measured};
    if (g) {
        local = local_of(c, g);
        n = &local;
    }

#define FIELD(l) \
    field_layout(params_field(p, kind, layer ? l : 0), a, c, n, kind, d, \
                 mapped ? params_field(mapped, kind, l)->data : NULL)
    for (; kind->scope == PER_MODEL; kind++)
        if (!n || n->embeds) FIELD(-1);
    const struct param_kind *of_layer = kind;
    for (long l = 0; l < (n ? n->L : c->L); l++)
        for (kind = of_layer; kind->scope != PER_MODEL; kind++) FIELD(l);
    for (kind = of_layer; kind->scope != PER_MODEL; kind++) continue;
    for (; kind < end; kind++)
        if (!n || n->ends) FIELD(-1);
#undef FIELD

    p->layer = layer;
    if (!c->tied || (n && !n->ends)) return;
    if (!n || n->embeds) p->head = p->embed;
    else field_layout(&p->head, a, c, n, param_kinds, d, NULL); // the last stage has rows of its own
}

// ---- the table, instantiated ----

// "{l}" and "{e}" of the pattern become numbers.
static void name_of(char *name, long room, const char *pattern, long layer, long expert)
{
    long used = 0;
    for (const char *s = pattern; *s; s++) {
        if (*s == '{') {
            used += snprintf(name + used, (size_t)(room - used), "%ld", s[1] == 'l' ? layer : expert);
            s += 2;
        } else {
            name[used++] = *s;
        }
        CHECK(used < room);
    }
    name[used] = '\0';
}

// Walks the table in the order of params.h; without list->item it only counts.
struct listing {
    struct param_list *list;
    const struct config *c;
    const struct local *n; // NULL: the whole model
};

static enum status list_add(const struct listing *g, const struct param_kind *kind, long layer, long local, long expert)
{
    enum { ELEMENTS_BITS = 56 };
    struct param_list *list = g->list;
    const struct config *c = g->c;
    struct range experts = experts_of(c, g->n);
    if (!present(kind, c)) return OK;
    long index = list->all++;
    bool held = kind->scope == PER_MODEL ? held_model_wide(kind, c, g->n) : local >= 0;
    if (!held || (expert >= 0 && (expert < experts.first || expert >= experts.first + experts.count))) return OK;
    struct range rows = held_of(c, g->n, kind->rows), columns = held_of(c, g->n, kind->columns);
    struct param p = {.kind = kind, .index = index, .layer = layer, .expert = expert, .local = local,
                      .rows = rows.count, .first_row = rows.first, .all_rows = config_dim(c, kind->rows),
                      .columns = columns.count, .first_column = columns.first,
                      .all_columns = config_dim(c, kind->columns)};
    name_of(p.name, sizeof p.name, kind->name, layer, expert);
    if (kind->rows == DIM_GC && g->n) p.borrowed = g->n->borrowed * c->C;
    p.part = ((expert < 0 ? 0 : (expert - experts.first) * field_rows(kind, c, g->n)) + rows_before(kind, c, g->n)) *
             p.columns;
    if (list->item) list->item[list->n] = p;
    list->n++;
    list->elements += p.rows * p.columns;
    if (list->elements >> ELEMENTS_BITS)
        return fail(ERR_MEMORY, "config: more than 2^%d parameters (use a smaller model)", ELEMENTS_BITS);
    return OK;
}

static enum status list_fill(const struct listing *g, const long *local_of_layer)
{
    const struct param_kind *kind = param_kinds, *end = param_kinds + param_kinds_n;
    g->list->n = g->list->elements = g->list->all = 0;
    for (; kind->scope == PER_MODEL; kind++) TRY(list_add(g, kind, -1, -1, -1));
    const struct param_kind *of_layer = kind, *of_expert;
    for (long l = 0; l < g->c->L; l++) {
        long local = local_of_layer[l];
        for (kind = of_layer; kind->scope != PER_MODEL; kind++)
            if (kind->scope == PER_LAYER) TRY(list_add(g, kind, l, local, -1));
        for (of_expert = of_layer; of_expert->scope == PER_LAYER; of_expert++) continue;
        for (long e = 0; e < g->c->E; e++)
            for (kind = of_expert; kind->scope == PER_EXPERT; kind++) TRY(list_add(g, kind, l, local, e));
    }
    for (kind = of_layer; kind->scope != PER_MODEL; kind++) continue;
    for (; kind < end; kind++) TRY(list_add(g, kind, -1, -1, -1));
    return OK;
}

static enum status list_make(struct listing *g, const long *local_of_layer)
{
    struct param_list counted = {0}, *list = g->list;
    g->list = &counted;
    TRY(list_fill(g, local_of_layer));
    struct param_list made = {.item = calloc((size_t)counted.n + 1, sizeof *made.item)};
    if (!made.item) return fail(ERR_MEMORY, "memory: a table of %ld tensors was refused (free some memory)", counted.n);
    g->list = &made;
    enum status s = list_fill(g, local_of_layer);
    CHECK(s == OK); // it was when counted
    *list = made;
    return OK;
}

enum status param_list_of(struct param_list *list, const struct config *c, const struct grid *grid)
{
    enum { MOST = 1 << 22 };
    if (c->L * (10 + 3 * c->E) > MOST)
        return fail(ERR_MEMORY, "config: %ld layers of %ld experts are too many tensors (at most %d)", c->L, c->E,
                    MOST);
    struct local local = {0};
    if (grid) local = local_of(c, grid);
    struct listing g = {.list = list, .c = c, .n = grid ? &local : NULL};
    long *local_of_layer = malloc(((size_t)c->L + 1) * sizeof *local_of_layer);
    if (!local_of_layer) return fail(ERR_MEMORY, "memory: a list of %ld layers was refused", c->L);
    for (long l = 0; l < c->L; l++) local_of_layer[l] = grid ? -1 : l;
    for (long l = 0; l < local.L; l++) local_of_layer[layer_of(c, grid, l)] = l;
    enum status s = list_make(&g, local_of_layer);
    free(local_of_layer);
    return s;
}

void param_list_free(struct param_list *list)
{
    free(list->item);
    *list = (struct param_list){0};
}

struct param *param_find(const struct param_list *list, const char *name)
{
    for (long i = 0; i < list->n; i++)
        if (strcmp(list->item[i].name, name) == 0) return &list->item[i];
    return NULL;
}
