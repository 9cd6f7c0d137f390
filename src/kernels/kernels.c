#include "kernels/kernels.h"

#include <omp.h>
#include <stddef.h>
#include <stdlib.h>

#include "kernels/dnnl/dnnl_gemm.h"
#include "kernels/kernels_fill.h"
#include "kernels/x86/gemm.h"

#define ROW(entry) {#entry, offsetof(struct kernels, entry)}
const struct kernel_row kernel_rows[] = {
    ROW(copy), ROW(to_host), ROW(from_host), ROW(zero), ROW(cast), ROW(add_parts), ROW(fill),
    ROW(init_normal),
    ROW(matmul_nt), ROW(matmul_nt_acc), ROW(matmul_nn), ROW(matmul_tn), ROW(grouped_nt), ROW(grouped_nn),
    ROW(grouped_tn), ROW(router_nt), ROW(router_nn), ROW(router_tn),
    ROW(embed), ROW(embed_backward), ROW(add), ROW(rmsnorm), ROW(rmsnorm_backward), ROW(rmsnorm_backward_weight),
    ROW(rope_angles), ROW(rope), ROW(attention), ROW(attention_backward), ROW(kv_store), ROW(attention_paged),
    ROW(gate), ROW(gate_backward), ROW(z_loss), ROW(z_loss_backward), ROW(gate_sums), ROW(gate_statistics), ROW(route),
    ROW(route_given), ROW(pick), ROW(place), ROW(permute), ROW(combine), ROW(swiglu), ROW(swiglu_backward),
    ROW(expert_similarity), ROW(logits_parts), ROW(cross_entropy), ROW(kl_divergence), ROW(adamw), ROW(sum_squares),
    ROW(sum), ROW(amax),
};
#undef ROW
enum { ROWS = sizeof kernel_rows / sizeof kernel_rows[0], LEVELS = LEVEL_AVX512BF16 + 1 };
const long kernel_rows_n = ROWS;
_Static_assert(sizeof(struct kernels) == offsetof(struct kernels, copy) + ROWS * sizeof(void (*)(void)),
               "kernel_rows has every entry of struct kernels");

static const char *const level_names[LEVELS] = {"ref", "dnnl", "avx2", "avx512", "avx512bf16"};

static struct kernels tables[F64 + 1]; // F32, BF16, F64
static enum kernel_level sources[F64 + 1][ROWS];
static long threads_n;                 // 0 before kernels_init
static enum kernel_level level_n;

static enum kernel_level machine_level(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return LEVEL_DNNL;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return LEVEL_AVX2;
    bool bf16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi"); // the latter widens FP8
    return bf16 ? LEVEL_AVX512BF16 : LEVEL_AVX512;
#else
    return LEVEL_DNNL;
#endif
}

static enum status chosen_level(enum kernel_level *level)
{
    *level = machine_level();
    const char *name = getenv("SKYMOE_KERNELS");
    if (!name || !*name) return OK;
    for (int l = 0; l < LEVELS; l++) {
        if (strcmp(name, level_names[l])) continue;
        if (l > (int)*level)
            return fail(ERR_CONFIG, "SKYMOE_KERNELS: this processor has no %s (the highest level here is %s)", name,
                        level_names[*level]);
        *level = (enum kernel_level)l;
        return OK;
    }
    return fail(ERR_CONFIG, "SKYMOE_KERNELS: unknown level '%s' (use ref, dnnl, avx2, avx512 or avx512bf16)", name);
}

static const void *entry(const struct kernels *k, long row)
{
    return (const char *)k + kernel_rows[row].offset;
}

static bool same_entry(const struct kernels *a, const struct kernels *b, long row)
{
    return !memcmp(entry(a, row), entry(b, row), sizeof(void (*)(void)));
}

// An entry comes from the lowest level that fills it with the same function.
static void fill_table(enum dtype type, enum kernel_level level)
{
    struct kernels stage[LEVELS];
    ref_fill(&stage[LEVEL_REF], type);
    for (int l = LEVEL_DNNL; l <= (int)level; l++) {
        stage[l] = stage[l == LEVEL_DNNL ? LEVEL_REF : LEVEL_DNNL];
        if (l == LEVEL_DNNL) dnnl_fill(&stage[l], type, level);
        else x86_fill(&stage[l], type, (enum kernel_level)l);
    }
    tables[type] = stage[level];
    for (long row = 0; row < ROWS; row++) {
        int l = LEVEL_REF;
        while (!same_entry(&stage[l], &stage[level], row)) l++;
        sources[type][row] = (enum kernel_level)l;
    }
}

enum status kernels_init(long threads)
{
    static int default_threads; // what OpenMP found before the first omp_set_num_threads
    if (!default_threads) default_threads = omp_get_max_threads();
    enum kernel_level level;
    TRY(chosen_level(&level));
    level_n = level;
    threads_n = threads > 0 ? threads : default_threads;
    omp_set_num_threads((int)threads_n);
    fill_table(F32, level);
    fill_table(BF16, level);
    fill_table(F64, level);
    return OK;
}

long kernels_threads(void)
{
    return threads_n;
}

struct kernel_buffers kernels_buffers(void)
{
    return (struct kernel_buffers){x86_scratch_bytes(), dnnl_scratch_bytes()};
}

void (*kernels_meanwhile_call)(void);

void kernels_meanwhile(void (*call)(void))
{
    kernels_meanwhile_call = call;
}

const struct kernels *kernels_for(enum dtype type)
{
    CHECK(threads_n && type <= F64);
    return &tables[type];
}

void kernels_reference(struct kernels *k, enum dtype type)
{
    ref_fill(k, type);
}

const char *kernel_source(enum dtype type, long row)
{
    CHECK(threads_n && type <= F64 && row >= 0 && row < ROWS);
    return level_names[sources[type][row]];
}

enum kernel_level kernels_level(void)
{
    return level_n;
}
