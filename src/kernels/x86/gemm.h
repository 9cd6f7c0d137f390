// Own matrix products: c[M, N] = or += sum over k of a[m, k] b[k, n], in f32 whatever the operands' types.
//
// Both operands are widened (and turned, if need be) into thread scratch in the order the inner loop reads them, so one
// inner loop serves every type. y = x w' has a layout and an order of its own (gemm_nt.inc); in the other forms each
// output is one chain of fused multiply-adds over k from 0 up. Either order depends on K, the types and the instruction
// set alone, never on the number of rows, the threads, or the block sizes.
#ifndef SKYMOE_KERNELS_X86_GEMM_H
#define SKYMOE_KERNELS_X86_GEMM_H

#include "kernels/kernels_fill.h"

// Element (row, column) is data[row * stride + column], transposed: data[column * stride + row].
struct operand {
    const void *data;
    enum dtype dtype; // F32, BF16, F8_E4M3
    long stride;
    bool transposed;
    const float *scale; // F8_E4M3, transposed: of blocks, as in struct tensor, for the sums over a block; or NULL
    long scale_columns;
};

struct gemm {
    struct operand a; // [M, K]
    struct operand b; // [K, N]
    const float *scale; // [N] multiplies the sums, or NULL
    void *c;          // [M, N]
    enum dtype c_dtype; // F32, BF16
    bool add;         // F32 only
    long M, N, K;
};

// A product whose rows fall into E groups with an operand each: of a and c the rows first[e] .. first[e+1]-1 (K split
// likewise where split_k), `b_step`, `scale_step`, `c_step` elements from one group's b, scale (of rows or blocks), c
// to the next.
struct gemm_groups {
    long E;
    const long *first;
    bool split_k; // weight gradients: the groups are pieces of K
    long b_step, scale_step, c_step;
};

typedef void gemm_run(const struct gemm *g, const struct gemm_groups *groups);
gemm_run gemm_avx2, gemm_avx512;
gemm_run gemm_avx512bf16; // bf16 a, bf16 or FP8 b; pairs of k in each step

// 64-byte aligned memory of the calling thread that lasts until its next call.
void *x86_scratch(long bytes);
long x86_scratch_bytes(void); // of all threads, those that ended included

#endif
