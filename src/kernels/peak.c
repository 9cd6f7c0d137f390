#include "kernels/peak.h"

#include <omp.h>
#include <stdint.h>
#include <string.h>

#include "base/arena.h"
#include "base/log.h"
#include "kernels/kernels_fill.h"

// Numbers of the block that is read; of a thread's piece (2 MiB), read in several places at once, which is faster than
// from end to end; how far ahead memory is asked, into L2.
enum { BLOCK = 32L << 20, PIECE = 1 << 18, PLACES = 8, PART = PIECE / PLACES, AHEAD = 256 };
static struct arena arena; // as the kernels' own memory, in large pages where there are any
static uint64_t *block;    // 256 MiB of it
static long next_piece;

enum status peaks_open(void)
{
    if (block) return OK;
    arena = arena_measure("measuring the read bandwidth", DEVICE_CPU);
    arena_take(&arena, BLOCK, sizeof *block);
    TRY(arena_reserve(&arena));
    block = arena_take(&arena, BLOCK, sizeof *block);
    memset(block, 1, BLOCK * sizeof *block);
    return OK;
}

void peaks_close(void)
{
    arena_release(&arena);
    block = NULL;
}

static peak_loop *loop_of(enum peak p)
{
    peak_loop *loop = NULL;
#if defined(__x86_64__)
    enum kernel_level level = kernels_level();
    if (p == PEAK_F32 && level >= LEVEL_AVX2) loop = level >= LEVEL_AVX512 ? peak_f32_avx512 : peak_f32_avx2;
    if (p == PEAK_BF16 && level >= LEVEL_AVX512BF16) loop = peak_bf16_avx512bf16;
    if (p == PEAK_INT8 && level >= LEVEL_AVX512 && __builtin_cpu_supports("avx512vnni")) loop = peak_int8_avx512;
#endif
    return loop;
}

// Work of all threads until the time is over, each going on by small shares.
static double loop_slice(peak_loop *loop, double seconds)
{
    enum { SHARE = 20000 };
    double begin = seconds_now();
    long done = 0;
#pragma omp parallel reduction(+ : done)
    while (seconds_now() - begin < seconds) done += SHARE * loop(SHARE);
    return (double)done / (seconds_now() - begin);
}

// The pieces follow one another through the whole block, so that none is still in a cache when it comes again. `least`
// pieces, however long they take.
static double read_slice(double seconds, long least)
{
    double begin = seconds_now();
    long done = 0, first = next_piece;
#pragma omp parallel reduction(+ : done)
    for (;;) {
        long piece;
#pragma omp atomic capture
        piece = next_piece++;
        if (piece - first >= least && seconds_now() - begin >= seconds) break;
        const uint64_t *from = block + piece % (BLOCK / PIECE) * PIECE;
        uint64_t sum = 0;
        for (long i = 0; i < PART; i += 8) // one load a cache line is enough to move it
#pragma GCC unroll 8
            for (long place = 0; place < PIECE; place += PART) {
                __builtin_prefetch(from + place + i + AHEAD, 0, 2);
                sum += from[place + i];
            }
        __asm__ volatile("" : : "r"(sum)); // the loop stays
        done += PIECE * (long)sizeof *from;
    }
    return (double)done / (seconds_now() - begin);
}

void peak_wake(enum peak p)
{
    CHECK(block);
    if (p == PEAK_READ) read_slice(0, BLOCK / PIECE);
}

double peak_slice(enum peak p, double seconds)
{
    CHECK(block);
    if (p == PEAK_READ) return read_slice(seconds, 0);
    peak_loop *loop = loop_of(p);
    return loop ? loop_slice(loop, seconds) : 0;
}

double peak_best(enum peak p)
{
    double best = 0;
    for (int slice = 0; slice < 8; slice++) {
        double rate = peak_slice(p, 0.03);
        if (rate > best) best = rate;
    }
    return best;
}
