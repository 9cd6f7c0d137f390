// The two products oneDNN gives us, row major. Everything of dnnl.h stays behind this header.
#ifndef SKYMOE_KERNELS_DNNL_DNNL_GEMM_H
#define SKYMOE_KERNELS_DNNL_DNNL_GEMM_H

#include <stdbool.h>
#include <stdint.h>

// How the operands lie: y[M,N] = x[M,K] w[N,K]' | x[M,K] w[K,N] | x[K,M]' w[K,N]
enum product { PRODUCT_NT, PRODUCT_NN, PRODUCT_TN };

// f32; `add` keeps what y holds.
void dnnl_gemm_f32(enum product p, bool add, float *y, const float *x, const float *w, long M, long N, long K);

// bf16 operands, f32 sums; y is float (wide) or bf16. false: this machine's oneDNN has no bf16 product.
bool dnnl_gemm_bf16(enum product p, bool add, bool wide, void *y, const uint16_t *x, const uint16_t *w, long M, long N,
                    long K);
bool dnnl_has_bf16(void);
long dnnl_scratch_bytes(void); // what the bf16 products that were asked for keep for themselves

// Caps oneDNN's instruction set; once, before the first product.
enum dnnl_cap { DNNL_CAP_NONE, DNNL_CAP_AVX2, DNNL_CAP_AVX512, DNNL_CAP_AVX512_BF16 };
void dnnl_cap(enum dnnl_cap cap);

#endif
