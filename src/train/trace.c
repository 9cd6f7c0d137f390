#include "train/trace.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "checkpoint/folder.h"

enum { CHUNK = 1 << 16 }; // elements that pass through the host at a time

// ---- gradients ----

static bool has_gradient(const struct param *p)
{
    return !p->kind->counted;
}

static enum status write_gradient(struct safetensors_writer *w, const struct model *m, const struct param *p)
{
    static double raw[CHUNK]; // room for either type
    static float values[CHUNK];
    long size = dtype_size(m->x.k->acc), elements = p->rows * p->columns;
    for (long at = 0; at < elements; at += CHUNK) {
        long n = elements - at < CHUNK ? elements - at : CHUNK;
        m->x.k->to_host(raw, (const char *)p->grad + at * size, n * size);
        floats_from_values(values, raw, m->x.k->acc, n);
        TRY(safetensors_write_data(w, values, n * (long)sizeof *values));
    }
    return OK;
}

static enum status write_gradients(const char *path, const struct model *m, struct tensor_plan *plan)
{
    struct safetensors_writer w;
    long n = 0;
    uint64_t hash;
    for (const struct param *p = m->params.item; p < m->params.item + m->params.n; p++) {
        if (!has_gradient(p)) continue;
        struct tensor_plan *t = &plan[n++];
        memcpy(t->name, p->name, sizeof p->name);
        t->dtype = F32;
        t->rank = p->kind->columns == DIM_NONE ? 1 : 2;
        t->shape[0] = p->rows;
        t->shape[1] = p->columns;
    }
    TRY(safetensors_write_open(&w, path, plan, n));
    enum status status = OK;
    for (const struct param *p = m->params.item; p < m->params.item + m->params.n && status == OK; p++)
        if (has_gradient(p)) status = write_gradient(&w, m, p);
    if (status == OK) return safetensors_write_commit(&w, &hash);
    safetensors_write_abort(&w);
    return status;
}

enum status gradients_write(const char *folder, const struct model *m)
{
    char path[PATH_LENGTH];
    TRY(folder_make(folder));
    TRY(path_join(path, folder, "gradients.safetensors"));
    struct tensor_plan *plan = calloc((size_t)m->params.n, sizeof *plan);
    if (!plan) return fail(ERR_MEMORY, "memory: a table of %ld tensors was refused (free some memory)", m->params.n);
    enum status status = write_gradients(path, m, plan);
    free(plan);
    return status;
}

// ---- routing out ----

static void writer_free(struct routing_writer *w)
{
    free(w->expert);
    free(w->row);
    free(w->weight);
    w->expert = w->row = NULL;
    w->weight = NULL;
}

enum status routing_write_open(struct routing_writer *w, const char *path, const struct model *m)
{
    size_t n = (size_t)(m->o.B * m->o.S * m->c.K);
    *w = (struct routing_writer){.expert = malloc(n * sizeof *w->expert), .row = malloc(n * sizeof *w->row),
                                 .weight = malloc(n * sizeof *w->weight)};
    enum status status = w->expert && w->row && w->weight ? output_open(&w->out, path)
                       : fail(ERR_MEMORY, "memory: the routing of a micro-batch was refused (use a smaller one)");
    if (status != OK) writer_free(w);
    return status;
}

// Weights with the nine digits that tell every float from its neighbours.
static enum status write_token(struct routing_writer *w, long i, long K)
{
    TRY(output_print(&w->out, "\"experts\":["));
    for (long k = 0; k < K; k++) TRY(output_print(&w->out, "%s%d", k ? "," : "", w->expert[i * K + k]));
    TRY(output_print(&w->out, "],\"weights\":["));
    for (long k = 0; k < K; k++) TRY(output_print(&w->out, "%s%.9g", k ? "," : "", (double)w->weight[i * K + k]));
    TRY(output_print(&w->out, "],\"dropped\":["));
    for (long k = 0; k < K; k++)
        TRY(output_print(&w->out, "%s%s", k ? "," : "", w->row[i * K + k] < 0 ? "true" : "false"));
    return output_print(&w->out, "]}\n");
}

enum status routing_write(struct routing_writer *w, const struct model *m, long step, long first, long T)
{
    const struct kernels *k = m->x.k;
    long K = m->c.K;
    CHECK(k->acc == F32);
    for (long l = 0; l < m->c.L; l++) {
        const struct moe_saved *s = &m->saved[l].moe;
        k->to_host(w->expert, s->expert, T * K * (long)sizeof *w->expert);
        k->to_host(w->row, s->row, T * K * (long)sizeof *w->row);
        k->to_host(w->weight, s->weight, T * K * (long)sizeof *w->weight);
        for (long t = 0; t < T; t++) {
            TRY(output_print(&w->out, "{\"step\":%ld,\"layer\":%ld,\"token\":%ld,", step, l, first + t));
            TRY(write_token(w, t, K));
        }
    }
    return OK;
}

enum status routing_write_close(struct routing_writer *w)
{
    writer_free(w);
    return output_commit(&w->out, NULL);
}

void routing_write_abort(struct routing_writer *w)
{
    writer_free(w);
    output_abort(&w->out);
}

// ---- routing in ----

enum status routing_read_open(struct routing_reader *r, const char *path, const struct config *c, long T)
{
    *r = (struct routing_reader){.L = c->L, .E = c->E, .K = c->K, .T = T};
    if (snprintf(r->path, sizeof r->path, "%s", path) >= PATH_LENGTH)
        return fail(ERR_CONFIG, "--replay-routing: the path is longer than %d bytes (use a shorter one)",
                    PATH_LENGTH - 1);
    TRY(file_map_open(&r->map, path));
    r->given = malloc((size_t)(c->L * T * c->K) * sizeof *r->given);
    r->seen = malloc((size_t)(c->L * T) * sizeof *r->seen);
    if (r->given && r->seen) return OK;
    routing_read_close(r);
    return fail(ERR_MEMORY, "memory: the routing of a step was refused (use a smaller batch)");
}

void routing_read_close(struct routing_reader *r)
{
    file_map_close(&r->map);
    free(r->given);
    free(r->seen);
    *r = (struct routing_reader){0};
}

static const cJSON *list_of(const cJSON *line, const char *field, long K)
{
    const cJSON *list = json_field(line, field);
    return cJSON_IsArray(list) && cJSON_GetArraySize(list) == K ? list : NULL;
}

static enum status read_choices(struct routing_reader *r, const cJSON *line, int *given, const char *name)
{
    const cJSON *experts = list_of(line, "experts", r->K), *dropped = list_of(line, "dropped", r->K);
    if (!experts || !dropped)
        return fail(ERR_FORMAT, "%s: experts and dropped must be lists of %ld (the run routes each token to so many)",
                    name, r->K);
    const cJSON *e = experts->child, *d = dropped->child;
    for (long k = 0; k < r->K; k++, e = e->next, d = d->next) {
        if (!cJSON_IsNumber(e) || !(e->valuedouble >= 0 && e->valuedouble < (double)r->E) ||
            e->valuedouble != (double)(int)e->valuedouble || !cJSON_IsBool(d))
            return fail(ERR_FORMAT, "%s: experts must be whole numbers below %ld, dropped true or false", name, r->E);
        int expert = (int)e->valuedouble;
        for (long i = 0; i < k; i++)
            if (given[i] == expert || given[i] == -1 - expert)
                return fail(ERR_FORMAT, "%s: expert %d stands twice (a token has %ld different ones)", name, expert,
                            r->K);
        given[k] = cJSON_IsTrue(d) ? -1 - expert : expert;
    }
    return OK;
}

// *later: the line is of a step after `step`, and stays for the next call.
static enum status read_line(struct routing_reader *r, const cJSON *line, long step, bool *later, const char *name)
{
    long of_step, layer, token;
    TRY(json_long(&of_step, line, "step", -1, 0, LONG_MAX, name));
    TRY(json_long(&layer, line, "layer", -1, 0, r->L - 1, name));
    TRY(json_long(&token, line, "token", -1, 0, r->T - 1, name));
    if (of_step < 0 || layer < 0 || token < 0)
        return fail(ERR_FORMAT, "%s: step, layer or token is missing", name);
    *later = of_step > step;
    if (of_step != step) return OK;
    bool *seen = &r->seen[layer * r->T + token];
    if (*seen) return fail(ERR_FORMAT, "%s: layer %ld, token %ld stands there a second time", name, layer, token);
    *seen = true;
    return read_choices(r, line, r->given + (layer * r->T + token) * r->K, name);
}

static enum status next_line(struct routing_reader *r, long step, bool *later)
{
    char name[PATH_LENGTH + 32];
    const char *text = (const char *)r->map.data + r->at;
    const char *newline = memchr(text, '\n', (size_t)(r->map.bytes - r->at));
    long bytes = newline ? newline - text : r->map.bytes - r->at;
    cJSON *line;
    snprintf(name, sizeof name, "%s line %ld", r->path, r->line + 1);
    TRY(json_parse(&line, text, bytes, name));
    enum status status = read_line(r, line, step, later, name);
    cJSON_Delete(line);
    if (*later || status != OK) return status;
    r->at += bytes + (newline != NULL);
    r->line++;
    return OK;
}

enum status routing_read(struct routing_reader *r, long step)
{
    bool later = false;
    memset(r->seen, 0, (size_t)(r->L * r->T) * sizeof *r->seen);
    while (r->at < r->map.bytes && !later) TRY(next_line(r, step, &later));
    for (long i = 0; i < r->L * r->T; i++)
        if (!r->seen[i])
            return fail(ERR_FORMAT, "%s: has no routing of step %ld, layer %ld, token %ld (dump it from a run of the "
                        "same batch size, sequence length and data)", r->path, step, i / r->T, i % r->T);
    return OK;
}

void routing_force(const struct routing_reader *r, struct model *m, long first, long T)
{
    for (long l = 0; l < r->L; l++) {
        int *to = m->given + l * m->o.B * m->o.S * r->K;
        m->x.k->from_host(to, r->given + (l * r->T + first) * r->K, T * r->K * (long)sizeof *to);
        m->balance[l].given = to;
    }
}
