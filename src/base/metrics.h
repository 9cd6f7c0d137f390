// A run's record: metrics.jsonl (one JSON object a line) and a TensorBoard event file with the same scalars.
#ifndef SKYMOE_BASE_METRICS_H
#define SKYMOE_BASE_METRICS_H

#include "base/files.h"
#include "base/json.h"

struct metrics {
    int jsonl, events;
    char jsonl_path[PATH_LENGTH], events_path[PATH_LENGTH];
};
// Appends to RUN/metrics.jsonl and starts a new event file. On resume, rows of steps after `step` (a crash happened
// after the checkpoint) are cut from metrics.jsonl first.
MUST_USE enum status metrics_open(struct metrics *m, const char *run, long step);
void metrics_close(struct metrics *m);

// Writes the row (a finished JSON object text) and every number in it as TensorBoard scalars: "loss",
// "layers/3/drop_rate"; arrays inside layers as "layers/3/tokens_per_expert/7".
MUST_USE enum status metrics_write(struct metrics *m, long step, const char *json, double wall_time);

// One event record as TensorBoard stores it, for tests: returns its bytes in buffer (room >= 256).
long event_scalar(unsigned char *buffer, double wall_time, long step, const char *tag, float value);
long event_version(unsigned char *buffer, double wall_time);

#endif
