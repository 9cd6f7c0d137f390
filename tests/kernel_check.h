// Runs a kernel's cases with two tables on the same inputs and compares everything they write.
//
// A case is a function of (check, shape number): it makes inputs and outputs with the functions below and calls one
// entry of check->k; false when there is no such shape. Inputs are functions of the shape alone and exact in the
// narrower type of the two tables, so both get the same values. Outputs are poisoned with NaN, or filled where the
// kernel adds (+=). All buffers have guard bytes around them, every second shape starts off the usual alignment, inputs
// must come back untouched, and what differs by more than the bound, or is NaN on one side only, fails.
#ifndef SKYMOE_TESTS_KERNEL_CHECK_H
#define SKYMOE_TESTS_KERNEL_CHECK_H

#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

#include <cmocka.h> // last: it defines fail() as a macro

enum { INT = DTYPES, LONG };       // besides enum dtype
enum { GUARD = 192, BUFFERS = 24 };

// |difference| <= relative |value| + absolute magnitude[i] (magnitude NULL: 1) + of_max max |value|
struct bound {
    double relative, absolute, of_max;
    double *magnitude; // freed with the buffer
};

struct buffer {
    const char *name;  // NULL: an input
    unsigned char *base, *data, *before;
    long n;
    int type;
    struct bound bound;
};

struct check {
    const struct kernels *k;   // under test in this run
    const struct kernels *ref; // the reference of the same type, to prepare inputs
    double eps_el, eps_acc;    // relative distance of two right roundings, in the type being tested
    int exact;                 // inputs of type el are exact in this type
    long shape;
    uint64_t drawn;
    char what[160];            // the shape in words
    struct buffer buffer[BUFFERS];
    long buffers;
};

typedef bool kernel_case(struct check *c, long shape);

static inline long type_size(int type)
{
    return type == INT ? (long)sizeof(int) : type == LONG ? (long)sizeof(long) : dtype_size((enum dtype)type);
}

static inline double value_at(const struct buffer *b, long i)
{
    switch (b->type) {
    case F32: return ((float *)b->data)[i];
    case F64: return ((double *)b->data)[i];
    case BF16: return bf16_to_float(((uint16_t *)b->data)[i]);
    case F16: return f16_to_float(((uint16_t *)b->data)[i]);
    case F8_E4M3: return e4m3_to_float(b->data[i]);
    case INT: return ((int *)b->data)[i];
    default: return (double)((long *)b->data)[i];
    }
}

// Values must be exact in the type, unless rounding is wanted.
static inline void put(void *data, int type, long i, double value)
{
    switch (type) {
    case F32: ((float *)data)[i] = (float)value; break;
    case F64: ((double *)data)[i] = value; break;
    case BF16: ((uint16_t *)data)[i] = bf16_from_float((float)value); break;
    case F16: ((uint16_t *)data)[i] = f16_from_float((float)value); break;
    case F8_E4M3: ((uint8_t *)data)[i] = e4m3_from_float((float)value); break;
    case INT: ((int *)data)[i] = (int)value; break;
    default: ((long *)data)[i] = (long)value;
    }
}

static inline uint64_t draw_bits(struct check *c) // splitmix64
{
    uint64_t x = (uint64_t)(c->shape + 1) * 0xd1342543de82ef95u + ++c->drawn * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

// Close to a normal distribution: the sum of four uniform ones, between -3.5 and 3.5, variance 1.
static inline double draw(struct check *c)
{
    uint64_t x = draw_bits(c);
    double sum = (double)((x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48));
    sum += (double)(x % 997) * 0x1p-10; // finer steps
    return (sum * 0x1p-16 - 2) * 1.7320508;
}

static inline long draw_below(struct check *c, long n)
{
    return (long)(draw_bits(c) % (uint64_t)n);
}

static inline struct buffer *buffer_new(struct check *c, const char *name, int type, long n, struct bound bound)
{
    assert_true(c->buffers < BUFFERS);
    long size = type_size(type), odd = c->shape % 2 ? size : 0;
    struct buffer *b = &c->buffer[c->buffers++];
    *b = (struct buffer){.name = name, .n = n, .type = type, .bound = bound};
    assert_int_equal(posix_memalign((void **)&b->base, 64, (size_t)(2 * GUARD + odd + n * size)), 0);
    memset(b->base, 0xC3, (size_t)(2 * GUARD + odd + n * size));
    b->data = b->base + GUARD + odd;
    memset(b->data, type >= INT ? 0x55 : 0xFF, (size_t)(n * size));
    return b;
}

// ---- inputs ----

static inline void *in_values(struct check *c, int type, long n) // uninitialised: the case fills it before `seal`
{
    return buffer_new(c, NULL, type, n, (struct bound){0})->data;
}

static inline void *in_random(struct check *c, int type, int exact_in, long n, double scale)
{
    void *data = in_values(c, type, n);
    for (long i = 0; i < n; i++) {
        double x = scale * draw(c);
        put(data, type, i, exact_in == BF16 ? (double)bf16_to_float(bf16_from_float((float)x)) : (double)(float)x);
    }
    return data;
}

static inline void *in_el(struct check *c, long n)
{
    return in_random(c, (int)c->k->el, c->exact, n, 1);
}

static inline void *in_acc(struct check *c, long n)
{
    return in_random(c, (int)c->k->acc, F32, n, 1);
}

static inline int *in_ints(struct check *c, long n, long below)
{
    int *data = in_values(c, INT, n);
    for (long i = 0; i < n; i++) data[i] = (int)draw_below(c, below);
    return data;
}

static inline void in_scales(struct check *c, struct tensor *x, long rows, long columns, bool blocks, double least,
                             double spread)
{
    x->scale_columns = blocks ? (int)((columns + SCALE_BLOCK - 1) / SCALE_BLOCK) : 0;
    long n = rows * (blocks ? x->scale_columns : 1);
    x->scale = in_values(c, F32, n);
    for (long i = 0; i < n; i++) x->scale[i] = (float)(least + spread * fabs(draw(c)));
}

static inline double scale_at(struct tensor x, long row, long column)
{
    if (!x.scale) return 1;
    return (double)x.scale[x.scale_columns > 1 ? row * x.scale_columns + column / SCALE_BLOCK : row];
}

// A weight [rows, columns]: el, or F8 with a scale per row or per block of columns.
enum weight { PLAIN, F8_ROWS, F8_BLOCKS, WEIGHTS };
static const char *const weight_names[WEIGHTS] = {"", " F8", " F8 in blocks"};

static inline struct tensor in_weight(struct check *c, enum weight kind, long rows, long columns)
{
    struct tensor w = {.dtype = kind ? F8_E4M3 : c->k->el};
    w.data = in_random(c, (int)w.dtype, c->exact, rows * columns, kind ? 50 : 1);
    if (kind) in_scales(c, &w, rows, columns, kind == F8_BLOCKS, 0.01, 0.02);
    return w;
}

static inline double el_at(const struct check *c, const void *data, long i)
{
    struct buffer b = {.data = (void *)data, .type = (int)c->k->el};
    return value_at(&b, i);
}

static inline double acc_at(const struct check *c, const void *data, long i)
{
    struct buffer b = {.data = (void *)data, .type = (int)c->k->acc};
    return value_at(&b, i);
}

// ---- outputs ----

static inline void *out(struct check *c, const char *name, int type, long n, struct bound bound)
{
    return buffer_new(c, name, type, n, bound)->data;
}

// Not poisoned: the kernel adds to it or works in place.
static inline void *in_out(struct check *c, const char *name, int type, int exact_in, long n, struct bound bound)
{
    void *data = in_random(c, type, exact_in, n, 1);
    c->buffer[c->buffers - 1].name = name;
    c->buffer[c->buffers - 1].bound = bound;
    return data;
}

static inline void *magnitudes(long n)
{
    double *m = calloc((size_t)n + 1, sizeof *m);
    assert_non_null(m);
    return m;
}

// Called by a case after all inputs are filled in and before the kernel runs: remembers the inputs.
static inline void seal(struct check *c, const char *what, ...) __attribute__((format(printf, 2, 3)));
static inline void seal(struct check *c, const char *what, ...)
{
    va_list args;
    va_start(args, what);
    vsnprintf(c->what, sizeof c->what, what, args);
    va_end(args);
    for (long i = 0; i < c->buffers; i++) {
        struct buffer *b = &c->buffer[i];
        if (b->name) continue;
        b->before = malloc((size_t)(b->n * type_size(b->type)) + 1);
        assert_non_null(b->before);
        memcpy(b->before, b->data, (size_t)(b->n * type_size(b->type)));
    }
}

// ---- comparison ----

static inline void check_free(struct check *c)
{
    for (long i = 0; i < c->buffers; i++) {
        free(c->buffer[i].base);
        free(c->buffer[i].before);
        free(c->buffer[i].bound.magnitude);
    }
    c->buffers = 0;
}

static inline long check_guards(const struct check *c, const char *entry)
{
    long failures = 0;
    for (long i = 0; i < c->buffers; i++) {
        const struct buffer *b = &c->buffer[i];
        long bytes = b->n * type_size(b->type), wrong = 0;
        for (unsigned char *p = b->base; p < b->data; p++) wrong += *p != 0xC3;
        for (unsigned char *p = b->data + bytes; p < b->data + bytes + GUARD; p++) wrong += *p != 0xC3;
        if (wrong) print_error("%s (%s): %ld bytes around %s overwritten\n", entry, c->what, wrong,
                               b->name ? b->name : "an input");
        failures += wrong;
        if (!b->before || !memcmp(b->before, b->data, (size_t)bytes)) continue;
        print_error("%s (%s): input %ld was changed\n", entry, c->what, i);
        failures++;
    }
    return failures;
}

struct worst {
    double of_bound;   // largest |difference| / bound
    double difference;
    long values, nonzero; // outputs compared
};

static inline long compare_buffer(struct worst *worst, const struct check *c, const char *entry, const struct buffer *a,
                                  const struct buffer *ref)
{
    double max = 0;
    long failures = 0;
    assert_int_equal(a->n, ref->n);
    for (long i = 0; i < ref->n; i++) {
        double v = fabs(value_at(ref, i));
        if (v > max && !isinf(v)) max = v;
    }
    for (long i = 0; i < ref->n; i++) {
        double x = value_at(a, i), y = value_at(ref, i), difference = fabs(x - y);
        double m = ref->bound.magnitude ? ref->bound.magnitude[i] : 1;
        double bound = ref->bound.relative * fabs(y) + ref->bound.absolute * m + ref->bound.of_max * max;
        worst->values++;
        worst->nonzero += y != 0;
        if ((isnan(x) && isnan(y)) || x == y) continue; // also the same infinity
        if (difference > worst->difference) worst->difference = difference;
        if (difference <= bound) {
            if (difference / bound > worst->of_bound) worst->of_bound = difference / bound;
        } else if (!failures++) {
            print_error("%s (%s): %s[%ld of %ld] is %.9g, expected %.9g, difference %.3g, bound %.3g\n", entry, c->what,
                        ref->name, i, ref->n, x, y, difference, bound);
        }
    }
    return failures;
}

// Same bits, for the same kernel called again.
static inline long compare_bits(const struct check *a, const struct check *b, const char *entry)
{
    for (long i = 0; i < a->buffers; i++) {
        const struct buffer *x = &a->buffer[i], *y = &b->buffer[i];
        if (!x->name || !memcmp(x->data, y->data, (size_t)(x->n * type_size(x->type)))) continue;
        print_error("%s (%s): %s differs between two calls\n", entry, a->what, x->name);
        return 1;
    }
    return 0;
}

enum comparison {
    WITHIN_BOUNDS,
    SAME_BITS,            // the same table twice
    SAME_BITS_ONE_THREAD, // the second time with one thread
};

static long only_shape = -1; // -1: all

// Every shape of a case (or only_shape) with tables `k` and `other`, whose inputs are prepared by the references `ref`
// and `other_ref`. Returns the number of failures; bounds are those of k's type.
static inline long compare_tables(struct worst *worst, const char *entry, kernel_case *run, const struct kernels *k,
                                  const struct kernels *ref, const struct kernels *other,
                                  const struct kernels *other_ref, enum comparison how)
{
    int exact = k->el == BF16 ? BF16 : F32;
    double eps_el = k->el == BF16 ? 0x1p-7 : k->el == F32 ? 0x1p-23 : 0x1p-52;
    double eps_acc = k->acc == F32 ? 0x1p-23 : 0x1p-52;
    if (other->el == F64 && k->el != F64) eps_el *= 0.505; // against the true value: one rounding, no second
    long failures = 0;
    for (long shape = only_shape < 0 ? 0 : only_shape;; shape++) {
        struct check a = {.k = k, .ref = ref, .eps_el = eps_el, .eps_acc = eps_acc, .exact = exact,
                          .shape = shape};
        struct check b = {.k = other, .ref = other_ref, .eps_el = eps_el, .eps_acc = eps_acc, .exact = exact,
                          .shape = shape};
        bool more = run(&a, shape);
        if (how == SAME_BITS_ONE_THREAD) omp_set_num_threads(1);
        if (more) run(&b, shape);
        if (how == SAME_BITS_ONE_THREAD) omp_set_num_threads((int)kernels_threads());
        if (more) {
            assert_int_equal(a.buffers, b.buffers);
            failures += check_guards(&a, entry) + check_guards(&b, entry);
            if (how != WITHIN_BOUNDS) failures += compare_bits(&a, &b, entry);
            for (long i = 0; i < a.buffers && how == WITHIN_BOUNDS; i++)
                if (a.buffer[i].name) failures += compare_buffer(worst, &a, entry, &a.buffer[i], &b.buffer[i]);
        }
        check_free(&a);
        check_free(&b);
        if (!more || only_shape >= 0) return failures;
    }
}

#endif
