#include "base/rng.h"

#include <math.h>

#include "base/files.h"
#include <string.h>

void philox4x32(uint32_t out[4], uint64_t key, uint64_t stream, uint64_t counter)
{
    uint32_t c[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)};
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c[0];
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
        c[0] = n0;
        c[1] = (uint32_t)p1;
        c[2] = n2;
        c[3] = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    memcpy(out, c, sizeof c);
}

double rng_uniform(uint64_t seed, uint64_t stream, uint64_t counter)
{
    return (double)(rng_bits(seed, stream, counter) >> 11) * 0x1p-53;
}

// Highest power first. log((1 + s)/(1 - s)) = s (2 + 2/3 s^2 + ...); sin(2 pi w) = w (2 pi - (2 pi)^3/3! w^2 + ...).
const double rng_log_terms[RNG_LOG_TERMS] = {2.0 / 21, 2.0 / 19, 2.0 / 17, 2.0 / 15, 2.0 / 13, 2.0 / 11,
                                             2.0 / 9,  2.0 / 7,  2.0 / 5,  2.0 / 3,  2};
const double rng_sine_terms[RNG_SINE_TERMS] = {
    0x1.2877020d52cf0p-10, -0x1.8a404211f9547p-7, 0x1.aaec32af93359p-4, -0x1.6fadb9f155744p-1,
    0x1.e8f434d018d63p+1,  -0x1.e3074fde8871fp+3, 0x1.50783487ee782p+5, -0x1.32d2cce62bd86p+6,
    0x1.466bc6775aae2p+6,  -0x1.4abbce625be53p+5, 0x1.921fb54442d18p+2,
};

// log u = k ln 2 + log m, m between sqrt(1/2) and sqrt(2), by its series in s = (m - 1)/(m + 1).
static double log_of(double u)
{
    const uint64_t one = 0x3ff0000000000000; // the bits of 1
    uint64_t bits;
    double m;
    memcpy(&bits, &u, sizeof bits);
    uint64_t k = (bits + (one - RNG_HALF_ROOT)) >> 52;
    bits += one - (k << 52);
    memcpy(&m, &bits, sizeof m);
    double s = (m - 1) / (m + 1), z = s * s, p = rng_log_terms[0];
    for (int i = 1; i < RNG_LOG_TERMS; i++) p = fma(p, z, rng_log_terms[i]);
    return fma((double)k - 1023, RNG_LN2, s * p);
}

// cos(2 pi v) = sin(2 pi w) with w = 1/4 - min(v, 1 - v), by its series.
static double cos_turn(double v)
{
    double w = 0.25 - (v < 1 - v ? v : 1 - v), y = w * w, p = rng_sine_terms[0];
    for (int i = 1; i < RNG_SINE_TERMS; i++) p = fma(p, y, rng_sine_terms[i]);
    return w * p;
}

double rng_normal(uint64_t seed, uint64_t stream, uint64_t counter)
{
    uint32_t r[4];
    philox4x32(r, seed, stream, counter);
    double u = ((double)((uint64_t)r[1] << 32 | r[0]) + 1.0) * 0x1p-64; // (0, 1]
    double v = (double)((uint64_t)r[3] << 32 | r[2]) * 0x1p-64;
    return sqrt(-2.0 * log_of(u)) * cos_turn(v);
}

uint64_t rng_stream(const char *name)
{
    return xxh3(name, (long)strlen(name));
}

uint64_t rng_permute(uint64_t i, uint64_t n, uint64_t seed, uint64_t stream)
{
    int half = 1;
    while (half < 32 && (uint64_t)1 << (2 * half) < n) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1;
    do { // at most 4 walks on average: the domain is less than 4n
        uint64_t left = i >> half, right = i & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t mixed = left ^ (rng_bits(seed, stream, right << 8 | round) & mask);
            left = right;
            right = mixed;
        }
        i = left << half | right;
    } while (i >= n);
    return i;
}
