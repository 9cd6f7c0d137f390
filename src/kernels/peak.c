#include "kernels/peak.h"

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "kernels/kernels_fill.h"

// Best of several short slices, for the machine may be shared.
static double rate_of(peak_loop *loop)
{
    double best = 0;
    for (int slice = 0; slice < 8; slice++) {
        double begin = seconds_now();
        long done = 0;
#pragma omp parallel reduction(+ : done)
        done += 200000 * loop(200000);
        double rate = (double)done / (seconds_now() - begin);
        if (rate > best) best = rate;
    }
    return best;
}

static double read_rate(void)
{
    long n = 32L << 20; // 256 MiB
    uint64_t *block = malloc((size_t)n * sizeof *block);
    if (!block) return 0;
    memset(block, 1, (size_t)n * sizeof *block);
    double best = 0;
    for (int slice = 0; slice < 8; slice++) {
        double begin = seconds_now();
        uint64_t sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum)
        for (long i = 0; i < n; i += 8) // one load a cache line is enough to move it
            sum += block[i];
        __asm__ volatile("" : : "r"(sum)); // the loop stays
        double rate = (double)n * sizeof *block / (seconds_now() - begin);
        if (rate > best) best = rate;
    }
    free(block);
    return best;
}

void peaks_measure(struct peaks *p)
{
    *p = (struct peaks){.read_bytes_per_s = read_rate()};
#if defined(__x86_64__)
    enum kernel_level level = kernels_level();
    if (level >= LEVEL_AVX2) p->f32_flops = rate_of(peak_f32_avx2);
    if (level >= LEVEL_AVX512) p->f32_flops = rate_of(peak_f32_avx512);
    if (level >= LEVEL_AVX512 && __builtin_cpu_supports("avx512vnni")) p->int8_ops = rate_of(peak_int8_avx512);
    if (level >= LEVEL_AVX512BF16) p->bf16_flops = rate_of(peak_bf16_avx512bf16);
#endif
}
