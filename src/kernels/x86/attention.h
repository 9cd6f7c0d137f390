// What the attention kernels of every instruction set share: which keys a query sees.
#ifndef SKYMOE_KERNELS_X86_ATTENTION_H
#define SKYMOE_KERNELS_X86_ATTENTION_H

static inline long least(long a, long b)
{
    return a < b ? a : b;
}

// A query sees the keys [first_key, its own index].
static inline long first_key(const int *start, long i, long window)
{
    long inside = i - window + 1;
    return window && inside > start[i] ? inside : start[i];
}

#endif
