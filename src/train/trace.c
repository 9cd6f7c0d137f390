#include "train/trace.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "checkpoint/folder.h"

enum { CHUNK = 1 << 16 }; // elements that pass through the host at a time

// ---- gradients ----

static enum status write_piece(struct placed_file *file, const struct zero *z, const struct zero_piece *p)
{
    static double raw[CHUNK]; // room for either type
    static float values[CHUNK];
    const struct kernels *k = z->m->x.k;
    for (long i = 0, n; i < p->n; i += n) {
        long run, at = param_global(p->param, p->from + i, &run);
        n = run < p->n - i ? run : p->n - i;
        if (n > CHUNK) n = CHUNK;
        k->to_host(raw, acc_at(&z->m->x, zero_gradient(z, p), i), n * dtype_size(k->acc));
        floats_from_values(values, raw, k->acc, n);
        TRY(placed_file_write(file, p->param->name, values, at * (long)sizeof *values, n * (long)sizeof *values));
    }
    return OK;
}

static enum status write_pieces(const char *path, const struct tensor_plan *plan, long n, const struct zero *z)
{
    struct placed_file file;
    TRY(placed_file_open(&file, path, plan, n));
    enum status status = OK;
    for (const struct zero_piece *p = z->piece; p < z->piece + z->pieces && status == OK; p++)
        if (p->owned) status = write_piece(&file, z, p);
    return placed_file_close(&file, status);
}

static enum status write_gradients(const char *path, struct tensor_plan *plan, const struct param_list *list,
                                   const struct zero *z)
{
    long n = 0;
    for (const struct param *p = list->item; p < list->item + list->n; p++) {
        if (p->kind->counted) continue;
        struct tensor_plan *t = &plan[n++];
        memcpy(t->name, p->name, sizeof p->name);
        t->dtype = F32;
        t->rank = p->kind->columns == DIM_NONE ? 1 : 2;
        t->shape[0] = p->rows;
        t->shape[1] = p->columns;
    }
    bool first = transport_rank() == 0;
    enum status status = agree(first ? placed_file_make(path, plan, n) : OK);
    if (status == OK) status = agree(write_pieces(path, plan, n, z));
    if (status == OK) status = agree(first ? placed_file_finish(path) : OK);
    if (status != OK && first) placed_file_abort(path);
    return status;
}

enum status gradients_write(const char *folder, const struct zero *z)
{
    char path[PATH_LENGTH];
    struct param_list list;
    TRY(agree(path_join(path, folder, "gradients.safetensors")));
    TRY(agree(param_list_of(&list, &z->m->c, NULL)));
    struct tensor_plan *plan = calloc((size_t)list.n, sizeof *plan);
    enum status status = agree(plan ? OK : fail(ERR_MEMORY, "memory: a table of %ld tensors was refused", list.n));
    if (status == OK) status = write_gradients(path, plan, &list, z);
    free(plan);
    param_list_free(&list);
    return status;
}

// ---- routing out ----

static void writer_free(struct routing_writer *w)
{
    free(w->expert);
    free(w->row);
    free(w->weight);
    free(w->text);
    w->expert = w->row = NULL;
    w->weight = NULL;
    w->text = NULL;
}

enum status routing_write_open(struct routing_writer *w, const char *path, const struct model *m)
{
    size_t n = (size_t)(m->o.B * m->o.S * m->c.K);
    *w = (struct routing_writer){.expert = malloc(n * sizeof *w->expert), .row = malloc(n * sizeof *w->row),
                                 .weight = malloc(n * sizeof *w->weight)};
    enum status status = w->expert && w->row && w->weight ? OK
                       : fail(ERR_MEMORY, "memory: the routing of a micro-batch was refused (use a smaller one)");
    if (status == OK && transport_rank() == 0)
        status = path_exists(path) ? fail(ERR_IO, "%s: exists already (choose another name or remove it)", path)
                                   : output_open(&w->out, path);
    if (status != OK) writer_free(w);
    return status;
}

static enum status grow(struct routing_writer *w, long bytes)
{
    if (w->room - w->used >= bytes) return OK;
    long room = 2 * w->room + bytes;
    char *text = realloc(w->text, (size_t)room);
    if (!text) return fail(ERR_MEMORY, "memory: the routing of a step was refused (use a smaller batch)");
    w->text = text;
    w->room = room;
    return OK;
}

static void put(struct routing_writer *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(struct routing_writer *w, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    w->used += vsnprintf(w->text + w->used, (size_t)(w->room - w->used), format, arguments);
    va_end(arguments);
    CHECK(w->used < w->room);
}

// Weights with the nine digits that tell every float from its neighbours.
static void put_token(struct routing_writer *w, long i, long K)
{
    put(w, "\"experts\":[");
    for (long k = 0; k < K; k++) put(w, "%s%d", k ? "," : "", w->expert[i * K + k]);
    put(w, "],\"weights\":[");
    for (long k = 0; k < K; k++) put(w, "%s%.9g", k ? "," : "", (double)w->weight[i * K + k]);
    put(w, "],\"dropped\":[");
    for (long k = 0; k < K; k++) put(w, "%s%s", k ? "," : "", w->row[i * K + k] < 0 ? "true" : "false");
    put(w, "]}\n");
}

enum status routing_write(struct routing_writer *w, const struct model *m, const struct micro *i, long step, long first,
                          long T)
{
    const struct kernels *k = m->x.k;
    struct range own = own_tokens(&m->x, T), layers = chunk_layers(&m->c, &m->grid, i->chunk);
    long K = m->c.K, most = 128 + 48 * K; // bytes of a line
    CHECK(k->acc == F32);
    TRY(grow(w, layers.count * own.count * most + 1));
    for (long l = layers.first; l < layers.first + layers.count; l++) {
        const struct layer_slots *slots = &m->slots[model_local_layer(m, l)];
        const struct moe_saved *s = &slots->saved[i->number % slots->saved_n].moe;
        k->to_host(w->expert, s->expert, own.count * K * (long)sizeof *w->expert);
        k->to_host(w->row, s->row, own.count * K * (long)sizeof *w->row);
        k->to_host(w->weight, s->weight, own.count * K * (long)sizeof *w->weight);
        for (long t = 0; t < own.count; t++) {
            put(w, "{\"step\":%ld,\"layer\":%ld,\"token\":%ld,", step, l, first + own.first + t);
            put_token(w, t, K);
        }
    }
    return OK;
}

// Rank 0 takes the others' lines in their order.
enum status routing_write_step(struct routing_writer *w)
{
    struct group world = group_of("world", CHANNEL_WORLD, 0, 1, transport_ranks(), transport_rank());
    enum status status = OK;
    if (world.rank == 0) status = output_write(&w->out, w->text, w->used);
    for (long r = 1; r < world.size; r++) {
        long bytes = world.rank == r ? w->used : 0;
        group_sum_long(&world, &bytes, 1);
        if (world.rank == 0) {
            w->used = 0;
            if (grow(w, bytes + 1) != OK) transport_end("%s", fail_message());
        }
        struct message m = {world.rank == 0 ? r : 0, w->text, bytes};
        if (world.rank == 0) transfer_wait(transfer_start(CHANNEL_WORLD, NULL, 0, &m, 1));
        if (world.rank == r) transfer_wait(transfer_start(CHANNEL_WORLD, &m, 1, NULL, 0));
        if (world.rank == 0 && status == OK) status = output_write(&w->out, w->text, bytes);
    }
    w->used = 0;
    return status;
}

enum status routing_write_close(struct routing_writer *w)
{
    writer_free(w);
    return transport_rank() == 0 ? output_commit(&w->out, NULL) : OK;
}

void routing_write_abort(struct routing_writer *w)
{
    writer_free(w);
    if (transport_rank() == 0) output_abort(&w->out);
}

// ---- routing in ----

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
    if (step == r->step) return OK;
    r->step = 0;
    memset(r->seen, 0, (size_t)(r->L * r->T) * sizeof *r->seen);
    while (r->at < r->map.bytes && !later) TRY(next_line(r, step, &later));
    for (long i = 0; i < r->L * r->T; i++)
        if (!r->seen[i])
            return fail(ERR_FORMAT, "%s: has no routing of step %ld, layer %ld, token %ld (dump it from a run of the "
                        "same batch size, sequence length and data)", r->path, step, i / r->T, i % r->T);
    r->step = step;
    return OK;
}

// Steps ascend: the last line has the last one.
static enum status check_last(const struct routing_reader *r, long last)
{
    char name[PATH_LENGTH + 32];
    const char *text = (const char *)r->map.data;
    long end = r->map.bytes - (text[r->map.bytes - 1] == '\n'), begin = end, step;
    cJSON *line;
    while (begin > 0 && text[begin - 1] != '\n') begin--;
    snprintf(name, sizeof name, "%s, last line", r->path);
    TRY(json_parse(&line, text + begin, end - begin, name));
    enum status status = json_long(&step, line, "step", 0, 0, LONG_MAX, name);
    cJSON_Delete(line);
    TRY(status);
    if (step >= last) return OK;
    return fail(ERR_FORMAT, "%s: ends with step %ld, but --train-steps is %ld (dump more, or use fewer)", r->path, step,
                last);
}

static enum status check_steps(struct routing_reader *r, long first, long last)
{
    if (first > last) return OK;
    TRY(routing_read(r, first)); // is it of such a run at all?
    return check_last(r, last);
}

enum status routing_read_open(struct routing_reader *r, const char *path, const struct config *c, long T, long first,
                              long last)
{
    *r = (struct routing_reader){.L = c->L, .E = c->E, .K = c->K, .T = T};
    if (snprintf(r->path, sizeof r->path, "%s", path) >= PATH_LENGTH)
        return fail(ERR_CONFIG, "--replay-routing: the path is longer than %d bytes (use a shorter one)",
                    PATH_LENGTH - 1);
    TRY(file_map_open(&r->map, path));
    r->given = malloc((size_t)(c->L * T * c->K) * sizeof *r->given);
    r->seen = malloc((size_t)(c->L * T) * sizeof *r->seen);
    enum status status = r->given && r->seen
                       ? check_steps(r, first, last)
                       : fail(ERR_MEMORY, "memory: the routing of a step was refused (use a smaller batch)");
    if (status != OK) routing_read_close(r);
    return status;
}

void routing_force(const struct routing_reader *r, struct model *m, long first, long T)
{
    for (long l = 0; l < m->x.local.L; l++) {
        long layer = m->slots[l].layer;
        int *to = m->given + l * m->o.B * m->o.S * r->K;
        m->x.k->from_host(to, r->given + (layer * r->T + first) * r->K, T * r->K * (long)sizeof *to);
        m->balance[layer].given = to;
    }
}
