#include <immintrin.h>

#include "kernels/peak.h"

long peak_f32_avx512(long rounds)
{
    __m512 sum[16];
    for (int i = 0; i < 16; i++) sum[i] = _mm512_setzero_ps();
    __m512 a = _mm512_set1_ps(1e-3f), b = _mm512_set1_ps(1.0f);
    for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) sum[i] = _mm512_fmadd_ps(a, b, sum[i]);
        __asm__ volatile("" : "+v"(a), "+v"(b)); // the loop stays
    }
    for (int i = 1; i < 16; i++) sum[0] = _mm512_add_ps(sum[0], sum[i]);
    __asm__ volatile("" : : "v"(sum[0]));
    return 16 * 16 * 2;
}

__attribute__((target("avx512vnni"))) long peak_int8_avx512(long rounds)
{
    __m512i sum[16];
    for (int i = 0; i < 16; i++) sum[i] = _mm512_setzero_si512();
    __m512i a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(1);
    for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) sum[i] = _mm512_dpbusd_epi32(sum[i], a, b);
        __asm__ volatile("" : "+v"(a), "+v"(b));
    }
    for (int i = 1; i < 16; i++) sum[0] = _mm512_add_epi32(sum[0], sum[i]);
    __asm__ volatile("" : : "v"(sum[0]));
    return 16 * 64 * 2;
}
