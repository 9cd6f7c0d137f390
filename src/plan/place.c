// Where the members of a group lie, and what that costs. Ranks fill hosts in order.
#include "plan/cost.h"

static long floor_div(long a, long b)
{
    return a >= 0 ? a / b : -((-a + b - 1) / b);
}

// Members first, first + stride ... (n of them) with a rank in [from, to).
static long members_within(const struct group *g, long from, long to)
{
    long low = -floor_div(g->first - from, g->stride), high = -floor_div(g->first - to, g->stride); // ceilings
    if (low < 0) low = 0;
    if (high > g->size) high = g->size;
    return high > low ? high - low : 0;
}

static void worsen(struct place *worst, const struct cluster *c, const struct group *g)
{
    long host = group_world_rank(g, g->rank) / c->devices;
    struct place p = {.near = members_within(g, host * c->devices, (host + 1) * c->devices) - 1};
    p.far = g->size - 1 - p.near;
    if (p.far > worst->far || p.near + p.far > worst->near + worst->far) *worst = p;
}

// The pattern of hosts repeats with the ranks: two hosts' worth of ranks show it, for each way a stage can lie.
void places_of(struct places *p, const struct cluster *c, const struct layout *l)
{
    long plane = l->dp * l->tp, look = plane < 2 * c->devices ? plane : 2 * c->devices, aligned = plane % c->devices;
    *p = (struct places){0};
    for (long stage = 0; stage < (aligned ? l->pp : 1) && stage < c->devices; stage++)
        for (long q = 0; q < look; q++) {
            struct grid g = grid_of(l, stage * plane + q);
            worsen(&p->tensor, c, &g.tensor);
            worsen(&p->data, c, &g.data);
            worsen(&p->expert, c, &g.expert);
            worsen(&p->expert_tensor, c, &g.expert_tensor);
            worsen(&p->replicas, c, &g.replicas);
            worsen(&p->plane, c, &g.plane);
        }
}

double place_seconds(const struct cluster *c, struct place p, double bytes)
{
    const struct wire *wire[] = {&c->inside, &c->between};
    long peers[] = {p.near, p.far};
    double longest = 0;
    for (int i = 0; i < 2; i++) {
        if (!peers[i]) continue;
        double t = (double)peers[i] * (wire[i]->latency_s.value + bytes / wire[i]->bytes_per_s.value);
        if (t > longest) longest = t;
    }
    return longest;
}

double place_overlap(const struct cluster *c, struct place p)
{
    return wire_overlap(p.far ? &c->between : &c->inside); // the slower wire is the one that is waited for
}
