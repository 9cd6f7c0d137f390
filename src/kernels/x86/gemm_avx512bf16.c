// Products of bfloat16 by vdpbf16ps, where that instruction is twice as fast as multiply-adds in f32 (AMD; on Intel it
// is half as fast).
#include "kernels/x86/simd16.h"

#include "kernels/x86/gemm_pairs.inc"

#include "kernels/x86/gemm.inc"

// A code of e4m3 times its block's scale is no bfloat16: such products are f32's.
static void run(const struct gemm *g, const struct gemm_groups *groups)
{
    if (g->b.scale) gemm_avx512(g, groups);
    else gemm_avx512bf16(g, groups);
}

#define RUN run
#define EL_DTYPE BF16
#define NAME(x) x##_bf16
#define NO_ROUTER
#include "kernels/x86/products_el.inc"

void fill_products_avx512bf16(struct kernels *k, enum dtype type)
{
    if (type == BF16) fill_products_bf16(k);
}
