#include <stdlib.h>

#include "base/log.h"
#include "cli/bench.h"

// A slice ends with the next product after slice_most, which leaves most products time to keep it below 200 ms. Of
// calls that take longer than long_call there are fewer than PAIRS.
enum { PAIRS = 20, PAIRS_LEAST = 3 };
static const double slice_least = 0.06, slice_most = 0.12, probe_seconds = 0.02, long_call = 2;

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

// ---- slices ----

// The work that is being measured: what its slices took so far, and what the probe would have done in that time.
static struct {
    enum peak probe;
    bool open;
    double begun, before, seconds, possible;
    long n;
} slices;

// Ends the slice that began at least so many seconds ago: the probe runs, and the next one begins.
static void slice_end(double least)
{
    double took = seconds_now() - slices.begun;
    if (!slices.open || took < least) return;
    double after = peak_slice(slices.probe, probe_seconds);
    slices.seconds += took;
    slices.possible += took * (slices.before + after) / 2;
    slices.before = after;
    slices.n++;
    slices.begun = seconds_now();
}

// ---- a table whose products let slices end ----

static const struct kernels *inner;

#define ENDING(entry, params, args)                                                                                    \
    static void ending_##entry params                                                                                  \
    {                                                                                                                  \
        slice_end(slice_most);                                                                                         \
        inner->entry args;                                                                                             \
    }
ENDING(matmul_nt, (el *y, const el *x, struct tensor w, long M, long N, long K), (y, x, w, M, N, K))
ENDING(matmul_nn, (el *dx, const el *dy, struct tensor w, long M, long N, long K), (dx, dy, w, M, N, K))
ENDING(matmul_tn, (acc *dw, const el *dy, const el *x, long M, long N, long K), (dw, dy, x, M, N, K))
ENDING(grouped_nt, (el *y, const el *x, struct tensor w, const long *first, long E, long N, long K),
       (y, x, w, first, E, N, K))
ENDING(grouped_nn, (el *dx, const el *dy, struct tensor w, const long *first, long E, long N, long K),
       (dx, dy, w, first, E, N, K))
ENDING(grouped_tn, (acc *dw, const el *dy, const el *x, const long *first, long E, long N, long K),
       (dw, dy, x, first, E, N, K))
#undef ENDING

const struct kernels *bench_sliced(const struct kernels *k)
{
    static struct kernels table;
    inner = k;
    table = *k;
    table.matmul_nt = ending_matmul_nt;
    table.matmul_nn = ending_matmul_nn;
    table.matmul_tn = ending_matmul_tn;
    table.grouped_nt = ending_grouped_nt;
    table.grouped_nn = ending_grouped_nn;
    table.grouped_tn = ending_grouped_tn;
    return &table;
}

// ---- rows ----

void bench_measure(struct bench_row *r, const struct bench_work *w, double seconds)
{
    double rate[PAIRS], roof[PAIRS], fraction[PAIRS], once = 0;
    for (int i = 0; i < 2 && (i == 0 || once < 1); i++) { // the first call also wakes threads and touches memory
        double begin = seconds_now();
        w->call(w->context);
        once = seconds_now() - begin;
    }
    long n = once < slice_least ? (long)(slice_least / once) + 1 : 1, pairs = 0;
    double begin = seconds_now();
    slices.probe = w->probe;
    peak_wake(w->probe);
    slices.before = peak_slice(w->probe, probe_seconds);
    slices.n = 0;
    do {
        slices.seconds = slices.possible = 0;
        slices.begun = seconds_now();
        slices.open = true;
        for (long i = 0; i < n; i++) w->call(w->context);
        slice_end(0);
        slices.open = false;
        rate[pairs] = (double)n * w->items / slices.seconds;
        roof[pairs] = slices.possible / slices.seconds * w->items / w->amount;
        fraction[pairs] = roof[pairs] > 0 ? rate[pairs] / roof[pairs] : 0;
        pairs++;
    } while (pairs < PAIRS && (once < long_call || pairs < PAIRS_LEAST || seconds_now() - begin < seconds));
    r->pairs = slices.n;
    r->value = quartiles_of(rate, pairs);
    r->fraction = quartiles_of(fraction, pairs);
    r->roof = quartiles_of(roof, pairs).median;
}
