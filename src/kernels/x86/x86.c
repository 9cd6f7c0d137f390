// Kernels with AVX2 and AVX-512, each level in files of their own that are compiled with its flags (see the Makefile);
// this file is not, so it may run anywhere.
#include "kernels/x86/x86.h"

#if defined(__x86_64__)
void x86_fill(struct kernels *k, enum dtype type, enum kernel_level level)
{
    if (level >= LEVEL_AVX2 && __builtin_cpu_supports("f16c")) {
        fill_products_avx2(k, type);
        fill_attention_avx2(k, type);
        fill_rows_avx2(k, type);
    }
    if (level >= LEVEL_AVX512) {
        fill_products_avx512(k, type);
        fill_attention_avx512(k, type);
        fill_rows_avx512(k, type);
    }
}
#else
void x86_fill(struct kernels *k, enum dtype type, enum kernel_level level)
{
    (void)k;
    (void)type;
    (void)level;
}
#endif
