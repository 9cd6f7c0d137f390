// What this machine can do at most: the roof that benchmarks are compared with, measured in the same run.
#ifndef SKYMOE_KERNELS_PEAK_H
#define SKYMOE_KERNELS_PEAK_H

struct peaks { // all threads together; 0 where the kernel level has no such instruction
    double f32_flops, bf16_flops, int8_ops; // multiply-adds count 2
    double read_bytes_per_s;                // of memory, far beyond the caches
};

// About two seconds. kernels_init comes first.
void peaks_measure(struct peaks *p);

// One thread's loop of independent multiply-adds: does `rounds` rounds and returns the operations of one round.
typedef long peak_loop(long rounds);
peak_loop peak_f32_avx2, peak_f32_avx512, peak_int8_avx512, peak_bf16_avx512bf16;

#endif
