#include <immintrin.h>

#include "kernels/peak.h"

long peak_bf16_avx512bf16(long rounds)
{
    __m512 sum[16];
    for (int i = 0; i < 16; i++) sum[i] = _mm512_setzero_ps();
    __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80), b = (__m512bh)_mm512_set1_epi16(0x3a80);
    for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
        __asm__ volatile("" : "+v"(a), "+v"(b)); // the loop stays
    }
    for (int i = 1; i < 16; i++) sum[0] = _mm512_add_ps(sum[0], sum[i]);
    __asm__ volatile("" : : "v"(sum[0]));
    return 16 * 32 * 2;
}
