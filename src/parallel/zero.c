#include "parallel/zero.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "parallel/shared_heads.h"

enum {
    BUCKET_ELEMENTS = 8 << 20, // most elements that are summed together where several ranks share them
    FLYING = 2,                // reductions under way at a time
};

// Which ranks hold the same part.
enum holders { HOLD_DATA, HOLD_PLANE, HOLD_REPLICAS, HOLD_TIED, HOLDS };

struct bucket {
    const struct group *group;
    struct zero_run {
        const struct param *param;
        long from, n, at; // elements [from, from + n) of it are elements [at, at + n) of the bucket
    } *run;
    long runs, elements;
    struct range own;     // of the bucket, this rank's
    struct range kept;    // what state is kept for: own, or everything
    acc *master, *m, *v;  // of what is kept; master NULL where the values themselves are acc
};

struct reduction {
    struct transfer *transfer;
    long bucket;
    acc *room;
};

// ---- who holds what ----

static bool is_tied(const struct model *m, const struct param *p)
{
    return m->c.tied && m->grid.layout.pp > 1 && p->kind->rows == DIM_V;
}

static enum holders holders_of(const struct model *m, const struct param *p)
{
    if (is_tied(m, p)) return HOLD_TIED;
    if (p->kind->reduce == REDUCE_EXPERT) return HOLD_REPLICAS;
    return p->kind->reduce == REDUCE_EVERYWHERE ? HOLD_PLANE : HOLD_DATA;
}

static const struct group *group_for(const struct model *m, enum holders h)
{
    const struct grid *g = &m->grid;
    return h == HOLD_TIED ? &g->tied : h == HOLD_REPLICAS ? &g->replicas : h == HOLD_PLANE ? &g->plane : &g->data;
}

// Of a borrowed kv head the lender has the sum, so it is no part of this rank's buckets.
static long first_own(const struct param *p)
{
    return p->borrowed * p->columns;
}

static long elements_of(const struct param *p)
{
    return p->kind->counted ? 0 : p->rows * p->columns - first_own(p);
}

// ---- buckets ----

static void add_run(struct zero *z, struct bucket *b, const struct param *p, long from, long n)
{
    if (z->bucket) b->run[b->runs] = (struct zero_run){p, from, n, b->elements};
    b->runs++;
    b->elements += n;
}

// Without room it counts: *runs too.
static void close_bucket(struct zero *z, const struct bucket *b, struct zero_run **run, long *runs)
{
    if (!b->runs) return;
    if (z->bucket) z->bucket[z->buckets] = *b;
    z->buckets++;
    *runs += b->runs;
    if (run) *run += b->runs;
}

// Cuts the tensors of one layer (-1: model-wide ones) and group into buckets.
static void make_buckets(struct zero *z, long layer, enum holders h, struct zero_run **run, long *runs)
{
    const struct group *g = group_for(z->m, h);
    long most = g->size > 1 ? BUCKET_ELEMENTS : INT64_MAX / 2;
    struct bucket now = {.group = g, .run = run ? *run : NULL};
    const struct param *end = z->m->params.item + z->m->params.n;
    for (const struct param *p = z->m->params.item; p < end; p++) {
        if (p->local != layer || holders_of(z->m, p) != h) continue;
        for (long from = first_own(p), left = elements_of(p), n; left > 0; left -= n, from += n) {
            n = left < most - now.elements ? left : most - now.elements;
            add_run(z, &now, p, from, n);
            if (now.elements < most) continue;
            close_bucket(z, &now, run, runs);
            now = (struct bucket){.group = g, .run = run ? *run : NULL};
        }
    }
    close_bucket(z, &now, run, runs);
}

static long all_buckets(struct zero *z, struct zero_run *run)
{
    long runs = 0, L = z->m->x.local.L;
    z->buckets = 0;
    for (long l = 0; l <= L; l++) {
        if (z->of_layer) z->of_layer[l] = z->buckets;
        for (int h = 0; h < HOLDS; h++) make_buckets(z, l < L ? l : -1, (enum holders)h, run ? &run : NULL, &runs);
    }
    return runs;
}

// Runs of a bucket's elements [from, from + n), told one by one.
typedef void run_told(void *whom, const struct bucket *b, const struct param *p, long from, long n, long at);
static void tell_runs(const struct bucket *b, struct range r, run_told *tell, void *whom)
{
    for (const struct zero_run *run = b->run; run < b->run + b->runs; run++) {
        long first = r.first > run->at ? r.first : run->at;
        long end = r.first + r.count < run->at + run->n ? r.first + r.count : run->at + run->n;
        if (first < end) tell(whom, b, run->param, run->from + first - run->at, end - first, first);
    }
}

// ---- life ----

static void add_piece(void *whom, const struct bucket *b, const struct param *p, long from, long n, long at)
{
    struct zero *z = whom;
    const struct context *x = &z->m->x;
    struct zero_piece made = {.param = p, .from = from, .n = n};
    made.owned = at >= b->own.first && at < b->own.first + b->own.count;
    if (z->piece) {
        long i = at - b->kept.first;
        made.master = b->master ? acc_at(x, b->master, i) : NULL;
        made.m = acc_at(x, b->m, i);
        made.v = acc_at(x, b->v, i);
        z->piece[z->pieces] = made;
    }
    z->pieces++;
}

// Whole buckets, so that who owns more elements never needs less room. The tensors of a bucket are alike: all have
// masters or none has.
static void state_layout(struct zero *z, struct bucket *b)
{
    const struct kernels *k = z->m->x.k;
    long n = b->kept.count, size = dtype_size(k->acc);
    bool masters = !b->run->param->kind->in_acc && k->el != k->acc;
    for (const struct zero_run *run = b->run; run < b->run + b->runs; run++)
        CHECK(run->param->kind->in_acc == b->run->param->kind->in_acc);
    b->master = arena_take(&z->optimizer, masters ? n : 0, size);
    b->m = arena_take(&z->optimizer, n, size);
    b->v = arena_take(&z->optimizer, n, size);
}

// Of a bucket: what others own before, what is owned, what others own after. Spread, only the owned part is here.
static void pieces_layout(struct zero *z)
{
    z->pieces = 0;
    for (long i = 0; i < z->buckets; i++) {
        struct bucket *b = &z->bucket[i];
        b->own = partition(b->elements, b->group->size, b->group->rank);
        b->kept = z->o.spread ? b->own : (struct range){0, b->elements};
        state_layout(z, b);
        long end = b->own.first + b->own.count;
        if (!z->o.spread) tell_runs(b, (struct range){0, b->own.first}, add_piece, z);
        tell_runs(b, b->own, add_piece, z);
        if (!z->o.spread) tell_runs(b, (struct range){end, b->elements - end}, add_piece, z);
    }
}

// Room in which a bucket's parts of other ranks arrive.
static long room_of(const struct bucket *b)
{
    return (b->group->size - 1) * b->own.count;
}

static void room_layout(struct zero *z)
{
    long most = 0;
    for (long i = 0; i < z->buckets; i++)
        if (room_of(&z->bucket[i]) > most) most = room_of(&z->bucket[i]);
    for (int i = 0; i < FLYING; i++) {
        acc *room = arena_take(&z->room, most, dtype_size(z->m->x.k->acc));
        if (z->flying) z->flying[i].room = room;
    }
}

static enum status measured(struct zero *z, struct model *m, const struct zero_options *o)
{
    *z = (struct zero){.m = m, .o = *o};
    z->optimizer = arena_measure("the optimizer", m->x.k->device);
    z->room = arena_measure("gradients of other ranks", m->x.k->device);
    long runs = all_buckets(z, NULL);
    z->bucket = calloc((size_t)z->buckets + 1, sizeof *z->bucket);
    struct zero_run *run = calloc((size_t)runs + 1, sizeof *run);
    z->of_layer = calloc((size_t)m->x.local.L + 1, sizeof *z->of_layer);
    z->squares = calloc((size_t)m->params.all + 1, sizeof *z->squares);
    if (z->bucket) z->bucket->run = run;
    if (!z->bucket || !run || !z->of_layer || !z->squares) {
        free(run);
        if (z->bucket) z->bucket->run = NULL;
        return fail(ERR_MEMORY, "memory: a list of %ld pieces was refused (free some memory)", runs);
    }
    all_buckets(z, run);
    z->bucket->run = run; // also where there is no bucket
    pieces_layout(z);
    room_layout(z);
    return OK;
}

static enum status placed(struct zero *z)
{
    z->piece = calloc((size_t)z->pieces + 1, sizeof *z->piece);
    z->flying = calloc(FLYING, sizeof *z->flying);
    if (!z->piece || !z->flying) return fail(ERR_MEMORY, "memory: a list of %ld pieces was refused", z->pieces);
    TRY(arena_reserve(&z->optimizer));
    TRY(arena_reserve(&z->room));
    pieces_layout(z);
    room_layout(z);
    return OK;
}

enum status zero_init(struct zero *z, struct model *m, const struct zero_options *o)
{
    enum status s = measured(z, m, o);
    if (s == OK) s = placed(z);
    if (s != OK) zero_free(z);
    return s;
}

void zero_free(struct zero *z)
{
    if (z->bucket) free(z->bucket->run);
    free(z->bucket);
    free(z->of_layer);
    free(z->squares);
    free(z->piece);
    free(z->flying);
    arena_release(&z->optimizer);
    arena_release(&z->room);
    *z = (struct zero){0};
}

enum status zero_measure(struct zero_bytes *bytes, struct model *m, const struct zero_options *o)
{
    struct zero z;
    enum status s = measured(&z, m, o);
    if (s == OK) *bytes = (struct zero_bytes){z.optimizer.peak, z.room.peak};
    zero_free(&z);
    return s;
}

// ---- masters ----

static struct tensor elements_at(struct tensor t, long from)
{
    t.data = (char *)t.data + from * dtype_size(t.dtype);
    return t;
}

void zero_init_masters(struct zero *z, const struct init_rule *rule)
{
    const struct kernels *k = z->m->x.k;
    long size = dtype_size(k->acc);
    for (const struct zero_piece *p = z->piece; p < z->piece + z->pieces; p++)
        for (long i = 0, n; p->master && i < p->n; i += n) {
            n = p->n - i < DRAW_CHUNK ? p->n - i : DRAW_CHUNK;
            param_draw(z->m, p->param, rule, p->from + i, n);
            k->copy((char *)p->master + i * size, z->m->drawn, n * size);
        }
}

// ---- messages ----

static acc *gradient_at(const struct zero *z, const struct param *p, long from)
{
    return acc_at(&z->m->x, p->grad, from);
}

acc *zero_gradient(const struct zero *z, const struct zero_piece *p)
{
    return gradient_at(z, p->param, p->from);
}

struct mail {
    const struct zero *z;
    struct message *m;
    long n, most;
    long peer;
    bool values; // else gradients
    acc *room;   // not NULL: where the peer's part of own elements arrives
};

static void add_mail(void *whom, const struct bucket *b, const struct param *p, long from, long n, long at)
{
    struct mail *mail = whom;
    CHECK(mail->n < mail->most);
    void *data = mail->room     ? acc_at(&mail->z->m->x, mail->room, at - b->own.first)
                 : mail->values ? elements_at(p->value, from).data
                                : gradient_at(mail->z, p, from);
    long size = dtype_size(mail->values ? p->value.dtype : mail->z->m->x.k->acc);
    mail->m[mail->n++] = (struct message){group_world_rank(b->group, mail->peer), data, n * size};
}

static struct mail mail_room(const struct zero *z, const struct bucket *b, bool values)
{
    long most = b->group->size * (b->runs + 1) + b->runs;
    struct mail mail = {.z = z, .most = most, .values = values};
    mail.m = malloc((size_t)most * sizeof *mail.m);
    if (!mail.m) transport_end("memory: a list of %ld messages was refused", most);
    return mail;
}

// This rank's pieces go to the others, and theirs come: values, or summed gradients.
static struct transfer *spread_start(const struct zero *z, const struct bucket *b, bool values)
{
    const struct group *g = b->group;
    struct mail out = mail_room(z, b, values), in = mail_room(z, b, values);
    for (long i = 1; i < g->size; i++) {
        out.peer = (g->rank + i) % g->size;
        in.peer = (g->rank + g->size - i) % g->size;
        tell_runs(b, b->own, add_mail, &out);
        tell_runs(b, partition(b->elements, g->size, in.peer), add_mail, &in);
    }
    struct transfer *t = transfer_start(g->channel, out.m, out.n, in.m, in.n);
    free(out.m);
    free(in.m);
    return t;
}

// ---- reduce ----

static void reduction_start(struct zero *z, long bucket)
{
    const struct bucket *b = &z->bucket[bucket];
    const struct group *g = b->group;
    struct reduction *r = &z->flying[z->flying_n++];
    struct mail out = mail_room(z, b, false), in = mail_room(z, b, false);
    for (long i = 1; i < g->size; i++) {
        out.peer = (g->rank + i) % g->size;
        in.peer = (g->rank + g->size - i) % g->size;
        in.room = acc_at(&z->m->x, r->room, (in.peer - (in.peer > g->rank)) * b->own.count);
        tell_runs(b, partition(b->elements, g->size, out.peer), add_mail, &out);
        tell_runs(b, b->own, add_mail, &in);
    }
    r->bucket = bucket;
    r->transfer = transfer_start(g->channel, out.m, out.n, in.m, in.n);
    free(in.m);
    free(out.m);
}

struct summing {
    struct zero *z;
    const void **part;
    acc *room;
};

static void sum_run(void *whom, const struct bucket *b, const struct param *p, long from, long n, long at)
{
    struct summing *s = whom;
    const struct context *x = &s->z->m->x;
    for (long i = 0, other = 0; i < b->group->size; i++)
        s->part[i] = i == b->group->rank ? gradient_at(s->z, p, from)
                                         : acc_at(x, s->room, other++ * b->own.count + at - b->own.first);
    x->k->add_parts(gradient_at(s->z, p, from), s->part, b->group->size, x->k->acc, n);
}

// The oldest reduction under way ends: its parts are added up in rank order.
static void reduction_finish(struct zero *z)
{
    struct reduction first = z->flying[0];
    const struct bucket *b = &z->bucket[first.bucket];
    transfer_wait(first.transfer);
    struct summing s = {z, malloc((size_t)b->group->size * sizeof *s.part), first.room};
    if (!s.part) transport_end("memory: a list of %ld ranks was refused", b->group->size);
    tell_runs(b, b->own, sum_run, &s);
    free(s.part);
    z->flying_n--;
    for (long i = 0; i < z->flying_n; i++) z->flying[i] = z->flying[i + 1];
    z->flying[z->flying_n] = (struct reduction){.room = first.room};
}

static void reduce_buckets(struct zero *z, long first, long end)
{
    for (long i = first; i < end; i++) {
        if (z->bucket[i].group->size == 1) continue;
        if (z->flying_n == FLYING) reduction_finish(z);
        reduction_start(z, i);
    }
}

// ---- a step ----

void zero_layer(struct zero *z, long layer)
{
    shared_heads_sum(z->m, layer);
    reduce_buckets(z, z->of_layer[layer], z->of_layer[layer + 1]);
}

void zero_reduce(struct zero *z)
{
    long L = z->m->x.local.L;
    reduce_buckets(z, z->of_layer[L], z->buckets);
    while (z->flying_n) reduction_finish(z);
    for (long i = 0; !z->o.spread && i < z->buckets; i++)
        if (z->bucket[i].group->size > 1) transfer_wait(spread_start(z, &z->bucket[i], false));
}

// Sums of squares of each tensor over the world.
static void sum_squares(struct zero *z)
{
    long n = z->m->params.all;
    for (long i = 0; i < n; i++) z->squares[i] = 0;
    for (const struct zero_piece *p = z->piece; p < z->piece + z->pieces; p++)
        if (p->owned) z->squares[p->param->index] += z->m->x.k->sum_squares(zero_gradient(z, p), p->n);
    group_sum_f64(&z->m->grid.world, z->squares, n);
}

double zero_norm(struct zero *z)
{
    double sum = 0;
    sum_squares(z);
    for (long i = 0; i < z->m->params.all; i++) sum += z->squares[i];
    return sqrt(sum);
}

long zero_not_finite(const struct zero *z)
{
    for (long i = 0; i < z->m->params.all; i++)
        if (!isfinite(z->squares[i])) return i;
    return -1;
}

void zero_update(struct zero *z, struct adamw_step s)
{
    const struct kernels *k = z->m->x.k;
    double decay = s.weight_decay;
    for (const struct zero_piece *p = z->piece; p < z->piece + z->pieces; p++) {
        s.weight_decay = p->param->kind->decay ? decay : 0;
        k->adamw(elements_at(p->param->value, p->from), p->master, p->m, p->v, zero_gradient(z, p), p->n, s);
    }
    for (long i = 0; z->o.spread && i < z->buckets; i++)
        if (z->bucket[i].group->size > 1) transfer_wait(spread_start(z, &z->bucket[i], true));
    for (long l = 0; l < z->m->x.local.L; l++) shared_heads_return(z->m, l);
}
