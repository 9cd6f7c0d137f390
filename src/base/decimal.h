// A decimal kept exactly as typed (1.1 is 11/10, not the nearest double): capacity is computed from it in integers.
#ifndef SKYMOE_BASE_DECIMAL_H
#define SKYMOE_BASE_DECIMAL_H

struct decimal {
    long numerator;
    long denominator; // a power of ten, <= 10^9; 0 counts as the value 0
};
static inline double decimal_value(struct decimal d)
{
    return d.numerator ? (double)d.numerator / (double)d.denominator : 0.0;
}

#endif
