// The 8 and 16 bit formats against their definitions: every bit pattern, and rounding to nearest even at and beside
// every midpoint of neighbours.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdio.h>

#include "kernels/dtype.h"

#include <cmocka.h>

struct format {
    const char *name;
    int exponent_bits, mantissa_bits, bias;
    unsigned largest, nan; // patterns of the largest finite value and of a NaN that must stay one
    float (*decode)(unsigned bits);
    unsigned (*encode)(float f);
};

static float decode_bf16(unsigned bits)
{
    return bf16_to_float((uint16_t)bits);
}

static unsigned encode_bf16(float f)
{
    return bf16_from_float(f);
}

static float decode_f16(unsigned bits)
{
    return f16_to_float((uint16_t)bits);
}

static unsigned encode_f16(float f)
{
    return f16_from_float(f);
}

static float decode_e4m3(unsigned bits)
{
    return e4m3_to_float((uint8_t)bits);
}

static unsigned encode_e4m3(float f)
{
    return e4m3_from_float(f);
}

static const struct format formats[] = {
    {"bf16", 8, 7, 127, 0x7f7f, 0x7fc0, decode_bf16, encode_bf16},
    {"f16", 5, 10, 15, 0x7bff, 0x7e00, decode_f16, encode_f16},
    {"e4m3", 4, 3, 7, 0x7e, 0x7f, decode_e4m3, encode_e4m3},
};

// The value of a finite pattern, by definition.
static double defined(const struct format *f, unsigned bits)
{
    unsigned mantissa = bits & ((1u << f->mantissa_bits) - 1), exponent = bits >> f->mantissa_bits;
    if (exponent == 0) return ldexp(mantissa, 1 - f->bias - f->mantissa_bits);
    return ldexp((1u << f->mantissa_bits) + mantissa, (int)exponent - f->bias - f->mantissa_bits);
}

static void test_every_pattern(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        const struct format *f = &formats[i];
        unsigned sign = 1u << (f->exponent_bits + f->mantissa_bits);
        for (unsigned bits = 0; bits <= f->largest; bits++) {
            double value = defined(f, bits);
            assert_true((double)f->decode(bits) == value);
            assert_true((double)f->decode(bits | sign) == -value);
            assert_true(!signbit(f->decode(bits)) && signbit(f->decode(bits | sign)));
            assert_int_equal(f->encode((float)value), bits);
            assert_int_equal(f->encode((float)-value), bits | sign);
        }
        for (unsigned bits = f->largest + 1; bits < sign; bits++) { // infinity once, otherwise NaN
            bool infinite = i < 2 && bits == f->largest + 1;
            assert_true(infinite ? f->decode(bits) == INFINITY && f->decode(bits | sign) == -INFINITY
                                 : isnan(f->decode(bits)) && isnan(f->decode(bits | sign)));
            assert_true(infinite ? f->encode(INFINITY) == bits : isnan(f->decode(f->encode(f->decode(bits)))));
        }
        assert_true(isnan(f->decode(f->encode(NAN))) && isnan(f->decode(f->encode(-NAN))));
        assert_true(isnan(f->decode(f->nan)));
    }
    assert_int_equal(e4m3_from_float(NAN), 0x7f);
    assert_int_equal(e4m3_from_float(-NAN), 0x7f);
    // A signalling NaN whose payload lies in the bits that are cut off stays a NaN.
    uint32_t u = 0x7f800001;
    float signalling;
    memcpy(&signalling, &u, 4);
    assert_true(isnan(bf16_to_float(bf16_from_float(signalling))) && isnan(f16_to_float(f16_from_float(signalling))));
}

static void test_rounding(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        const struct format *f = &formats[i];
        unsigned sign = 1u << (f->exponent_bits + f->mantissa_bits);
        for (unsigned low = 0; low < f->largest; low++) {
            float middle = (float)((defined(f, low) + defined(f, low + 1)) / 2); // exact in float
            unsigned even = low % 2 ? low + 1 : low;
            assert_int_equal(f->encode(middle), even);
            assert_int_equal(f->encode(nextafterf(middle, 0)), low);
            assert_int_equal(f->encode(nextafterf(middle, INFINITY)), low + 1);
            assert_int_equal(f->encode(-middle), even | sign);
            assert_int_equal(f->encode(-nextafterf(middle, INFINITY)), (low + 1) | sign);
        }
    }
}

static void test_overflow(void **state)
{
    (void)state;
    assert_int_equal(f16_from_float(65519.996f), 0x7bff);
    assert_int_equal(f16_from_float(65520), 0x7c00);
    assert_int_equal(f16_from_float(-1e30f), 0xfc00);
    assert_int_equal(bf16_from_float(3.4028235e38f), 0x7f80);
    assert_int_equal(bf16_from_float(-INFINITY), 0xff80);
    const float large[] = {448.00003f, 464, 465, 1e30f, INFINITY};
    for (int i = 0; i < 5; i++) {
        assert_int_equal(e4m3_from_float(large[i]), 0x7e);
        assert_int_equal(e4m3_from_float(-large[i]), 0xfe);
    }
    assert_int_equal(e4m3_from_float(1e-30f), 0);
    assert_int_equal(f16_from_float(-1e-30f), 0x8000);
}

static void test_names(void **state)
{
    (void)state;
    static const long size[] = {4, 2, 8, 2, 1};
    for (int t = 0; t < DTYPES; t++) {
        assert_int_equal(dtype_from_name(dtype_name((enum dtype)t)), t);
        assert_int_equal(dtype_size((enum dtype)t), size[t]);
    }
    assert_string_equal(dtype_name(F8_E4M3), "F8_E4M3");
    assert_int_equal(dtype_from_name("F8_E5M2"), -1);
    assert_int_equal(dtype_from_name(""), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_pattern),
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_overflow),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests_name("dtype", tests, NULL, NULL);
}
