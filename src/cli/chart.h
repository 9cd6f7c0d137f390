// Figures for a page that stands alone: SVG line charts and heat maps inside HTML, coloured by CSS custom properties so
// that light and dark come from the style sheet. Text is escaped on the way in.
#ifndef SKYMOE_CLI_CHART_H
#define SKYMOE_CLI_CHART_H

#include <stdbool.h>

#include "base/status.h"

// A growing page. An allocation that was refused is remembered and reported once, by markup_status.
struct markup {
    char *text; // NUL-terminated; released by markup_free
    long used, room;
    bool failed;
};
void markup_print(struct markup *m, const char *format, ...) __attribute__((format(printf, 2, 3))); // as it is
void markup_text(struct markup *m, const char *text);                                              // escaped
MUST_USE enum status markup_status(const struct markup *m);
void markup_free(struct markup *m);

// How numbers of an axis read: 0.25; 25 %; 1.5 M.
enum chart_unit { UNIT_NUMBER, UNIT_PERCENT, UNIT_COUNT };
enum { FIGURE_TEXT = 32 };
void number_text(char text[FIGURE_TEXT], double value, enum chart_unit unit); // three or four digits; "-" for NaN

struct chart_line {
    const char *label;         // legend and tooltips
    char color[24];            // a custom property of the style sheet: "--s0", "--l12"
    const double *x, *y;       // [n], x ascending; a NaN interrupts the line
    const double *low, *high;  // [n] a faint band around it; NULL: none
    long n;
    bool points;               // every point is marked: few, measured values
    bool apart;                // and no line joins them
};

struct chart {
    const char *title, *note;  // note may be NULL
    const char *x_label, *y_label;
    enum chart_unit x_unit, y_unit;
    const struct chart_line *line;
    long lines;
    bool wide;                 // across the page, otherwise half of it
    bool from_zero;            // y begins at 0
    bool layers;               // lines are layers 1.. in order: the legend is their colour ramp
    double top;                // y ends here although lines go on above (clipped); 0: the largest value
};
void chart_lines(struct markup *m, const struct chart *c);

// value[row][column] are loads relative to the mean (1: balanced), coloured by their logarithm. The range of colours
// (x 1.25, 1.5, 2 or 4) follows from the values; the legend tells it.
enum { HEAT_LEVELS = 21 };
struct heat {
    const char *title, *note;
    const char *row_name, *column_name; // "layer", "expert": axis names and, with the index from `first`, tooltips
    long rows, columns;
    const double *value;
    const double *column_x;             // [columns] what a column stands for when it is no index; NULL
    bool wide;
};
void chart_heat(struct markup *m, const struct heat *h);

// The custom properties that charts use: --s0..7 runs and --h0..20 heat levels; --l0.. the layers of one run.
enum { CHART_SERIES = 8 };
void chart_colors(struct markup *m, bool dark);
void chart_layer_colors(struct markup *m, long layers, bool dark);

#endif
