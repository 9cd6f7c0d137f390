#include "train/layout.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/decimal.h"

// ---- lists ----

enum status long_list(long **list, long *n, const char *text, const char *option, long min, long max)
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
static enum status set_split(struct run_layout *r, enum axis axis, const char *text, const char *option)
{
    long n, parts = layout_parts(&r->layout, axis);
    if (!text || is_auto(text)) return OK;
    TRY(long_list(&r->list[axis], &n, text, option, 0, 1 << 24));
    if (n != parts) return fail(ERR_CONFIG, "--%s: %ld numbers, but there are %ld parts (give one for each)", option, n,
                                parts);
    r->layout.given[axis] = r->list[axis];
    return OK;
}

// Items in proportion to weights: the whole parts first, then one more for the largest rests.
static enum status set_weighted(struct run_layout *r, enum axis axis, long items, const long *weight, long n)
{
    double sum = 0;
    long left = items;
    if (r->list[axis] || layout_parts(&r->layout, axis) != n) return OK;
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
    r->list[axis] = count;
    r->layout.given[axis] = count;
    return OK;
}

static enum status set_device_weights(struct run_layout *r, const struct config *c, const char *text)
{
    long *weight, n, items[AXES];
    enum axis of_tensor[] = {AXIS_HEAD, AXIS_FFN, AXIS_VOCAB, AXIS_EXPERT, AXIS_EXPERT_FFN};
    if (!text) return OK;
    TRY(long_list(&weight, &n, text, "device-weights", 1, 1 << 20));
    enum status status = OK;
    if (n != r->layout.tp)
        status = fail(ERR_CONFIG,
                      "--device-weights: %ld numbers, but there are %ld tensor-parallel ranks (give one for "
                      "each)", n, r->layout.tp);
    config_items(items, c);
    for (size_t i = 0; status == OK && i < sizeof of_tensor / sizeof *of_tensor; i++)
        status = set_weighted(r, of_tensor[i], items[of_tensor[i]], weight, n);
    free(weight);
    return status;
}

// ---- sizes ----

struct layout run_layout_sizes(const struct layout_options *o, const struct config *c, long ranks)
{
    bool ep = !strcmp(o->expert_parallel, "ep"), etp = !strcmp(o->expert_parallel, "etp");
    struct layout l = {.pp = o->pp, .dp = ranks / (o->pp * o->tp), .tp = o->tp, .ep = 1, .etp = 1,
                       .virtual_stages = o->virtual_stages};
    if (l.dp < 1) l.dp = 1;
    if (!c->E) return l;
    l.ep = o->ep ? o->ep : ep ? l.dp * l.tp : etp ? l.dp : l.tp;
    l.etp = o->etp ? o->etp : etp ? l.tp : 1;
    return l;
}

static enum status set_recompute(struct run_layout *r, const struct layout_options *o)
{
    long n, *list, stages = r->layout.pp;
    r->recompute = !strcmp(o->recompute, "full")  ? RECOMPUTE_FULL
                   : !strcmp(o->recompute, "moe") ? RECOMPUTE_MOE
                                                  : RECOMPUTE_NONE;
    r->best_recompute = is_auto(o->recompute_layers);
    r->best_layers = is_auto(o->layer_split);
    if (r->best_recompute && r->recompute == RECOMPUTE_NONE)
        return fail(ERR_CONFIG, "--recompute-layers auto: --recompute is none (use moe or full)");
    if (r->best_layers && r->recompute != RECOMPUTE_NONE && !r->best_recompute)
        return fail(ERR_CONFIG, "--layer-split auto: chooses recomputing layers too (use --recompute-layers auto)");
    if (!o->recompute_layers || r->best_recompute || !strcmp(o->recompute_layers, "-1")) return OK;
    TRY(long_list(&list, &n, o->recompute_layers, "recompute-layers", 0, 4096));
    if (n != 1 && n != stages) {
        free(list);
        return fail(ERR_CONFIG, "--recompute-layers: %ld numbers, but there are %ld stages (give one, or one for each)",
                    n, stages);
    }
    r->recompute_layers = calloc((size_t)stages, sizeof *r->recompute_layers);
    for (long i = 0; r->recompute_layers && i < stages; i++) r->recompute_layers[i] = list[n == 1 ? 0 : i];
    free(list);
    return r->recompute_layers ? OK : fail(ERR_MEMORY, "memory: a list of %ld numbers was refused", stages);
}

static enum status make(struct run_layout *r, const struct layout_options *o, const struct config *c, long ranks)
{
    long items[AXES];
    r->layout = run_layout_sizes(o, c, ranks);
    CHECK(pipeline_kind_from_name(&r->schedule, o->schedule));
    if (r->layout.tp > c->H)
        return fail(ERR_CONFIG, "--tensor-parallel-size %ld: the model has %ld heads (at most one rank a head)",
                    r->layout.tp, c->H);
    config_items(items, c);
    TRY(layout_check(&r->layout, items, ranks));
    TRY(set_split(r, AXIS_LAYER, o->layer_split, "layer-split"));
    TRY(set_split(r, AXIS_HEAD, o->head_split, "head-split"));
    TRY(set_split(r, c->E ? AXIS_EXPERT_FFN : AXIS_FFN, o->ffn_split, "ffn-split"));
    TRY(set_split(r, AXIS_EXPERT, o->expert_split, "expert-split"));
    TRY(set_device_weights(r, c, o->device_weights));
    TRY(layout_check(&r->layout, items, ranks));
    return set_recompute(r, o);
}

enum status run_layout_make(struct run_layout *r, const struct layout_options *o, const struct config *c, long ranks)
{
    memset(r, 0, sizeof *r);
    enum status s = make(r, o, c, ranks);
    if (s != OK) run_layout_free(r);
    return s;
}

void run_layout_free(struct run_layout *r)
{
    for (int i = 0; i < AXES; i++) free(r->list[i]);
    free(r->recompute_layers);
    memset(r, 0, sizeof *r);
}

// ---- of a run that is resumed ----

static enum status can_be(const struct layout_options *o, const struct config *c, long ranks)
{
    struct run_layout r;
    enum status status = run_layout_make(&r, o, c, ranks);
    if (status == OK) run_layout_free(&r);
    return status;
}

// What decides whether a number of ranks can have it.
static void kept_text(char *text, size_t room, const struct layout_options *o)
{
    int n = snprintf(text, room, "--pipeline-parallel-size %ld --tensor-parallel-size %ld", o->pp, o->tp);
    if (strcmp(o->expert_parallel, "edp") != 0)
        n += snprintf(text + n, room - (size_t)n, " --expert-parallel %s", o->expert_parallel);
    if (o->ep) n += snprintf(text + n, room - (size_t)n, " --expert-parallel-size %ld", o->ep);
    if (o->etp) n += snprintf(text + n, room - (size_t)n, " --expert-tensor-parallel-size %ld", o->etp);
    if (o->expert_split) snprintf(text + n, room - (size_t)n, " --expert-split %.60s", o->expert_split);
}

// "1, 2 or 4": the tensor-parallel sizes that make a layout of that many ranks.
static void sizes_text(char *text, size_t room, struct layout_options o, const struct config *c, long ranks)
{
    long last = 0;
    size_t used = 0;
    text[0] = '\0';
    for (o.tp = 1; o.tp <= ranks && o.tp <= c->H && used + 40 < room; o.tp++) {
        if (can_be(&o, c, ranks) != OK) continue;
        if (last) used += (size_t)snprintf(text + used, room - used, "%s%ld", used ? ", " : "", last);
        last = o.tp;
    }
    snprintf(text + used, room - used, "%s%ld", used ? " or " : "", last);
}

enum status run_layout_kept(const struct layout_options *stored, const struct layout_options *o,
                            const struct config *c, long ranks, const char *path)
{
    char kept[400], sizes[200];
    enum status status = can_be(stored, c, ranks);
    if (status != ERR_CONFIG) return status;
    kept_text(kept, sizeof kept, stored);
    sizes_text(sizes, sizeof sizes, *o, c, ranks);
    return fail(ERR_CONFIG, "%s: was stored with %s, but there %s %ld rank%s now (give another layout, like "
                "--tensor-parallel-size %s)", path, kept, ranks == 1 ? "is" : "are", ranks, ranks == 1 ? "" : "s",
                sizes);
}
