#include "quant/quantize.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

enum { CHUNK = 1 << 20 }; // elements in memory at a time, but at least a row
static const float E4M3_MAX = 448;

struct quantising {
    const struct model_folder *from;
    const struct kernels *k;
    struct config c;           // of the result
    struct folder_writer *w;
    float *scale;              // those of all FP8 tensors, one tensor behind the other
    long *first_scale;         // [params.n + 1] where those of a tensor begin; none: it does not become FP8
    struct tensor_error *error;
    long errors;
    long room;                 // elements that these hold:
    float *values, *difference; // as read, minus what comes out of FP8
    void *converted;
    float *row_scale, *minus_scale; // of these rows, as in struct tensor
    struct progress progress;
    double done;               // weights read
};

static long elements_of(const struct param *p)
{
    return p->rows * p->columns;
}

static struct scale_grid scales_of(const struct quantising *q, long i)
{
    return scale_grid_of(q->c.scaling, q->from->params.item[i].rows, q->from->params.item[i].columns);
}

static bool is_fp8(const struct quantising *q, long i)
{
    return q->first_scale[i + 1] > q->first_scale[i];
}

static enum dtype dtype_of(const struct quantising *q, long i)
{
    return is_fp8(q, i) ? F8_E4M3 : q->from->params.item[i].kind->counted ? F32 : q->c.dtype;
}

static void progress_by(struct quantising *q, long weights)
{
    q->done += (double)weights;
    progress_at(&q->progress, q->done, NULL);
}

// The next rows of tensor i, from `row` on, into q->values. Returns how many.
static long read_rows(struct quantising *q, long i, long row)
{
    const struct param *p = &q->from->params.item[i];
    long most = q->room / p->columns, n = p->rows - row < most ? p->rows - row : most;
    if (row == 0) model_folder_expect(q->from, i);
    model_folder_read(q->values, q->from, i, row * p->columns, n * p->columns);
    if (row + n == p->rows) model_folder_forget(q->from, i);
    return n;
}

// ---- scales ----

// Tensors that readers of Skywork's folders merge into one matrix with one scale: q, k, v; and w1, w3 of an expert.
// (Scales of channels and blocks lie one behind the other in such a matrix.)
static bool shares(const struct config *c, const struct param *a, const struct param *b)
{
    bool skywork = c->arch == ARCH_SKYWORK || c->arch == ARCH_SKYMOE;
    return skywork && a->kind->scope != PER_MODEL && a->kind->field == b->kind->field && a->layer == b->layer &&
           a->expert == b->expert;
}

// The largest magnitude of each scale's elements.
static enum status measure(struct quantising *q, long i)
{
    const struct param *p = &q->from->params.item[i];
    struct scale_grid g = scales_of(q, i);
    float *most = q->scale + q->first_scale[i];
    for (long row = 0, rows; row < p->rows; row += rows) {
        rows = read_rows(q, i, row);
        long from = row * p->columns, n = rows * p->columns;
        for (long at = 0, run; at < n; at += run) {
            run = scale_run(&g, from + at);
            if (run > n - at) run = n - at;
            float largest = (float)q->k->amax((struct tensor){.data = q->values + at, .dtype = F32}, run);
            if (!(largest <= 3.4e38f)) // or NaN
                return fail(ERR_FORMAT, "%s: tensor %s holds infinity or NaN", q->from->path, p->name);
            float *scale = &most[scale_at(&g, from + at)];
            if (largest > *scale) *scale = largest;
        }
        progress_by(q, n);
    }
    return OK;
}

static enum status choose_scales(struct quantising *q)
{
    const struct param_list *list = &q->from->params;
    for (long i = 0; i < list->n; i++)
        if (is_fp8(q, i)) TRY(measure(q, i));
    for (long i = 0; i < list->n && q->c.scaling == SCALING_TENSOR; i++) { // parts of one field follow each other
        if (!is_fp8(q, i)) continue;
        long end = i + 1;
        float *of = q->scale + q->first_scale[i], largest = *of;
        for (; end < list->n && shares(&q->from->config, &list->item[i], &list->item[end]); end++)
            if (of[end - i] > largest) largest = of[end - i];
        for (long j = i; j < end; j++) of[j - i] = largest;
        i = end - 1;
    }
    for (long s = 0; s < q->first_scale[list->n]; s++) {
        q->scale[s] /= E4M3_MAX;
        if (!(q->scale[s] > 0)) q->scale[s] = 1; // zeros, or too small to be scaled
    }
    return OK;
}

// ---- the folder ----

static void plan_tensor(struct tensor_plan *t, const struct param *p, enum dtype dtype)
{
    snprintf(t->name, sizeof t->name, "%s", p->name);
    t->dtype = dtype;
    t->rank = p->kind->columns == DIM_NONE ? 1 : 2;
    t->shape[0] = p->rows;
    t->shape[1] = p->columns;
}

static void plan_scale(struct tensor_plan *t, const struct quantising *q, long i)
{
    struct scale_grid g = scales_of(q, i);
    snprintf(t->name, sizeof t->name, "%s_scale%s", q->from->params.item[i].name,
             q->c.scaling == SCALING_BLOCK ? "_inv" : "");
    t->dtype = F32;
    t->rank = q->c.scaling == SCALING_TENSOR ? 0 : 2;
    t->shape[0] = g.rows;
    t->shape[1] = g.columns;
}

// Scales and other tensors of 32 bits, then those of 16, then those of 8: every shard stays aligned.
static const enum dtype order[] = {F32, BF16, F16, F8_E4M3};
enum { ORDER = sizeof order / sizeof *order };

static enum status plan_tensors(struct tensor_plan **plan, long *n, const struct quantising *q)
{
    const struct param_list *list = &q->from->params;
    struct tensor_plan *made = calloc((size_t)list->n * 2, sizeof *made);
    if (!made) return fail(ERR_MEMORY, "memory: a table of %ld tensors was refused (free some memory)", list->n * 2);
    long used = 0;
    for (long i = 0; i < list->n; i++)
        if (is_fp8(q, i)) plan_scale(&made[used++], q, i);
    for (int d = 0; d < ORDER; d++)
        for (long i = 0; i < list->n; i++)
            if (dtype_of(q, i) == order[d]) plan_tensor(&made[used++], &list->item[i], order[d]);
    *plan = made;
    *n = used;
    return OK;
}

static enum status write_values(struct quantising *q, long i, enum dtype dtype)
{
    const struct param *p = &q->from->params.item[i];
    for (long row = 0, rows; row < p->rows; row += rows) {
        rows = read_rows(q, i, row);
        values_from_float(q->converted, dtype, q->values, rows * p->columns);
        TRY(folder_writer_data(q->w, q->converted, rows * p->columns * dtype_size(dtype)));
    }
    return OK;
}

static enum status write_fp8(struct quantising *q, long i)
{
    const struct param *p = &q->from->params.item[i];
    struct scale_grid g = scales_of(q, i);
    struct tensor_error *error = &q->error[q->errors++];
    struct tensor values = {.data = q->values, .dtype = F32}, difference = {.data = q->difference, .dtype = F32};
    struct tensor codes = {.data = q->converted, .scale = q->row_scale, .dtype = F8_E4M3,
                           .scale_columns = (int)g.columns};
    struct tensor minus = codes; // the same codes, negated
    double squares = 0, lost = 0, most = 0;
    minus.scale = q->minus_scale;
    for (long row = 0, rows; row < p->rows; row += rows) {
        rows = read_rows(q, i, row);
        long n = rows * p->columns;
        for (long j = 0; j < rows * g.columns; j++) {
            long element = (row + j / g.columns) * p->columns + j % g.columns * g.piece_columns;
            q->row_scale[j] = q->scale[q->first_scale[i] + scale_at(&g, element)];
            q->minus_scale[j] = -q->row_scale[j];
        }
        q->k->cast(codes, values, rows, p->columns);
        q->k->cast(difference, minus, rows, p->columns);
        q->k->add(q->difference, q->values, q->difference, n);
        squares += q->k->sum_squares(q->values, n);
        lost += q->k->sum_squares(q->difference, n);
        double largest = q->k->amax(difference, n);
        most = largest > most ? largest : most; // all are finite: measure() saw to it
        TRY(folder_writer_data(q->w, codes.data, n));
        progress_by(q, n);
    }
    snprintf(error->name, sizeof error->name, "%s", p->name);
    error->rel_error = squares > 0 ? sqrt(lost / squares) : 0;
    error->max_error = most;
    return OK;
}

static enum status write_tensors(struct quantising *q)
{
    long n = q->from->params.n;
    for (long i = 0; i < n; i++) {
        long bytes = (q->first_scale[i + 1] - q->first_scale[i]) * (long)sizeof *q->scale;
        if (bytes) TRY(folder_writer_data(q->w, q->scale + q->first_scale[i], bytes));
    }
    for (int d = 0; d < ORDER; d++)
        for (long i = 0; i < n; i++) {
            if (dtype_of(q, i) != order[d]) continue;
            TRY(order[d] == F8_E4M3 ? write_fp8(q, i) : write_values(q, i, order[d]));
        }
    return folder_writer_copy(q->w, q->from->path);
}

static enum status write_folder(struct quantising *q, const char *to)
{
    struct tensor_plan *plan = NULL;
    long n = 0;
    TRY(plan_tensors(&plan, &n, q));
    enum status status = folder_writer_open(&q->w, to, &q->c, plan, n, 0, false);
    free(plan);
    TRY(status);
    status = write_tensors(q);
    if (status == OK) return folder_writer_commit(q->w);
    folder_writer_abort(q->w);
    return status;
}

// Where the scales of each tensor stand, and the largest row.
static enum status lay_out(struct quantising *q)
{
    const struct param_list *list = &q->from->params;
    q->first_scale = calloc((size_t)list->n + 1, sizeof *q->first_scale);
    if (!q->first_scale) return fail(ERR_MEMORY, "memory: refused while quantising (free some memory)");
    q->room = CHUNK;
    for (long i = 0; i < list->n; i++) {
        const struct param *p = &list->item[i];
        struct scale_grid g = scales_of(q, i);
        q->first_scale[i + 1] = q->first_scale[i] + (p->kind->quantise ? g.rows * g.columns : 0);
        if (p->columns > q->room) q->room = p->columns;
    }
    return OK;
}

static enum status quantise_into(struct quantising *q, const char *to)
{
    TRY(lay_out(q));
    long n = q->from->params.n, scales = q->first_scale[n];
    q->scale = calloc((size_t)scales + 1, sizeof *q->scale);
    q->error = calloc((size_t)n, sizeof *q->error);
    q->values = malloc((size_t)q->room * sizeof *q->values);
    q->difference = malloc((size_t)q->room * sizeof *q->difference);
    q->converted = malloc((size_t)q->room * sizeof(float));
    q->row_scale = malloc((size_t)q->room * sizeof *q->row_scale);
    q->minus_scale = malloc((size_t)q->room * sizeof *q->minus_scale);
    if (!q->scale || !q->error || !q->values || !q->difference || !q->converted || !q->row_scale || !q->minus_scale)
        return fail(ERR_MEMORY, "memory: refused while quantising (free some memory)");
    double weights = 0;
    long bytes = scales * (long)sizeof *q->scale;
    for (long i = 0; i < n; i++) {
        long elements = elements_of(&q->from->params.item[i]);
        weights += is_fp8(q, i) ? (double)elements : 0;
        bytes += elements * dtype_size(dtype_of(q, i));
    }
    TRY(folder_writer_room(to, bytes)); // before everything is read for its scales
    q->progress = progress_start("quantize", "weights", 2 * weights); // read twice: for the scale, then for the values
    TRY(choose_scales(q));
    TRY(write_folder(q, to));
    progress_end(&q->progress, NULL);
    return OK;
}

enum status quantize_fp8(struct quantize_result *r, const struct model_folder *from, const char *to,
                         enum scaling scaling)
{
    struct quantising q = {.from = from, .k = kernels_for(F32), .c = from->config};
    if (from->config.quant != QUANT_NONE) return fail(ERR_FORMAT, "%s: its weights are FP8 already", from->path);
    if (q.c.dtype != F16) q.c.dtype = BF16;
    q.c.quant = QUANT_FP8;
    q.c.scaling = scaling;
    enum status status = quantise_into(&q, to);
    if (status == OK) *r = (struct quantize_result){q.error, q.errors};
    else free(q.error);
    free(q.scale);
    free(q.first_scale);
    free(q.values);
    free(q.difference);
    free(q.minus_scale);
    free(q.converted);
    free(q.row_scale);
    return status;
}
