#include "kernels/x86/simd16.h"

#include "kernels/x86/gemm_pack.inc"

#include "kernels/x86/gemm.inc"
#include "kernels/x86/products.inc"
