// The figures of a report's page.
#ifndef SKYMOE_CLI_REPORT_FIGURES_H
#define SKYMOE_CLI_REPORT_FIGURES_H

#include "cli/chart.h"
#include "cli/report_data.h"

enum { REPORT_PANES = 8 }; // layers whose load over time is shown

struct page {
    struct markup *m;
    const struct report_run *run;
    long runs;
    bool failed; // an allocation was refused
};

void figures_runs(struct page *p);                                             // loss, throughput, learning rate, norm
void figures_mixtures(struct page *p);                                         // runs with layers, side by side
void figures_experts(struct page *p, const struct report_run *r, long index);  // of a run with layers

double last_finite(const double *x, long n);                   // NaN when there is none
double quantile(struct page *p, const double *x, long n, double q); // of the finite values; NaN when there is none

#endif
