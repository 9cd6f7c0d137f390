#include "comm/grid.h"

struct range partition(long n, long parts, long index)
{
    CHECK(n >= 0 && parts >= 1 && index >= 0 && index < parts);
    long each = n / parts, more = n % parts;
    return (struct range){.first = index * each + (index < more ? index : more), .count = each + (index < more)};
}

struct grid grid_of_one(void)
{
    return (struct grid){
        .world = group_of_one("world"),
        .tensor = group_of_one("tensor"),
        .data = group_of_one("data"),
        .pipeline = group_of_one("pipeline"),
        .expert = group_of_one("expert"),
        .expert_tensor = group_of_one("expert tensor"),
        .replica = group_of_one("replica"),
    };
}
