// Sixteen floats at a time (AVX-512 F, BW, DQ, VL). simd8.h has the same names for AVX2; a kernel's .inc file is
// written once and compiled with either. Loads and stores need no alignment; the _n forms touch n < LANES elements
// only and load zeros for the rest.
#ifndef SKYMOE_KERNELS_X86_SIMD16_H
#define SKYMOE_KERNELS_X86_SIMD16_H

#include <immintrin.h>
#include <stdint.h>

enum { LANES = 16 };
#define TILE_ROWS 14 // rows of a product's tile in registers, 2 LANES columns wide
#define AT_LEVEL(name) name##_avx512

typedef __m512 vf;

static inline __mmask16 lanes_below(long n)
{
    return (__mmask16)((1u << n) - 1);
}

static inline vf vf_zero(void) { return _mm512_setzero_ps(); }
static inline vf vf_all(float x) { return _mm512_set1_ps(x); }
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); } // b where either is NaN
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); } // b where either is NaN
// v, but 0 where x < limit
static inline vf vf_zero_below(vf v, vf x, float limit)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_NLT_UQ), v);
}
// Comparisons: false where either is NaN.
typedef __mmask16 vm;
static inline vm vm_greater(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline vm vm_equal(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static inline vm vm_or(vm a, vm b) { return (vm)(a | b); }
static inline vm vm_but_not(vm a, vm b) { return (vm)(a & ~b); }
static inline vf vf_select(vm m, vf a, vf b) { return _mm512_mask_mov_ps(b, m, a); } // a where m, else b
static inline vf vf_first(vf a, long n) { return _mm512_maskz_mov_ps(lanes_below(n), a); } // 0 in the other lanes
static inline vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
static inline float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
static inline float vf_largest(vf a) { return _mm512_reduce_max_ps(a); }

static inline vf load_f32(const float *p) { return _mm512_loadu_ps(p); }
static inline vf load_f32_n(const float *p, long n) { return _mm512_maskz_loadu_ps(lanes_below(n), p); }
static inline void store_f32(float *p, vf x) { _mm512_storeu_ps(p, x); }
static inline void store_f32_n(float *p, vf x, long n) { _mm512_mask_storeu_ps(p, lanes_below(n), x); }

static inline vf widen_bf16(__m256i b) // one permutation, where widening and shifting are two steps
{
    const __m512i twice = _mm512_set_epi16(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8,
                                           7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, twice, _mm512_castsi256_si512(b)));
}
static inline vf load_bf16(const uint16_t *p) { return widen_bf16(_mm256_loadu_si256((const __m256i *)p)); }
static inline vf load_bf16_n(const uint16_t *p, long n)
{
    return widen_bf16(_mm256_maskz_loadu_epi16(lanes_below(n), p));
}

// Round to nearest even; NaN stays NaN. (vcvtneps2bf16 would lose the smallest numbers.) The permutation takes the
// upper halves: one step where a shift and a narrowing are three.
static inline __m256i round_bf16(vf x)
{
    const __m512i odd_words = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1,
                                               31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    __m512i u = _mm512_castps_si512(x), r = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff));
    r = _mm512_mask_add_epi32(r, _mm512_test_epi32_mask(u, _mm512_set1_epi32(0x10000)), r, _mm512_set1_epi32(1));
    r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), u, _mm512_set1_epi32(0x400000));
    return _mm512_castsi512_si256(_mm512_permutexvar_epi16(odd_words, r));
}
static inline void store_bf16(uint16_t *p, vf x) { _mm256_storeu_si256((__m256i *)p, round_bf16(x)); }
static inline void store_bf16_n(uint16_t *p, vf x, long n)
{
    _mm256_mask_storeu_epi16(p, lanes_below(n), round_bf16(x));
}

// e4m3: exponent bias 7 becomes 127 by adding 120. Subnormals m/8 2^-6 come out one too large at twice the exponent, so
// 2^-6 is taken away; that keeps the processor's slow path for f32 subnormals out. 0x7f is NaN.
static inline vf widen_e4m3_lanes(__m512i u)
{
    __m512i low = _mm512_and_si512(u, _mm512_set1_epi32(0x7f));
    __mmask16 small = _mm512_cmplt_epi32_mask(low, _mm512_set1_epi32(8));
    __mmask16 nan = _mm512_cmpeq_epi32_mask(low, _mm512_set1_epi32(0x7f));
    __m512i bits = _mm512_add_epi32(_mm512_slli_epi32(low, 20), _mm512_set1_epi32(120 << 23));
    bits = _mm512_mask_add_epi32(bits, small, bits, _mm512_set1_epi32(1 << 23));
    __m512 v = _mm512_castsi512_ps(bits);
    v = _mm512_mask_sub_ps(v, small, v, _mm512_set1_ps(0x1p-6f));
    v = _mm512_mask_mov_ps(v, nan, _mm512_set1_ps(__builtin_nanf("")));
    __m512i sign = _mm512_slli_epi32(_mm512_and_si512(u, _mm512_set1_epi32(0x80)), 24);
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(v), sign));
}
static inline vf widen_e4m3(__m128i q) { return widen_e4m3_lanes(_mm512_cvtepu8_epi32(q)); }
static inline vf load_e4m3(const uint8_t *p) { return widen_e4m3(_mm_loadu_si128((const __m128i *)p)); }
static inline vf load_e4m3_n(const uint8_t *p, long n) { return widen_e4m3(_mm_maskz_loadu_epi8(lanes_below(n), p)); }

// To e4m3: nearest even, saturating at 448; NaN is 0x7f. Adding 2^14 rounds numbers below 2^-6 to multiples of 2^-9.
static inline __m128i round_e4m3(vf x)
{
    __m512i u = _mm512_castps_si512(x), magnitude = _mm512_and_si512(u, _mm512_set1_epi32(INT32_MAX));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 20), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(magnitude, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7ffff - (120 << 23))));
    r = _mm512_min_epi32(_mm512_srai_epi32(r, 20), _mm512_set1_epi32(0x7e));
    __mmask16 small = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(0x3c800000));
    __m512 multiple = _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(0x1p14f));
    r = _mm512_mask_sub_epi32(r, small, _mm512_castps_si512(multiple), _mm512_set1_epi32(0x46800000));
    r = _mm512_or_si512(r, _mm512_and_si512(_mm512_srli_epi32(u, 24), _mm512_set1_epi32(0x80)));
    r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7f));
    return _mm512_cvtepi32_epi8(r);
}
static inline void store_e4m3(uint8_t *p, vf x) { _mm_storeu_si128((__m128i *)p, round_e4m3(x)); }
static inline void store_e4m3_n(uint8_t *p, vf x, long n) { _mm_mask_storeu_epi8(p, lanes_below(n), round_e4m3(x)); }

static inline vf load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline vf load_f16_n(const uint16_t *p, long n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes_below(n), p));
}
static inline __m256i round_f16(vf x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline void store_f16(uint16_t *p, vf x) { _mm256_storeu_si256((__m256i *)p, round_f16(x)); }
static inline void store_f16_n(uint16_t *p, vf x, long n)
{
    _mm256_mask_storeu_epi16(p, lanes_below(n), round_f16(x));
}

// A vector's worth of bytes, and the first n of them with zeros behind.
static inline vf load_bytes(const void *p) { return _mm512_loadu_ps(p); }
static inline vf load_bytes_n(const void *p, long n)
{
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi8(n >= 64 ? ~0ull : (1ull << n) - 1, p));
}

// ---- chunks of 128 bits ----

static inline vf load_chunk(const float *p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); } // in every place

// Four vectors of four chunks: rows become columns.
static inline void transpose_chunks(vf r[4])
{
    vf a = _mm512_shuffle_f32x4(r[0], r[1], 0x44), b = _mm512_shuffle_f32x4(r[2], r[3], 0x44);
    vf c = _mm512_shuffle_f32x4(r[0], r[1], 0xee), d = _mm512_shuffle_f32x4(r[2], r[3], 0xee);
    r[0] = _mm512_shuffle_f32x4(a, b, 0x88);
    r[1] = _mm512_shuffle_f32x4(a, b, 0xdd);
    r[2] = _mm512_shuffle_f32x4(c, d, 0x88);
    r[3] = _mm512_shuffle_f32x4(c, d, 0xdd);
}

// The numbers of each chunk widened in place to chunks of floats, the first ones to part[0].
static inline void widen_bf16_chunks(vf part[2], vf chunks)
{
    __m512i c = _mm512_castps_si512(chunks), zero = _mm512_setzero_si512();
    part[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, c));
    part[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, c));
}
// e4m3's bits at the place of float's are 2^-120 of the value, subnormal numbers included; only NaN is not there.
static inline void widen_e4m3_chunks(vf part[4], vf chunks)
{
    const __m512i c = _mm512_castps_si512(chunks), nan = _mm512_set1_epi8(0x7f);
    for (int p = 0; p < 4; p++) {
        __m512i place = _mm512_set1_epi32((int)(0x00808080u | (unsigned)(4 * p) << 24));
        place = _mm512_add_epi32(place, _mm512_set4_epi32(3 << 24, 2 << 24, 1 << 24, 0)); // a code in each upper byte
        __m512i bits = _mm512_srai_epi32(_mm512_shuffle_epi8(c, place), 4);
        bits = _mm512_and_si512(bits, _mm512_set1_epi32((int)0x87f00000));
        part[p] = _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(0x1p120f));
    }
    if (__builtin_expect(!_mm512_cmpeq_epi8_mask(_mm512_and_si512(c, nan), nan), 1)) return;
    for (int p = 0; p < 4; p++) {
        __mmask16 wrong = _mm512_cmp_ps_mask(_mm512_abs_ps(part[p]), _mm512_set1_ps(480), _CMP_EQ_OQ);
        part[p] = _mm512_mask_mov_ps(part[p], wrong, _mm512_set1_ps(__builtin_nanf("")));
    }
}

// Of the chunks of four vectors the sums: in place j of the lower half those of a[j / 2] or b[j / 2] for j even or
// odd, in the upper half those of c and d.
static inline vf strip_sums(vf a, vf b, vf c, vf d)
{
    vf ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vf cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
    vf sums = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    return _mm512_castpd_ps(_mm512_permutexvar_pd(order, _mm512_castps_pd(sums)));
}
static inline vf load_half_twice(const float *p) { return _mm512_broadcast_f32x8(_mm256_loadu_ps(p)); }
static inline void add_low_half(float *to, vf x, int add) // = or +=
{
    __m256 half = _mm512_castps512_ps256(x);
    _mm256_storeu_ps(to, add ? _mm256_add_ps(_mm256_loadu_ps(to), half) : half);
}
static inline void add_high_half(float *to, vf x, int add)
{
    __m256 half = _mm512_extractf32x8_ps(x, 1);
    _mm256_storeu_ps(to, add ? _mm256_add_ps(_mm256_loadu_ps(to), half) : half);
}

// Rows become columns.
static inline void transpose(vf r[LANES])
{
    vf t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 2]);
        __m512d c = _mm512_castps_pd(t[4 * i + 1]), d = _mm512_castps_pd(t[4 * i + 3]);
        r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
        r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
    }
    for (int i = 0; i < 4; i++) { // columns i, 4 + i, 8 + i, 12 + i of rows 0-3, 4-7 | 8-11, 12-15
        vf a = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88), b = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
        vf c = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88), d = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
        t[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        t[4 + i] = _mm512_shuffle_f32x4(b, d, 0x88);
        t[8 + i] = _mm512_shuffle_f32x4(a, c, 0xdd);
        t[12 + i] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
    for (int i = 0; i < 16; i++) r[i] = t[i];
}

// 2^n for whole n in [-126, 127], and rounding to a whole number.
static inline vf vf_whole(vf x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf vf_scale2(vf x, vf n) { return _mm512_scalef_ps(x, n); }

// Half as many doubles (vd) and 64-bit words (vu).
typedef __m512d vd;
typedef __m512i vu;
enum { PAIRS = LANES / 2 };

static inline vd vd_all(double x) { return _mm512_set1_pd(x); }
static inline vd vd_add(vd a, vd b) { return _mm512_add_pd(a, b); }
static inline vd vd_sub(vd a, vd b) { return _mm512_sub_pd(a, b); }
static inline vd vd_mul(vd a, vd b) { return _mm512_mul_pd(a, b); }
static inline vd vd_div(vd a, vd b) { return _mm512_div_pd(a, b); }
static inline vd vd_fma(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
static inline vd vd_min(vd a, vd b) { return _mm512_min_pd(a, b); } // b where either is NaN
static inline vd vd_sqrt(vd a) { return _mm512_sqrt_pd(a); }
static inline vd vd_zero_below(vd v, vd x, double limit)
{
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(x, _mm512_set1_pd(limit), _CMP_NLT_UQ), v);
}
static inline vd vd_floor(vd x) { return _mm512_roundscale_pd(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
static inline double vd_sum(vd a) { return _mm512_reduce_add_pd(a); }
static inline vd load_f64(const double *p) { return _mm512_loadu_pd(p); }
static inline void store_f64(double *p, vd x) { _mm512_storeu_pd(p, x); }
static inline vu vu_all(uint64_t x) { return _mm512_set1_epi64((long long)x); }
static inline vu vu_ramp(void) { return _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7); }
static inline vu vu_add(vu a, vu b) { return _mm512_add_epi64(a, b); }
static inline vu vu_sub(vu a, vu b) { return _mm512_sub_epi64(a, b); }
static inline vu vu_xor(vu a, vu b) { return _mm512_xor_si512(a, b); }
static inline vu vu_or(vu a, vu b) { return _mm512_or_si512(a, b); }
static inline vu vu_and(vu a, vu b) { return _mm512_and_si512(a, b); }
static inline vu vu_mul32(vu a, vu b) { return _mm512_mul_epu32(a, b); } // of the lower halves
static inline vu vu_left(vu a, unsigned n) { return _mm512_slli_epi64(a, n); }
static inline vu vu_right(vu a, unsigned n) { return _mm512_srli_epi64(a, n); }
static inline vu vd_bits(vd a) { return _mm512_castpd_si512(a); }
static inline vd vu_double(vu a) { return _mm512_castsi512_pd(a); } // the same bits

static inline vd vf_low(vf x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
static inline vd vf_high(vf x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)); }
static inline vf vf_join(vd low, vd high)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high), 1);
}
// Truncated, and the last bit 1 where that was inexact: rounding the result to fewer bits is then rounding once.
static inline __m256 round_to_odd(vd x)
{
    __m256 f = _mm512_cvt_roundpd_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    __mmask8 inexact = _mm512_cmp_pd_mask(_mm512_cvtps_pd(f), x, _CMP_NEQ_OQ); // not NaN
    __m256i u = _mm256_castps_si256(f);
    return _mm256_castsi256_ps(_mm256_mask_or_epi32(u, inexact, u, _mm256_set1_epi32(1)));
}
static inline vf vf_join_odd(vd low, vd high)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(round_to_odd(low)), round_to_odd(high), 1);
}

#endif
