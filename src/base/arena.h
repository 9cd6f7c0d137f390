// An arena is one block of memory handed out in order and released as a whole.
//
// Layout functions run twice: on an arena without a base they measure, on one with a base they place. So the sum of
// sizes that `plan` prints and the pointers that training uses come from the same lines of code:
//
//     struct arena a = arena_measure("saved");
//     moe_saved_layout(&saved, &a, ...);            // a.used is now the size; the pointers are meaningless
//     TRY(arena_reserve(&a));                       // becomes a real block of that size; used is 0 again
//     moe_saved_layout(&saved, &a, ...);            // the pointers are valid
//     arena_release(&a);
#ifndef SKYMOE_BASE_ARENA_H
#define SKYMOE_BASE_ARENA_H

#include "base/status.h"

enum device { DEVICE_CPU }; // whose memory it is; CUDA joins here

struct arena {
    const char *name;   // for messages: "parameters", "gradients" ...
    enum device device;
    char *base;         // NULL while measuring
    long used;          // bytes handed out
    long capacity;      // bytes; 0 while measuring
    long peak;          // largest `used` so far (arena_rewind lowers used)
};

enum { ARENA_ALIGN = 64 };

struct arena arena_measure(const char *name, enum device device);

// Reserves arena->used bytes, zeroed, and rewinds to 0. ERR_MEMORY (arena unchanged) names the arena and the size.
MUST_USE enum status arena_reserve(struct arena *a);

// The next count*size bytes, aligned to ARENA_ALIGN; NULL while measuring or for count 0. Running past the capacity is
// a CHECK: placing must ask for exactly what measuring asked for.
void *arena_take(struct arena *a, long count, long size);

// Gives back everything taken since `mark` (a value of a->used), so that droppable parts can share room.
void arena_rewind(struct arena *a, long mark);

void arena_release(struct arena *a); // also right for one that was never reserved

#endif
