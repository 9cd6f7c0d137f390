#include "cli/chart.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- the page ----

static char *markup_room(struct markup *m, long more)
{
    if (m->failed) return NULL;
    if (m->used + more + 1 > m->room) {
        long room = 2 * m->room + more + 4096;
        char *text = realloc(m->text, (size_t)room);
        if (!text) {
            m->failed = true;
            return NULL;
        }
        m->text = text;
        m->room = room;
    }
    return m->text + m->used;
}

void markup_print(struct markup *m, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *to = n < 0 ? NULL : markup_room(m, n);
    if (!to) {
        m->failed = true;
        return;
    }
    va_start(args, format);
    vsnprintf(to, (size_t)n + 1, format, args);
    va_end(args);
    m->used += n;
}

static const char *escape(char c)
{
    switch (c) {
    case '&': return "&amp;";
    case '<': return "&lt;";
    case '>': return "&gt;";
    case '"': return "&quot;";
    case '\'': return "&#39;";
    default: break;
    }
    // Control characters other than line breaks and tabs are not allowed in HTML.
    return (unsigned char)c < 0x20 && c != '\n' && c != '\t' ? "&#xFFFD;" : NULL;
}

void markup_text(struct markup *m, const char *text)
{
    for (const char *p = text; *p; p++) {
        const char *e = escape(*p);
        long n = e ? (long)strlen(e) : 1;
        char *to = markup_room(m, n);
        if (!to) return;
        memcpy(to, e ? e : p, (size_t)n);
        to[n] = 0;
        m->used += n;
    }
}

enum status markup_status(const struct markup *m)
{
    if (m->failed)
        return fail(ERR_MEMORY, "memory: a page of more than %ld bytes was refused (free some memory)", m->used);
    return OK;
}

void markup_free(struct markup *m)
{
    free(m->text);
    *m = (struct markup){0};
}

// ---- numbers ----

static const struct {
    double size;
    const char *letter;
} counts[] = {{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e3, "k"}};

void number_text(char text[FIGURE_TEXT], double value, enum chart_unit unit)
{
    if (!isfinite(value)) {
        snprintf(text, FIGURE_TEXT, "–");
        return;
    }
    if (unit == UNIT_PERCENT) {
        snprintf(text, FIGURE_TEXT, "%.3g %%", 100 * value);
        return;
    }
    if (unit == UNIT_COUNT) {
        for (int i = 0; i < 4; i++) {
            if (fabs(value) < (i < 3 ? 0.9995 : 9.995) * counts[i].size) continue;
            snprintf(text, FIGURE_TEXT, "%.3g %s", value / counts[i].size, counts[i].letter);
            return;
        }
    }
    snprintf(text, FIGURE_TEXT, "%.4g", value);
}

// ---- axes ----

struct axis {
    double low, high, step; // of the data
    double from, to;        // pixels of low and high
    double factor;          // labels show value * factor
    int decimals;
    const char *suffix; // after each label: " %", " M"
    const char *power;  // beside the axis name: " × 10⁻³"
};

// A step of 1, 2 or 5 times a power of ten, so that about `want` ticks fit.
static double nice_step(double span, double want)
{
    double raw = span / want, power = pow(10, floor(log10(raw)));
    double m = raw / power;
    return power * (m < 1.5 ? 1 : m < 3.5 ? 2 : m < 7.5 ? 5 : 10);
}

static struct axis axis_of(double low, double high, double want, enum chart_unit unit, bool to_ticks)
{
    if (!(high > low)) { // one value, or none: a window around it
        double around = low != 0 ? fabs(low) * 0.05 : 1;
        low -= low > 0 && low - around < 0 ? low : around;
        high += around;
    }
    struct axis a = {
        .low = low, .high = high, .step = nice_step(high - low, want), .factor = 1, .suffix = "", .power = ""};
    if (to_ticks) {
        a.low = a.step * floor(low / a.step + 1e-9);
        a.high = a.step * ceil(high / a.step - 1e-9);
    }
    double largest = fabs(a.high) > fabs(a.low) ? fabs(a.high) : fabs(a.low);
    static const char *const suffix[] = {" T", " B", " M", " k"};
    if (unit == UNIT_PERCENT) {
        a.factor = 100;
        a.suffix = " %";
    } else if (unit == UNIT_COUNT) {
        for (int i = 0; i < 4 && a.factor == 1; i++) {
            if (largest < (i < 3 ? 1 : 10) * counts[i].size) continue;
            a.factor = 1 / counts[i].size;
            a.suffix = suffix[i];
        }
    } else if (largest < 2e-2) {
        a.factor = largest < 2e-5 ? 1e6 : 1e3;
        a.power = largest < 2e-5 ? " × 10⁻⁶" : " × 10⁻³";
    }
    int decimals = (int)-floor(log10(a.step * a.factor) + 1e-9);
    a.decimals = decimals < 0 ? 0 : decimals > 9 ? 9 : decimals;
    return a;
}

static double place(const struct axis *a, double value)
{
    return a->from + (value - a->low) / (a->high - a->low) * (a->to - a->from);
}

static void tick_text(char text[FIGURE_TEXT], const struct axis *a, double value)
{
    double shown = value * a->factor;
    if (fabs(shown) < 0.5 * a->step * a->factor) {
        snprintf(text, FIGURE_TEXT, "0");
        return;
    }
    snprintf(text, FIGURE_TEXT, "%.*f%s", a->decimals, shown, a->suffix);
}

enum { LEFT = 58, RIGHT = 20, TOP = 12, BOTTOM = 30, WIDE = 980, HALF = 480, HIGH_WIDE = 340, HIGH_HALF = 250 };

static void draw_axes(struct markup *m, const struct axis *x, const struct axis *y)
{
    char text[FIGURE_TEXT];
    markup_print(m, "<g class=\"axis\">");
    long ticks = (long)((y->high - y->low) / y->step + 1.000001);
    for (long i = 0; i < ticks && i < 50; i++) {
        double value = (ceil(y->low / y->step - 1e-9) + (double)i) * y->step, at = place(y, value);
        if (value > y->high + 1e-9 * fabs(y->high)) break;
        tick_text(text, y, value);
        markup_print(
            m,
            "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/><text x=\"%.1f\" y=\"%.1f\" class=\"y\">%s</text>",
            x->from, x->to, at, at, x->from - 8, at + 4, text);
    }
    ticks = (long)((x->high - x->low) / x->step + 1.000001);
    for (long i = 0; i <= ticks && i < 50; i++) {
        double value = (ceil(x->low / x->step - 1e-9) + (double)i) * x->step, at = place(x, value);
        if (value > x->high * (1 + 1e-9)) break;
        tick_text(text, x, value);
        markup_print(m, "<text x=\"%.1f\" y=\"%.1f\" class=\"x\">%s</text>", at, y->from + 19, text);
    }
    markup_print(m, "<path d=\"M%.1f %.1fH%.1f\"/></g>", x->from, y->from, x->to);
}

// ---- lines ----

static double hold(double v, double limit) // keeps coordinates within what renderers like; the clip path does the rest
{
    return v > limit ? limit : v < -limit ? -limit : v;
}

static void draw_band(struct markup *m, const struct chart_line *l, const struct axis *x, const struct axis *y)
{
    for (long first = 0; first < l->n;) {
        long end = first;
        while (end < l->n && isfinite(l->low[end]) && isfinite(l->high[end])) end++;
        if (end - first > 1) {
            markup_print(m, "<path class=\"band\" style=\"fill:var(%s)\" d=\"", l->color);
            for (long i = first; i < end; i++)
                markup_print(m, "%c%.1f %.1f", i == first ? 'M' : 'L', place(x, l->x[i]),
                             hold(place(y, l->high[i]), 9999));
            for (long i = end - 1; i >= first; i--)
                markup_print(m, "L%.1f %.1f", place(x, l->x[i]), hold(place(y, l->low[i]), 9999));
            markup_print(m, "Z\"/>");
        }
        first = end + 1;
    }
}

static void draw_line(struct markup *m, const struct chart_line *l, const struct axis *x, const struct axis *y,
                      bool thin)
{
    bool pen = false;
    markup_print(m, "<path class=\"line%s\" style=\"stroke:var(%s)\" d=\"", thin ? " thin" : "", l->color);
    for (long i = 0; i < l->n; i++) {
        bool here = isfinite(l->y[i]);
        bool alone = here && !pen && (i + 1 == l->n || !isfinite(l->y[i + 1]));
        if (here)
            markup_print(m, "%c%.1f %.1f%s", pen ? 'L' : 'M', place(x, l->x[i]), hold(place(y, l->y[i]), 9999),
                         alone ? "h.1" : "");
        pen = here;
    }
    markup_print(m, "\"/>");
}

// Marks (always seen) or places that show themselves and their value under the pointer.
static void draw_points(struct markup *m, const struct chart *c, const struct chart_line *l, const struct axis *x,
                        const struct axis *y, long most)
{
    char tx[FIGURE_TEXT], ty[FIGURE_TEXT];
    long every = l->points ? 1 : (l->n + most - 1) / most;
    markup_print(m, "<g style=\"fill:var(%s)\">", l->color);
    for (long i = l->n - 1; i >= 0; i -= every) {
        double py = place(y, l->y[i]);
        if (!isfinite(l->y[i]) || py < TOP - 1) continue;
        number_text(tx, l->x[i], c->x_unit);
        number_text(ty, l->y[i], c->y_unit);
        markup_print(m, "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"%s\"><title>", l->points ? "mark" : "hit",
                     place(x, l->x[i]), py, l->points ? "3.5" : "5");
        markup_text(m, l->label);
        markup_print(m, ": %s at %s ", ty, tx);
        markup_text(m, c->x_label);
        markup_print(m, "</title></circle>");
    }
    markup_print(m, "</g>");
}

static void draw_legend(struct markup *m, const struct chart *c)
{
    if (c->layers && c->lines > 1) {
        markup_print(
            m,
            "<div class=\"legend\"><span>layer 1</span><span class=\"ramp\" style=\"background:linear-gradient(90deg");
        for (long i = 0; i < c->lines; i++) markup_print(m, ",var(%s)", c->line[i].color);
        markup_print(m, ")\"></span><span>layer %ld</span></div>", c->lines);
        return;
    }
    if (c->lines < 2) return;
    markup_print(m, "<div class=\"legend\">");
    for (long i = 0; i < c->lines; i++) {
        if (!c->line[i].label[0]) continue;
        markup_print(m, "<span class=\"key%s\" style=\"--c:var(%s)\">", c->line[i].points ? " dot" : "",
                     c->line[i].color);
        markup_text(m, c->line[i].label);
        markup_print(m, "</span>");
    }
    markup_print(m, "</div>");
}

static void figure_begin(struct markup *m, const char *title, const char *note, bool wide)
{
    markup_print(m, "<figure%s><figcaption><h3>", wide ? " class=\"wide\"" : "");
    markup_text(m, title);
    markup_print(m, "</h3>");
    if (note) {
        markup_print(m, "<p>");
        markup_text(m, note);
        markup_print(m, "</p>");
    }
    markup_print(m, "</figcaption>");
}

static void stretch(double *low, double *high, const double *v, long n)
{
    for (long i = 0; v && i < n; i++) {
        if (!isfinite(v[i])) continue;
        if (v[i] < *low) *low = v[i];
        if (v[i] > *high) *high = v[i];
    }
}

void chart_lines(struct markup *m, const struct chart *c)
{
    double x_low = INFINITY, x_high = -INFINITY, y_low = INFINITY, y_high = -INFINITY;
    for (long i = 0; i < c->lines; i++) {
        const struct chart_line *l = &c->line[i];
        stretch(&x_low, &x_high, l->x, l->n);
        stretch(&y_low, &y_high, l->y, l->n);
        stretch(&y_low, &y_high, l->low, l->n);
        stretch(&y_low, &y_high, l->high, l->n);
    }
    figure_begin(m, c->title, c->note, c->wide);
    if (!(x_high >= x_low) || !(y_high >= y_low)) {
        markup_print(m, "<p class=\"none\">No values yet.</p></figure>\n");
        return;
    }
    if (c->top > 0 && c->top < y_high && c->top > y_low) y_high = c->top;
    if (c->from_zero && y_low > 0) y_low = 0;
    if (x_low > 0 && x_low < 0.2 * x_high) x_low = 0;
    double width = c->wide ? WIDE : HALF, height = c->wide ? HIGH_WIDE : HIGH_HALF;
    struct axis x = axis_of(x_low, x_high, c->wide ? 10 : 5, c->x_unit, false);
    struct axis y = axis_of(y_low, y_high, c->wide ? 6 : 4.5, c->y_unit, true);
    x.from = LEFT;
    x.to = width - RIGHT;
    y.from = height - BOTTOM;
    y.to = TOP;
    draw_legend(m, c);
    markup_print(m, "<div class=\"name\">");
    markup_text(m, c->y_label);
    markup_print(m, "%s</div><svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"", y.power, width, height);
    markup_text(m, c->title);
    markup_print(m, "\">");
    draw_axes(m, &x, &y);
    // A nested viewport clips what leaves the frame without an id that two charts could share.
    markup_print(m, "<svg x=\"0\" y=\"%d\" width=\"%.0f\" height=\"%.1f\" viewBox=\"0 %d %.0f %.1f\">", TOP - 4, width,
                 y.from - TOP + 4, TOP - 4, width, y.from - TOP + 4);
    for (long i = 0; i < c->lines; i++)
        if (c->line[i].low) draw_band(m, &c->line[i], &x, &y);
    for (long i = 0; i < c->lines; i++)
        if (!c->line[i].apart) draw_line(m, &c->line[i], &x, &y, c->layers);
    markup_print(m, "</svg>");
    long most = 1200 / (c->lines + 1);
    for (long i = 0; i < c->lines; i++) draw_points(m, c, &c->line[i], &x, &y, most < 8 ? 8 : most > 70 ? 70 : most);
    markup_print(m, "</svg><div class=\"name right\">");
    markup_text(m, c->x_label);
    markup_print(m, "%s</div></figure>\n", x.power);
}

// ---- heat maps ----

// The factor at which colours saturate: the least that nearly all values stay within.
static double heat_range(const double *value, long n)
{
    static const double range[] = {1.25, 1.5, 2, 4};
    for (int i = 0; i < 3; i++) {
        long beyond = 0;
        for (long k = 0; k < n; k++) beyond += value[k] > range[i] || value[k] < 1 / range[i];
        if (beyond <= n / 100) return range[i];
    }
    return 4;
}

static int heat_level(double value, double range)
{
    if (!isfinite(value)) return -1;
    double at = value > 0 ? (log(value) / log(range) + 1) / 2 * (HEAT_LEVELS - 1) : 0;
    return (int)lround(at < 0 ? 0 : at > HEAT_LEVELS - 1 ? HEAT_LEVELS - 1 : at);
}

static void heat_legend(struct markup *m, double range)
{
    markup_print(m,
                 "<div class=\"legend\"><span>mean ÷ %g</span><span class=\"ramp\" "
                 "style=\"background:linear-gradient(90deg",
                 range);
    for (int i = 0; i < HEAT_LEVELS; i++) markup_print(m, ",var(--h%d)", i);
    markup_print(m, ")\"></span><span>mean × %g</span></div>", range);
}

void chart_heat(struct markup *m, const struct heat *h)
{
    figure_begin(m, h->title, h->note, h->wide);
    if (h->rows < 1 || h->columns < 1) {
        markup_print(m, "<p class=\"none\">No values yet.</p></figure>\n");
        return;
    }
    double width = h->wide ? WIDE : HALF, left = LEFT, right = width - RIGHT;
    double cell = (right - left) / (double)h->columns, tall = h->rows <= 12 ? 20 : h->rows <= 24 ? 13 : 8;
    double height = TOP + tall * (double)h->rows + BOTTOM, gap = cell > 8 && tall > 8 ? 1 : 0;
    char text[FIGURE_TEXT];
    double range = heat_range(h->value, h->rows * h->columns);
    heat_legend(m, range);
    markup_print(m, "<div class=\"name\">");
    markup_text(m, h->row_name);
    markup_print(m, "</div><svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"", width, height);
    markup_text(m, h->title);
    markup_print(m, "\"><g class=\"axis\">");
    long row_every = (long)ceil(14 / tall), column_every = (long)ceil(30 / cell);
    for (long r = 0; r < h->rows; r += row_every)
        markup_print(m, "<text x=\"%.1f\" y=\"%.1f\" class=\"y\">%ld</text>", left - 8,
                     TOP + tall * ((double)r + 0.5) + 4, r + 1);
    if (h->column_x) {
        struct axis x = axis_of(0, h->column_x[h->columns - 1], h->wide ? 10 : 5, UNIT_COUNT, false);
        x.from = left;
        x.to = right;
        for (double v = 0; v <= x.high * (1 + 1e-9); v += x.step) {
            tick_text(text, &x, v);
            markup_print(m, "<text x=\"%.1f\" y=\"%.1f\" class=\"x\">%s</text>", place(&x, v),
                         TOP + tall * (double)h->rows + 18, text);
        }
    } else {
        for (long k = 0; k < h->columns; k += column_every)
            markup_print(m, "<text x=\"%.1f\" y=\"%.1f\" class=\"x\">%ld</text>", left + cell * ((double)k + 0.5),
                         TOP + tall * (double)h->rows + 18, k + 1);
    }
    markup_print(m, "</g><g class=\"heat\">");
    for (long r = 0; r < h->rows; r++) {
        for (long k = 0; k < h->columns; k++) {
            double value = h->value[r * h->columns + k];
            int level = heat_level(value, range);
            if (level < 0) continue;
            markup_print(
                m, "<rect style=\"fill:var(--h%d)\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"><title>",
                level, left + cell * (double)k, TOP + tall * (double)r, cell - gap + (gap > 0 ? 0 : 0.3), tall - gap);
            markup_text(m, h->row_name);
            markup_print(m, " %ld, ", r + 1);
            if (h->column_x) {
                number_text(text, h->column_x[k], UNIT_COUNT);
                markup_print(m, "%s ", text);
                markup_text(m, h->column_name);
            } else {
                markup_text(m, h->column_name);
                markup_print(m, " %ld", k + 1);
            }
            markup_print(m, ": %.2f × the mean load</title></rect>", value);
        }
    }
    markup_print(m, "</g></svg><div class=\"name right\">");
    markup_text(m, h->column_name);
    markup_print(m, "</div></figure>\n");
}

// ---- colours ----

struct rgb {
    double r, g, b;
};

static struct rgb between(const struct rgb *stop, int stops, double t)
{
    double at = t * (stops - 1);
    int i = (int)floor(at);
    if (i >= stops - 1) return stop[stops - 1];
    double f = at - i;
    return (struct rgb){stop[i].r + f * (stop[i + 1].r - stop[i].r), stop[i].g + f * (stop[i + 1].g - stop[i].g),
                        stop[i].b + f * (stop[i + 1].b - stop[i].b)};
}

static void put_color(struct markup *m, char kind, long index, struct rgb c)
{
    markup_print(m, "--%c%ld:#%02x%02x%02x;", kind, index, (int)lround(c.r), (int)lround(c.g), (int)lround(c.b));
}

void chart_colors(struct markup *m, bool dark)
{
    // Okabe and Ito's series colours, deepened on white and lightened on black until thin lines are readable.
    static const char *const light_series[] = {"#0072b2", "#d55e00", "#00855f", "#a8487f", "#3b8fc4", "#a67c00",
                                               "#6a51a3", "#5f5f5f"};
    static const char *const dark_series[] = {"#4aa8e8", "#ff8a3d", "#2fc79b", "#e79ac6", "#9ad0f5", "#f0c440",
                                              "#b9a4e8", "#b5b5b5"};
    static const struct rgb light_heat[] = {{22, 76, 143},   {88, 150, 200}, {184, 213, 233}, {244, 244, 241},
                                            {250, 208, 160}, {230, 130, 46}, {150, 62, 4}};
    static const struct rgb dark_heat[] = {{110, 184, 255}, {62, 124, 186}, {42, 72, 104}, {40, 44, 50},
                                           {112, 66, 26},   {206, 112, 34}, {255, 178, 92}};
    for (int i = 0; i < CHART_SERIES; i++) markup_print(m, "--s%d:%s;", i, dark ? dark_series[i] : light_series[i]);
    for (int i = 0; i < HEAT_LEVELS; i++)
        put_color(m, 'h', i, between(dark ? dark_heat : light_heat, 7, (double)i / (HEAT_LEVELS - 1)));
}

void chart_layer_colors(struct markup *m, long layers, bool dark)
{
    // Viridis: even steps of lightness, safe for all common kinds of colour blindness.
    static const struct rgb viridis[] = {{68, 1, 84},    {71, 44, 122}, {59, 81, 139},  {44, 113, 142}, {33, 144, 141},
                                         {39, 173, 129}, {92, 200, 99}, {170, 220, 50}, {253, 231, 37}};
    for (long i = 0; i < layers; i++) {
        double t = layers > 1 ? (double)i / (double)(layers - 1) : 0.5;
        put_color(m, 'l', i, between(viridis, 9, dark ? 0.35 + 0.65 * t : 0.82 * t));
    }
}
