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

// The tensor rank that reads kv head `kv` first; `rank` itself when no lower one does.
static long lowest_reader(const struct config *c, const struct layout *l, long kv, long rank)
{
    for (long i = 0; i < rank; i++) {
        struct range heads = layout_range(l, AXIS_HEAD, c->H, i);
        if (heads.count && (heads.first + heads.count - 1) / (c->H / c->G) >= kv) return i;
    }
    return rank;
}

struct local local_of(const struct config *c, const struct grid *g)
{
    const struct layout *l = &g->layout;
    struct range heads = layout_range(l, AXIS_HEAD, c->H, g->tp), rows = layout_range(l, AXIS_VOCAB, c->V, g->tp);
    struct range experts = layout_range(l, AXIS_EXPERT, c->E, g->ep);
    struct range columns = layout_range(l, c->E ? AXIS_EXPERT_FFN : AXIS_FFN, c->F, c->E ? g->etp : g->tp);
    long per_kv = c->H / c->G, last = heads.first + heads.count - 1;
    struct local n = {
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
        .embeds = g->pp == 0,
        .ends = g->pp == l->pp - 1,
    };
    n.lender = n.G ? lowest_reader(c, l, n.first_kv, g->tp) : g->tp;
    n.borrowed = n.lender < g->tp;
    for (long v = 0; v < l->virtual_stages; v++) n.L += chunk_layers(c, g, v).count;
    return n;
}

struct range chunk_layers(const struct config *c, const struct grid *g, long v)
{
    return layout_range(&g->layout, AXIS_LAYER, c->L, v * g->layout.pp + g->pp);
}

long layer_of(const struct config *c, const struct grid *g, long l)
{
    for (long v = 0; v < g->layout.virtual_stages; v++) {
        struct range layers = chunk_layers(c, g, v);
        if (l < layers.count) return layers.first + l;
        l -= layers.count;
    }
    CHECK(!"a local layer");
}

const int *vocabulary_rows(const struct context *x, const int *token, const int *host, long n, int absent)
{
    enum { PIECE = 256 };
    int row[PIECE];
    if (x->grid->tensor.size == 1) return token;
    for (long i = 0; i < n; i += PIECE) {
        long m = n - i < PIECE ? n - i : PIECE;
        for (long j = 0; j < m; j++) {
            long at = host[i + j] - x->local.first_row;
            row[j] = host[i + j] < 0 ? -1 : at >= 0 && at < x->local.V ? (int)at : absent;
        }
        x->k->from_host(x->room.row + i, row, m * (long)sizeof *row);
    }
    return x->room.row;
}
