// Dense -> MoE, folder to folder, tensor by tensor: never the whole model in memory (docs/numerics.md, upcycling).
#ifndef SKYMOE_TRAIN_UPCYCLE_H
#define SKYMOE_TRAIN_UPCYCLE_H

#include "checkpoint/folder.h"

enum upcycle_method { UPCYCLE_COPY, UPCYCLE_NOISE, UPCYCLE_DROP, UPCYCLE_GRANULAR };
enum granular_scale { GRANULAR_EXACT, GRANULAR_NVIDIA }; // sqrt(G) on w3 and w2; cube root of G on w1, w3 and w2


struct upcycle_options {
    enum upcycle_method method;
    long E, K;
    enum arch arch;        // ARCH_SKYWORK (or ARCH_SKYMOE by K) or ARCH_MIXTRAL
    double gate_norm_std;
    double router_std;     // N(0, router_std)
    double noise;          // noise: s, times the tensor's own standard deviation
    double drop;           // drop: fraction of intermediate columns redrawn
    long granular;         // granular: G, experts that a dense FFN is cut into
    enum granular_scale granular_scale;
    long seed;
};
struct upcycle_result {
    long params_total, params_active, output_bytes;
    double *similarity;    // [L]; freed by the caller
};
// A dry run only counts: it needs nothing of `from` but path and config.
MUST_USE enum status upcycle(struct upcycle_result *r, const struct model_folder *from, const char *to,
                             const struct upcycle_options *o, bool dry_run);

#endif
