#include "kernels/dtype.h"

#include <math.h>

static const char *const names[DTYPES] = {
    [F32] = "F32", [BF16] = "BF16", [F64] = "F64", [F16] = "F16", [F8_E4M3] = "F8_E4M3",
};

const char *dtype_name(enum dtype t)
{
    return names[t];
}

int dtype_from_name(const char *name)
{
    for (int t = 0; t < DTYPES; t++)
        if (!strcmp(name, names[t])) return t;
    return -1;
}

static uint32_t float_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static float bits_float(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

float f16_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return bits_float(sign | 0x7f800000 | mantissa << 13);
    if (exponent) return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
    float f = (float)mantissa * 0x1p-24f; // subnormal
    return sign ? -f : f;
}

uint16_t f16_from_float(float f)
{
    uint32_t u = float_bits(f), magnitude = u & 0x7fffffff;
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000) return sign | 0x7c00; // 65520 and more round to infinity
    if (magnitude < 0x38800000)                        // below 2^-14: a multiple of 2^-24
        return (uint16_t)(sign | (uint32_t)rintf(bits_float(magnitude) * 0x1p24f));
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | ((magnitude >> 13) - (112 << 10)));
}

float e4m3_to_float(uint8_t q)
{
    uint32_t sign = (uint32_t)(q & 0x80) << 24, exponent = q >> 3 & 15, mantissa = q & 7;
    if ((q & 0x7f) == 0x7f) return bits_float(sign | 0x7fc00000);
    if (exponent) return bits_float(sign | (exponent + 120) << 23 | mantissa << 20);
    float f = (float)mantissa * 0x1p-9f; // subnormal
    return sign ? -f : f;
}

uint8_t e4m3_from_float(float f)
{
    uint32_t u = float_bits(f), magnitude = u & 0x7fffffff;
    uint8_t sign = (uint8_t)(u >> 24 & 0x80);
    if (magnitude > 0x7f800000) return 0x7f;
    if (magnitude >= 0x43e00000) return sign | 0x7e; // 448
    if (magnitude < 0x3c800000)                      // below 2^-6: a multiple of 2^-9
        return (uint8_t)(sign | (uint32_t)rintf(bits_float(magnitude) * 0x1p9f));
    magnitude += 0x7ffff + (magnitude >> 20 & 1);
    return (uint8_t)(sign | ((magnitude >> 20) - (120 << 3)));
}
