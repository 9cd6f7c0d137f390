#include "plan/memory.h"

static struct rank_bytes parameters_of(const struct run *r, const struct places *p, struct held h)
{
    double size = (double)dtype_size(r->dtype), held = h.dense + h.experts, owned = owned_of(r, p, h);
    double own_norms = r->zero ? h.everywhere / (double)(p->plane.near + p->plane.far + 1) : h.everywhere;
    bool masters = r->dtype != F32;
    return (struct rank_bytes){
        .parameters = size * held + 4 * h.everywhere,
        .gradients = 4 * (held + h.everywhere),
        .optimizer = 8 * owned + (masters ? 4 * (owned - own_norms) : 0),
    };
}

static struct held minus(struct held a, struct held b)
{
    return (struct held){a.dense - b.dense, a.everywhere - b.everywhere, a.experts - b.experts};
}

// What a model of so many layers, all of which recompute at that level, saves and needs besides.
static enum status measure(struct model_bytes *b, const struct run *r, long layers, enum recompute level)
{
    struct config c = *r->c;
    c.L = layers;
    struct model_options o = {.dtype = r->dtype, .training = true, .B = r->B, .S = r->S, .positions = r->S,
                              .recompute = level, .recompute_layers = -1};
    return model_measure(b, &c, &o);
}

// Of one rank; the ranks of a tensor group share it evenly.
static enum status measure_activations(struct measured *m, const struct run *r)
{
    struct model_bytes one, two, again, again_two;
    double share = 1.0 / (double)r->layout.tp;
    TRY(measure(&one, r, 1, RECOMPUTE_NONE));
    TRY(measure(&two, r, 2, RECOMPUTE_NONE));
    TRY(measure(&again, r, 1, r->recompute));
    TRY(measure(&again_two, r, 2, r->recompute));
    m->kept[0] = share * (double)(two.saved - one.saved);
    m->kept[1] = share * (double)(again_two.saved - again.saved);
    m->shared = share * (double)(again.scratch - one.scratch);
    m->scratch = share * (double)one.scratch;
    return OK;
}

static bool is_of(const struct measured *m, const struct run *r)
{
    return m->tp == r->layout.tp && m->ep == r->layout.ep && m->etp == r->layout.etp && m->level == r->recompute;
}

// The place of a run's measurement in the cache: its own, a free one, or, where many meet, another's.
static struct measured *find(struct memory_cache *cache, const struct run *r)
{
    const struct layout *l = &r->layout;
    size_t room = sizeof cache->slot / sizeof *cache->slot, tries = 16;
    size_t at = ((size_t)l->tp * 1009 + (size_t)l->ep * 31 + (size_t)l->etp * 7 + (size_t)r->recompute) % room;
    while (--tries && cache->slot[at].known && !is_of(&cache->slot[at], r)) at = (at + 1) % room;
    return &cache->slot[at];
}

static enum status set_activations(struct memory *m, const struct run *r, struct memory_cache *cache)
{
    struct measured own = {0}, *known = cache ? find(cache, r) : &own;
    if (!known->known || !is_of(known, r)) {
        *known = (struct measured){.tp = r->layout.tp, .ep = r->layout.ep, .etp = r->layout.etp, .level = r->recompute};
        TRY(measure_activations(known, r));
        known->known = true;
    }
    m->kept[0] = known->kept[0];
    m->kept[1] = known->kept[1];
    m->shared = known->shared;
    m->scratch = known->scratch;
    return OK;
}

enum status memory_of(struct memory *m, const struct run *r, struct memory_cache *cache)
{
    struct places p;
    bool alone = r->layout.pp == 1; // then a tied head is the embedding
    places_of(&p, r->cluster, &r->layout);
    *m = (struct memory){.layer = parameters_of(r, &p, held_by(r, 1, false, false)),
                         .first = parameters_of(r, &p, held_by(r, 0, true, false)),
                         .last = parameters_of(r, &p, minus(held_by(r, 0, alone, true), held_by(r, 0, alone, false)))};
    return set_activations(m, r, cache);
}

static void add(struct rank_bytes *sum, long times, const struct rank_bytes *b)
{
    sum->parameters += (double)times * b->parameters;
    sum->gradients += (double)times * b->gradients;
    sum->optimizer += (double)times * b->optimizer;
}

struct rank_bytes memory_stage(const struct memory *m, const struct stage_shape *s)
{
    struct rank_bytes b = {0};
    add(&b, s->layers, &m->layer);
    add(&b, s->first, &m->first);
    add(&b, s->last, &m->last);
    b.saved = (double)(s->held[0] + s->waiting) * m->kept[0] + (double)s->held[1] * m->kept[1];
    b.scratch = m->scratch + (s->recompute ? m->shared : 0);
    return b;
}

double memory_total(const struct rank_bytes *b)
{
    return b->parameters + b->gradients + b->optimizer + b->saved + b->scratch;
}
