#include "train/upcycle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/rng.h"

enum { CHUNK = 1 << 20 }; // elements in memory at a time, but at least a row

struct moments {
    double mean, std;
};

struct upcycling {
    const struct model_folder *from;
    const struct upcycle_options *o;
    const struct kernels *k;
    struct config c;             // of the result
    long G;                      // experts that hold one dense FFN together, a virtual group
    struct param_list list;      // of the result
    struct folder_writer *w;
    long room;                   // elements that these hold:
    float *values, *random;
    void *converted;             // in c.dtype
    bool *dropped;               // [F] intermediate columns of the present expert that are redrawn
    long *dropped_column, dropped_n; // those, in order
    long dropped_layer, dropped_expert; // whose they are
    struct moments *parent_moments; // [from->params.n] of dense tensors that experts were made of
    struct progress progress;
    double done;                 // bytes
};

// ---- what becomes what ----

static bool same_part(const struct param_kind *a, const struct param_kind *b)
{
    return a->field == b->field && a->before[0] == b->before[0] && a->before[1] == b->before[1];
}

// Index in the dense folder of the tensor that p starts from; -1 for the router, which has none.
static long parent_of(const struct upcycling *u, const struct param *p)
{
    const struct param_list *dense = &u->from->params;
    for (long i = 0; i < dense->n; i++) {
        const struct param *d = &dense->item[i];
        if (d->layer != p->layer) continue;
        if (p->expert < 0 ? d->kind == p->kind : d->kind->when == WHEN_DENSE && same_part(d->kind, p->kind)) return i;
    }
    return -1;
}

// ---- statistics of dense weights ----

// How many rows of p from `row` on are in memory together.
static long some_rows(const struct upcycling *u, const struct param *p, long row)
{
    long most = u->room / p->columns;
    return p->rows - row < most ? p->rows - row : most;
}

static struct moments moments_from(double sum, double squares, long n)
{
    if (n == 0) return (struct moments){0, 0};
    double mean = sum / (double)n, variance = squares / (double)n - mean * mean;
    return (struct moments){mean, variance > 0 ? sqrt(variance) : 0};
}

static struct moments moments_of(struct upcycling *u, const struct param *p, long parent)
{
    long elements = p->rows * p->columns;
    double sum = 0, squares = 0;
    for (long at = 0; at < elements; at += CHUNK) {
        long n = elements - at < CHUNK ? elements - at : CHUNK;
        model_folder_read(u->values, u->from, parent, at, n);
        sum += u->k->sum(u->values, n);
        squares += u->k->sum_squares(u->values, n);
    }
    return moments_from(sum, squares, elements);
}

// In w1 and w3 an intermediate column of the FFN is a row, in w2 a column. Sums go from element to element, so that
// what is drawn from them does not depend on how many are read at a time.
static struct moments moments_of_dropped(struct upcycling *u, const struct param *p, long parent)
{
    double sum = 0, squares = 0;
    for (long row = 0, rows; row < p->rows; row += rows) {
        rows = some_rows(u, p, row);
        model_folder_read(u->values, u->from, parent, row * p->columns, rows * p->columns);
        for (long r = 0; r < rows; r++) {
            const float *x = u->values + r * p->columns;
            bool whole = p->kind->rows == DIM_F;
            for (long i = 0; whole && u->dropped[row + r] && i < p->columns; i++) {
                sum += x[i];
                squares += (double)x[i] * x[i];
            }
            for (long j = 0; !whole && j < u->dropped_n; j++) {
                double v = x[u->dropped_column[j]];
                sum += v;
                squares += v * v;
            }
        }
    }
    return moments_from(sum, squares, u->dropped_n * (p->rows * p->columns / u->c.F));
}

// The same columns for w1, w3 and w2 of an expert [Drop-Upcycling, arXiv 2502.19261].
static void choose_dropped(struct upcycling *u, const struct param *p)
{
    if (u->dropped_layer == p->layer && u->dropped_expert == p->expert) return;
    char name[96];
    snprintf(name, sizeof name, "model.layers.%ld.block_sparse_moe.experts.%ld.drop", p->layer, p->expert);
    uint64_t stream = rng_stream(name), F = (uint64_t)u->c.F;
    long n = lround(u->o->drop * (double)u->c.F);
    memset(u->dropped, 0, (size_t)u->c.F * sizeof *u->dropped);
    for (long i = 0; i < n; i++) u->dropped[rng_permute((uint64_t)i, F, (uint64_t)u->o->seed, stream)] = true;
    u->dropped_n = 0;
    for (long f = 0; f < u->c.F; f++)
        if (u->dropped[f]) u->dropped_column[u->dropped_n++] = f;
    u->dropped_layer = p->layer;
    u->dropped_expert = p->expert;
}

// ---- writing ----

static enum status put(struct upcycling *u, const void *data, long bytes)
{
    TRY(folder_writer_data(u->w, data, bytes));
    u->done += (double)bytes;
    progress_at(&u->progress, u->done, NULL);
    return OK;
}

static enum status put_values(struct upcycling *u, long n)
{
    values_from_float(u->converted, u->c.dtype, u->values, n);
    return put(u, u->converted, n * dtype_size(u->c.dtype));
}

// N(mean, std) at the element's own place, so that what is drawn depends on seed and name alone.
static void draw(struct upcycling *u, float *to, const struct param *p, struct moments m, long at, long n)
{
    u->k->init_normal((struct tensor){.data = to, .dtype = F32}, m.mean, m.std, n, u->o->seed, rng_stream(p->name), at);
}

// ---- granular: experts e G .. e G + G - 1, a virtual group, are the shards of one dense FFN ----

// Their rows of the router are equal, so that they are chosen together.
static void draw_router(struct upcycling *u, const struct param *p, long row, long rows)
{
    struct moments m = {0, u->o->router_std};
    for (long r = 0; r < rows; r++)
        draw(u, u->values + r * p->columns, p, m, (row + r) / u->G * p->columns, p->columns);
}

// Those rows of p as they are in the dense tensor that p is or whose shard it is: rows of w1 and w3, columns of w2.
static void read_parent(struct upcycling *u, const struct param *p, long parent, long row, long rows)
{
    long shard = p->expert < 0 ? 0 : p->expert % u->G, columns = p->columns;
    long wide = u->from->params.item[parent].columns;
    if (wide == columns) {
        model_folder_read(u->values, u->from, parent, (shard * p->rows + row) * columns, rows * columns);
        return;
    }
    for (long r = 0; r < rows; r++)
        model_folder_read(u->values + r * columns, u->from, parent, (row + r) * wide + shard * columns, columns);
}

// The K weights of a token, which add up to 1, fall on K / G copies of every shard: a shard's output counts 1 / G of
// what it did, which the product of the scales of w3 and w2 makes good.
static double granular_scale(const struct upcycling *u, const struct param *p)
{
    bool first = p->kind->rows == DIM_F && p->kind->before[0] == DIM_NONE; // w1, inside silu
    if (u->o->granular_scale == GRANULAR_NVIDIA) return cbrt((double)u->G);
    return first ? 1 : sqrt((double)u->G);
}

// ---- tensors ----

// What an expert's matrix is drawn from; the columns that `drop` redraws are chosen here.
static struct moments moments_for(struct upcycling *u, const struct param *p, long parent)
{
    struct moments *own = &u->parent_moments[parent]; // the same for all experts
    switch (u->o->method) {
    case UPCYCLE_COPY:
    case UPCYCLE_GRANULAR: break;
    case UPCYCLE_NOISE:
        if (p->expert == 0) *own = moments_of(u, p, parent);
        return (struct moments){0, u->o->noise * own->std};
    case UPCYCLE_DROP:
        choose_dropped(u, p);
        return moments_of_dropped(u, p, parent);
    }
    return (struct moments){0, 0};
}

// Only what is dropped is drawn, in w1 and w3.
static void redraw(struct upcycling *u, const struct param *p, struct moments m, long row, long rows)
{
    long columns = p->columns;
    if (p->kind->rows == DIM_F) {
        for (long r = row, end; r < row + rows; r = end + 1) {
            for (end = r; end < row + rows && u->dropped[end];) end++;
            draw(u, u->values + (r - row) * columns, p, m, r * columns, (end - r) * columns);
        }
        return;
    }
    draw(u, u->random, p, m, row * columns, rows * columns);
    for (long r = 0; r < rows; r++)
        for (long j = 0; j < u->dropped_n; j++) {
            long i = r * columns + u->dropped_column[j];
            u->values[i] = u->random[i];
        }
}

// The rows of an expert's matrix that stand in u->values, changed as the method says.
static void change(struct upcycling *u, const struct param *p, struct moments m, long row, long rows)
{
    long at = row * p->columns, n = rows * p->columns;
    double scale;
    switch (u->o->method) {
    case UPCYCLE_COPY: break;
    case UPCYCLE_NOISE:
        draw(u, u->random, p, m, at, n);
        u->k->add(u->values, u->values, u->random, n);
        break;
    case UPCYCLE_DROP: redraw(u, p, m, row, rows); break;
    case UPCYCLE_GRANULAR:
        scale = granular_scale(u, p);
        for (long i = 0; i < n && scale != 1; i++) u->values[i] = (float)(u->values[i] * scale);
        break;
    }
}

// parent: of which tensor p is made; -1 for the router, which is drawn.
static enum status write_tensor(struct upcycling *u, const struct param *p, long parent)
{
    const struct stored_tensor *t = parent < 0 ? NULL : u->from->stored[parent];
    bool changes = t && p->expert >= 0 && u->o->method != UPCYCLE_COPY;
    struct moments m = changes ? moments_for(u, p, parent) : (struct moments){0, 0};
    long row_bytes = p->columns * dtype_size(u->c.dtype);
    for (long row = 0, rows; row < p->rows; row += rows) {
        rows = some_rows(u, p, row);
        if (t && !changes && t->type == (int)u->c.dtype) {
            TRY(put(u, t->data + row * row_bytes, rows * row_bytes));
            continue;
        }
        if (t) read_parent(u, p, parent, row, rows);
        else draw_router(u, p, row, rows);
        if (changes) change(u, p, m, row, rows);
        TRY(put_values(u, rows * p->columns));
    }
    return OK;
}

static enum status write_tensors(struct upcycling *u)
{
    for (long i = 0; i < u->list.n; i++) {
        const struct param *p = &u->list.item[i];
        long parent = parent_of(u, p);
        CHECK(parent >= 0 || p->kind->init == INIT_ROUTER);
        if (parent >= 0) model_folder_expect(u->from, parent);
        TRY(write_tensor(u, p, parent));
        if (parent >= 0) model_folder_forget(u->from, parent);
    }
    return folder_writer_copy(u->w, u->from->path);
}

static enum status write_folder(struct upcycling *u, const char *to)
{
    struct tensor_plan *plan;
    long n;
    TRY(tensor_plan_of(&plan, &n, &u->c, u->c.dtype));
    enum status status = folder_writer_open(&u->w, to, &u->c, plan, n, 0, false);
    free(plan);
    TRY(status);
    u->progress = progress_start("upcycle", "B", (double)(u->list.elements * dtype_size(u->c.dtype)));
    status = write_tensors(u);
    if (status != OK) {
        folder_writer_abort(u->w);
        return status;
    }
    TRY(folder_writer_commit(u->w));
    progress_end(&u->progress, NULL);
    return OK;
}

// ---- what was asked for ----

static enum status set_granular(struct config *c, const struct model_folder *from, const struct upcycle_options *o)
{
    long G = o->granular;
    if (o->E % G != 0)
        return fail(ERR_CONFIG, "--granular %ld: does not divide --num-experts %ld (it counts the shards)", G, o->E);
    if (o->K % G != 0)
        return fail(ERR_CONFIG, "--granular %ld: does not divide --moe-router-topk %ld (a token takes whole groups)", G,
                    o->K);
    if (c->F % G != 0)
        return fail(ERR_CONFIG, "--granular %ld: does not divide intermediate_size %ld of %s", G, c->F, from->path);
    c->F /= G;
    return OK;
}

static enum status set_config(struct config *c, const struct model_folder *from, const struct upcycle_options *o)
{
    char *text;
    *c = from->config;
    if (c->E > 0)
        return fail(ERR_FORMAT, "%s: has %ld experts already (upcycling starts from a dense model)", from->path, c->E);
    if (o->K > o->E)
        return fail(ERR_CONFIG, "--moe-router-topk %ld: there are only --num-experts %ld experts", o->K, o->E);
    if (o->method == UPCYCLE_GRANULAR) TRY(set_granular(c, from, o));
    c->E = o->E;
    c->K = o->K;
    c->arch = o->arch == ARCH_SKYWORK && o->K != 2 ? ARCH_SKYMOE : o->arch;
    c->gate_norm_std = o->gate_norm_std;
    c->quant = QUANT_NONE;
    TRY(config_write(&text, c)); // can that architecture say it?
    free(text);
    return OK;
}

static enum status measure_similarity(double *similarity, const struct upcycling *u, const char *to)
{
    for (long l = 0; l < u->c.L; l++) similarity[l] = 1; // of copies, which are equal byte for byte
    if (u->o->method == UPCYCLE_COPY) return OK;
    struct model_folder written;
    TRY(model_folder_open(&written, to));
    enum status status = folder_similarity(similarity, &written);
    model_folder_close(&written);
    return status;
}

static enum status upcycle_into(struct upcycle_result *r, struct upcycling *u, const char *to)
{
    u->room = CHUNK;
    for (long i = 0; i < u->list.n; i++)
        if (u->list.item[i].columns > u->room) u->room = u->list.item[i].columns;
    u->values = malloc((size_t)u->room * sizeof *u->values);
    u->random = malloc((size_t)u->room * sizeof *u->random);
    u->converted = malloc((size_t)u->room * sizeof(float));
    u->dropped = malloc((size_t)u->c.F * sizeof *u->dropped);
    u->dropped_column = malloc((size_t)u->c.F * sizeof *u->dropped_column);
    u->parent_moments = calloc((size_t)u->from->params.n, sizeof *u->parent_moments);
    r->similarity = malloc((size_t)u->c.L * sizeof *r->similarity);
    if (!u->values || !u->random || !u->converted || !u->dropped || !u->dropped_column || !u->parent_moments ||
        !r->similarity)
        return fail(ERR_MEMORY, "memory: refused while upcycling (free some memory)");
    TRY(write_folder(u, to));
    return measure_similarity(r->similarity, u, to);
}

enum status upcycle(struct upcycle_result *r, const struct model_folder *from, const char *to,
                    const struct upcycle_options *o, bool dry_run)
{
    struct upcycling u = {.from = from, .o = o, .k = kernels_for(F32), .dropped_layer = -1,
                          .G = o->method == UPCYCLE_GRANULAR ? o->granular : 1};
    struct upcycle_result result = {0};
    TRY(set_config(&u.c, from, o));
    TRY(param_list_of(&u.list, &u.c, NULL));
    result.params_total = config_params_total(&u.c);
    result.params_active = config_params_active(&u.c);
    result.output_bytes = u.list.elements * dtype_size(u.c.dtype);
    enum status status = dry_run ? OK : upcycle_into(&result, &u, to);
    param_list_free(&u.list);
    free(u.values);
    free(u.random);
    free(u.converted);
    free(u.dropped);
    free(u.dropped_column);
    free(u.parent_moments);
    if (status == OK) *r = result;
    else free(result.similarity);
    return status;
}
