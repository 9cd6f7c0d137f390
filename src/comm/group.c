#include "comm/group.h"

// Until a transport is built in, every group has one rank; the CHECKs say so where it would matter.

struct group group_of_one(const char *name)
{
    return (struct group){.name = name, .size = 1, .rank = 0};
}

enum status group_sum_f32(struct group *g, float *x, long n)
{
    CHECK(g->size == 1 && (x || n == 0));
    return OK;
}

enum status group_sum_f64(struct group *g, double *x, long n)
{
    CHECK(g->size == 1 && (x || n == 0));
    return OK;
}

enum status group_sum_long(struct group *g, long *x, long n)
{
    CHECK(g->size == 1 && (x || n == 0));
    return OK;
}
