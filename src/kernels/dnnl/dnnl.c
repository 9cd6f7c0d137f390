// Products by oneDNN, for f32 and bf16 weights of the table's own type; FP8 and mixed types stay with the reference
// here.
#include "kernels/dnnl/dnnl_gemm.h"
#include "kernels/kernels_fill.h"

static struct kernels ref_f32, ref_bf16;

static const void *expert(const void *data, long e, long elements, long size)
{
    return (const char *)data + e * elements * size;
}

// ---- f32 ----

static void nt_f32(el *y, const el *x, struct tensor w, long M, long N, long K)
{
    if (w.dtype == F32) dnnl_gemm_f32(PRODUCT_NT, false, y, x, w.data, M, N, K);
    else ref_f32.matmul_nt(y, x, w, M, N, K);
}

static void nt_acc_f32(acc *y, const el *x, struct tensor w, long M, long N, long K)
{
    if (w.dtype == F32) dnnl_gemm_f32(PRODUCT_NT, false, y, x, w.data, M, N, K);
    else ref_f32.matmul_nt_acc(y, x, w, M, N, K);
}

static void nn_f32(el *dx, const el *dy, struct tensor w, long M, long N, long K)
{
    if (w.dtype == F32) dnnl_gemm_f32(PRODUCT_NN, false, dx, dy, w.data, M, K, N);
    else ref_f32.matmul_nn(dx, dy, w, M, N, K);
}

static void tn_f32(acc *dw, const el *dy, const el *x, long M, long N, long K)
{
    dnnl_gemm_f32(PRODUCT_TN, true, dw, dy, x, N, K, M);
}

static void grouped_nt_f32(el *y, const el *x, struct tensor w, const long *first, long E, long N, long K)
{
    if (w.dtype != F32) {
        ref_f32.grouped_nt(y, x, w, first, E, N, K);
        return;
    }
    for (long e = 0; e < E; e++)
        dnnl_gemm_f32(PRODUCT_NT, false, (float *)y + first[e] * N, (const float *)x + first[e] * K,
                      expert(w.data, e, N * K, 4), first[e + 1] - first[e], N, K);
}

static void grouped_nn_f32(el *dx, const el *dy, struct tensor w, const long *first, long E, long N, long K)
{
    if (w.dtype != F32) {
        ref_f32.grouped_nn(dx, dy, w, first, E, N, K);
        return;
    }
    for (long e = 0; e < E; e++)
        dnnl_gemm_f32(PRODUCT_NN, false, (float *)dx + first[e] * K, (const float *)dy + first[e] * N,
                      expert(w.data, e, N * K, 4), first[e + 1] - first[e], K, N);
}

static void grouped_tn_f32(acc *dw, const el *dy, const el *x, const long *first, long E, long N, long K)
{
    for (long e = 0; e < E; e++)
        dnnl_gemm_f32(PRODUCT_TN, true, (float *)dw + e * N * K, (const float *)dy + first[e] * N,
                      (const float *)x + first[e] * K, N, K, first[e + 1] - first[e]);
}

// ---- bf16: oneDNN has said at the fill that it can ----

static void gemm(enum product p, bool add, bool wide, void *y, const void *x, const void *w, long M, long N, long K)
{
    CHECK(dnnl_gemm_bf16(p, add, wide, y, x, w, M, N, K));
}

static void nt_bf16(el *y, const el *x, struct tensor w, long M, long N, long K)
{
    if (w.dtype == BF16) gemm(PRODUCT_NT, false, false, y, x, w.data, M, N, K);
    else ref_bf16.matmul_nt(y, x, w, M, N, K);
}

static void nt_acc_bf16(acc *y, const el *x, struct tensor w, long M, long N, long K)
{
    if (w.dtype == BF16) gemm(PRODUCT_NT, false, true, y, x, w.data, M, N, K);
    else ref_bf16.matmul_nt_acc(y, x, w, M, N, K);
}

static void nn_bf16(el *dx, const el *dy, struct tensor w, long M, long N, long K)
{
    if (w.dtype == BF16) gemm(PRODUCT_NN, false, false, dx, dy, w.data, M, K, N);
    else ref_bf16.matmul_nn(dx, dy, w, M, N, K);
}

static void tn_bf16(acc *dw, const el *dy, const el *x, long M, long N, long K)
{
    gemm(PRODUCT_TN, true, true, dw, dy, x, N, K, M);
}

static void grouped_nt_bf16(el *y, const el *x, struct tensor w, const long *first, long E, long N, long K)
{
    if (w.dtype != BF16) {
        ref_bf16.grouped_nt(y, x, w, first, E, N, K);
        return;
    }
    for (long e = 0; e < E; e++)
        gemm(PRODUCT_NT, false, false, (uint16_t *)y + first[e] * N, (const uint16_t *)x + first[e] * K,
             expert(w.data, e, N * K, 2), first[e + 1] - first[e], N, K);
}

static void grouped_nn_bf16(el *dx, const el *dy, struct tensor w, const long *first, long E, long N, long K)
{
    if (w.dtype != BF16) {
        ref_bf16.grouped_nn(dx, dy, w, first, E, N, K);
        return;
    }
    for (long e = 0; e < E; e++)
        gemm(PRODUCT_NN, false, false, (uint16_t *)dx + first[e] * K, (const uint16_t *)dy + first[e] * N,
             expert(w.data, e, N * K, 2), first[e + 1] - first[e], K, N);
}

static void grouped_tn_bf16(acc *dw, const el *dy, const el *x, const long *first, long E, long N, long K)
{
    for (long e = 0; e < E; e++)
        gemm(PRODUCT_TN, true, true, (float *)dw + e * N * K, (const uint16_t *)dy + first[e] * N,
             (const uint16_t *)x + first[e] * K, N, K, first[e + 1] - first[e]);
}

void dnnl_fill(struct kernels *k, enum dtype type, enum kernel_level level)
{
    if (level < LEVEL_DNNL) return;
    static const enum dnnl_cap cap[] = {[LEVEL_DNNL] = DNNL_CAP_NONE,
                                        [LEVEL_AVX2] = DNNL_CAP_AVX2,
                                        [LEVEL_AVX512] = DNNL_CAP_AVX512,
                                        [LEVEL_AVX512BF16] = DNNL_CAP_AVX512_BF16};
    dnnl_cap(cap[level]);
    if (type == F32) {
        kernels_reference(&ref_f32, F32);
        k->matmul_nt = nt_f32;
        k->matmul_nt_acc = nt_acc_f32;
        k->matmul_nn = nn_f32;
        k->matmul_tn = tn_f32;
        k->grouped_nt = grouped_nt_f32;
        k->grouped_nn = grouped_nn_f32;
        k->grouped_tn = grouped_tn_f32;
    }
    if (type == BF16 && dnnl_has_bf16()) {
        kernels_reference(&ref_bf16, BF16);
        k->matmul_nt = nt_bf16;
        k->matmul_nt_acc = nt_acc_bf16;
        k->matmul_nn = nn_bf16;
        k->matmul_tn = tn_bf16;
        k->grouped_nt = grouped_nt_bf16;
        k->grouped_nn = grouped_nn_bf16;
        k->grouped_tn = grouped_tn_bf16;
    }
}
