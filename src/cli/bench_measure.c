#include <stdlib.h>

#include "base/log.h"
#include "cli/bench.h"

enum { PAIRS = 20, PAIRS_LEAST = 3 };
static const double slice_seconds = 0.06, probe_seconds = 0.02, long_call = 2; // of longer ones only some

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct quartiles quartiles_of(double *x, long n)
{
    qsort(x, (size_t)n, sizeof *x, compare_doubles);
    return (struct quartiles){x[n / 4], x[n / 2], x[n - 1 - n / 4]};
}

// Calls a second, over n calls.
static double work_slice(const struct bench_work *w, long n)
{
    double begin = seconds_now();
    for (long i = 0; i < n; i++) w->call(w->context);
    return (double)n / (seconds_now() - begin);
}

void bench_measure(struct bench_row *r, const struct bench_work *w, double seconds)
{
    double rate[PAIRS], roof[PAIRS], fraction[PAIRS], once = 1 / work_slice(w, 1);
    if (once < 1) once = 1 / work_slice(w, 1); // the first call also wakes threads and touches memory
    long n = once < slice_seconds ? (long)(slice_seconds / once) + 1 : 1, pairs = 0;
    double begin = seconds_now(), before = peak_slice(w->probe, probe_seconds);
    do {
        double calls = work_slice(w, n), after = peak_slice(w->probe, probe_seconds);
        rate[pairs] = calls * w->items;
        roof[pairs] = (before + after) / 2 * w->items / w->amount;
        fraction[pairs] = roof[pairs] > 0 ? rate[pairs] / roof[pairs] : 0;
        before = after;
        pairs++;
    } while (pairs < PAIRS && (once < long_call || pairs < PAIRS_LEAST || seconds_now() - begin < seconds));
    r->pairs = pairs;
    r->value = quartiles_of(rate, pairs);
    r->fraction = quartiles_of(fraction, pairs);
    r->roof = quartiles_of(roof, pairs).median;
}
