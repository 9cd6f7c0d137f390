// The report of one or several runs: one HTML page that needs nothing else. `skymoe report` calls it, and `train` at
// the end of a run.
#ifndef SKYMOE_CLI_REPORT_H
#define SKYMOE_CLI_REPORT_H

#include "base/status.h"

// Reads RUN/metrics.jsonl and, where present, RUN/config.json and RUN/settings.conf of every run; summary_path (the
// demo's summary.json) may be NULL. ERR_IO, ERR_FORMAT naming file and line; output_path then is as it was.
MUST_USE enum status report_write(const char *const *runs, long n, const char *summary_path, const char *output_path);

#endif
