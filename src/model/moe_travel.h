// Rows on their way to the ranks that hold their experts and back, chunk by chunk of experts (comm/exchange.h): what
// stands between the equations of moe.c. Where a rank has all experts (moe_alone) rows are where they are wanted at
// once.
#ifndef SKYMOE_MODEL_MOE_TRAVEL_H
#define SKYMOE_MODEL_MOE_TRAVEL_H

#include "model/moe.h"

// Each own row, taken from its token's [own, D], sets out for the rank that holds its expert, there to lie in
// here [rows here, D]; weights: the rows' combine weights go with them, to s->row_weight.
struct travel dispatch_start(const struct context *x, const struct moe_saved *s, el *here, const el *tokens,
                             bool weights);
void dispatch_wait(const struct context *x, const struct moe_saved *s, struct travel *t, el *here, bool weights,
                   long chunk);

// A chunk's results go back; of backward (ds, else NULL) with the gradients of the rows' weights: to a rank without
// experts, too.
void return_start(const struct context *x, const struct moe_saved *s, struct travel *t, el *here,
                  const struct moe_saved *ds, long chunk);
// Where the own rows are again, when all have come.
el *return_wait(const struct context *x, const struct moe_saved *s, struct travel *t, bool weights, el *here);

#endif
