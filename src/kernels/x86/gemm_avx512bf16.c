// Products of bfloat16 by vdpbf16ps, where that instruction is twice as fast as multiply-adds in f32 (AMD; on Intel it
// is half as fast).
#include "kernels/x86/simd16.h"

#include "kernels/x86/gemm_pairs.inc"

#include "kernels/x86/gemm.inc"

#define RUN gemm_avx512bf16
#define EL_DTYPE BF16
#define NAME(x) x##_bf16
#define NO_ROUTER
#include "kernels/x86/products_el.inc"

void fill_products_avx512bf16(struct kernels *k, enum dtype type)
{
    if (type == BF16) fill_products_bf16(k);
}
