#include <immintrin.h>

#include "kernels/peak.h"

long peak_f32_avx2(long rounds)
{
    __m256 sum[10];
    for (int i = 0; i < 10; i++) sum[i] = _mm256_set1_ps(0.0f);
    __m256 a = _mm256_set1_ps(1e-3f), b = _mm256_set1_ps(1.0f);
    for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 10
        for (int i = 0; i < 10; i++) sum[i] = _mm256_fmadd_ps(a, b, sum[i]);
        __asm__ volatile("" : "+x"(a), "+x"(b)); // the loop stays
    }
    for (int i = 1; i < 10; i++) sum[0] = _mm256_add_ps(sum[0], sum[i]);
    __asm__ volatile("" : : "x"(sum[0]));
    return 10 * 8 * 2;
}
