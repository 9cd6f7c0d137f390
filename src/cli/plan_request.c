// Options of `skymoe plan` turned into a run.
#include <stdlib.h>
#include <string.h>

#include "base/decimal.h"
#include "cli/plan.h"

// ---- lists ----

enum status plan_list(long **list, long *n, const char *text, const char *option, long min, long max)
{
    long room = 1;
    for (const char *s = text; *s; s++) room += *s == ',';
    *n = 0;
    *list = calloc((size_t)room, sizeof **list);
    if (!*list) return fail(ERR_MEMORY, "memory: a list of %ld numbers was refused", room);
    for (const char *s = text; *n < room; s++) {
        char word[32];
        size_t length = strcspn(s, ",");
        long value = 0;
        bool good = length > 0 && length < sizeof word;
        if (good) {
            memcpy(word, s, length);
            word[length] = '\0';
            good = long_parse(&value, word) && value >= min && value <= max;
        }
        if (!good) {
            free(*list);
            *list = NULL;
            return fail(ERR_CONFIG, "--%s: \"%.60s\" is no list of numbers from %ld to %ld (like 6,6,5)", option, text,
                        min, max);
        }
        (*list)[(*n)++] = value;
        s += length;
    }
    return OK;
}

static bool is_auto(const char *text)
{
    return text && strcmp(text, "auto") == 0;
}

// A split of an axis: as many numbers as it has parts. layout_check sees to their sum.
static enum status set_split(struct plan_request *q, enum axis axis, const char *text, const char *option)
{
    long n, parts = layout_parts(&q->run.layout, axis);
    if (!text || is_auto(text)) return OK;
    TRY(plan_list(&q->list[axis], &n, text, option, 0, 1 << 24));
    if (n != parts) return fail(ERR_CONFIG, "--%s: %ld numbers, but there are %ld parts (give one for each)", option, n,
                                parts);
    q->run.layout.given[axis] = q->list[axis];
    return OK;
}

// Items in proportion to weights: the whole parts first, then one more for the largest rests.
static enum status set_weighted(struct plan_request *q, enum axis axis, long items, const long *weight, long n)
{
    double sum = 0;
    long left = items;
    if (q->list[axis] || layout_parts(&q->run.layout, axis) != n) return OK;
    long *count = calloc((size_t)n, sizeof *count);
    if (!count) return fail(ERR_MEMORY, "memory: a list of %ld numbers was refused", n);
    for (long i = 0; i < n; i++) sum += (double)weight[i];
    for (long i = 0; i < n; i++) left -= count[i] = (long)((double)items * (double)weight[i] / sum);
    for (; left > 0; left--) {
        long best = 0;
        double most = -1;
        for (long i = 0; i < n; i++) {
            double rest = (double)items * (double)weight[i] / sum - (double)count[i];
            if (rest > most + 1e-9) {
                most = rest;
                best = i;
            }
        }
        count[best]++;
    }
    q->list[axis] = count;
    q->run.layout.given[axis] = count;
    return OK;
}

static enum status set_device_weights(struct plan_request *q, const char *text)
{
    long *weight, n, items[AXES];
    enum axis of_tensor[] = {AXIS_HEAD, AXIS_FFN, AXIS_VOCAB, AXIS_EXPERT, AXIS_EXPERT_FFN};
    if (!text) return OK;
    TRY(plan_list(&weight, &n, text, "device-weights", 1, 1 << 20));
    enum status status = OK;
    if (n != q->run.layout.tp)
        status = fail(ERR_CONFIG,
                      "--device-weights: %ld numbers, but there are %ld tensor-parallel ranks (give one for "
                      "each)", n, q->run.layout.tp);
    config_items(items, &q->c);
    for (size_t i = 0; status == OK && i < sizeof of_tensor / sizeof *of_tensor; i++)
        status = set_weighted(q, of_tensor[i], items[of_tensor[i]], weight, n);
    free(weight);
    return status;
}

// ---- sizes ----

static void set_expert_mesh(struct layout *l, const struct plan_options *o, const struct config *c)
{
    bool ep = !strcmp(o->expert_parallel, "ep"), etp = !strcmp(o->expert_parallel, "etp");
    l->ep = o->ep ? o->ep : ep ? l->dp * l->tp : etp ? l->dp : l->tp;
    l->etp = o->etp ? o->etp : etp ? l->tp : 1;
    if (!c->E) l->ep = l->etp = 1;
}

static enum status set_layout(struct plan_request *q, const struct plan_options *o)
{
    long devices = cluster_devices(&q->cluster), ranks = o->devices ? o->devices : devices, items[AXES];
    struct layout *l = &q->run.layout;
    if (ranks > devices)
        return fail(ERR_CONFIG, "--devices %ld: %s has %ld (use at most that)", ranks, q->cluster.name, devices);
    long tp = o->tp ? o->tp : o->inference ? ranks : 1;
    *l = (struct layout){.pp = o->pp, .dp = ranks / (o->pp * tp), .tp = tp, .ep = 1, .etp = 1,
                         .virtual_stages = o->virtual_stages};
    if (l->dp < 1) l->dp = 1;
    set_expert_mesh(l, o, &q->c);
    if (o->search) return OK;
    if (l->tp > q->c.H)
        return fail(ERR_CONFIG, "--tensor-parallel-size %ld: the model has %ld heads (at most one rank a head)", l->tp,
                    q->c.H);
    config_items(items, &q->c);
    TRY(layout_check(l, items, ranks));
    TRY(set_split(q, AXIS_LAYER, o->layer_split, "layer-split"));
    TRY(set_split(q, AXIS_HEAD, o->head_split, "head-split"));
    TRY(set_split(q, q->c.E ? AXIS_EXPERT_FFN : AXIS_FFN, o->ffn_split, "ffn-split"));
    TRY(set_split(q, AXIS_EXPERT, o->expert_split, "expert-split"));
    TRY(set_device_weights(q, o->device_weights));
    return layout_check(l, items, ranks);
}

static enum status set_recompute(struct plan_request *q, const struct plan_options *o)
{
    long n, *list, stages = q->run.layout.pp;
    q->run.recompute = !strcmp(o->recompute, "full")  ? RECOMPUTE_FULL
                       : !strcmp(o->recompute, "moe") ? RECOMPUTE_MOE
                                                      : RECOMPUTE_NONE;
    if (!o->recompute_layers || is_auto(o->recompute_layers) || !strcmp(o->recompute_layers, "-1")) return OK;
    TRY(plan_list(&list, &n, o->recompute_layers, "recompute-layers", 0, 4096));
    if (n != 1 && n != stages) {
        free(list);
        return fail(ERR_CONFIG, "--recompute-layers: %ld numbers, but there are %ld stages (give one, or one for each)",
                    n, stages);
    }
    q->recompute = calloc((size_t)stages, sizeof *q->recompute);
    for (long i = 0; q->recompute && i < stages; i++) q->recompute[i] = list[n == 1 ? 0 : i];
    free(list);
    q->run.recompute_layers = q->recompute;
    return q->recompute ? OK : fail(ERR_MEMORY, "memory: a list of %ld numbers was refused", stages);
}

static enum status set_wishes(struct plan_request *q, const struct plan_options *o)
{
    q->wishes = (struct plan_wishes){.best_layers = is_auto(o->layer_split),
                                     .best_recompute = is_auto(o->recompute_layers), .record = true,
                                     .limit = o->memory_limit_gib * 0x1p30};
    if (q->wishes.best_recompute && q->run.recompute == RECOMPUTE_NONE && !o->search)
        return fail(ERR_CONFIG, "--recompute-layers auto: --recompute is none (use moe or full)");
    if (q->wishes.best_layers && q->run.recompute != RECOMPUTE_NONE && !q->wishes.best_recompute && !o->search)
        return fail(ERR_CONFIG, "--layer-split auto: chooses recomputing layers too (use --recompute-layers auto)");
    return OK;
}

// ---- the request ----

static enum status make(struct plan_request *q, const struct plan_options *o, const char *model)
{
    TRY(config_read(&q->c, model));
    TRY(cluster_read(&q->cluster, o->cluster));
    q->run = (struct run){.c = &q->c, .cluster = &q->cluster, .B = o->micro_batch, .global_batch = o->global_batch,
                          .S = o->S ? o->S : q->c.max_positions, .capacity = o->capacity,
                          .exchange_chunks = o->exchange_chunks, .zero = o->zero != 0};
    q->run.dtype = o->dtype ? (!strcmp(o->dtype, "f32") ? F32 : BF16) : q->c.dtype == F32 ? F32 : BF16;
    CHECK(pipeline_kind_from_name(&q->run.schedule, o->schedule));
    if (q->run.S > q->c.max_positions)
        return fail(ERR_CONFIG, "--seq-length %ld: the model has max_position_embeddings %ld (use at most that)",
                    q->run.S, q->c.max_positions);
    if (q->run.S > (1L << 26) / q->run.B)
        return fail(ERR_CONFIG, "--micro-batch-size %ld: more than 2^26 tokens (use a smaller one)", q->run.B);
    TRY(set_layout(q, o));
    if (o->inference) {
        q->wishes.limit = o->memory_limit_gib * 0x1p30;
        return OK;
    }
    TRY(set_recompute(q, o));
    return set_wishes(q, o);
}

enum status plan_request_make(struct plan_request *q, const struct plan_options *o)
{
    memset(q, 0, sizeof *q);
    return make(q, o, o->model);
}

enum status plan_other(struct plan_request *q, const struct plan_options *o, long S)
{
    struct plan_options other = *o;
    struct config c;
    TRY(config_read(&c, o->compare));
    other.S = S < c.max_positions ? S : c.max_positions;
    other.layer_split = is_auto(o->layer_split) ? o->layer_split : NULL; // lists are of the first model
    other.head_split = other.ffn_split = other.expert_split = NULL;
    if (other.recompute_layers && strchr(other.recompute_layers, ',')) other.recompute_layers = NULL;
    memset(q, 0, sizeof *q);
    return make(q, &other, o->compare);
}

void plan_request_free(struct plan_request *q)
{
    for (int i = 0; i < AXES; i++) free(q->list[i]);
    free(q->recompute);
    memset(q, 0, sizeof *q);
}
