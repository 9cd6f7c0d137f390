#include "comm/grid.h"

const struct layout layout_of_one = {.pp = 1, .dp = 1, .tp = 1, .ep = 1, .etp = 1, .virtual_stages = 1};

struct range partition(long n, long parts, long index)
{
    CHECK(n >= 0 && parts >= 1 && index >= 0 && index < parts);
    long each = n / parts, more = n % parts;
    return (struct range){.first = index * each + (index < more ? index : more), .count = each + (index < more)};
}

// ---- layouts ----

long layout_ranks(const struct layout *l)
{
    return l->pp * l->dp * l->tp;
}

long layout_parts(const struct layout *l, enum axis axis)
{
    switch (axis) {
    case AXIS_LAYER: return l->pp * l->virtual_stages;
    case AXIS_HEAD:
    case AXIS_FFN:
    case AXIS_VOCAB: return l->tp;
    case AXIS_EXPERT: return l->ep;
    case AXIS_EXPERT_FFN: return l->etp;
    case AXES: break;
    }
    CHECK(!"an axis");
}

struct range layout_range(const struct layout *l, enum axis axis, long items, long index)
{
    const long *count = l->given[axis];
    if (!count) return partition(items, layout_parts(l, axis), index);
    struct range r = {.count = count[index]};
    for (long i = 0; i < index; i++) r.first += count[i];
    return r;
}

static const struct {
    const char *option, *what;
} axis_names[AXES] = {
    [AXIS_LAYER] = {"--layer-split", "layers"},   [AXIS_HEAD] = {"--head-split", "heads"},
    [AXIS_FFN] = {"--ffn-split", "ffn columns"},  [AXIS_VOCAB] = {"--device-weights", "vocabulary rows"},
    [AXIS_EXPERT] = {"--expert-split", "experts"}, [AXIS_EXPERT_FFN] = {"--ffn-split", "ffn columns"},
};

static enum status check_list(const struct layout *l, enum axis axis, long items)
{
    const long *count = l->given[axis];
    long parts = layout_parts(l, axis), sum = 0;
    for (long i = 0; count && i < parts; i++) {
        if (count[i] < 0 || (count[i] == 0 && axis == AXIS_LAYER))
            return fail(ERR_CONFIG, "%s: part %ld is %ld (each part takes at least %d)", axis_names[axis].option, i + 1,
                        count[i], axis == AXIS_LAYER);
        sum += count[i];
    }
    if (!count || sum == items) return OK;
    return fail(ERR_CONFIG, "%s: the parts add up to %ld, but the model has %ld %s", axis_names[axis].option, sum,
                items, axis_names[axis].what);
}

enum status layout_check(const struct layout *l, const long items[AXES], long ranks)
{
    long plane = l->dp * l->tp, stages = l->pp * l->virtual_stages;
    CHECK(l->pp >= 1 && l->dp >= 1 && l->tp >= 1 && l->ep >= 1 && l->etp >= 1 && l->virtual_stages >= 1);
    if (layout_ranks(l) != ranks)
        return fail(ERR_CONFIG, "--pipeline-parallel-size %ld x --tensor-parallel-size %ld: do not divide %ld rank%s "
                    "(their product must)", l->pp, l->tp, ranks, ranks == 1 ? "" : "s");
    if (stages > items[AXIS_LAYER])
        return fail(ERR_CONFIG, "--pipeline-parallel-size %ld: %ld stages, but the model has %ld layers (at most one "
                    "stage a layer)", l->pp, stages, items[AXIS_LAYER]);
    if (plane % (l->ep * l->etp) != 0)
        return fail(ERR_CONFIG, "--expert-parallel-size %ld x --expert-tensor-parallel-size %ld: do not divide the %ld "
                    "ranks of a stage (data %ld x tensor %ld)", l->ep, l->etp, plane, l->dp, l->tp);
    if (items[AXIS_EXPERT] && l->ep > items[AXIS_EXPERT])
        return fail(ERR_CONFIG, "--expert-parallel-size %ld: the model has %ld experts (at most one rank an expert; "
                    "--expert-parallel edp keeps experts within the tensor group)", l->ep, items[AXIS_EXPERT]);
    for (int axis = 0; axis < AXES; axis++) TRY(check_list(l, (enum axis)axis, items[axis]));
    return OK;
}

// ---- grids ----

struct grid grid_of(const struct layout *l, long rank)
{
    long plane = l->dp * l->tp, q = rank % plane, stage = rank - q, experts = l->ep * l->etp;
    struct grid g = {.layout = *l};
    CHECK(rank >= 0 && rank < layout_ranks(l) && plane % experts == 0);
    g.pp = rank / plane;
    g.dp = q / l->tp;
    g.tp = q % l->tp;
    g.replica = q / experts;
    g.ep = q % experts / l->etp;
    g.etp = q % l->etp;
    g.world = group_of("world", CHANNEL_WORLD, 0, 1, layout_ranks(l), rank);
    g.pipeline = group_of("pipeline", CHANNEL_PIPELINE, q, plane, l->pp, g.pp);
    g.data = group_of("data", CHANNEL_DATA, stage + g.tp, l->tp, l->dp, g.dp);
    g.tensor = group_of("tensor", CHANNEL_TENSOR, stage + g.dp * l->tp, 1, l->tp, g.tp);
    g.expert = group_of("expert", CHANNEL_EXPERT, stage + g.replica * experts + g.etp, l->etp, l->ep, g.ep);
    g.expert_tensor = group_of("expert tensor", CHANNEL_EXPERT_TENSOR, stage + g.replica * experts + g.ep * l->etp, 1,
                               l->etp, g.etp);
    g.replicas = group_of("replica", CHANNEL_REPLICA, stage + q % experts, experts, l->dp * l->tp / experts, g.replica);
    g.plane = group_of("stage", CHANNEL_PLANE, stage, 1, plane, q);
    bool holds = l->pp > 1 && (g.pp == 0 || g.pp == l->pp - 1);
    g.tied = g.data;
    if (holds) {
        g.tied = group_of("tied embedding", CHANNEL_TIED, g.tp, l->tp, 2 * l->dp, g.dp + (g.pp ? l->dp : 0));
        g.tied.run = l->dp;
        g.tied.jump = (l->pp - 1) * plane;
    }
    return g;
}

struct grid grid_of_one(void)
{
    return grid_of(&layout_of_one, 0);
}
