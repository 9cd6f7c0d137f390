#include "plan/memory.h"

#include "parallel/pipeline.h"
#include "parallel/zero.h"

// ---- one rank, measured ----

// A small stage as the run's layout functions see it: the run's meshes, but other layers.
struct probe {
    long stages, stage; // of the pipeline
    long rank;          // in its stage
    long layers;        // of each stage
    enum recompute level; // of its first layer; the others keep all
    struct model_slots slots;
};

static struct model_options options_of(const struct run *r, const struct probe *p, const struct grid *g)
{
    return (struct model_options){
        .dtype = r->dtype, .training = true, .B = r->B, .S = r->S, .positions = r->S, .recompute = p->level,
        .recompute_layers = 1, .grid = g, .slots = &p->slots, .exchange_chunks = r->exchange_chunks,
        .rule = {.capacity = r->capacity, .scope = r->scope},
    };
}

static enum status measure(struct rank_bytes *b, const struct run *r, const struct probe *p)
{
    struct config c = *r->c;
    struct layout l = r->layout;
    struct model m;
    struct zero_bytes z;
    c.L = p->layers * p->stages;
    l.pp = p->stages;
    l.virtual_stages = 1;
    l.given[AXIS_LAYER] = NULL;
    struct grid g = grid_of(&l, p->stage * l.dp * l.tp + p->rank);
    struct model_options o = options_of(r, p, &g);
    TRY(model_outline(&m, &c, &o));
    enum status status = zero_measure(&z, &m, &(struct zero_options){.spread = r->zero});
    if (status == OK)
        *b = (struct rank_bytes){(double)m.parameters.peak, (double)m.gradients.peak, (double)z.optimizer,
                                 (double)m.activations.peak, (double)m.scratch_arena.peak + (double)z.room};
    model_free(&m);
    return status;
}

static struct rank_bytes sum_of(const struct rank_bytes *a, double factor, const struct rank_bytes *b)
{
    return (struct rank_bytes){a->parameters + factor * b->parameters, a->gradients + factor * b->gradients,
                               a->optimizer + factor * b->optimizer, a->saved + factor * b->saved,
                               a->scratch + factor * b->scratch};
}

// Three stages show a first, a middle and a last one.
static enum status measure_rank(struct rank_memory *m, const struct run *r, long rank)
{
    const long stages = r->layout.pp > 1 ? 3 : 1, middle = stages / 2;
    const struct probe one = {.stages = stages, .stage = middle, .rank = rank, .layers = 1, .slots = {1, 1, 0}};
    struct rank_bytes of_one, of_two, of_later;
    struct probe later = one;
    later.slots = (struct model_slots){2, 2, 1};
    TRY(measure(&of_one, r, &one));
    TRY(measure(&of_later, r, &later));
    m->waiting = of_later.saved - 2 * of_one.saved;
    m->batch = of_later.scratch - of_one.scratch;
    for (int level = RECOMPUTE_NONE; level <= RECOMPUTE_FULL; level++) {
        struct probe two = one;
        two.layers = 2;
        two.level = (enum recompute)level;
        TRY(measure(&of_two, r, &two));
        m->layer = sum_of(&of_two, -1, &of_one);
        m->kept[level] = m->layer.saved;
        m->shared[level] = m->layer.scratch;
        m->layer.saved = m->layer.scratch = 0;
    }
    for (long stage = 0; stage < stages; stage++) {
        struct probe p = one;
        struct rank_bytes b = of_one;
        p.stage = stage;
        if (stage != middle) TRY(measure(&b, r, &p));
        b = sum_of(&b, -1, &m->layer);
        b.saved = 0;
        m->place[stage == 0][stage == stages - 1] = b;
    }
    return OK;
}

// ---- which ranks ----

// Everything in which the ranks of a stage differ; who has more of it never needs less memory.
enum { TRAITS = 12 };
struct traits {
    long rank, of[TRAITS];
};

// Rows that may come here with and without dropping, in a micro-batch and in one sequence.
static void set_rows(long rows[3], const struct context *x, const struct run *r)
{
    struct moe_rule rule = {.capacity = r->capacity};
    rows[0] = moe_rows_most(x, &rule, r->B * r->S);
    rows[1] = moe_rows_most(x, &moe_rule_inference, r->B * r->S);
    rows[2] = moe_rows_most(x, &moe_rule_inference, r->S);
}

// Lower ranks of a group own more of what all of them hold (partition).
static void set_traits(struct traits *t, const struct run *r, const struct grid *g, const struct local *n,
                       const long rows[3])
{
    *t = (struct traits){.rank = g->plane.rank,
                         .of = {n->H, n->G, n->G - n->borrowed, n->V, n->E, n->F, rows[0], rows[1], rows[2],
                                -g->data.rank, r->c->E ? -g->replicas.rank : 0, -g->plane.rank}};
}

static bool outdoes(const struct traits *a, const struct traits *b)
{
    for (int i = 0; i < TRAITS; i++)
        if (a->of[i] < b->of[i]) return false;
    return true;
}

static double more(double a, double b)
{
    return a > b ? a : b;
}

static struct rank_bytes more_of_each(const struct rank_bytes *a, const struct rank_bytes *b)
{
    return (struct rank_bytes){more(a->parameters, b->parameters), more(a->gradients, b->gradients),
                               more(a->optimizer, b->optimizer), more(a->saved, b->saved),
                               more(a->scratch, b->scratch)};
}

static void add_rank(struct memory *m, const struct rank_memory *x)
{
    if (m->n < MEMORY_RANKS) {
        m->rank[m->n++] = *x;
        return;
    }
    struct rank_memory *last = &m->rank[MEMORY_RANKS - 1];
    last->layer = more_of_each(&last->layer, &x->layer);
    for (int i = 0; i < 4; i++)
        last->place[i / 2][i % 2] = more_of_each(&last->place[i / 2][i % 2], &x->place[i / 2][i % 2]);
    for (int i = 0; i <= RECOMPUTE_FULL; i++) {
        last->kept[i] = more(last->kept[i], x->kept[i]);
        last->shared[i] = more(last->shared[i], x->shared[i]);
    }
    last->waiting = more(last->waiting, x->waiting);
}

// After so many ranks of a stage they repeat, with higher ranks in their groups.
static long period(const struct layout *l)
{
    long block = l->ep * l->etp, n = l->tp;
    while (n % block) n += l->tp;
    return n;
}

// The ranks that no other outdoes; often that is the first one alone.
static enum status measure_ranks(struct memory *m, const struct run *r)
{
    enum { SEEN = 64 };
    struct traits seen[SEEN];
    long n = 0, rows[3] = {0}, replica = -1, experts = -1;
    *m = (struct memory){0};
    for (long q = 0; q < period(&r->layout); q++) {
        struct grid g = grid_of(&r->layout, q);
        struct context x = {.c = r->c, .grid = &g, .local = local_of(r->c, &g)};
        struct rank_memory made;
        if (r->c->E && (g.replica != replica || x.local.E != experts)) set_rows(rows, &x, r);
        replica = g.replica;
        experts = x.local.E;
        struct traits now;
        set_traits(&now, r, &g, &x.local, rows);
        bool outdone = false;
        for (long i = 0; i < n && !outdone; i++) outdone = outdoes(&seen[i], &now);
        if (outdone) continue;
        if (n < SEEN) seen[n++] = now;
        TRY(measure_rank(&made, r, q));
        add_rank(m, &made);
    }
    return OK;
}

// ---- what was measured before ----

static bool is_of(const struct measured *m, const struct run *r)
{
    const struct layout *l = &r->layout;
    return m->alone == (l->pp == 1) && m->dp == l->dp && m->tp == l->tp && m->ep == l->ep && m->etp == l->etp;
}

// The place of a run's measurement in the cache: its own, a free one, or, where many meet, another's.
static struct measured *find(struct memory_cache *cache, const struct run *r)
{
    const struct layout *l = &r->layout;
    size_t room = sizeof cache->slot / sizeof *cache->slot, tries = 16;
    size_t at = ((size_t)l->tp * 1009 + (size_t)l->dp * 101 + (size_t)l->ep * 31 + (size_t)l->etp * 7 +
                 (l->pp == 1)) % room;
    while (--tries && cache->slot[at].known && !is_of(&cache->slot[at], r)) at = (at + 1) % room;
    return &cache->slot[at];
}

static enum status measure_or_find(struct memory *m, const struct run *r, struct memory_cache *cache)
{
    const struct layout *l = &r->layout;
    if (!cache) return measure_ranks(m, r);
    struct measured *known = find(cache, r);
    if (!known->known || !is_of(known, r)) {
        *known = (struct measured){.alone = l->pp == 1, .dp = l->dp, .tp = l->tp, .ep = l->ep, .etp = l->etp};
        TRY(measure_ranks(&known->memory, r));
        known->known = true;
    }
    *m = known->memory;
    return OK;
}

enum status memory_of(struct memory *m, const struct run *r, struct memory_cache *cache)
{
    TRY(measure_or_find(m, r, cache));
    m->level = r->recompute;
    return OK;
}

// ---- a stage ----

static struct rank_bytes stage_of(const struct rank_memory *m, enum recompute level, const struct stage_shape *s)
{
    struct rank_bytes b = sum_of(&m->place[s->first][s->last], (double)s->layers, &m->layer);
    b.saved = (double)s->held[0] * m->kept[RECOMPUTE_NONE] + (double)s->held[1] * m->kept[level] +
              (double)s->waiting * m->waiting;
    b.scratch += (s->recompute ? m->shared[level] : 0) + (double)(s->batches - 1) * m->batch + (double)s->messages;
    return b;
}

struct rank_bytes memory_stage(const struct memory *m, const struct stage_shape *s)
{
    struct rank_bytes fullest = stage_of(&m->rank[0], m->level, s);
    for (long i = 1; i < m->n; i++) {
        struct rank_bytes b = stage_of(&m->rank[i], m->level, s);
        if (memory_total(&b) > memory_total(&fullest)) fullest = b;
    }
    return fullest;
}

double memory_total(const struct rank_bytes *b)
{
    return b->parameters + b->gradients + b->optimizer + b->saved + b->scratch;
}

long memory_messages(const struct run *r, const struct pipeline_schedule *s)
{
    struct grid g = grid_of(&r->layout, 0);
    struct model_options o = {.dtype = r->dtype, .B = r->B, .S = r->S, .grid = &g};
    return pipeline_message_bytes(&o, r->c, s);
}
