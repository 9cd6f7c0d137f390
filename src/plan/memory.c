#include "plan/memory.h"

// The view of a rank: shape, groups and local sizes, but no kernel is called and no memory reserved.
static struct context context_of(const struct run *r, struct grid *grid)
{
    *grid = grid_of(&r->layout, 0); // the first parts of a partition are the largest
    return (struct context){.k = kernels_for(r->dtype), .c = r->c, .grid = grid, .local = local_of(r->c, grid)};
}

static struct model_bytes parameters_of(const struct run *r, const struct places *p, struct held h)
{
    double size = (double)dtype_size(r->dtype), held = h.dense + h.experts, owned = owned_of(r, p, h);
    double own_norms = r->zero ? h.everywhere / (double)(p->plane.near + p->plane.far + 1) : h.everywhere;
    bool masters = r->dtype != F32;
    return (struct model_bytes){
        .parameters = (long)(size * held + 4 * h.everywhere),
        .gradients = (long)(4 * (held + h.everywhere)),
        .optimizer = (long)(8 * owned + (masters ? 4 * (owned - own_norms) : 0)),
    };
}

static struct held minus(struct held a, struct held b)
{
    return (struct held){a.dense - b.dense, a.everywhere - b.everywhere, a.experts - b.experts};
}

static void set_activations(struct memory *m, const struct run *r)
{
    struct grid grid;
    struct context x = context_of(r, &grid);
    struct block_saved saved;
    struct block_scratch scratch;
    struct head_scratch head;
    struct arena kept = arena_measure("kept", DEVICE_CPU), shared = kept, host = kept, a = kept;
    long T = r->B * r->S, el_size = dtype_size(x.k->el);
    block_saved_layout(&saved, RECOMPUTE_NONE, &kept, &shared, &host, &x, T, 1);
    m->kept[0] = (double)kept.used;
    kept.used = shared.used = 0;
    block_saved_layout(&saved, r->recompute, &kept, &shared, &host, &x, T, 1);
    m->kept[1] = (double)kept.used;
    m->shared = (double)shared.used;
    arena_take(&a, T * r->c->D, el_size);                          // dy
    arena_take(&a, r->S * r->c->C, dtype_size(x.k->acc));          // angles
    arena_take(&a, 4 * T, sizeof(int));                            // the batch
    arena_take(&a, T * r->c->D, el_size);                          // out
    block_scratch_layout(&scratch, &a, &host, &x, T, true);
    m->scratch = (double)a.used;
    a.used = 0;
    head_scratch_layout(&head, &a, &x, T, true);
    m->scratch_last = (double)a.used;
}

void memory_of(struct memory *m, const struct run *r)
{
    struct places p;
    struct held none = held_by(r, 0, false, false);
    places_of(&p, r->cluster, &r->layout);
    *m = (struct memory){0};
    m->layer = parameters_of(r, &p, minus(held_by(r, 1, false, false), none));
    m->first = parameters_of(r, &p, minus(held_by(r, 0, true, false), none));
    m->last = parameters_of(r, &p, minus(held_by(r, 0, r->layout.pp == 1, true),
                                         held_by(r, 0, r->layout.pp == 1, false)));
    set_activations(m, r);
}

static void add(struct model_bytes *sum, long times, const struct model_bytes *b)
{
    sum->parameters += times * b->parameters;
    sum->gradients += times * b->gradients;
    sum->optimizer += times * b->optimizer;
}

struct model_bytes memory_stage(const struct memory *m, const struct stage_shape *s)
{
    struct model_bytes b = {0};
    add(&b, s->layers, &m->layer);
    add(&b, s->first, &m->first);
    add(&b, s->last, &m->last);
    b.saved = (long)((double)(s->held[0] + s->waiting) * m->kept[0] + (double)s->held[1] * m->kept[1]);
    b.scratch = (long)(m->scratch + (s->last ? m->scratch_last : 0) + (s->recompute ? m->shared : 0));
    return b;
}

double memory_total(const struct model_bytes *b)
{
    return (double)b->parameters + (double)b->gradients + (double)b->optimizer + (double)b->saved + (double)b->scratch;
}
