// Element types of tensors, with the names safetensors uses.
#ifndef SKYMOE_KERNELS_DTYPE_H
#define SKYMOE_KERNELS_DTYPE_H

#include <stdint.h>
#include <string.h>

enum dtype { F32, BF16, F64, F16, F8_E4M3, DTYPES };
enum { SCALE_BLOCK = 128 }; // rows and columns of F8_E4M3 that share a scale, where blocks do

static inline long dtype_size(enum dtype t)
{
    static const long size[DTYPES] = {[F32] = 4, [BF16] = 2, [F64] = 8, [F16] = 2, [F8_E4M3] = 1};
    return size[t];
}
const char *dtype_name(enum dtype t);         // "F32", "BF16", "F64", "F16", "F8_E4M3"
int dtype_from_name(const char *name);        // -1 when unknown

// Scalar conversions, all exact or rounded to nearest even. These define the formats; kernels may be faster, not
// different.
static inline float bf16_to_float(uint16_t b)
{
    uint32_t u = (uint32_t)b << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline uint16_t bf16_from_float(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40); // NaN stays NaN
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
float f16_to_float(uint16_t h);
uint16_t f16_from_float(float f);      // overflow gives infinity
float e4m3_to_float(uint8_t q);        // 0x7f and 0xff are NaN; no infinity
uint8_t e4m3_from_float(float f);      // saturates at +-448; NaN gives 0x7f

#endif
