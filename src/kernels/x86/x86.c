// Kernels with AVX2 and AVX-512, each level in files of their own that are compiled with its flags (see the Makefile);
// this file is not, so it may run anywhere.
#include "kernels/x86/x86.h"

#include <stdlib.h>

#if defined(__x86_64__)
#include <cpuid.h>

static bool has_f16c(void) // clang 14's __builtin_cpu_supports does not know it
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

// vdpbf16ps multiplies twice as fast as f32 multiply-adds on AMD's processors and half as fast on Intel's (which mean
// AMX to be used). There it serves only who asks for the level by name.
static bool bf16_pays(void)
{
    const char *name = getenv("SKYMOE_KERNELS");
    return __builtin_cpu_is("amd") || (name && !strcmp(name, "avx512bf16"));
}

void x86_fill(struct kernels *k, enum dtype type, enum kernel_level level)
{
    if (level >= LEVEL_AVX2 && has_f16c()) {
        fill_products_avx2(k, type);
        fill_attention_avx2(k, type);
        fill_rows_avx2(k, type);
    }
    if (level >= LEVEL_AVX512) {
        fill_products_avx512(k, type);
        fill_attention_avx512(k, type);
        fill_rows_avx512(k, type);
    }
    if (level >= LEVEL_AVX512BF16 && bf16_pays()) {
        fill_products_avx512bf16(k, type);
        fill_attention_avx512bf16(k, type);
        fill_paged_avx512bf16(k, type);
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
