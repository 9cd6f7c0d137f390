#include "train/upcycle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/rng.h"

enum { CHUNK = 1 << 20 }; // elements in memory at a time

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
    float *values, *random;      // [CHUNK]
    void *converted;             // [CHUNK] in c.dtype
    bool *dropped;               // [F] intermediate columns of the present expert that are redrawn
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

// Which intermediate column element i of p belongs to.
static long column_of(const struct upcycling *u, const struct param *p, long i)
{
    return p->kind->rows == DIM_F ? i / p->columns : i % u->c.F;
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

static struct moments moments_of_dropped(struct upcycling *u, const struct param *p, long parent)
{
    long elements = p->rows * p->columns, counted = 0;
    double sum = 0, squares = 0;
    for (long at = 0; at < elements; at += CHUNK) {
        long n = elements - at < CHUNK ? elements - at : CHUNK;
        model_folder_read(u->values, u->from, parent, at, n);
        for (long i = 0; i < n; i++) {
            if (!u->dropped[column_of(u, p, at + i)]) continue;
            sum += u->values[i];
            squares += (double)u->values[i] * u->values[i];
            counted++;
        }
    }
    return moments_from(sum, squares, counted);
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
static void draw_router(struct upcycling *u, const struct param *p, long at, long n)
{
    for (long done = 0, some; done < n; done += some) {
        long row = (at + done) / p->columns, column = (at + done) % p->columns;
        some = p->columns - column < n - done ? p->columns - column : n - done;
        draw(u, u->values + done, p, (struct moments){0, u->o->router_std}, row / u->G * p->columns + column, some);
    }
}

// Elements at .. at + n of p as they are in the dense tensor that p is or whose shard it is: rows of w1 and w3, columns
// of w2.
static void read_parent(struct upcycling *u, const struct param *p, long parent, long at, long n)
{
    const struct param *dense = &u->from->params.item[parent];
    long shard = p->expert < 0 ? 0 : p->expert % u->G, first = shard * p->rows * p->columns;
    if (dense->columns == p->columns) {
        model_folder_read(u->values, u->from, parent, first + at, n);
        return;
    }
    for (long done = 0, some; done < n; done += some) {
        long row = (at + done) / p->columns, column = (at + done) % p->columns;
        some = p->columns - column < n - done ? p->columns - column : n - done;
        model_folder_read(u->values + done, u->from, parent, row * dense->columns + shard * p->columns + column, some);
    }
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

// The n elements of an expert's matrix that stand in u->values, changed as the method says.
static void change(struct upcycling *u, const struct param *p, struct moments m, long at, long n)
{
    double scale;
    switch (u->o->method) {
    case UPCYCLE_COPY: break;
    case UPCYCLE_NOISE:
        draw(u, u->random, p, m, at, n);
        u->k->add(u->values, u->values, u->random, n);
        break;
    case UPCYCLE_DROP:
        draw(u, u->random, p, m, at, n);
        for (long i = 0; i < n; i++)
            if (u->dropped[column_of(u, p, at + i)]) u->values[i] = u->random[i];
        break;
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
    long elements = p->rows * p->columns, size = dtype_size(u->c.dtype);
    for (long at = 0; at < elements; at += CHUNK) {
        long n = elements - at < CHUNK ? elements - at : CHUNK;
        if (t && !changes && t->type == (int)u->c.dtype) {
            TRY(put(u, t->data + at * size, n * size));
            continue;
        }
        if (t) read_parent(u, p, parent, at, n);
        else draw_router(u, p, at, n);
        if (changes) change(u, p, m, at, n);
        TRY(put_values(u, n));
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
    u->values = malloc(CHUNK * sizeof *u->values);
    u->random = malloc(CHUNK * sizeof *u->random);
    u->converted = malloc(CHUNK * sizeof(float));
    u->dropped = malloc((size_t)u->c.F * sizeof *u->dropped);
    u->parent_moments = calloc((size_t)u->from->params.n, sizeof *u->parent_moments);
    r->similarity = malloc((size_t)u->c.L * sizeof *r->similarity);
    if (!u->values || !u->random || !u->converted || !u->dropped || !u->parent_moments || !r->similarity)
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
    TRY(param_list_of(&u.list, &u.c));
    result.params_total = config_params_total(&u.c);
    result.params_active = config_params_active(&u.c);
    result.output_bytes = u.list.elements * dtype_size(u.c.dtype);
    enum status status = dry_run ? OK : upcycle_into(&result, &u, to);
    param_list_free(&u.list);
    free(u.values);
    free(u.random);
    free(u.converted);
    free(u.dropped);
    free(u.parent_moments);
    if (status == OK) *r = result;
    else free(result.similarity);
    return status;
}
