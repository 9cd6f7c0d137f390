// How the kernel tables are filled, from the plain reference upwards. Private to src/kernels/.
//
// Each fill overwrites the entries of `k` that it implements better for element type `el` at `level` and leaves the
// others alone. kernels_init calls ref_fill, dnnl_fill, x86_fill in this order, with the level that the machine and
// SKYMOE_KERNELS allow; x86_fill also at lower levels, to find out which level an entry comes from.
#ifndef SKYMOE_KERNELS_KERNELS_FILL_H
#define SKYMOE_KERNELS_KERNELS_FILL_H

#include <omp.h>

#include "kernels/kernels.h"

// A level includes those below it, and caps oneDNN's own instruction set too.
enum kernel_level { LEVEL_REF, LEVEL_DNNL, LEVEL_AVX2, LEVEL_AVX512, LEVEL_AVX512BF16 };

enum kernel_level kernels_level(void); // the one in use

// What multiplies element (row, column).
static inline float tensor_scale(struct tensor x, long row, long column)
{
    if (!x.scale) return 1;
    return x.scale[x.scale_columns > 1 ? row * x.scale_columns + column / SCALE_BLOCK : row];
}

// Heads [from, to) of the shape that read kv head g; none where from >= to.
struct readers {
    long from, to;
};

static inline struct readers readers_of(long g, const struct attention_shape *s)
{
    long from = g * s->per_kv - s->skip, to = from + s->per_kv;
    return (struct readers){from > 0 ? from : 0, to < s->H ? to : s->H};
}

extern void (*kernels_meanwhile_call)(void);

// In a loop over tasks, by each thread after each of its own.
static inline void between_tasks(void)
{
    if (kernels_meanwhile_call && omp_get_thread_num() == 0) kernels_meanwhile_call();
}

void ref_fill(struct kernels *k, enum dtype el); // every entry, and device, el, acc
void dnnl_fill(struct kernels *k, enum dtype el, enum kernel_level level);
void x86_fill(struct kernels *k, enum dtype el, enum kernel_level level);

#endif
