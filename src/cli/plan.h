// `skymoe plan`: what it is told, and its parts. Private to cli/plan*.c.
#ifndef SKYMOE_CLI_PLAN_H
#define SKYMOE_CLI_PLAN_H

#include "base/setting.h"
#include "plan/decode.h"
#include "plan/search.h"
#include "train/layout.h"

struct plan_options {
    const char *model, *cluster, *compare, *svg;
    long devices;
    struct layout_options layout; // tp 0: 1, with --inference all devices
    double memory_limit_gib;
    long micro_batch, global_batch, S;
    const char *dtype;
    struct decimal capacity;
    bool search, inference;
    const char *weights, *batch_size;
    long context;
    double published;
};
extern struct plan_options plan_given;

// A run as the options say, with the lists that its layout points to. Must stay where it is.
struct plan_request {
    struct config c;
    struct cluster cluster;
    struct run run;
    struct plan_wishes wishes;
    struct run_layout lists;
};
// Reads model and cluster. ERR_CONFIG for options that contradict each other or the model. `search` and `inference` do
// without the parts that they choose themselves.
MUST_USE enum status plan_request_make(struct plan_request *q, const struct plan_options *o);
void plan_request_free(struct plan_request *q);

// The other model of --compare on the same devices, with sequences of at most S tokens: experts sit as the options
// would place them there.
MUST_USE enum status plan_other(struct plan_request *q, const struct plan_options *o, long S);

// Output. `other` may be NULL.
void plan_print(const struct plan *p, double published);
void plan_print_experts(const struct plan *p);             // edp, ep, etp beside the chosen layout
void plan_print_compare(const struct plan *p, const struct plan *other, const char *name, const char *other_name);
void plan_print_search(const struct search_result *s, long devices, double seconds);
MUST_USE enum status plan_print_json(const struct plan *p, const struct search_result *s, const struct plan *other,
                                     double published);
MUST_USE enum status plan_svg(const struct plan *p, const char *path);
void plan_timeline(const struct plan *p);

MUST_USE enum status plan_inference(const struct plan_request *q, const struct plan_options *o,
                                    const struct plan_request *other, bool json);

#endif
