#include "model/context.h"

void config_items(long items[AXES], const struct config *c)
{
    items[AXIS_LAYER] = c->L;
    items[AXIS_HEAD] = c->H;
    items[AXIS_FFN] = c->E ? 0 : c->F;
    items[AXIS_VOCAB] = c->V;
    items[AXIS_EXPERT] = c->E;
    items[AXIS_EXPERT_FFN] = c->E ? c->F : 0;
}

struct local local_of(const struct config *c, const struct grid *g)
{
    const struct layout *l = &g->layout;
    struct range heads = layout_range(l, AXIS_HEAD, c->H, g->tp), rows = layout_range(l, AXIS_VOCAB, c->V, g->tp);
    struct range experts = layout_range(l, AXIS_EXPERT, c->E, g->ep);
    struct range columns = layout_range(l, c->E ? AXIS_EXPERT_FFN : AXIS_FFN, c->F, c->E ? g->etp : g->tp);
    long per_kv = c->H / c->G, last = heads.first + heads.count - 1;
    return (struct local){
        .H = heads.count,
        .G = heads.count ? last / per_kv - heads.first / per_kv + 1 : 0,
        .V = rows.count,
        .E = experts.count,
        .F = columns.count,
        .first_head = heads.first,
        .first_kv = heads.first / per_kv,
        .first_row = rows.first,
        .first_expert = experts.first,
        .first_column = columns.first,
    };
}
