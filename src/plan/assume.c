// What a plan takes for granted.
#include <stdio.h>
#include <string.h>

#include "plan/plan.h"

// Constants of the cluster that were not measured; NULL when all were.
static const char *unmeasured(char text[ASSUMPTION_TEXT], const struct run *r)
{
    struct cluster c = *r->cluster;
    long datasheet = 0, absent = 0;
    for (long i = 0; i < CLUSTER_CONSTANTS; i++) {
        struct constant *k;
        const char *name = cluster_constant(&k, &c, i);
        if (!strncmp(name, "between", 7) && c.hosts == 1) continue;
        if (!strncmp(name, "inside", 6) && c.devices == 1) continue;
        datasheet += k->source == SOURCE_DATASHEET;
        absent += k->source == SOURCE_ABSENT;
    }
    if (!datasheet && !absent) return NULL;
    snprintf(text, ASSUMPTION_TEXT, "%ld constants are datasheet values and %ld are absent (rates: the peak, "
             "latencies: 0): times are lower bounds, tokens/s upper ones", datasheet, absent);
    return text;
}

static const char *schedule_text(char text[ASSUMPTION_TEXT], const struct run *r)
{
    if (r->layout.pp == 1) return NULL;
    snprintf(text, ASSUMPTION_TEXT, "pipeline: %s, %ld micro-batches; sends hold nobody up and messages of different "
             "stages do not slow each other down", pipeline_kind_name(r->schedule), run_micro_batches(r));
    return text;
}

static const char *experts_text(char text[ASSUMPTION_TEXT], const struct run *r)
{
    if (!r->c->E) return NULL;
    snprintf(text, ASSUMPTION_TEXT, "experts: every expert gets the same number of rows and none is dropped%s; a "
             "busier expert's rank would make its group wait",
             decimal_value(r->capacity) > 0 && decimal_value(r->capacity) < 1 ? " but by capacity" : "");
    return text;
}

static const char *overlap_text(char text[ASSUMPTION_TEXT], const struct run *r)
{
    snprintf(text, ASSUMPTION_TEXT, "overlap: %ld of %ld pieces of an exchange travel behind the experts' products, "
             "the last one of backward behind their weights'; gradients travel behind the last micro-batch's backward, "
             "but one layer's cannot", r->exchange_chunks - 1, r->exchange_chunks);
    return text;
}

const char *plan_assumption(char text[ASSUMPTION_TEXT], const struct run *r, long index)
{
    static const char *const always[] = {
        "sequences: one document each, so attention sees half of the keys (a document mask sees fewer)",
        "ranks: those of a stage are alike, and the one with most heads, experts and columns is counted",
        ("wires: each device has its own; near and far messages travel at the same time; a rank's messages to the "
         "members of a group start one after another"),
        "kernels: run at the same rate whatever the number of rows",
        "memory: libraries, communication buffers and fragmentation are not counted",
    };
    const char *(*const of_run[])(char *, const struct run *) = {unmeasured, schedule_text, experts_text, overlap_text};
    for (size_t i = 0; i < sizeof of_run / sizeof *of_run; i++) {
        const char *said = of_run[i](text, r);
        if (said && index-- == 0) return said;
    }
    return index < (long)(sizeof always / sizeof *always) ? always[index] : NULL;
}
