// Counter-based random numbers: value = f(seed, stream, counter), without state. So what is drawn depends on global
// names and indices only, never on the layout, the order of calls or the thread.
// The function is Philox-4x32-10 [Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011].
#ifndef SKYMOE_BASE_RNG_H
#define SKYMOE_BASE_RNG_H

#include <stdint.h>

void philox4x32(uint32_t out[4], uint64_t key, uint64_t stream, uint64_t counter);

static inline uint64_t rng_bits(uint64_t seed, uint64_t stream, uint64_t counter)
{
    uint32_t r[4];
    philox4x32(r, seed, stream, counter);
    return (uint64_t)r[1] << 32 | r[0];
}

double rng_uniform(uint64_t seed, uint64_t stream, uint64_t counter); // [0, 1)
// Mean 0, standard deviation 1: sqrt(-2 log u) cos(2 pi v) [Box-Muller], u in (0, 1] from words 0-1, v in [0, 1) from
// 2-3. Logarithm and cosine are series in IEEE operations and fused multiply-adds (within 2e-15 of the true value), not
// the C library's: so the bits are the same on every machine, and a kernel that draws many at a time has them too.
double rng_normal(uint64_t seed, uint64_t stream, uint64_t counter);
enum { RNG_LOG_TERMS = 11, RNG_SINE_TERMS = 11 };
extern const double rng_log_terms[RNG_LOG_TERMS], rng_sine_terms[RNG_SINE_TERMS];
#define RNG_LN2 0x1.62e42fefa39efp-1
#define RNG_HALF_ROOT 0x3fe6a09e667f3bcd // the bits of sqrt(1/2)

// The stream of a name: a tensor is initialised from rng_stream("model.norm.weight") and the element's global index.
uint64_t rng_stream(const char *name);

// A permutation of 0..n-1 evaluated at i, without a table (Feistel network with cycle walking). n >= 1.
uint64_t rng_permute(uint64_t i, uint64_t n, uint64_t seed, uint64_t stream);

#endif
