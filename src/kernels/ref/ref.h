// The plain C reference: what every faster kernel is compared with.
//
// tensors.c works on any dtype. Everything else is written once, in *.inc files that f32.c, bf16.c and f64.c compile
// for their types: EL stored element, ACC sums, GET and PUT between them (PUT is the one rounding). Parallel loops run
// over outputs only, and sums follow an order fixed by the sizes: results do not depend on the number of threads.
#ifndef SKYMOE_KERNELS_REF_REF_H
#define SKYMOE_KERNELS_REF_REF_H

#include "kernels/kernels_fill.h"

void ref_fill_f32(struct kernels *k);
void ref_fill_bf16(struct kernels *k);
void ref_fill_f64(struct kernels *k);
void ref_fill_tensors(struct kernels *k); // the entries of tensors.c

enum { SUM_BLOCK = 65536 }; // elements of a block of the long f64 sums
enum { SMALL = 1 << 14 };   // element operations that are not worth waking threads for

// Elements [i, i + n) of x as double, without scale; and back, rounded once.
void tensor_read(double *to, struct tensor x, long i, long n);
void tensor_write(struct tensor x, const double *from, long i, long n);

// Scratch of one thread during a kernel. Running out of memory ends the program: kernels have no status.
void *scratch_alloc(long count, long size);

static inline long ceil_div(long a, long b)
{
    return (a + b - 1) / b;
}

static inline long min_long(long a, long b)
{
    return a < b ? a : b;
}

#endif
