// `bench --balance`: ways to balance experts and to normalise their gate, each trained a little from the same start.
#ifndef SKYMOE_CLI_BENCH_BALANCE_H
#define SKYMOE_CLI_BENCH_BALANCE_H

#include <stdbool.h>

#include "base/status.h"

struct balance_options {
    const char *model, *data; // a model folder with experts, a prefix of prepared data; both or neither
    const char *output;       // folder of the runs, which stay
    long steps, data_skip, seed;
};

// Trains what is not trained yet (a run that was interrupted goes on) and prints a table, or one JSON object.
MUST_USE enum status bench_balance(const struct balance_options *o, bool json);

#endif
