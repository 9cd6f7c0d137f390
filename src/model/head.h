// Final norm, output projection and cross entropy, with their backward, in chunks of rows: no [T, V] buffer exists.
#ifndef SKYMOE_MODEL_HEAD_H
#define SKYMOE_MODEL_HEAD_H

#include "model/attention.h"

enum { HEAD_CHUNK = 256 }; // rows

struct head_scratch {
    acc *rstd;    // [own]
    el *xn;       // [own, D]
    el *dxn;      // [own, D]
    acc *logits;  // [HEAD_CHUNK, V] of this rank's vocabulary
    el *dlogits;  // [HEAD_CHUNK, V]
    acc *loss;    // [T] nats of each token, 0 where masked
};
void head_scratch_layout(struct head_scratch *s, struct arena *a, const struct context *x, long T, bool backward);

// Over in [own, D] and the targets of all T tokens (device; host_target the same on the host). Losses of all T into
// s->loss, the same on every tensor rank; with g not NULL also dx (=) and the gradients (+=) of the loss sum times
// `scale` (1/N).
void head_loss(const struct context *x, const struct model_params *p, struct model_params *g, struct head_scratch *s,
               el *dx, const el *in, const int *target, const int *host_target, double scale, long T);

// Logits of rows [first, first + n) of `in` into s->logits, n <= HEAD_CHUNK (inference, KL).
void head_logits(const struct context *x, const struct model_params *p, struct head_scratch *s, const el *in,
                 long first, long n);

// n values (losses, logits) as floats on the host.
void head_values(const struct context *x, float *to, const acc *from, long n);

#endif
