// Kv heads that several ranks of a tensor group hold, because query heads of each read them (grouped queries): the
// lowest of these ranks owns such a head, the others borrow it.
#ifndef SKYMOE_PARALLEL_SHARED_HEADS_H
#define SKYMOE_PARALLEL_SHARED_HEADS_H

#include "model/model.h"

// Of one local layer's k and v. All ranks of the tensor group call both; in a group of one nothing moves.
void shared_heads_sum(const struct model *m, long layer);    // gradients to the owner, which adds them in rank order
void shared_heads_return(const struct model *m, long layer); // the owner's new values to those who borrow

#endif
