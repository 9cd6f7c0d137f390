#include "comm/exchange.h"

#include <stdlib.h>

// The lists of messages of one exchange: as many as a group has members, times experts.
static struct message *message_room(long n)
{
    struct message *m = malloc((size_t)(n ? n : 1) * sizeof *m);
    if (m) return m;
    transport_end("memory: a list of %ld messages was refused", n);
}

static void add_message(struct message *list, long *n, const struct group *g, long member, const void *data, long bytes)
{
    if (bytes) list[(*n)++] = (struct message){group_world_rank(g, member), (void *)(uintptr_t)data, bytes};
}

static char *row_at(const void *rows, long row, long row_bytes)
{
    return (char *)(uintptr_t)rows + row * row_bytes;
}

// ---- tokens ----

void *tokens_gather(const struct group *g, const struct kernels *k, const void *own, void *room, long T, long row_bytes)
{
    if (g->size == 1) return (void *)(uintptr_t)own;
    struct range mine = partition(T, g->size, g->rank);
    struct message *m = message_room(2 * g->size);
    long sends = 0, receives = 0;
    for (long i = 1; i < g->size; i++) { // each starts with another member
        long to = (g->rank + i) % g->size, from = (g->rank + g->size - i) % g->size;
        struct range theirs = partition(T, g->size, from);
        add_message(m, &sends, g, to, own, mine.count * row_bytes);
        add_message(m + g->size, &receives, g, from, row_at(room, theirs.first, row_bytes), theirs.count * row_bytes);
    }
    struct transfer *t = transfer_start(g->channel, m, sends, m + g->size, receives);
    char *place = row_at(room, mine.first, row_bytes);
    if (place != own) k->copy(place, own, mine.count * row_bytes);
    transfer_wait(t);
    free(m);
    return room;
}

void tokens_reduce(const struct group *g, const struct kernels *k, void *own, void *part, void *others, long T,
                   long columns, enum dtype dtype)
{
    if (g->size == 1) {
        CHECK(own == part);
        return;
    }
    long row_bytes = columns * dtype_size(dtype), sends = 0, receives = 0, parts = 0;
    struct range mine = partition(T, g->size, g->rank);
    struct message *m = message_room(2 * g->size);
    const void **of_rank = malloc((size_t)g->size * sizeof *of_rank);
    if (!of_rank) transport_end("memory: a list of %ld ranks was refused", g->size);
    for (long i = 0; i < g->size; i++) {
        struct range theirs = partition(T, g->size, i);
        of_rank[i] = i == g->rank ? row_at(part, mine.first, row_bytes) : row_at(others, parts * mine.count, row_bytes);
        if (i == g->rank) continue;
        add_message(m, &sends, g, i, row_at(part, theirs.first, row_bytes), theirs.count * row_bytes);
        add_message(m + g->size, &receives, g, i, of_rank[i], mine.count * row_bytes);
        parts++;
    }
    transfer_wait(transfer_start(g->channel, m, sends, m + g->size, receives));
    k->add_parts(own, of_rank, g->size, dtype, mine.count * columns);
    free(of_rank);
    free(m);
}

// ---- rows of experts: who sends how many ----

void row_plan_layout(struct row_plan *p, struct arena *host, const struct grid *g, long E, long local)
{
    long ranks = g->expert.size, slices = g->expert_tensor.size;
    *p = (struct row_plan){0};
    p->own = arena_take(host, E + 1, sizeof *p->own);
    p->first_of = arena_take(host, ranks + 1, sizeof *p->first_of);
    p->bounds = arena_take(host, local * slices * (ranks + 1) + 1, sizeof *p->bounds);
    p->first = arena_take(host, local + 1, sizeof *p->first);
    if (ranks * slices == 1) return;
    p->sent = arena_take(host, E, sizeof *p->sent);
    p->counts = arena_take(host, slices * ranks * local, sizeof *p->counts);
}

static long *bounds_of(const struct row_plan *p, long expert, long slice)
{
    return p->bounds + (expert * p->slices->size + slice) * (p->expert->size + 1);
}

// counts [ranks, local]: rows of each local expert that each rank of the expert group sends here.
static void exchange_counts(const struct row_plan *p, long *counts)
{
    const struct group *g = p->expert;
    long ranks = g->size, sends = 0, receives = 0;
    long *sent = p->sent;
    struct message *m = message_room(2 * ranks);
    for (long e = 0; e < p->E; e++) sent[e] = p->own[e + 1] - p->own[e];
    for (long r = 0; r < ranks; r++) {
        long first = p->first_of[r], n = p->first_of[r + 1] - first;
        for (long e = 0; r == g->rank && e < n; e++) counts[r * p->local + e] = sent[first + e];
        if (r == g->rank) continue;
        add_message(m, &sends, g, r, sent + first, n * (long)sizeof *sent);
        add_message(m + ranks, &receives, g, r, counts + r * p->local, p->local * (long)sizeof *counts);
    }
    transfer_wait(transfer_start(g->channel, m, sends, m + ranks, receives));
    free(m);
}

// Own rows are all there are.
static void plan_alone(struct row_plan *p)
{
    for (long e = 0; e <= p->E; e++) p->first[e] = p->own[e];
    for (long e = 0; e < p->E; e++) {
        p->bounds[2 * e] = p->own[e];
        p->bounds[2 * e + 1] = p->own[e + 1];
    }
    p->rows = p->own[p->E];
}

void row_plan_make(struct row_plan *p, const struct grid *g, const long *first, long E, long chunks)
{
    p->expert = &g->expert;
    p->slices = &g->expert_tensor;
    p->E = E;
    long ranks = p->expert->size, slices = p->slices->size;
    for (long e = 0; e <= E; e++) p->own[e] = first[e];
    for (long r = 0; r < ranks; r++) p->first_of[r] = layout_range(&g->layout, AXIS_EXPERT, E, r).first;
    p->first_of[ranks] = E;
    p->local = p->first_of[p->expert->rank + 1] - p->first_of[p->expert->rank];
    p->chunks = ranks * slices == 1 ? 1 : chunks; // a rank with fewer experts leaves its last chunks empty

    if (ranks * slices == 1) {
        plan_alone(p);
        return;
    }
    long each = ranks * p->local, *counts = p->counts; // of one member of the slices' group
    exchange_counts(p, counts + p->slices->rank * each);
    group_gather(p->slices, counts, each * (long)sizeof *counts);
    long row = 0;
    for (long e = 0; e < p->local; e++) {
        p->first[e] = row;
        for (long s = 0; s < slices; s++) {
            long *bounds = bounds_of(p, e, s);
            for (long r = 0; r < ranks; r++) {
                bounds[r] = row;
                row += counts[s * each + r * p->local + e];
            }
            bounds[ranks] = row;
        }
    }
    p->first[p->local] = p->rows = row;
}

struct range row_chunk_experts(const struct row_plan *p, long chunk)
{
    return partition(p->local, p->chunks, chunk);
}

struct range row_chunk_rows(const struct row_plan *p, long chunk)
{
    struct range e = row_chunk_experts(p, chunk);
    return (struct range){p->first[e.first], p->first[e.first + e.count] - p->first[e.first]};
}

// ---- rows that travel ----

// The messages of a chunk between own rows and where they lie here: what goes out and what comes in.
struct crossing {
    struct message *out, *in;
    long outs, ins;
};

static struct crossing crossing_of(const struct row_plan *p, const void *own, const void *here, long row_bytes,
                                   long chunk)
{
    const struct group *g = p->expert;
    struct crossing c = {0};
    c.out = message_room(p->E);
    c.in = message_room(p->local * g->size);
    for (long i = 1; i < g->size; i++) {
        long to = (g->rank + i) % g->size, from = (g->rank + g->size - i) % g->size;
        struct range theirs = partition(p->first_of[to + 1] - p->first_of[to], p->chunks, chunk);
        struct range mine = row_chunk_experts(p, chunk);
        for (long e = p->first_of[to] + theirs.first, n = 0; n < theirs.count; n++, e++)
            add_message(c.out, &c.outs, g, to, row_at(own, p->own[e], row_bytes),
                        (p->own[e + 1] - p->own[e]) * row_bytes);
        for (long e = mine.first; e < mine.first + mine.count; e++) {
            const long *bounds = bounds_of(p, e, p->slices->rank);
            add_message(c.in, &c.ins, g, from, row_at(here, bounds[from], row_bytes),
                        (bounds[from + 1] - bounds[from]) * row_bytes);
        }
    }
    return c;
}

// What stays on this rank: expert by expert between `own` and `here`.
static void copy_own(const struct row_plan *p, const struct kernels *k, void *own, void *here, long row_bytes,
                     long chunk, bool back)
{
    struct range mine = row_chunk_experts(p, chunk);
    long rank = p->expert->rank;
    for (long e = mine.first; e < mine.first + mine.count; e++) {
        long from = p->own[p->first_of[rank] + e], n = p->own[p->first_of[rank] + e + 1] - from;
        char *a = row_at(own, from, row_bytes);
        char *b = row_at(here, bounds_of(p, e, p->slices->rank)[rank], row_bytes);
        if (n) k->copy(back ? a : b, back ? b : a, n * row_bytes);
    }
}

struct transfer *rows_start(const struct row_plan *p, const struct kernels *k, const void *own,
                            void *here, long row_bytes, long chunk)
{
    struct crossing c = crossing_of(p, own, here, row_bytes, chunk);
    struct transfer *t = transfer_start(p->expert->channel, c.out, c.outs, c.in, c.ins);
    copy_own(p, k, (void *)(uintptr_t)own, here, row_bytes, chunk, false);
    free(c.out);
    free(c.in);
    return t;
}

struct transfer *rows_return_start(const struct row_plan *p, const struct kernels *k, void *own, const void *here,
                                   long row_bytes, long chunk)
{
    struct crossing c = crossing_of(p, own, here, row_bytes, chunk);
    struct transfer *t = transfer_start(p->expert->channel, c.in, c.ins, c.out, c.outs);
    copy_own(p, k, own, (void *)(uintptr_t)here, row_bytes, chunk, true);
    free(c.out);
    free(c.in);
    return t;
}

// ---- slices of experts ----

void rows_share(const struct row_plan *p, void *here, long row_bytes, long chunk)
{
    const struct group *g = p->slices;
    if (g->size == 1) return;
    struct range mine = row_chunk_experts(p, chunk);
    long most = mine.count * g->size, sends = 0, receives = 0;
    struct message *m = message_room(2 * most);
    for (long i = 1; i < g->size; i++) {
        long to = (g->rank + i) % g->size, from = (g->rank + g->size - i) % g->size;
        for (long e = mine.first; e < mine.first + mine.count; e++) {
            const long *own = bounds_of(p, e, g->rank), *theirs = bounds_of(p, e, from);
            add_message(m, &sends, g, to, row_at(here, own[0], row_bytes), (own[p->expert->size] - own[0]) * row_bytes);
            add_message(m + most, &receives, g, from, row_at(here, theirs[0], row_bytes),
                        (theirs[p->expert->size] - theirs[0]) * row_bytes);
        }
    }
    transfer_wait(transfer_start(g->channel, m, sends, m + most, receives));
    free(m);
}

void rows_sum(const struct row_plan *p, const struct kernels *k, void *here, void *room, long columns,
              enum dtype dtype, long chunk)
{
    const struct group *g = p->slices;
    if (g->size == 1) return;
    struct range mine = row_chunk_experts(p, chunk), rows = row_chunk_rows(p, chunk);
    long row_bytes = columns * dtype_size(dtype), most = mine.count * g->size, sends = 0, receives = 0;
    struct message *m = message_room(2 * most);
    const void **part = malloc((size_t)g->size * sizeof *part);
    if (!part) transport_end("memory: a list of %ld ranks was refused", g->size);
    // The parts of another rank lie in room as the rows lie here.
    for (long i = 0, other = 0; i < g->size; i++) {
        if (i == g->rank) continue;
        for (long e = mine.first; e < mine.first + mine.count; e++) {
            const long *own = bounds_of(p, e, g->rank), *theirs = bounds_of(p, e, i);
            long ranks = p->expert->size;
            add_message(m, &sends, g, i, row_at(here, theirs[0], row_bytes), (theirs[ranks] - theirs[0]) * row_bytes);
            add_message(m + most, &receives, g, i,
                        row_at(room, other * rows.count + own[0] - rows.first, row_bytes),
                        (own[ranks] - own[0]) * row_bytes);
        }
        other++;
    }
    transfer_wait(transfer_start(g->channel, m, sends, m + most, receives));
    for (long e = mine.first; e < mine.first + mine.count; e++) {
        const long *own = bounds_of(p, e, g->rank);
        for (long i = 0, other = 0; i < g->size; i++)
            part[i] = i == g->rank ? row_at(here, own[0], row_bytes)
                                   : row_at(room, other++ * rows.count + own[0] - rows.first, row_bytes);
        k->add_parts(row_at(here, own[0], row_bytes), part, g->size, dtype, (own[p->expert->size] - own[0]) * columns);
    }
    free(part);
    free(m);
}
