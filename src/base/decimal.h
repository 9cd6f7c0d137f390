// Numbers as people type them. A decimal is kept exactly as typed (1.1 is 11/10, not the nearest double): capacity is
// computed from it in integers.
#ifndef SKYMOE_BASE_DECIMAL_H
#define SKYMOE_BASE_DECIMAL_H

#include <stdbool.h>

struct decimal {
    long numerator;
    long denominator; // a power of ten, <= 10^9; 0 counts as the value 0
};
static inline double decimal_value(struct decimal d)
{
    return d.numerator ? (double)d.numerator / (double)d.denominator : 0.0;
}

enum { NUMBER_TEXT = 48 };

// "-12.5": digits with at most 9 decimals (trailing zeros do not count) and no exponent; false otherwise.
bool decimal_parse(struct decimal *d, const char *text);
void decimal_text(char text[NUMBER_TEXT], struct decimal d);

// A finite number and nothing after it; no hexadecimal.
bool real_parse(double *value, const char *text);
void real_text(char text[NUMBER_TEXT], double value); // the shortest that reads back equal
bool long_parse(long *value, const char *text);

#endif
