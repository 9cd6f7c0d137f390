// Eight floats at a time (AVX2, FMA, F16C): the names of simd16.h.
#ifndef SKYMOE_KERNELS_X86_SIMD8_H
#define SKYMOE_KERNELS_X86_SIMD8_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 8 };
#define TILE_ROWS 6
#define AT_LEVEL(name) name##_avx2

typedef __m256 vf;

static inline __m256i lanes_below(long n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vf vf_zero(void) { return _mm256_setzero_ps(); }
static inline vf vf_all(float x) { return _mm256_set1_ps(x); }
static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf vf_zero_below(vf v, vf x, float limit)
{
    return _mm256_and_ps(_mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_NLT_UQ), v);
}
typedef __m256 vm;
static inline vm vm_greater(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
static inline vm vm_equal(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
static inline vm vm_or(vm a, vm b) { return _mm256_or_ps(a, b); }
static inline vm vm_but_not(vm a, vm b) { return _mm256_andnot_ps(b, a); }
static inline vf vf_select(vm m, vf a, vf b) { return _mm256_blendv_ps(b, a, m); }
static inline vf vf_first(vf a, long n) { return _mm256_and_ps(a, _mm256_castsi256_ps(lanes_below(n))); }
static inline vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
static inline float vf_sum(vf a)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float vf_largest(vf a)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

static inline vf load_f32(const float *p) { return _mm256_loadu_ps(p); }
static inline vf load_f32_n(const float *p, long n) { return _mm256_maskload_ps(p, lanes_below(n)); }
static inline void store_f32(float *p, vf x) { _mm256_storeu_ps(p, x); }
static inline void store_f32_n(float *p, vf x, long n) { _mm256_maskstore_ps(p, lanes_below(n), x); }

static inline vf widen_bf16(__m128i b)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(b), 16));
}
static inline vf load_bf16(const uint16_t *p) { return widen_bf16(_mm_loadu_si128((const __m128i *)p)); }
static inline vf load_bf16_n(const uint16_t *p, long n)
{
    uint16_t part[LANES] = {0};
    memcpy(part, p, (size_t)n * 2);
    return load_bf16(part);
}

static inline __m128i round_bf16(vf x)
{
    __m256i u = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan);
    r = _mm256_srli_epi32(r, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
static inline void store_bf16(uint16_t *p, vf x) { _mm_storeu_si128((__m128i *)p, round_bf16(x)); }
static inline void store_bf16_n(uint16_t *p, vf x, long n)
{
    uint16_t part[LANES];
    store_bf16(part, x);
    memcpy(p, part, (size_t)n * 2);
}

static inline vf widen_e4m3_lanes(__m256i u)
{
    __m256i low = _mm256_and_si256(u, _mm256_set1_epi32(0x7f));
    __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), low);
    __m256i nan = _mm256_cmpeq_epi32(low, _mm256_set1_epi32(0x7f));
    __m256i bits = _mm256_add_epi32(_mm256_slli_epi32(low, 20), _mm256_set1_epi32(120 << 23));
    bits = _mm256_add_epi32(bits, _mm256_and_si256(small, _mm256_set1_epi32(1 << 23)));
    __m256 v = _mm256_castsi256_ps(bits);
    v = _mm256_sub_ps(v, _mm256_and_ps(_mm256_castsi256_ps(small), _mm256_set1_ps(0x1p-6f)));
    v = _mm256_blendv_ps(v, _mm256_set1_ps(__builtin_nanf("")), _mm256_castsi256_ps(nan));
    __m256i sign = _mm256_slli_epi32(_mm256_and_si256(u, _mm256_set1_epi32(0x80)), 24);
    return _mm256_or_ps(v, _mm256_castsi256_ps(sign));
}
static inline vf widen_e4m3(__m128i q) { return widen_e4m3_lanes(_mm256_cvtepu8_epi32(q)); }
static inline vf load_e4m3(const uint8_t *p) { return widen_e4m3(_mm_loadl_epi64((const __m128i *)p)); }
static inline vf load_e4m3_n(const uint8_t *p, long n)
{
    uint8_t part[LANES] = {0};
    memcpy(part, p, (size_t)n);
    return load_e4m3(part);
}

static inline __m128i round_e4m3(vf x) // in the lower half
{
    __m256i u = _mm256_castps_si256(x), magnitude = _mm256_and_si256(u, _mm256_set1_epi32(INT32_MAX));
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(magnitude, 20), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(magnitude, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff - (120 << 23))));
    r = _mm256_min_epi32(_mm256_srai_epi32(r, 20), _mm256_set1_epi32(0x7e));
    __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), magnitude);
    __m256 multiple = _mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(0x1p14f));
    r = _mm256_blendv_epi8(r, _mm256_sub_epi32(_mm256_castps_si256(multiple), _mm256_set1_epi32(0x46800000)), small);
    r = _mm256_or_si256(r, _mm256_and_si256(_mm256_srli_epi32(u, 24), _mm256_set1_epi32(0x80)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7f), nan);
    __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
    return _mm_packus_epi16(words, words);
}
static inline void store_e4m3(uint8_t *p, vf x) { _mm_storel_epi64((__m128i *)p, round_e4m3(x)); }
static inline void store_e4m3_n(uint8_t *p, vf x, long n)
{
    uint8_t part[LANES];
    store_e4m3(part, x);
    memcpy(p, part, (size_t)n);
}

static inline vf load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
static inline vf load_f16_n(const uint16_t *p, long n)
{
    uint16_t part[LANES] = {0};
    memcpy(part, p, (size_t)n * 2);
    return load_f16(part);
}
static inline void store_f16(uint16_t *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline void store_f16_n(uint16_t *p, vf x, long n)
{
    uint16_t part[LANES];
    store_f16(part, x);
    memcpy(p, part, (size_t)n * 2);
}

static inline vf load_bytes(const void *p) { return _mm256_loadu_ps(p); }
static inline vf load_bytes_n(const void *p, long n)
{
    char part[32] = {0};
    if (n < 32) p = memcpy(part, p, (size_t)n);
    return load_bytes(p);
}

static inline vf load_chunk(const float *p) { return _mm256_broadcast_ps((const __m128 *)(const void *)p); }

static inline void transpose_chunks(vf r[2])
{
    vf a = r[0];
    r[0] = _mm256_permute2f128_ps(a, r[1], 0x20);
    r[1] = _mm256_permute2f128_ps(a, r[1], 0x31);
}

static inline void widen_bf16_chunks(vf part[2], vf chunks)
{
    __m256i c = _mm256_castps_si256(chunks), zero = _mm256_setzero_si256();
    part[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, c));
    part[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, c));
}
static inline void widen_e4m3_chunks(vf part[4], vf chunks)
{
    const __m256i c = _mm256_castps_si256(chunks), nan = _mm256_set1_epi8(0x7f);
    for (int p = 0; p < 4; p++) {
        __m256i place = _mm256_set1_epi32((int)(0x00808080u | (unsigned)(4 * p) << 24));
        place = _mm256_add_epi32(place, _mm256_setr_epi32(0, 1 << 24, 2 << 24, 3 << 24, 0, 1 << 24, 2 << 24, 3 << 24));
        __m256i bits = _mm256_srai_epi32(_mm256_shuffle_epi8(c, place), 4);
        bits = _mm256_and_si256(bits, _mm256_set1_epi32((int)0x87f00000));
        part[p] = _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(0x1p120f));
    }
    __m256i wrong = _mm256_cmpeq_epi8(_mm256_and_si256(c, nan), nan);
    if (__builtin_expect(_mm256_testz_si256(wrong, wrong), 1)) return;
    for (int p = 0; p < 4; p++) {
        vf size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), part[p]);
        vf large = _mm256_cmp_ps(size, _mm256_set1_ps(480), _CMP_EQ_OQ);
        part[p] = _mm256_blendv_ps(part[p], _mm256_set1_ps(__builtin_nanf("")), large);
    }
}

static inline vf strip_sums(vf a, vf b, vf c, vf d)
{
    vf ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    vf cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    __m256d x = _mm256_castps_pd(ab), y = _mm256_castps_pd(cd);
    vf sums = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(sums), 0xd8));
}
static inline vf load_half_twice(const float *p) { return _mm256_set_m128(_mm_loadu_ps(p), _mm_loadu_ps(p)); }
static inline void add_low_half(float *to, vf x, int add)
{
    __m128 half = _mm256_castps256_ps128(x);
    _mm_storeu_ps(to, add ? _mm_add_ps(_mm_loadu_ps(to), half) : half);
}
static inline void add_high_half(float *to, vf x, int add)
{
    __m128 half = _mm256_extractf128_ps(x, 1);
    _mm_storeu_ps(to, add ? _mm_add_ps(_mm_loadu_ps(to), half) : half);
}

static inline void transpose(vf r[LANES])
{
    vf t[8];
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x20);
        t[4 + i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = t[i];
}

static inline vf vf_whole(vf x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// In two steps, so that results between the smallest normal and 0 come out right.
static inline vf vf_scale2(vf x, vf n)
{
    __m256i i = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(n, _mm256_set1_ps(-252)), _mm256_set1_ps(254)));
    __m256i half = _mm256_srai_epi32(i, 1), rest = _mm256_sub_epi32(i, half), bias = _mm256_set1_epi32(127);
    x = _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}

typedef __m256d vd;
typedef __m256i vu;
enum { PAIRS = LANES / 2 };

static inline vd vd_all(double x) { return _mm256_set1_pd(x); }
static inline vd vd_add(vd a, vd b) { return _mm256_add_pd(a, b); }
static inline vd vd_sub(vd a, vd b) { return _mm256_sub_pd(a, b); }
static inline vd vd_mul(vd a, vd b) { return _mm256_mul_pd(a, b); }
static inline vd vd_div(vd a, vd b) { return _mm256_div_pd(a, b); }
static inline vd vd_fma(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }
static inline vd vd_min(vd a, vd b) { return _mm256_min_pd(a, b); }
static inline vd vd_sqrt(vd a) { return _mm256_sqrt_pd(a); }
static inline vd vd_zero_below(vd v, vd x, double limit)
{
    return _mm256_and_pd(_mm256_cmp_pd(x, _mm256_set1_pd(limit), _CMP_NLT_UQ), v);
}
static inline vd vd_floor(vd x) { return _mm256_floor_pd(x); }
static inline double vd_sum(vd a)
{
    __m128d s = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}
static inline vd load_f64(const double *p) { return _mm256_loadu_pd(p); }
static inline void store_f64(double *p, vd x) { _mm256_storeu_pd(p, x); }
static inline vu vu_all(uint64_t x) { return _mm256_set1_epi64x((long long)x); }
static inline vu vu_ramp(void) { return _mm256_setr_epi64x(0, 1, 2, 3); }
static inline vu vu_add(vu a, vu b) { return _mm256_add_epi64(a, b); }
static inline vu vu_sub(vu a, vu b) { return _mm256_sub_epi64(a, b); }
static inline vu vu_xor(vu a, vu b) { return _mm256_xor_si256(a, b); }
static inline vu vu_or(vu a, vu b) { return _mm256_or_si256(a, b); }
static inline vu vu_and(vu a, vu b) { return _mm256_and_si256(a, b); }
static inline vu vu_mul32(vu a, vu b) { return _mm256_mul_epu32(a, b); }
static inline vu vu_left(vu a, int n) { return _mm256_slli_epi64(a, n); }
static inline vu vu_right(vu a, int n) { return _mm256_srli_epi64(a, n); }
static inline vu vd_bits(vd a) { return _mm256_castpd_si256(a); }
static inline vd vu_double(vu a) { return _mm256_castsi256_pd(a); }

static inline vd vf_low(vf x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); }
static inline vd vf_high(vf x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }
static inline vf vf_join(vd low, vd high) { return _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low)); }
// Nearest; one less where that is too large (the largest finite number where it is infinity); the last bit 1 where it
// is inexact.
static inline __m128 round_to_odd(vd x)
{
    __m128 f = _mm256_cvtpd_ps(x);
    __m256d back = _mm256_cvtps_pd(f), sign = _mm256_set1_pd(-0.0);
    __m256d inexact = _mm256_cmp_pd(back, x, _CMP_NEQ_OQ);
    __m256d above = _mm256_cmp_pd(_mm256_andnot_pd(sign, back), _mm256_andnot_pd(sign, x), _CMP_GT_OQ);
    const __m256i even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6); // the masks as 32-bit words
    __m128i odd = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(_mm256_castpd_si256(inexact), even));
    __m128i less = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(_mm256_castpd_si256(above), even));
    __m128i u = _mm_add_epi32(_mm_castps_si128(f), less);
    return _mm_castsi128_ps(_mm_or_si128(u, _mm_srli_epi32(odd, 31)));
}
static inline vf vf_join_odd(vd low, vd high) { return _mm256_set_m128(round_to_odd(high), round_to_odd(low)); }

#endif
