// Options of `skymoe plan` turned into a run.
#include <stdlib.h>
#include <string.h>

#include "base/decimal.h"
#include "cli/plan.h"

static struct layout_options layout_words(const struct plan_options *o, long tp)
{
    struct layout_options w = o->layout;
    w.tp = tp;
    return w;
}

static enum status set_layout(struct plan_request *q, const struct plan_options *o)
{
    long devices = cluster_devices(&q->cluster), ranks = o->devices ? o->devices : devices;
    if (ranks > devices)
        return fail(ERR_CONFIG, "--devices %ld: %s has %ld (use at most that)", ranks, q->cluster.name, devices);
    struct layout_options w = layout_words(o, o->layout.tp ? o->layout.tp : o->inference ? ranks : 1);
    q->run.layout = run_layout_sizes(&w, &q->c, ranks);
    if (o->search) {
        q->run.recompute = !strcmp(w.recompute, "full") ? RECOMPUTE_FULL : !strcmp(w.recompute, "moe") ? RECOMPUTE_MOE
                                                                                                       : RECOMPUTE_NONE;
        return OK;
    }
    if (o->inference) w.recompute = "none", w.recompute_layers = NULL;
    TRY(run_layout_make(&q->lists, &w, &q->c, ranks));
    q->run.layout = q->lists.layout;
    q->run.recompute = q->lists.recompute;
    q->run.recompute_layers = q->lists.recompute_layers;
    return OK;
}

// ---- the request ----

static enum status make(struct plan_request *q, const struct plan_options *o, const char *model)
{
    TRY(config_read(&q->c, model));
    TRY(cluster_read(&q->cluster, o->cluster));
    q->run = (struct run){.c = &q->c, .cluster = &q->cluster, .global_batch = o->global_batch,
                          .B = o->micro_batch < o->global_batch ? o->micro_batch : o->global_batch, // as in training
                          .S = o->S ? o->S : q->c.max_positions, .capacity = o->capacity,
                          .exchange_chunks = o->layout.exchange_chunks, .zero = o->layout.zero != 0};
    q->run.dtype = o->dtype ? (!strcmp(o->dtype, "f32") ? F32 : BF16) : q->c.dtype == F32 ? F32 : BF16;
    CHECK(pipeline_kind_from_name(&q->run.schedule, o->layout.schedule));
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
    q->wishes = (struct plan_wishes){.best_layers = q->lists.best_layers, .best_recompute = q->lists.best_recompute,
                                     .record = true, .limit = o->memory_limit_gib * 0x1p30};
    return OK;
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
    struct layout_options *w = &other.layout;
    if (w->layer_split && strcmp(w->layer_split, "auto") != 0) w->layer_split = NULL; // lists are of the first model
    w->head_split = w->ffn_split = w->expert_split = NULL;
    if (w->recompute_layers && strchr(w->recompute_layers, ',')) w->recompute_layers = NULL;
    memset(q, 0, sizeof *q);
    return make(q, &other, o->compare);
}

void plan_request_free(struct plan_request *q)
{
    run_layout_free(&q->lists);
    memset(q, 0, sizeof *q);
}
