// What `skymoe bench` measures, and how: slices of work alternate with slices of a probe that measures the roof
// (peak.h), so that both see the same machine; a fraction is of the two probes beside its slice. Private to
// cli/bench*.c.
#ifndef SKYMOE_CLI_BENCH_H
#define SKYMOE_CLI_BENCH_H

#include "kernels/peak.h"
#include "model/model.h"

struct quartiles {
    double low, median, high;
};

struct bench_row {
    char name[48], shape[128];
    const char *unit;
    struct quartiles value;    // in `unit`
    double roof;               // median of what the probe says, in `unit`; 0: none
    struct quartiles fraction; // of the roof
    double target;             // wanted fraction; 0: none
    long pairs;                // slices of work with a slice of the probe on either side
};

// Work of one call: `amount` in the probe's unit (operations or bytes), `items` in the row's (tokens, GFLOP).
struct bench_work {
    void (*call)(void *);
    void *context;
    enum peak probe;
    double amount, items;
};

// At least 20 slices, of less than 200 ms unless a single product, or work without products, takes longer: short calls
// make one together, long ones have several (bench_sliced). Quartiles are of 20 figures, or of as many calls as fit in
// `seconds`, at least 3, where one takes 2 seconds and more. The first call is not counted.
void bench_measure(struct bench_row *r, const struct bench_work *w, double seconds);

// The table k, but before a product a slice of bench_measure may end. One such table at a time.
const struct kernels *bench_sliced(const struct kernels *k);

// Adds a row and measures it. The caller fills in the shape.
struct bench_row *bench_add(const char *name, const char *unit, double target);
enum peak bench_product_peak(enum dtype type); // bf16 products: by whichever instruction is faster here

MUST_USE enum status bench_kernels(void);                         // products and attention
MUST_USE enum status bench_train(const struct config *c);         // whole steps: dense, mixture, memory
MUST_USE enum status bench_decode(const struct config *c);        // one sequence, bf16 and FP8
MUST_USE enum status bench_prefill(const struct config *c);       // 512 tokens at once, bf16 and FP8
// Writes this machine's constants as a cluster file for `plan` (bench_calibrate.c); no rows. c NULL: a usual shape;
// micro-batches of B sequences of S tokens.
MUST_USE enum status bench_calibrate(const struct config *c, long B, long S, const char *path, bool json);

#endif
