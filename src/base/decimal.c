#include "base/decimal.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool decimal_parse(struct decimal *d, const char *text)
{
    const char *c = text + (*text == '-' || *text == '+');
    const char *point = strchr(c, '.');
    const char *end = c + strlen(c);
    if (strspn(c, "0123456789.") != strlen(c) || c == end || (point && end - c == 1)) return false;
    while (point && end > point && (end[-1] == '0' || end[-1] == '.')) end--; // 1.10 is 11/10
    if (point && end > point && end - point > 10) return false;
    struct decimal value = {0, 1};
    for (; c < end; c++) {
        if (*c == '.' && c != point) return false;
        if (*c == '.') continue;
        if (__builtin_mul_overflow(value.numerator, 10, &value.numerator)) return false;
        if (__builtin_add_overflow(value.numerator, *c - '0', &value.numerator)) return false;
        if (point && c > point) value.denominator *= 10;
    }
    if (point && strchr(point + 1, '.')) return false;
    if (*text == '-') value.numerator = -value.numerator;
    *d = value;
    return true;
}

void decimal_text(char text[NUMBER_TEXT], struct decimal d)
{
    long denominator = d.denominator ? d.denominator : 1;
    long numerator = d.denominator ? d.numerator : 0;
    int decimals = 0;
    for (long power = denominator; power > 1 && decimals < 9; power /= 10) decimals++;
    unsigned long size = numerator < 0 ? 0 - (unsigned long)numerator : (unsigned long)numerator;
    char part[NUMBER_TEXT] = ""; // ".", then the decimals with their leading zeros
    for (int i = decimals; i > 0; i--, size /= 10) part[i] = (char)('0' + size % 10);
    if (decimals) part[0] = '.';
    snprintf(text, NUMBER_TEXT, "%s%lu%.10s", numerator < 0 ? "-" : "", size, part);
}

bool real_parse(double *value, const char *text)
{
    if (*text == '\0' || strspn(text, "+-.eE0123456789") != strlen(text)) return false; // no spaces, nan, inf, 0x
    char *end;
    double parsed = strtod(text, &end);
    if (end == text || *end || !isfinite(parsed)) return false;
    *value = parsed;
    return true;
}

void real_text(char text[NUMBER_TEXT], double value)
{
    if (value == (double)(long)fmin(fmax(value, -1e15), 1e15)) { // 100, not 1e+02
        snprintf(text, NUMBER_TEXT, "%.0f", value);
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, NUMBER_TEXT, "%.*g", digits, value);
        if (strtod(text, NULL) == value) return;
    }
}

bool long_parse(long *value, const char *text)
{
    if (*text == '\0' || strspn(text, "+-0123456789") != strlen(text)) return false;
    char *end;
    errno = 0;
    long parsed = strtol(text, &end, 10);
    if (end == text || *end || errno) return false;
    *value = parsed;
    return true;
}
