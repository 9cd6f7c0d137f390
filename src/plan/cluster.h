// What the planner knows of a machine: a JSON file of constants, each with where it comes from. `skymoe bench
// --calibrate FILE` measures one; those of configs/clusters/ that carry datasheet values describe what a device could
// do at most, so a plan made from them is a bound, not a forecast (docs/parallelism.md).
#ifndef SKYMOE_PLAN_CLUSTER_H
#define SKYMOE_PLAN_CLUSTER_H

#include "base/json.h"

enum origin { SOURCE_ABSENT, SOURCE_MEASURED, SOURCE_DATASHEET };

struct constant {
    double value;
    enum origin source;
};

// Kernels by how fast they are. A rate that the file leaves out is the peak.
enum rate {
    RATE_PRODUCT,        // y = x w', dx = dy w
    RATE_PRODUCT_WEIGHT, // dw += dy' x
    RATE_GROUPED,        // the same two of experts
    RATE_GROUPED_WEIGHT,
    RATE_ATTENTION,
    RATE_ATTENTION_BACKWARD,
    RATES
};

struct wire { // of one device, one direction
    struct constant bytes_per_s, latency_s; // latency absent: 0
    struct constant overlap; // share of a message that moves behind computing, 0 to 1; absent: 1
};

struct cluster {
    char name[96], device[96];
    long hosts, devices;         // devices of each host
    struct constant memory_bytes;
    struct constant peak_flops;  // what MFU divides by
    struct constant flops[RATES];
    struct constant read_bytes_per_s;     // memory of a device
    struct constant elements_bytes_per_s; // of what norms, swiglu, gating ... read and write; absent: the memory's
    struct wire inside, between; // a host
};

// ERR_FORMAT "NAME: field is ..." for anything missing, unknown or out of range.
MUST_USE enum status cluster_read(struct cluster *c, const char *path);
MUST_USE enum status cluster_parse(struct cluster *c, const char *text, long bytes, const char *name);
void cluster_put(struct json_out *o, const struct cluster *c); // as such a file

// The constants by their names in the file ("kernels.grouped_flops"), in its order.
enum { CLUSTER_CONSTANTS = 2 + RATES + 2 + 6 };
const char *cluster_constant(struct constant **constant, struct cluster *c, long index);
const char *source_name(enum origin s); // "measured", "datasheet", "absent"

double cluster_flops(const struct cluster *c, enum rate rate); // the peak where absent
double cluster_elements(const struct cluster *c);              // bytes/s; the memory's where absent
double wire_overlap(const struct wire *w);
long cluster_devices(const struct cluster *c);                 // of all hosts

#endif
