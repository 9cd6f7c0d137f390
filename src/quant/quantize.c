#include "quant/quantize.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

enum { CHUNK = 1 << 18 }; // elements in memory at a time
static const float E4M3_MAX = 448;

struct quantising {
    const struct model_folder *from;
    struct config c;           // of the result
    struct folder_writer *w;
    float *scale;              // [params.n]; 0: the tensor stays 16-bit
    struct tensor_error *error;
    long errors;
    float *values;             // [CHUNK]
    void *converted;           // [CHUNK]
    struct progress progress;
    double done;               // weights read
};

static long elements_of(const struct param *p)
{
    return p->rows * p->columns;
}

// ---- scales ----

// Tensors that readers of Skywork's folders merge into one matrix with one scale: q, k, v; and w1, w3 of an expert.
static bool shares(const struct config *c, const struct param *a, const struct param *b)
{
    bool skywork = c->arch == ARCH_SKYWORK || c->arch == ARCH_SKYMOE;
    return skywork && a->kind->scope != PER_MODEL && a->kind->field == b->kind->field && a->layer == b->layer &&
           a->expert == b->expert;
}

static enum status amax_of(float *amax, struct quantising *q, long i)
{
    const struct param *p = &q->from->params.item[i];
    float most = 0;
    bool finite = true;
    for (long at = 0, n; at < elements_of(p); at += n) {
        n = elements_of(p) - at < CHUNK ? elements_of(p) - at : CHUNK;
        model_folder_read(q->values, q->from, i, at, n);
        for (long j = 0; j < n; j++) {
            float x = fabsf(q->values[j]);
            finite &= x <= 3.4e38f; // false for NaN
            most = x > most ? x : most;
        }
    }
    if (!finite) return fail(ERR_FORMAT, "%s: tensor %s holds infinity or NaN", q->from->path, p->name);
    *amax = most;
    return OK;
}

static float scale_for(float amax)
{
    float scale = amax / E4M3_MAX;
    return scale > 0 ? scale : 1; // a tensor of zeros, or too small to be scaled
}

static enum status choose_scales(struct quantising *q)
{
    const struct param_list *list = &q->from->params;
    for (long i = 0; i < list->n; i++) {
        float amax = 0;
        if (!list->item[i].kind->quantise) continue;
        TRY(amax_of(&amax, q, i));
        q->scale[i] = scale_for(amax);
        q->done += (double)elements_of(&list->item[i]);
        progress_at(&q->progress, q->done, NULL);
    }
    for (long i = 0; i < list->n; i++) { // parts of one field follow each other
        if (!list->item[i].kind->quantise) continue;
        long end = i + 1;
        float largest = q->scale[i];
        for (; end < list->n && shares(&q->from->config, &list->item[i], &list->item[end]); end++)
            largest = q->scale[end] > largest ? q->scale[end] : largest;
        for (long j = i; j < end; j++) q->scale[j] = largest;
        i = end - 1;
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

static bool is_16bit(const struct quantising *q, long i)
{
    return q->scale[i] == 0 && !q->from->params.item[i].kind->counted;
}

// All scales and gate biases (F32), then all 16-bit tensors, then all FP8 ones: every shard stays aligned.
static enum status plan_tensors(struct tensor_plan **plan, long *n, const struct quantising *q)
{
    const struct param_list *list = &q->from->params;
    struct tensor_plan *made = calloc((size_t)list->n * 2, sizeof *made);
    if (!made) return fail(ERR_MEMORY, "memory: a table of %ld tensors was refused (free some memory)", list->n * 2);
    long used = 0;
    for (long i = 0; i < list->n; i++)
        if (q->scale[i] > 0) {
            struct tensor_plan *t = &made[used++];
            snprintf(t->name, sizeof t->name, "%s_scale", list->item[i].name);
            t->dtype = F32;
        }
    for (long i = 0; i < list->n; i++)
        if (list->item[i].kind->counted) plan_tensor(&made[used++], &list->item[i], F32);
    for (long i = 0; i < list->n; i++)
        if (is_16bit(q, i)) plan_tensor(&made[used++], &list->item[i], q->c.dtype);
    for (long i = 0; i < list->n; i++)
        if (q->scale[i] > 0) plan_tensor(&made[used++], &list->item[i], F8_E4M3);
    *plan = made;
    *n = used;
    return OK;
}

static enum status write_values(struct quantising *q, long i, enum dtype dtype)
{
    const struct param *p = &q->from->params.item[i];
    for (long at = 0, n; at < elements_of(p); at += n) {
        n = elements_of(p) - at < CHUNK ? elements_of(p) - at : CHUNK;
        model_folder_read(q->values, q->from, i, at, n);
        values_from_float(q->converted, dtype, q->values, n);
        TRY(folder_writer_data(q->w, q->converted, n * dtype_size(dtype)));
    }
    return OK;
}

static enum status write_fp8(struct quantising *q, long i)
{
    const struct param *p = &q->from->params.item[i];
    struct tensor_error *error = &q->error[q->errors++];
    uint8_t *bytes = q->converted;
    float scale = q->scale[i];
    double squares = 0, lost = 0, most = 0;
    for (long at = 0, n; at < elements_of(p); at += n) {
        n = elements_of(p) - at < CHUNK ? elements_of(p) - at : CHUNK;
        model_folder_read(q->values, q->from, i, at, n);
        for (long j = 0; j < n; j++) {
            double w = q->values[j];
            bytes[j] = e4m3_from_float(q->values[j] / scale);
            double difference = fabs(w - (double)(e4m3_to_float(bytes[j]) * scale));
            squares += w * w;
            lost += difference * difference;
            most = difference > most ? difference : most;
        }
        TRY(folder_writer_data(q->w, bytes, n));
        q->done += (double)n;
        progress_at(&q->progress, q->done, NULL);
    }
    snprintf(error->name, sizeof error->name, "%s", p->name);
    error->rel_error = squares > 0 ? sqrt(lost / squares) : 0;
    error->max_error = most;
    return OK;
}

static enum status write_tensors(struct quantising *q)
{
    long n = q->from->params.n;
    for (long i = 0; i < n; i++)
        if (q->scale[i] > 0) TRY(folder_writer_data(q->w, &q->scale[i], sizeof q->scale[i]));
    for (long i = 0; i < n; i++)
        if (q->from->params.item[i].kind->counted) TRY(write_values(q, i, F32));
    for (long i = 0; i < n; i++)
        if (is_16bit(q, i)) TRY(write_values(q, i, q->c.dtype));
    for (long i = 0; i < n; i++)
        if (q->scale[i] > 0) TRY(write_fp8(q, i));
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

static enum status quantise_into(struct quantising *q, const char *to)
{
    long n = q->from->params.n;
    q->scale = calloc((size_t)n, sizeof *q->scale);
    q->error = calloc((size_t)n, sizeof *q->error);
    q->values = malloc(CHUNK * sizeof *q->values);
    q->converted = malloc(CHUNK * sizeof(float));
    if (!q->scale || !q->error || !q->values || !q->converted)
        return fail(ERR_MEMORY, "memory: refused while quantising (free some memory)");
    double weights = 0;
    long bytes = 0;
    for (long i = 0; i < n; i++) {
        const struct param *p = &q->from->params.item[i];
        weights += p->kind->quantise ? (double)elements_of(p) : 0;
        bytes += elements_of(p) * dtype_size(p->kind->quantise ? F8_E4M3 : q->c.dtype);
    }
    TRY(folder_writer_room(to, bytes)); // before everything is read for its scales
    q->progress = progress_start("quantize", "weights", 2 * weights); // read twice: for the scale, then for the values
    TRY(choose_scales(q));
    TRY(write_folder(q, to));
    progress_end(&q->progress, NULL);
    return OK;
}

enum status quantize_fp8(struct quantize_result *r, const struct model_folder *from, const char *to)
{
    struct quantising q = {.from = from, .c = from->config};
    if (from->config.quant != QUANT_NONE) return fail(ERR_FORMAT, "%s: its weights are FP8 already", from->path);
    if (q.c.dtype != F16) q.c.dtype = BF16;
    q.c.quant = QUANT_FP8;
    enum status status = quantise_into(&q, to);
    if (status == OK) *r = (struct quantize_result){q.error, q.errors};
    else free(q.error);
    free(q.scale);
    free(q.values);
    free(q.converted);
    return status;
}
