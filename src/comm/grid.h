// Who holds what. Two meshes over the same ranks: [pipeline, data, tensor] for attention, norms, embedding and head,
// [pipeline, replica, expert, expert tensor] for experts. Everything that is split is split by a partition list,
// never by an integer division, so nothing has to divide.
#ifndef SKYMOE_COMM_GRID_H
#define SKYMOE_COMM_GRID_H

#include "comm/group.h"

struct range {
    long first, count;
};

// n items over `parts`: n divmod parts, the first n % parts get one more.
struct range partition(long n, long parts, long index);

struct grid {
    struct group world, tensor, data, pipeline, expert, expert_tensor, replica;
};
struct grid grid_of_one(void);

#endif
