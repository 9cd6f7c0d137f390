// What training keeps of each tensor beside its value; and tensors that several ranks write together.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/checkpoint.h"
#include "comm/alive.h"

enum { CHUNK = 1 << 18 };
enum { MASTER, MOMENT1, MOMENT2, KINDS };
static const char *const kind_names[KINDS] = {"master", "m", "v"};

// The model's file holds rounded values unless it is as wide as the arithmetic of the optimizer.
static bool has_kind(const struct model *m, const struct param_kind *kind, int which)
{
    bool own_master = !kind->in_acc && m->x.k->el != m->x.k->acc;
    return !kind->counted && (which != MASTER || own_master || m->c.dtype != m->x.k->acc);
}

static const void *kind_data(const struct zero *z, const struct zero_piece *p, int which)
{
    if (which == MOMENT1) return p->m;
    if (which == MOMENT2) return p->v;
    return p->master ? p->master : acc_at(&z->m->x, p->param->value.data, p->from);
}

static void kind_name(char name[TENSOR_NAME], const struct param *p, int which)
{
    snprintf(name, TENSOR_NAME, "%s.%s", kind_names[which], p->name);
}

// Every tensor of them, in their order.
static enum status plan_of(struct tensor_plan **plan, long *n, const struct model *m)
{
    struct param_list list;
    TRY(param_list_of(&list, &m->c, NULL));
    struct tensor_plan *made = calloc((size_t)list.n * KINDS + 1, sizeof *made);
    *n = 0;
    for (long i = 0; made && i < list.n; i++)
        for (int which = 0; which < KINDS; which++) {
            const struct param *p = &list.item[i];
            if (!has_kind(m, p->kind, which)) continue;
            struct tensor_plan *t = &made[(*n)++];
            kind_name(t->name, p, which);
            t->dtype = m->x.k->acc;
            t->rank = p->kind->columns == DIM_NONE ? 1 : 2;
            t->shape[0] = p->rows;
            t->shape[1] = p->columns;
        }
    param_list_free(&list);
    if (!made) return fail(ERR_MEMORY, "memory: refused while saving (free some memory)");
    *plan = made;
    return OK;
}

// ---- pieces of tensors ----

// Elements [from, from + n) of what this rank holds of p, which lie at `data` in acc, go to their places in the files.
static enum status place_acc(struct folder_writer *w, const struct model *m, const struct param *p, const char *name,
                             long from, long n, const void *data, char *host)
{
    long size = dtype_size(m->x.k->acc);
    for (long i = 0, run; i < n; i += run) {
        long at = param_global(p, from + i, &run);
        if (run > n - i) run = n - i;
        if (run > CHUNK) run = CHUNK;
        m->x.k->to_host(host, (const char *)data + i * size, run * size);
        TRY(folder_writer_place(w, name, host, at * size, run * size));
    }
    return OK;
}

static enum status place_optimizer(struct folder_writer *w, const struct zero *z, char *host)
{
    char name[TENSOR_NAME];
    for (const struct zero_piece *p = z->piece; p < z->piece + z->pieces; p++)
        for (int which = 0; which < KINDS; which++) {
            if (!p->owned || !has_kind(z->m, p->param->kind, which)) continue;
            kind_name(name, p->param, which);
            TRY(place_acc(w, z->m, p->param, name, p->from, p->n, kind_data(z, p, which), host));
            alive_beat();
        }
    return OK;
}

// Elements [from, from + n) of p's value, as the folder's type, to their places.
static enum status place_value(struct folder_writer *w, const struct model *m, const struct param *p, long from, long n,
                               char *host, float *values)
{
    enum dtype has = p->value.dtype, to = p->kind->counted ? F32 : m->c.dtype;
    for (long i = 0, run; i < n; i += run) {
        long at = param_global(p, from + i, &run);
        if (run > n - i) run = n - i;
        if (run > CHUNK) run = CHUNK;
        m->x.k->to_host(host, (const char *)p->value.data + (from + i) * dtype_size(has), run * dtype_size(has));
        if (has != to) {
            floats_from_values(values, host, has, run);
            values_from_float(host, to, values, run);
        }
        TRY(folder_writer_place(w, p->name, host, at * dtype_size(to), run * dtype_size(to)));
    }
    return OK;
}

static enum status place_values(struct folder_writer *w, const struct zero *z, char *host)
{
    const struct model *m = z->m;
    float *values = (float *)(host + CHUNK * sizeof(double)); // as far as converting them takes
    bool tells = m->grid.dp == 0 && m->grid.tp == 0; // what is counted, which all ranks of the stage have
    for (const struct param *p = m->params.item; p < m->params.item + m->params.n && tells; p++)
        if (p->kind->counted) TRY(place_value(w, m, p, 0, p->rows * p->columns, host, values));
    for (const struct zero_piece *p = z->piece; p < z->piece + z->pieces; p++) {
        if (p->owned) TRY(place_value(w, m, p->param, p->from, p->n, host, values));
        alive_beat();
    }
    return OK;
}

// ---- writing ----

// What each rank owns, placed by it into files that rank 0 makes.
static enum status write_together(struct folder_writer *w, const struct zero *z,
                                  enum status (*place)(struct folder_writer *, const struct zero *, char *))
{
    TRY(agree(transport_rank() == 0 ? folder_writer_shards(w) : OK));
    char *host = malloc(CHUNK * (sizeof(double) + sizeof(float)));
    enum status status = host ? place(w, z, host)
                              : fail(ERR_MEMORY, "memory: refused while saving (free some memory)");
    free(host);
    TRY(agree(folder_writer_placed(w, status)));
    return folder_writer_hash_shards(w);
}

enum status values_write(struct folder_writer *w, const struct zero *z)
{
    return write_together(w, z, place_values);
}

// One rank writes what follows what, and the checksums on the way.
static enum status stream_tensors(struct folder_writer *w, const struct zero *z, char *host)
{
    const struct model *m = z->m;
    long size = dtype_size(m->x.k->acc);
    for (long i = 0; i < m->params.n; i++) {
        const struct zero_piece *p = z->piece; // of a rank alone: the whole tensor
        while (p < z->piece + z->pieces && p->param != &m->params.item[i]) p++;
        for (int which = 0; which < KINDS; which++) {
            if (!has_kind(m, m->params.item[i].kind, which)) continue;
            const char *data = kind_data(z, p, which);
            for (long at = 0, n; at < p->n; at += n) {
                n = p->n - at < CHUNK ? p->n - at : CHUNK;
                m->x.k->to_host(host, data + at * size, n * size);
                TRY(folder_writer_data(w, host, n * size));
            }
        }
    }
    return OK;
}

static enum status stream_optimizer(struct folder_writer *w, const struct zero *z)
{
    char *host = malloc(CHUNK * sizeof(double));
    if (!host) return fail(ERR_MEMORY, "memory: refused while saving (free some memory)");
    enum status status = stream_tensors(w, z, host);
    free(host);
    return status;
}

enum status optimizer_write(struct folder_writer *w, const struct zero *z)
{
    struct tensor_plan *plan = NULL;
    long n = 0;
    TRY(agree(plan_of(&plan, &n, z->m)));
    enum status status = agree(folder_writer_next(w, "training/optimizer", plan, n));
    free(plan);
    TRY(status);
    return transport_ranks() == 1 ? stream_optimizer(w, z) : write_together(w, z, place_optimizer);
}

// ---- reading ----

// The files of training/.
struct stored {
    char path[PATH_LENGTH]; // of the folder
    struct safetensors *shard;
    long shards;
};

static enum status check_kind(const struct stored *s, const struct model *m, const struct param *p, int which,
                              const struct stored_tensor **found)
{
    char name[TENSOR_NAME];
    long elements = p->all_rows * p->all_columns;
    const struct stored_tensor *t = NULL;
    kind_name(name, p, which);
    for (long i = 0; i < s->shards && !t; i++) t = safetensors_find(&s->shard[i], name);
    if (!t) return fail(ERR_FORMAT, "%s: tensor %s is missing", s->path, name);
    if (t->type != (int)m->x.k->acc || t->elements != elements)
        return fail(ERR_FORMAT, "%s: tensor %s is %s with %ld elements, expected %s with %ld", s->path, name,
                    t->dtype, t->elements, dtype_name(m->x.k->acc), elements);
    *found = t;
    return OK;
}

static void read_kind(const struct zero *z, const struct zero_piece *p, int which, const struct stored_tensor *t)
{
    const struct kernels *k = z->m->x.k;
    long size = dtype_size(k->acc);
    for (long i = 0, run; i < p->n; i += run) {
        long at = param_global(p->param, p->from + i, &run);
        if (run > p->n - i) run = p->n - i;
        k->from_host((char *)(uintptr_t)kind_data(z, p, which) + i * size, t->data + at * size, run * size);
    }
}

static enum status read_stored(struct zero *z, const struct stored *s)
{
    const struct stored_tensor *t = NULL;
    for (int pass = 0; pass < 2; pass++) // first look at everything, then change something
        for (const struct zero_piece *p = z->piece; p < z->piece + z->pieces; p++)
            for (int which = 0; which < KINDS; which++) {
                if (!has_kind(z->m, p->param->kind, which)) continue;
                TRY(check_kind(s, z->m, p->param, which, &t));
                if (pass) read_kind(z, p, which, t);
                alive_beat();
            }
    return OK;
}

enum status optimizer_read(struct zero *z, const char *path)
{
    struct stored s;
    TRY(path_join(s.path, path, "training"));
    TRY(shards_open(&s.shard, &s.shards, s.path, "optimizer"));
    enum status status = read_stored(z, &s);
    shards_close(s.shard, s.shards);
    return status;
}
