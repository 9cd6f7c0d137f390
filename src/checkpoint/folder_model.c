// Between a model in memory and a folder. Tensor memory may be a device's: everything passes through to_host/from_host,
// a piece of one tensor at a time.
#include <stdlib.h>
#include <string.h>

#include "checkpoint/folder.h"
#include "comm/alive.h"

enum { CHUNK = 1 << 18 }; // elements converted at a time

// ---- reading ----

// The scales of each row's blocks, repeated for every row of a block.
static void load_scales(const struct kernels *k, const struct model_folder *f, long i, struct tensor to, float *values)
{
    const struct param *p = &f->params.item[i];
    long columns = to.scale_columns, most = CHUNK / columns;
    for (long row = 0, n; row < p->rows; row += n) {
        n = p->rows - row < most ? p->rows - row : most;
        for (long j = 0; j < n * columns; j++)
            values[j] = model_folder_scale(f, i, (row + j / columns) * p->columns + j % columns * SCALE_BLOCK);
        k->from_host(to.scale + row * columns, values, n * columns * (long)sizeof *values);
    }
}

// A run of elements that lie behind each other in the folder and here.
static void load_run(const struct kernels *k, struct tensor to, const struct model_folder *f, long i, long from,
                     long at, long n, float *values, void *converted)
{
    char *place = (char *)to.data + at * dtype_size(to.dtype);
    if (to.dtype == (enum dtype)f->stored[i]->type) {
        long size = dtype_size(to.dtype);
        k->from_host(place, f->stored[i]->data + from * size, n * size);
        return;
    }
    model_folder_read(values, f, i, from, n);
    values_from_float(converted, to.dtype, values, n);
    k->from_host(place, converted, n * dtype_size(to.dtype));
}

static enum status load_tensor(struct model *m, const struct param *held, const struct model_folder *f, long i,
                               float *values, void *converted)
{
    const struct kernels *k = m->x.k;
    const struct stored_tensor *t = f->stored[i];
    const struct param *p = &f->params.item[i];
    struct tensor to = held->value;
    bool mapped = m->o.mapped && params_field(m->o.mapped, p->kind, p->layer)->data;
    if (to.dtype == F8_E4M3) {
        if (t->type != F8_E4M3)
            return fail(ERR_FORMAT, "%s: tensor %s is %s in an FP8 model, which is not implemented", f->path, t->name,
                        t->dtype);
        if (!mapped) k->from_host(to.data, t->data, t->bytes);
        load_scales(k, f, i, to, values);
        return OK;
    }
    if (mapped) return OK;
    bool same = to.dtype == (enum dtype)t->type;
    for (long at = 0, n; at < held->rows * held->columns; at += n) {
        long from = param_global(held, at, &n);
        if (n > CHUNK && !same) n = CHUNK;
        load_run(k, to, f, i, from, at, n, values, converted);
    }
    return OK;
}

long model_folder_find(const struct model_folder *f, const struct param *p, long from)
{
    for (long i = from; i < f->params.n; i++)
        if (!strcmp(f->params.item[i].name, p->name)) return i;
    CHECK(p->kind->counted);
    return -1;
}

enum status model_folder_load(struct model *m, const struct model_folder *f)
{
    long at = 0;
    float *values = malloc(CHUNK * sizeof *values);
    double *converted = malloc(CHUNK * sizeof *converted);
    enum status status = values && converted ? OK : fail(ERR_MEMORY, "%s: no memory to read it", f->path);
    for (const struct param *p = m->params.item; p < m->params.item + m->params.n && status == OK; p++) {
        long i = model_folder_find(f, p, at);
        if (i < 0) continue;
        status = load_tensor(m, p, f, i, values, converted);
        alive_beat();
        model_folder_forget(f, i); // what was copied need not be in this process' memory twice
        at = i + 1;
    }
    free(converted);
    free(values);
    return status;
}

// ---- writing ----

enum status tensor_plan_of(struct tensor_plan **plan, long *n, const struct config *c, enum dtype dtype)
{
    struct param_list list;
    TRY(param_list_of(&list, c, NULL));
    struct tensor_plan *made = calloc((size_t)list.n, sizeof *made);
    *n = 0;
    for (int counted = 1; made && counted >= 0; counted--)
        for (long i = 0; i < list.n; i++) {
            const struct param *p = &list.item[i];
            if (p->kind->counted != counted) continue;
            struct tensor_plan *t = &made[(*n)++];
            memcpy(t->name, p->name, sizeof p->name);
            t->dtype = counted ? F32 : dtype;
            t->rank = p->kind->columns == DIM_NONE ? 1 : 2;
            t->shape[0] = p->rows;
            t->shape[1] = p->columns;
        }
    if (!made) *n = list.n;
    param_list_free(&list);
    if (!made) return fail(ERR_MEMORY, "memory: a table of %ld tensors was refused (free some memory)", *n);
    *plan = made;
    return OK;
}

static enum status write_tensor(struct folder_writer *w, const struct model *m, const struct param *p, void *host,
                                float *values)
{
    enum dtype from = p->value.dtype, to = p->kind->counted ? F32 : m->c.dtype;
    long elements = p->rows * p->columns;
    CHECK(from != F8_E4M3);
    for (long at = 0; at < elements; at += CHUNK) {
        long n = elements - at < CHUNK ? elements - at : CHUNK;
        m->x.k->to_host(host, (const char *)p->value.data + at * dtype_size(from), n * dtype_size(from));
        if (from != to) {
            floats_from_values(values, host, from, n);
            values_from_float(host, to, values, n);
        }
        TRY(folder_writer_data(w, host, n * dtype_size(to)));
    }
    return OK;
}

enum status folder_writer_model(struct folder_writer *w, const struct model *m)
{
    void *host = malloc(CHUNK * sizeof(double));
    float *values = malloc(CHUNK * sizeof *values);
    enum status status = host && values ? OK : fail(ERR_MEMORY, "memory: refused while saving (free some memory)");
    for (int counted = 1; counted >= 0; counted--)
        for (long i = 0; i < m->params.n && status == OK; i++)
            if (m->params.item[i].kind->counted == counted)
                status = write_tensor(w, m, &m->params.item[i], host, values);
    free(host);
    free(values);
    return status;
}

enum status model_folder_write(const char *path, const struct model *m, const char *tokenizer_folder)
{
    struct tensor_plan *plan;
    long n;
    struct folder_writer *w;
    struct config c = m->c;
    c.quant = QUANT_NONE;
    TRY(tensor_plan_of(&plan, &n, &c, c.dtype));
    enum status status = folder_writer_open(&w, path, &c, plan, n, 0, false);
    free(plan);
    TRY(status);
    status = folder_writer_model(w, m);
    if (status == OK) status = folder_writer_copy(w, tokenizer_folder);
    if (status == OK) return folder_writer_commit(w);
    folder_writer_abort(w);
    return status;
}
