// Helpers to check the double reference against formulas and central differences.
#ifndef SKYMOE_TESTS_REFERENCE_CHECK_H
#define SKYMOE_TESTS_REFERENCE_CHECK_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/kernels.h"

#include <cmocka.h>

static struct kernels k64; // the reference in double

static inline int reference_start(void **state)
{
    (void)state;
    kernels_reference(&k64, F64);
    return 0;
}

static inline double *numbers(long n, uint64_t stream, double scale)
{
    double *x = malloc((size_t)(n + 1) * sizeof *x);
    assert_non_null(x);
    for (long i = 0; i < n; i++) x[i] = scale * rng_normal(3, stream, (uint64_t)i);
    return x;
}

// Largest difference, for printing; fails over `bound` or on NaN.
static inline double expect_near(const char *what, const double *x, const double *expected, long n, double bound)
{
    double worst = 0;
    for (long i = 0; i < n; i++) {
        double difference = fabs(x[i] - expected[i]);
        if (!(difference <= bound))
            fail_msg("%s[%ld] is %.12g, expected %.12g (difference %.3g, bound %.3g)", what, i, x[i], expected[i],
                     difference, bound);
        if (difference > worst) worst = difference;
    }
    return worst;
}

typedef double loss_function(void *context);

// dx against (loss(x + h) - loss(x - h)) / 2h for every element of x, relative to the largest.
static inline void expect_gradient(const char *what, double *x, const double *dx, long n, loss_function *loss,
                                   void *context)
{
    double h = 1e-5, largest = 0, worst = 0;
    for (long i = 0; i < n; i++) {
        double kept = x[i];
        x[i] = kept + h;
        double up = loss(context);
        x[i] = kept - h;
        double down = loss(context), slope = (up - down) / (2 * h);
        x[i] = kept;
        double difference = fabs(dx[i] - slope);
        if (!(difference <= 1e-7 * (1 + fabs(slope))))
            fail_msg("%s[%ld] is %.10g, difference quotient %.10g", what, i, dx[i], slope);
        if (difference > worst) worst = difference;
        if (fabs(slope) > largest) largest = fabs(slope);
    }
    print_message("  %-28s differs by at most %.2g from difference quotients up to %.3g\n", what, worst, largest);
    assert_true(largest > 1e-3); // a gradient of zeros proves nothing
}

static inline double dot(const double *a, const double *b, long n)
{
    double sum = 0;
    for (long i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static inline struct tensor f64_tensor(double *data)
{
    return (struct tensor){.data = data, .dtype = F64};
}

#endif
