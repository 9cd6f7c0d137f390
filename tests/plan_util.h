// What the planner's tests share: a small model, a machine with every constant, a run.
#ifndef SKYMOE_TESTS_PLAN_UTIL_H
#define SKYMOE_TESTS_PLAN_UTIL_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "plan/plan.h"

#include <cmocka.h> // last: it defines fail as a macro

#define OK_OR_FAIL(call)                                                                                               \
    do {                                                                                                               \
        if ((call) != OK) fail_msg("%s: %s", #call, fail_message());                                                   \
    } while (0)

static inline void near(double a, double b, double relative)
{
    if (!(fabs(a - b) <= relative * fabs(b))) fail_msg("%.15g, expected %.15g", a, b);
}

static inline struct config shape(long L)
{
    return (struct config){.arch = ARCH_SKYWORK, .D = 48, .F = 40, .L = L, .H = 6, .G = 6, .C = 8, .V = 100, .E = 8,
                           .K = 2, .max_positions = 128, .norm_eps = 1e-6, .rope_theta = 1e4, .gate_norm_std = 1,
                           .dtype = BF16, .bos = 1, .eos = 2, .pad = -1};
}

// Every constant is given, and small enough that no term vanishes.
static inline struct cluster machine(long hosts, long devices)
{
    struct cluster c = {.name = "test", .device = "device", .hosts = hosts, .devices = devices};
    for (long i = 0; i < CLUSTER_CONSTANTS; i++) {
        struct constant *k;
        const char *name = cluster_constant(&k, &c, i);
        k->source = SOURCE_MEASURED;
        k->value = strstr(name, "latency")   ? 1e-6
                   : strstr(name, "overlap") ? 1
                   : strstr(name, "flops")   ? 1e10
                                             : 1e9; // bytes, and bytes/s
    }
    return c;
}

static inline struct run run_of(const struct config *c, const struct cluster *k, struct layout l)
{
    return (struct run){.c = c, .cluster = k, .layout = l, .schedule = PIPELINE_1F1B, .dtype = BF16, .B = 2, .S = 64,
                        .global_batch = 32, .recompute = RECOMPUTE_NONE, .capacity = {11, 10}, .exchange_chunks = 1,
                        .zero = true};
}

#endif
