// Kernels on tensors of any dtype: memory, conversion, initialisation. Values pass through double, so each result is
// rounded once.
#include <math.h>
#include <stdlib.h>

#include "base/rng.h"
#include "kernels/ref/ref.h"

enum { CHUNK = 256 };

void *scratch_alloc(long count, long size)
{
    void *p = malloc((size_t)(count * size + 1));
    if (!p) memory_refused("a kernel", count * size);
    return p;
}

// double -> float so that a second rounding to nearest even of fewer bits gives what one rounding would: inexact
// results get an odd last bit.
static float round_to_odd(double d)
{
    float f = (float)d;
    if (d != d || (double)f == d) return f;
    uint32_t u;
    memcpy(&u, &f, 4);
    if (fabs((double)f) > fabs(d)) u--; // towards zero (from infinity: the largest finite)
    u |= 1;
    memcpy(&f, &u, 4);
    return f;
}

void tensor_read(double *to, struct tensor x, long i, long n)
{
    const float *f32 = x.data;
    const double *f64 = x.data;
    const uint16_t *b16 = x.data;
    const uint8_t *b8 = x.data;
    switch (x.dtype) {
    case F32: for (long j = 0; j < n; j++) to[j] = f32[i + j]; break;
    case F64: for (long j = 0; j < n; j++) to[j] = f64[i + j]; break;
    case BF16: for (long j = 0; j < n; j++) to[j] = bf16_to_float(b16[i + j]); break;
    case F16: for (long j = 0; j < n; j++) to[j] = f16_to_float(b16[i + j]); break;
    case F8_E4M3: for (long j = 0; j < n; j++) to[j] = e4m3_to_float(b8[i + j]); break;
    case DTYPES: CHECK(x.dtype < DTYPES);
    }
}

void tensor_write(struct tensor x, const double *from, long i, long n)
{
    float *f32 = x.data;
    double *f64 = x.data;
    uint16_t *b16 = x.data;
    uint8_t *b8 = x.data;
    switch (x.dtype) {
    case F32: for (long j = 0; j < n; j++) f32[i + j] = (float)from[j]; break;
    case F64: for (long j = 0; j < n; j++) f64[i + j] = from[j]; break;
    case BF16: for (long j = 0; j < n; j++) b16[i + j] = bf16_from_float(round_to_odd(from[j])); break;
    case F16: for (long j = 0; j < n; j++) b16[i + j] = f16_from_float(round_to_odd(from[j])); break;
    case F8_E4M3: for (long j = 0; j < n; j++) b8[i + j] = e4m3_from_float(round_to_odd(from[j])); break;
    case DTYPES: CHECK(x.dtype < DTYPES);
    }
}

static void copy(void *to, const void *from, long bytes)
{
    if (bytes) memcpy(to, from, (size_t)bytes);
}

static void zero(void *data, long bytes)
{
    if (bytes) memset(data, 0, (size_t)bytes);
}

static void cast(struct tensor to, struct tensor from, long rows, long columns)
{
    bool copies = to.dtype == from.dtype && !to.scale && !from.scale; // keeps every NaN as it is
#pragma omp parallel for schedule(static) if (rows * columns > SMALL)
    for (long r = 0; r < rows; r++) {
        long size = dtype_size(to.dtype);
        if (copies) {
            copy((char *)to.data + r * columns * size, (const char *)from.data + r * columns * size, columns * size);
            continue;
        }
        double block[CHUNK];
        for (long c = 0; c < columns; c += CHUNK) {
            long n = min_long(CHUNK, columns - c);
            tensor_read(block, from, r * columns + c, n);
            for (long j = 0; j < n && from.scale; j++) block[j] *= tensor_scale(from, r, c + j);
            for (long j = 0; j < n && to.scale; j++) block[j] /= tensor_scale(to, r, c + j);
            tensor_write(to, block, r * columns + c, n);
        }
    }
}

static void add_parts(void *y, const void *const *part, long parts, enum dtype dtype, long n)
{
    CHECK(dtype == F32 || dtype == BF16 || dtype == F64);
#pragma omp parallel for schedule(static) if (n * parts > SMALL)
    for (long i = 0; i < n; i++) {
        float sum = 0;
        double wide = 0;
        for (long p = 0; p < parts; p++) {
            if (dtype == F64) wide = p ? wide + ((const double *)part[p])[i] : ((const double *)part[p])[i];
            else {
                float x = dtype == F32 ? ((const float *)part[p])[i] : bf16_to_float(((const uint16_t *)part[p])[i]);
                sum = p ? sum + x : x;
            }
        }
        if (dtype == F64) ((double *)y)[i] = wide;
        else if (dtype == F32) ((float *)y)[i] = sum;
        else ((uint16_t *)y)[i] = bf16_from_float(sum);
    }
}

static void fill(struct tensor x, double value, long n)
{
    double block[CHUNK];
    for (long j = 0; j < CHUNK; j++) block[j] = value;
#pragma omp parallel for schedule(static) if (n > SMALL)
    for (long i = 0; i < n; i += CHUNK) tensor_write(x, block, i, min_long(CHUNK, n - i));
}

static void init_normal(struct tensor x, double mean, double std, long n, long seed, uint64_t stream, long offset)
{
#pragma omp parallel for schedule(static) if (n > SMALL / 16)
    for (long i = 0; i < n; i += CHUNK) {
        double block[CHUNK];
        long m = min_long(CHUNK, n - i);
        for (long j = 0; j < m; j++)
            block[j] = fma(std, rng_normal((uint64_t)seed, stream, (uint64_t)(offset + i + j)), mean);
        tensor_write(x, block, i, m);
    }
}

static double amax(struct tensor x, long n)
{
    double largest = 0;
    bool nan = false;
#pragma omp parallel for schedule(static) reduction(max : largest) reduction(|| : nan) if (n > SMALL)
    for (long i = 0; i < n; i += CHUNK) {
        double block[CHUNK];
        long m = min_long(CHUNK, n - i);
        tensor_read(block, x, i, m);
        for (long j = 0; j < m; j++) {
            double a = fabs(block[j]);
            if (a > largest) largest = a;
            if (a != a) nan = true;
        }
    }
    return nan ? (double)NAN : largest;
}

// ---- expert similarity ----

// Partial sums of one block of elements of part i. Experts lie n[i] elements apart.
static double piece_squares(struct tensor w, long n, long e)
{
    double sum = 0, block[CHUNK];
    for (long c = 0; c < n; c += CHUNK) {
        long m = min_long(CHUNK, n - c);
        tensor_read(block, w, e * n + c, m);
        for (long j = 0; j < m; j++) sum += block[j] * block[j];
    }
    return sum;
}

// |sum over experts of u_e|^2 over elements [c, c + m) of one part; inverse[e] is 1/|w_e|.
static double sum_vector_squares(struct tensor w, long n, long c, long m, const double *inverse, long E)
{
    double sum = 0, block[CHUNK], total[CHUNK] = {0};
    for (long e = 0; e < E; e++) {
        tensor_read(block, w, e * n + c, m);
        for (long j = 0; j < m; j++) total[j] += block[j] * inverse[e];
    }
    for (long j = 0; j < m; j++) sum += total[j] * total[j];
    return sum;
}

// sum over pairs of u_e u_f = |sum u_e|^2 - sum |u_e|^2; an expert of zeros counts as orthogonal to all.
static double expert_similarity(const struct tensor *w, const long *n, long parts, long E)
{
    if (E < 2) return 1;
    for (long i = 0; i < parts; i++) CHECK(!w[i].scale); // rows, and so scales, are unknown here
    double *inverse = scratch_alloc(E, sizeof *inverse), units = 0, squares = 0;
#pragma omp parallel for schedule(static)
    for (long e = 0; e < E; e++) {
        double sum = 0;
        for (long i = 0; i < parts; i++) sum += piece_squares(w[i], n[i], e);
        inverse[e] = sum > 0 ? 1 / sqrt(sum) : sum == 0 ? 0 : (double)NAN;
    }
    for (long e = 0; e < E; e++) units += inverse[e] != 0;
    for (long i = 0; i < parts; i++) {
        enum { BATCH = 64 }; // chunks whose sums are added in order
        for (long base = 0; base < n[i]; base += BATCH * CHUNK) {
            double part[BATCH];
            long blocks = min_long(BATCH, ceil_div(n[i] - base, CHUNK));
#pragma omp parallel for schedule(static)
            for (long b = 0; b < blocks; b++) {
                long c = base + b * CHUNK;
                part[b] = sum_vector_squares(w[i], n[i], c, min_long(CHUNK, n[i] - c), inverse, E);
            }
            for (long b = 0; b < blocks; b++) squares += part[b];
        }
    }
    free(inverse);
    return (squares - units) / ((double)E * (double)(E - 1));
}

void ref_fill_tensors(struct kernels *k)
{
    k->device = DEVICE_CPU;
    k->copy = copy;
    k->to_host = copy;
    k->from_host = copy;
    k->zero = zero;
    k->cast = cast;
    k->add_parts = add_parts;
    k->fill = fill;
    k->init_normal = init_normal;
    k->amax = amax;
    k->expert_similarity = expert_similarity;
}

void ref_fill(struct kernels *k, enum dtype type)
{
    memset(k, 0, sizeof *k);
    ref_fill_tensors(k);
    if (type == F32) ref_fill_f32(k);
    else if (type == BF16) ref_fill_bf16(k);
    else if (type == F64) ref_fill_f64(k);
    else CHECK(type <= F64);
}
