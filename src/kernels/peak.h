// What this machine can do at most: the roof that benchmarks are compared with, measured in slices between those of the
// work itself, because a shared machine's speed changes from second to second.
#ifndef SKYMOE_KERNELS_PEAK_H
#define SKYMOE_KERNELS_PEAK_H

#include "base/status.h"

// Multiply-adds count 2. PEAK_READ: bytes of memory far beyond the caches.
enum peak { PEAK_F32, PEAK_BF16, PEAK_INT8, PEAK_READ, PEAKS };

// Reserves what the probes read. ERR_MEMORY. kernels_init comes first.
MUST_USE enum status peaks_open(void);
void peaks_close(void);
// Touches what a probe reads: a virtual machine's host may have put it away since.
void peak_wake(enum peak p);
// Operations or bytes a second of all threads together, over about `seconds`; 0 where the kernel level has no such
// instruction.
double peak_slice(enum peak p, double seconds);
// Best of several slices.
double peak_best(enum peak p);

// One thread's loop of independent multiply-adds: does `rounds` rounds and returns the operations of one round.
typedef long peak_loop(long rounds);
peak_loop peak_f32_avx2, peak_f32_avx512, peak_int8_avx512, peak_bf16_avx512bf16;

#endif
