// `test_kernels --time [ENTRY...]`: how fast each kernel is at every level of this machine, beside the reference and
// beside a plain sweep of memory (x = x + 1, or a sum) over as many bytes, measured alternately in the same run. Bytes
// are those that a kernel has to read and write once. Products and attention over many rows have their operations
// counted instead: `skymoe bench` has the peaks to go with them, and larger shapes than the reference could take.
#ifndef SKYMOE_TESTS_KERNEL_TIME_H
#define SKYMOE_TESTS_KERNEL_TIME_H

#include "base/log.h"
#include "kernel_check.h"

enum { // the shapes of a step: 4 x 512 tokens of a small mixture, the head's chunk, the optimizer on a large matrix
    TIME_T = 2048, TIME_D = 1024, TIME_E = 8, TIME_K = 2, TIME_F = 1408, TIME_R = TIME_T * TIME_K, TIME_G = 16,
    TIME_C = 64, TIME_M = 256, TIME_WIDE = 512, TIME_H = 4, TIME_S = 512, TIME_V = 32000, TIME_ROWS = 256,
    TIME_N = 1 << 23, TIME_VALUES = 3 * TIME_R * TIME_F,
};

struct timed {
    const struct kernels *k;
    long size;                // bytes of an el
    char *x, *y, *z;          // [TIME_VALUES] el
    float *a, *b, *c, *d;     // [TIME_N]
    int *token, *position, *sequence, *expert, *row, *source, *chosen, *page, *decided; // [TIME_R]
    long first[65], count[65];
    float *scale;             // [TIME_N / TIME_D]
    float *to, *from;         // [TIME_N] of the sweep
};

typedef double timed_call(struct timed *t, bool run); // bytes or operations of a call

#define TIMED(name, bytes, ...)                                                                                        \
    static double timed_##name(struct timed *t, bool run)                                                              \
    {                                                                                                                  \
        if (run) __VA_ARGS__;                                                                                          \
        return (double)(bytes);                                                                                        \
    }
#define TENSOR(p, type) ((struct tensor){.data = (p), .dtype = (type)})
#define SCALED(p, type) ((struct tensor){.data = (p), .scale = t->scale, .dtype = (type)})
#define CAST(to, from) t->k->cast(to, from, TIME_N / TIME_D, TIME_D)
#define TD ((double)TIME_T * TIME_D)
#define RF ((double)TIME_R * TIME_F)
#define ND ((double)TIME_N)
#define PRODUCT (2.0 * TIME_M * TIME_WIDE * TIME_WIDE)
#define EXPERTS ((long[]){0, TIME_M / 4, TIME_M / 4, TIME_M}) // 3 of them, one without a row
#define SCORES (2.0 * TIME_H * TIME_C * TIME_S * TIME_S / 2)  // of one product over the keys that a query sees
static const struct attention_shape timed_shape = {1, TIME_S, TIME_H, TIME_H, TIME_C, 1, 0, 0, 0.125};
static struct kv_view timed_pages(const struct timed *t, long from)
{
    return (struct kv_view){t->y, t->y + TIME_T * TIME_D * t->size, t->page, TIME_T / PAGE_TOKENS, t->sequence,
                            t->position + from};
}

TIMED(copy, 8 * ND, t->k->copy(t->a, t->b, 4L * TIME_N))
TIMED(to_host, 8 * ND, t->k->to_host(t->a, t->b, 4L * TIME_N))
TIMED(from_host, 8 * ND, t->k->from_host(t->a, t->b, 4L * TIME_N))
TIMED(zero, 4 * ND, t->k->zero(t->a, 4L * TIME_N))
TIMED(fill, 4 * ND, t->k->fill(TENSOR(t->a, F32), 0.5, TIME_N))
TIMED(fill_bf16, 2 * ND, t->k->fill(TENSOR(t->a, BF16), 0.5, TIME_N))
TIMED(cast_f32_bf16, 6 * ND, CAST(TENSOR(t->y, BF16), TENSOR(t->a, F32)))
TIMED(cast_bf16_f32, 6 * ND, CAST(TENSOR(t->a, F32), TENSOR(t->x, BF16)))
TIMED(cast_f32_f16, 6 * ND, CAST(TENSOR(t->y, F16), TENSOR(t->a, F32)))
TIMED(cast_f32_f8, 5 * ND, CAST(SCALED(t->y, F8_E4M3), TENSOR(t->a, F32)))
TIMED(cast_bf16_f8, 3 * ND, CAST(SCALED(t->y, F8_E4M3), TENSOR(t->x, BF16)))
TIMED(cast_f8_f32, 5 * ND, CAST(TENSOR(t->a, F32), SCALED(t->z, F8_E4M3)))
TIMED(cast_f8_bf16, 3 * ND, CAST(TENSOR(t->y, BF16), SCALED(t->z, F8_E4M3)))
TIMED(add_parts, 12 * ND, t->k->add_parts(t->a, (const void *[]){t->b, t->c}, 2, F32, TIME_N))
TIMED(add_parts_bf16, 6 * ND, t->k->add_parts(t->y, (const void *[]){t->x, t->z}, 2, BF16, TIME_N))
TIMED(amax, 4 * ND, t->scale[0] = (float)t->k->amax(TENSOR(t->a, F32), TIME_N))
TIMED(amax_bf16, 2 * ND, t->scale[0] = (float)t->k->amax(TENSOR(t->x, BF16), TIME_N))
TIMED(init_normal, ND / 2, t->k->init_normal(TENSOR(t->y, F32), 0, 0.02, TIME_N / 8, 1, 2, 0))
TIMED(init_normal_bf16, ND / 4, t->k->init_normal(TENSOR(t->y, BF16), 0, 0.02, TIME_N / 8, 1, 2, 0))
TIMED(matmul_nt, PRODUCT, t->k->matmul_nt(t->y, t->x, TENSOR(t->z, t->k->el), TIME_M, TIME_WIDE, TIME_WIDE))
TIMED(matmul_nt_f8, PRODUCT, t->k->matmul_nt(t->y, t->x, SCALED(t->z, F8_E4M3), TIME_M, TIME_WIDE, TIME_WIDE))
TIMED(matmul_nt_acc, PRODUCT, t->k->matmul_nt_acc(t->a, t->x, TENSOR(t->z, t->k->el), TIME_M, TIME_WIDE, TIME_WIDE))
TIMED(matmul_nn, PRODUCT, t->k->matmul_nn(t->y, t->x, TENSOR(t->z, t->k->el), TIME_M, TIME_WIDE, TIME_WIDE))
TIMED(matmul_tn, PRODUCT, t->k->matmul_tn(t->a, t->x, t->z, TIME_M, TIME_WIDE, TIME_WIDE))
TIMED(grouped_nt, PRODUCT, t->k->grouped_nt(t->y, t->x, TENSOR(t->z, t->k->el), EXPERTS, 3, TIME_WIDE, TIME_WIDE))
TIMED(grouped_nt_f8, PRODUCT,
      t->k->grouped_nt(t->y, t->x, SCALED(t->z, F8_E4M3), EXPERTS, 3, TIME_WIDE, TIME_WIDE))
TIMED(grouped_nn, PRODUCT, t->k->grouped_nn(t->y, t->x, TENSOR(t->z, t->k->el), EXPERTS, 3, TIME_WIDE, TIME_WIDE))
TIMED(grouped_tn, PRODUCT, t->k->grouped_tn(t->a, t->x, t->z, EXPERTS, 3, TIME_WIDE, TIME_WIDE))
TIMED(router_nt, TD * t->size, t->k->router_nt(t->a, t->x, t->b, TIME_T, TIME_E, TIME_D))
TIMED(router_nn, 4 * TD, t->k->router_nn(t->a, t->b, t->c, TIME_T, TIME_E, TIME_D))
TIMED(router_tn, TD * t->size, t->k->router_tn(t->a, t->b, t->x, TIME_T, TIME_E, TIME_D))
TIMED(embed, 2 * TD * t->size, t->k->embed(t->y, TENSOR(t->x, t->k->el), t->token, TIME_T, TIME_D))
TIMED(embed_backward, TD * (t->size + 8), t->k->embed_backward(t->a, t->x, t->token, TIME_T, TIME_D))
TIMED(add, 3 * TD * t->size, t->k->add(t->y, t->x, t->z, TIME_T * TIME_D))
TIMED(rmsnorm, 2 * TD * t->size, t->k->rmsnorm(t->y, t->a, t->x, t->b, 1e-6, TIME_T, TIME_D))
TIMED(rmsnorm_backward, 4 * TD * t->size,
      t->k->rmsnorm_backward(t->y, t->x, t->z, t->x + 4 * TIME_T * TIME_D, t->b, t->c, TIME_T, TIME_D))
TIMED(rmsnorm_backward_weight, 2 * TD * t->size,
      t->k->rmsnorm_backward_weight(t->a, t->x, t->z, t->c, TIME_T, TIME_D))
TIMED(rope_angles, 4.0 * TIME_T * TIME_C, t->k->rope_angles(t->a, 1e4, TIME_T, TIME_C))
TIMED(rope, 2 * TD * t->size, t->k->rope(t->y, t->position, t->c, 1, TIME_T, TIME_G, TIME_C, 3 * TIME_D))
TIMED(attention, 2 * SCORES, t->k->attention(t->y, t->a, t->x, t->sequence, timed_shape))
TIMED(attention_backward, 5 * SCORES,
      t->k->attention_backward(t->y, t->z, t->x, t->x + 4 * TIME_T * TIME_D, t->b, t->sequence, timed_shape))
TIMED(kv_store, 4 * TD * t->size, t->k->kv_store(timed_pages(t, 0), t->x, TIME_T, TIME_G, TIME_G, TIME_C))
TIMED(attention_paged, 2 * SCORES,
      t->k->attention_paged(t->z, t->x, timed_pages(t, 0), TIME_S, TIME_H, TIME_H, TIME_C, 0, 0.125))
TIMED(attention_paged_one, 2 * TD * t->size,
      t->k->attention_paged(t->z, t->x, timed_pages(t, TIME_T - 1), 1, TIME_G, TIME_G, TIME_C, 0, 0.125))
TIMED(gate, 8.0 * TIME_T * TIME_E,
      t->k->gate(t->a, t->c, t->chosen, t->c + TIME_R, t->d, t->b, NULL, 1, TIME_T, TIME_E, TIME_K))
TIMED(gate_64, 8.0 * TIME_T * 64,
      t->k->gate(t->a, t->c, t->chosen, t->c + TIME_R, t->d, t->b, NULL, 1, TIME_T, 64, TIME_K))
TIMED(gate_backward, 12.0 * TIME_T * TIME_E,
      t->k->gate_backward(t->a, t->c, t->d, t->b, t->c, t->b, t->expert, t->c, 1, 0, TIME_T, TIME_T, TIME_E, TIME_K))
TIMED(gate_backward_64, 12.0 * TIME_T * 64,
      t->k->gate_backward(t->a, t->c, t->d, t->b, t->c, t->b, t->expert, t->c, 1, 0, TIME_T, TIME_T, 64, TIME_K))
TIMED(z_loss, 4.0 * TIME_T * TIME_E, t->k->z_loss(t->a, t->b, TIME_T, TIME_E))
TIMED(z_loss_backward, 12.0 * TIME_T * TIME_E,
      t->k->z_loss_backward(t->a, t->c, t->b, t->d, 1, 0, TIME_T, TIME_E))
TIMED(gate_sums, 4.0 * TIME_T * TIME_E, t->k->gate_sums(t->a, t->b, 0, TIME_T, TIME_T, TIME_E))
TIMED(gate_sums_64, 4.0 * TIME_T * 64, t->k->gate_sums(t->a, t->b, 0, TIME_T, TIME_T, 64))
TIMED(gate_statistics, 4.0 * TIME_T * TIME_E, {
    struct gate_statistics s;
    t->k->gate_statistics(&s, t->b, TIME_T, TIME_E);
})
TIMED(gate_statistics_64, 4.0 * TIME_T * 64, {
    struct gate_statistics s;
    t->k->gate_statistics(&s, t->b, TIME_T, 64);
})
TIMED(route, 12.0 * TIME_R, t->k->route(t->chosen, t->position + TIME_T, t->first, t->count, t->expert, t->b, TIME_R,
                                        DROP_PROBS, 0, TIME_T, TIME_T, TIME_E, TIME_K))
TIMED(route_drops, 12.0 * TIME_R, t->k->route(t->chosen, t->position + TIME_T, t->first, t->count, t->expert, t->b,
                                              TIME_R / TIME_E * 9 / 10, DROP_PROBS, 0, TIME_T, TIME_T, TIME_E,
                                              TIME_K))
TIMED(route_given, 16.0 * TIME_R,
      t->k->route_given(t->chosen, t->position + TIME_T, t->first, t->count, t->decided, t->a, t->expert, t->b, 0,
                        TIME_T, TIME_T, TIME_E, TIME_K))
TIMED(pick, 12.0 * TIME_R, t->k->pick(t->a, t->b, t->source, TIME_R))
TIMED(place, 12.0 * TIME_R, t->k->place(t->a, t->b, t->source, TIME_R))
TIMED(permute, 4 * TD * t->size, t->k->permute(t->y, t->x, t->source, TIME_R, TIME_K, TIME_D))
TIMED(combine, 4 * TD * t->size, t->k->combine(t->y, t->z, NULL, t->x, t->row, TIME_T, TIME_K, TIME_D))
TIMED(swiglu, 3 * RF * t->size, t->k->swiglu(t->y, t->x, t->c, TIME_R, TIME_F))
TIMED(swiglu_backward, 5 * RF * t->size,
      t->k->swiglu_backward(t->y, t->a, t->z, t->x, t->c, TIME_R, TIME_F))
TIMED(expert_similarity, 2 * ND * t->size, {
    struct tensor w = TENSOR(t->x, t->k->el);
    long n = TIME_N / TIME_E;
    t->k->expert_similarity(&w, &n, 1, TIME_E);
})
TIMED(cross_entropy, (double)TIME_ROWS * TIME_V * (4 + t->size),
      t->k->cross_entropy(t->c, t->y, t->b, NULL, 1, t->token, 0.01, TIME_ROWS, TIME_V))
TIMED(cross_entropy_loss, (double)TIME_ROWS * TIME_V * 4,
      t->k->cross_entropy(t->c, NULL, t->b, NULL, 1, t->token, 0.01, TIME_ROWS, TIME_V))
TIMED(cross_entropy_parts, (double)TIME_ROWS * TIME_V * (4 + t->size),
      t->k->cross_entropy(t->c, t->y, t->b, t->d, 2, t->token, 0.01, TIME_ROWS, TIME_V))
TIMED(logits_parts, (double)TIME_ROWS * TIME_V * 4, t->k->logits_parts(t->a, t->b, t->token, TIME_ROWS, TIME_V))
TIMED(kl_divergence, (double)TIME_ROWS * TIME_V * 8, t->k->kl_divergence(t->a, t->b, t->d, TIME_ROWS, TIME_V))
TIMED(adamw, (28 + t->size) * ND, // reads and writes m, v and masters, reads gradients, writes p
      t->k->adamw(TENSOR(t->y, t->k->el), t->a, t->b, t->c, t->d, TIME_N,
                  (struct adamw_step){1e-9, 0.9, 0.95, 1e-8, 0.1, 0.1, 0.05, 1}))
TIMED(sum_squares, 4 * ND, t->scale[1] = (float)t->k->sum_squares(t->b, TIME_N))
TIMED(sum, 4 * ND, t->scale[1] = (float)t->k->sum(t->b, TIME_N))
#undef TIMED
#undef TENSOR
#undef SCALED
#undef CAST
#undef TD
#undef RF
#undef ND
#undef PRODUCT
#undef EXPERTS
#undef SCORES

static const struct timed_row {
    const char *entry, *what;
    timed_call *call;
    bool reads;  // hardly writes: the roof is a sum's
    bool once;   // has no element type: float is enough
    bool counts; // operations, without a roof
} timed_rows[] = {
    {"copy", "32 MB", timed_copy, false, true, false},
    {"to_host", "32 MB", timed_to_host, false, true, false},
    {"from_host", "32 MB", timed_from_host, false, true, false},
    {"zero", "32 MB", timed_zero, false, true, false},
    {"fill", "f32", timed_fill, false, true, false},
    {"fill", "bf16", timed_fill_bf16, false, true, false},
    {"cast", "f32 -> bf16", timed_cast_f32_bf16, false, true, false},
    {"cast", "bf16 -> f32", timed_cast_bf16_f32, false, true, false},
    {"cast", "f32 -> f16", timed_cast_f32_f16, false, true, false},
    {"cast", "f32 -> f8 / scale", timed_cast_f32_f8, false, true, false},
    {"cast", "bf16 -> f8 / scale", timed_cast_bf16_f8, false, true, false},
    {"cast", "f8 scale -> f32", timed_cast_f8_f32, false, true, false},
    {"cast", "f8 scale -> bf16", timed_cast_f8_bf16, false, true, false},
    {"add_parts", "2 f32", timed_add_parts, false, true, false},
    {"add_parts", "2 bf16", timed_add_parts_bf16, false, true, false},
    {"amax", "f32", timed_amax, true, true, false},
    {"amax", "bf16", timed_amax_bf16, true, true, false},
    {"init_normal", "f32", timed_init_normal, false, true, false},
    {"init_normal", "bf16", timed_init_normal_bf16, false, true, false},
    {"matmul_nt", "256 x 512 x 512", timed_matmul_nt, false, false, true},
    {"matmul_nt", "f8 weights", timed_matmul_nt_f8, false, false, true},
    {"matmul_nt_acc", "256 x 512 x 512", timed_matmul_nt_acc, false, false, true},
    {"matmul_nn", "256 x 512 x 512", timed_matmul_nn, false, false, true},
    {"matmul_tn", "256 x 512 x 512", timed_matmul_tn, false, false, true},
    {"grouped_nt", "64, 0, 192 rows", timed_grouped_nt, false, false, true},
    {"grouped_nt", "f8 weights", timed_grouped_nt_f8, false, false, true},
    {"grouped_nn", "64, 0, 192 rows", timed_grouped_nn, false, false, true},
    {"grouped_tn", "64, 0, 192 rows", timed_grouped_tn, false, false, true},
    {"router_nt", "2048 x 8 x 1024", timed_router_nt, true, false, false},
    {"router_nn", "2048 x 8 x 1024", timed_router_nn, false, true, false},
    {"router_tn", "2048 x 8 x 1024", timed_router_tn, true, false, false},
    {"embed", "2048 x 1024", timed_embed, false, false, false},
    {"embed_backward", "2048 x 1024", timed_embed_backward, false, false, false},
    {"add", "2048 x 1024", timed_add, false, false, false},
    {"rmsnorm", "2048 x 1024", timed_rmsnorm, false, false, false},
    {"rmsnorm_backward", "2048 x 1024", timed_rmsnorm_backward, false, false, false},
    {"rmsnorm_backward_weight", "2048 x 1024", timed_rmsnorm_backward_weight, true, false, false},
    {"rope_angles", "2048 x 64", timed_rope_angles, false, true, false},
    {"rope", "2048 x 16 x 64", timed_rope, false, false, false},
    {"attention", "512 x 4 x 64", timed_attention, false, false, true},
    {"attention_backward", "512 x 4 x 64", timed_attention_backward, false, false, true},
    {"attention_paged", "512 x 4 x 64", timed_attention_paged, false, false, true},
    {"attention_paged", "1 row, 2048 x 16 x 64", timed_attention_paged_one, true, false, false},
    {"kv_store", "2048 x 16 x 64", timed_kv_store, false, false, false},
    {"gate", "2048, 8 top-2", timed_gate, false, true, false},
    {"gate", "2048, 64 top-2", timed_gate_64, false, true, false},
    {"gate_backward", "2048, 8 top-2", timed_gate_backward, false, true, false},
    {"gate_backward", "2048, 64 top-2", timed_gate_backward_64, false, true, false},
    {"z_loss", "2048 x 8", timed_z_loss, true, true, false},
    {"z_loss_backward", "2048 x 8", timed_z_loss_backward, false, true, false},
    {"gate_sums", "2048 x 8", timed_gate_sums, true, true, false},
    {"gate_sums", "2048 x 64", timed_gate_sums_64, true, true, false},
    {"gate_statistics", "2048 x 8", timed_gate_statistics, true, true, false},
    {"gate_statistics", "2048 x 64", timed_gate_statistics_64, true, true, false},
    {"route", "2048, 8 top-2", timed_route, false, true, false},
    {"route", "the same, drops", timed_route_drops, false, true, false},
    {"route_given", "2048, 8 top-2", timed_route_given, false, true, false},
    {"pick", "4096", timed_pick, false, true, false},
    {"place", "4096", timed_place, false, true, false},
    {"permute", "4096 x 1024", timed_permute, false, false, false},
    {"combine", "2048 x 1024, top-2", timed_combine, false, false, false},
    {"swiglu", "4096 x 1408", timed_swiglu, false, false, false},
    {"swiglu_backward", "4096 x 1408", timed_swiglu_backward, false, false, false},
    {"expert_similarity", "8 x 1 M", timed_expert_similarity, true, false, false},
    {"cross_entropy", "256 x 32000", timed_cross_entropy, false, false, false},
    {"cross_entropy", "loss only", timed_cross_entropy_loss, true, true, false},
    {"cross_entropy", "from 2 ranks' parts", timed_cross_entropy_parts, false, false, false},
    {"logits_parts", "256 x 32000", timed_logits_parts, true, true, false},
    {"kl_divergence", "256 x 32000", timed_kl_divergence, true, true, false},
    {"adamw", "8 M", timed_adamw, false, false, false},
    {"sum_squares", "8 M", timed_sum_squares, true, true, false},
    {"sum", "8 M", timed_sum, true, true, false},
};

static void *timed_room(long n, long size)
{
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 4096, (size_t)(n * size)), 0);
    return p;
}

static void timed_ints(struct timed *t)
{
    t->token = timed_room(TIME_R, sizeof(int));
    t->position = timed_room(2 * TIME_R, sizeof(int));
    t->sequence = timed_room(TIME_R, sizeof(int));
    t->expert = timed_room(TIME_R, sizeof(int));
    t->row = timed_room(TIME_R, sizeof(int));
    t->source = timed_room(TIME_R, sizeof(int));
    t->chosen = timed_room(TIME_R, sizeof(int));
    t->page = timed_room(TIME_R, sizeof(int));
    t->decided = timed_room(TIME_R, sizeof(int));
    struct check c = {.shape = 1};
    for (int i = 0; i < TIME_R; i++) {
        t->token[i] = (int)draw_below(&c, TIME_N / TIME_D - TIME_T);
        t->position[i] = i % TIME_T;
        t->page[i] = i;
        t->sequence[i] = 0;
        t->expert[i] = i % TIME_K ? (t->expert[i - 1] + 1 + (int)draw_below(&c, TIME_E - 1)) % TIME_E
                                  : (int)draw_below(&c, TIME_E);
        t->decided[i] = t->expert[i];
    }
    kernels_for(F32)->route(t->source, t->row, t->first, t->count, t->expert, t->b, TIME_R, DROP_PROBS, 0, TIME_T,
                            TIME_T, TIME_E, TIME_K);
}

static void timed_start(struct timed *t)
{
    t->x = timed_room(TIME_VALUES, 4);
    t->y = timed_room(TIME_VALUES, 4);
    t->z = timed_room(TIME_VALUES, 4);
    float **sums[] = {&t->a, &t->b, &t->c, &t->d, &t->to, &t->from};
    for (int i = 0; i < 6; i++) *sums[i] = timed_room(TIME_N, 4);
    t->scale = timed_room(TIME_N / TIME_D, 4);
    timed_ints(t);
}

// Numbers between 0.25 and 0.75 everywhere, whatever the call before left: time must not depend on infinity or 0.
static void timed_values(void *to, enum dtype type, long n, uint32_t seed)
{
#pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i++)
        put(to, (int)type, i, 0.25 + 0x1p-25 * (double)((((uint32_t)i ^ seed) * 2654435761u ^ seed) >> 8));
}

static void timed_reset(struct timed *t)
{
    char *values[] = {t->x, t->y, t->z};
    float *sums[] = {t->a, t->b, t->c, t->d, t->to, t->from};
    for (uint32_t i = 0; i < 3; i++) timed_values(values[i], t->k->el, TIME_VALUES, i);
    for (uint32_t i = 0; i < 6; i++) timed_values(sums[i], F32, TIME_N, 99 + i);
    timed_values(t->scale, F32, TIME_N / TIME_D, 5);
    t->size = dtype_size(t->k->el);
}

// What is to be reached: a sweep over as many bytes, y = x + 1 or a sum of x.
typedef float four __attribute__((vector_size(16)));
static double sweep(float *y, const float *x, long n, bool reads)
{
    four *to = (four *)(void *)y;
    const four *from = (const four *)(const void *)x;
    double sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum)
    for (long i = 0; i < n / 4; i += 256) { // 4 KiB
        four s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        long end = i + 256 < n / 4 ? i + 256 : n / 4;
        for (long j = i; j < end && reads; j += 4) {
            s0 += from[j];
            s1 += from[j + 1];
            s2 += from[j + 2];
            s3 += from[j + 3];
        }
        for (long j = i; j < end && !reads; j++) to[j] = from[j] + 1;
        s0 += s1 + s2 + s3;
        sum += (double)s0[0];
    }
    return sum;
}

enum { TIMINGS = 15 };
static const double timed_most = 0.5; // seconds, after which a slow one has been called often enough

// The best of alternate calls, for the machine may be shared; short ones are repeated to about 1 ms.
static void time_row(const struct timed_row *row, struct timed *t, const char *level)
{
    double work = row->call(t, false), best = INFINITY, roof = INFINITY, sum = 0, start = seconds_now();
    long n = (long)(work / (row->reads ? 4 : 8)) / 16 * 16, repeat = 1;
    if (n > TIME_N) n = TIME_N;
    for (int i = -1; i < TIMINGS && (i < 2 || seconds_now() - start < timed_most); i++) {
        double begin = seconds_now();
        for (long j = 0; j < repeat; j++) row->call(t, true);
        double one = (seconds_now() - begin) / (double)repeat;
        if (i < 0) {
            repeat = one < 1e-3 ? (long)(1e-3 / one) + 1 : 1;
            continue;
        }
        best = fmin(best, one);
        begin = seconds_now();
        for (long j = 0; j < repeat && !row->counts; j++) sum += sweep(t->to, t->from, n, row->reads);
        roof = fmin(roof, (seconds_now() - begin) / (double)repeat * work / ((double)n * (row->reads ? 4 : 8)));
    }
    __asm__ volatile("" : : "x"(sum));
    print_message("%-24s %-21s %-5s %-11s %10.1f us %8.2f %s", row->entry, row->what,
                  row->once ? "" : dtype_name(t->k->el), level, 1e6 * best, 1e-9 * work / best,
                  row->counts ? "GFLOP/s" : "GB/s");
    if (row->counts) print_message("\n");
    else print_message(" %8.2f %5.0f %%\n", 1e-9 * work / roof, 100 * roof / best);
}

static bool timed_chosen(const char *entry, char **names, int n)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(names[i], entry)) return true;
    return n == 0;
}

static const char *source_of(enum dtype type, const char *entry)
{
    for (long row = 0; row < kernel_rows_n; row++)
        if (!strcmp(kernel_rows[row].name, entry)) return kernel_source(type, row);
    return "";
}

// Every level that serves an entry itself, up to SKYMOE_KERNELS.
static int time_kernels(char **names, int n)
{
    static const char *const levels[] = {"ref", "dnnl", "avx2", "avx512", "avx512bf16"};
    struct timed t = {0};
    const char *given = getenv("SKYMOE_KERNELS");
    char most[32] = "";
    if (given) snprintf(most, sizeof most, "%s", given);
    timed_start(&t);
    print_message("%ld threads; bytes read and written (products: operations); roof: a sweep of as many bytes\n"
                  "%-24s %-21s %-5s %-11s %13s %13s %8s\n", kernels_threads(), "entry", "shape", "type", "level",
                  "time", "rate", "roof");
    for (size_t r = 0; r < sizeof timed_rows / sizeof *timed_rows; r++) {
        const struct timed_row *row = &timed_rows[r];
        if (!timed_chosen(row->entry, names, n)) continue;
        for (int type = F32; type <= (row->once ? F32 : BF16); type++) {
            for (size_t l = 0; l < sizeof levels / sizeof *levels; l++) {
                setenv("SKYMOE_KERNELS", levels[l], 1);
                if (kernels_init(kernels_threads()) != OK) break; // this machine has no more
                t.k = kernels_for((enum dtype)type);
                if (l == 0) timed_reset(&t);
                if (!strcmp(source_of((enum dtype)type, row->entry), levels[l])) time_row(row, &t, levels[l]);
                if (!strcmp(most, levels[l])) break;
            }
        }
    }
    return 0;
}

#endif
