#include "model/context.h"

struct local local_of(const struct config *c, const struct grid *g)
{
    const struct group *tensor = &g->tensor, *expert = &g->expert, *columns = c->E ? &g->expert_tensor : tensor;
    struct range heads = partition(c->H, tensor->size, tensor->rank);
    long per_kv = c->H / c->G, last = heads.first + heads.count - 1;
    return (struct local){
        .H = heads.count,
        .G = heads.count ? last / per_kv - heads.first / per_kv + 1 : 0,
        .V = partition(c->V, tensor->size, tensor->rank).count,
        .E = partition(c->E, expert->size, expert->rank).count,
        .F = partition(c->F, columns->size, columns->rank).count,
    };
}
