#include "cli/report_figures.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { CURVE_POINTS = 320, HEAT_COLUMNS = 60 };

// ---- small parts ----

static double *numbers(struct page *p, long n)
{
    double *x = malloc((size_t)(n > 0 ? n : 1) * sizeof *x);
    if (!x) p->failed = true;
    return x;
}

double last_finite(const double *x, long n)
{
    while (n > 0 && !isfinite(x[n - 1])) n--;
    return n > 0 ? x[n - 1] : NAN;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double quantile(struct page *p, const double *x, long n, double q)
{
    double *sorted = numbers(p, n), value = NAN;
    long k = 0;
    for (long i = 0; sorted && i < n; i++)
        if (isfinite(x[i])) sorted[k++] = x[i];
    if (k) {
        qsort(sorted, (size_t)k, sizeof *sorted, by_value);
        value = sorted[(long)(q * (double)(k - 1) + 0.5)];
    }
    free(sorted);
    return value;
}

// ---- curves ----

struct curve {
    double *x, *y, *low, *high;
    long n;
};

static void curve_free(struct curve *c)
{
    free(c->x);
    free(c->y);
    free(c->low);
    free(c->high);
    *c = (struct curve){0};
}

// At most CURVE_POINTS points of a noisy quantity: the mean of the steps around each without the highest and the lowest
// tenth, and the band that the rest fills. The window shrinks towards both ends, so that the first and last points are
// hardly pulled aside. steady: the values themselves.
static struct curve smooth(struct page *p, const double *x, const double *y, long n, bool steady)
{
    long points = n < CURVE_POINTS ? n : CURVE_POINTS, half = steady ? 0 : n / 60;
    struct curve c = {numbers(p, points), numbers(p, points), numbers(p, points), numbers(p, points), 0};
    double *window = numbers(p, 2 * half + 1);
    for (long i = 0; !p->failed && i < points; i++) {
        long at = points > 1 ? i * (n - 1) / (points - 1) : 0, near = at < n - 1 - at ? at : n - 1 - at;
        long reach = near > half ? half : near < half / 3 ? half / 3 : near;
        long from = at > reach ? at - reach : 0, to = at + reach < n ? at + reach : n - 1, k = 0;
        for (long j = from; j <= to; j++)
            if (isfinite(y[j])) window[k++] = y[j];
        qsort(window, (size_t)k, sizeof *window, by_value);
        long out = k / 10; // left out on each side, so that a spike moves neither the line nor the band
        double sum = 0;
        for (long j = out; j < k - out; j++) sum += window[j];
        c.x[i] = x[at];
        c.y[i] = k ? sum / (double)(k - 2 * out) : NAN;
        c.low[i] = k ? window[out] : NAN;
        c.high[i] = k ? window[k - 1 - out] : NAN;
        c.n = i + 1;
    }
    free(window);
    return c;
}

static void series_color(char color[24], long i)
{
    snprintf(color, 24, "--s%ld", i % CHART_SERIES);
}

// One smoothed curve per run of a field of its rows.
static void rows_chart(struct page *p, const char *title, const char *note, const char *unit, enum row_field field,
                       enum chart_unit y_unit, bool band, bool from_zero)
{
    struct chart_line *line = calloc((size_t)p->runs + 1, sizeof *line);
    struct curve *curve = calloc((size_t)p->runs + 1, sizeof *curve);
    double top = 0;
    bool any = false;
    if (!line || !curve) p->failed = true;
    for (long i = 0; line && curve && i < p->runs; i++) {
        const struct report_run *r = &p->run[i];
        curve[i] = smooth(p, r->row[ROW_TOKENS], r->row[field], r->rows, !band);
        double high = 1.4 * quantile(p, r->row[field], r->rows, 0.97);
        if (high > top) top = high;
        any = any || isfinite(last_finite(curve[i].y, curve[i].n));
        line[i] = (struct chart_line){.label = r->label,
                                      .x = curve[i].x,
                                      .y = curve[i].y,
                                      .n = curve[i].n,
                                      .low = band ? curve[i].low : NULL,
                                      .high = band ? curve[i].high : NULL};
        series_color(line[i].color, i);
    }
    if (any && line)
        chart_lines(p->m, &(struct chart){.title = title,
                                          .note = note,
                                          .x_label = "tokens",
                                          .y_label = unit,
                                          .x_unit = UNIT_COUNT,
                                          .y_unit = y_unit,
                                          .line = line,
                                          .lines = p->runs,
                                          .from_zero = from_zero,
                                          .top = top});
    for (long i = 0; curve && i < p->runs; i++) curve_free(&curve[i]);
    free(line);
    free(curve);
}

#define NOTE "Lines: training, averaged over neighbouring steps; band: eight of ten steps; dots: evaluation."

// Training loss of every run, smoothed, and the measured evaluation points on top.
static void loss_chart(struct page *p)
{
    struct chart_line *line = calloc(2 * (size_t)p->runs + 1, sizeof *line);
    struct curve *curve = calloc((size_t)p->runs + 1, sizeof *curve);
    char(*label)[160] = calloc((size_t)p->runs + 1, sizeof *label);
    double top = 0, largest = 0;
    long lines = 0;
    if (!line || !curve || !label) p->failed = true;
    for (long i = 0; !p->failed && i < p->runs; i++) {
        const struct report_run *r = &p->run[i];
        curve[i] = smooth(p, r->row[ROW_TOKENS], r->row[ROW_LOSS], r->rows, false);
        double least = quantile(p, r->row[ROW_LOSS], r->rows, 0.02),
               most = quantile(p, r->row[ROW_LOSS], r->rows, 0.85);
        if (most + 0.4 * (most - least) > top) top = most + 0.4 * (most - least);
        double high = quantile(p, r->row[ROW_LOSS], r->rows, 1);
        if (high > largest) largest = high;
        line[lines] = (struct chart_line){.label = r->label,
                                          .x = curve[i].x,
                                          .y = curve[i].y,
                                          .n = curve[i].n,
                                          .low = curve[i].low,
                                          .high = curve[i].high};
        series_color(line[lines++].color, i);
    }
    for (long i = 0; !p->failed && i < p->runs; i++) {
        const struct report_run *r = &p->run[i];
        if (!r->evals) continue;
        snprintf(label[i], sizeof label[i], "%s, evaluation", r->label);
        line[lines] = (struct chart_line){
            .label = label[i], .x = r->eval_tokens, .y = r->eval_loss, .n = r->evals, .points = true, .apart = true};
        series_color(line[lines++].color, i);
    }
    if (!p->failed)
        chart_lines(p->m, &(struct chart){.title = "Loss",
                                          .x_label = "tokens",
                                          .y_label = "cross entropy, nats per token",
                                          .x_unit = UNIT_COUNT,
                                          .note = top < largest ? NOTE " The first steps lie above the frame." : NOTE,
                                          .line = line,
                                          .lines = lines,
                                          .wide = true,
                                          .top = top});
    for (long i = 0; curve && i < p->runs; i++) curve_free(&curve[i]);
    free(line);
    free(curve);
    free(label);
}

// ---- layers of one run ----

static void layer_chart(struct page *p, const struct report_run *r, const char *title, const char *note,
                        const char *unit, enum chart_unit y_unit, const double *x, const double *y, long n, long layers,
                        bool across, bool from_zero, double top)
{
    // across: y[point][layer] instead of y[layer][point]
    struct chart_line *line = calloc((size_t)layers + 1, sizeof *line);
    char(*label)[32] = calloc((size_t)layers + 1, sizeof *label);
    double *turned = across ? numbers(p, n * layers) : NULL;
    if (!line || !label) p->failed = true;
    for (long l = 0; !p->failed && l < layers; l++) {
        snprintf(label[l], sizeof label[l], "layer %ld", l + 1);
        for (long i = 0; across && i < n; i++) turned[l * n + i] = y[i * layers + l];
        line[l] = (struct chart_line){.label = label[l],
                                      .x = x,
                                      .y = across ? turned + l * n : y + l * r->bins,
                                      .n = n,
                                      .points = across && n * layers <= 60};
        snprintf(line[l].color, sizeof line[l].color, "--l%ld", l);
    }
    if (!p->failed)
        chart_lines(p->m, &(struct chart){.title = title,
                                          .note = note,
                                          .x_label = "tokens",
                                          .y_label = unit,
                                          .x_unit = UNIT_COUNT,
                                          .y_unit = y_unit,
                                          .line = line,
                                          .lines = layers,
                                          .layers = true,
                                          .from_zero = from_zero,
                                          .top = top});
    free(line);
    free(label);
    free(turned);
}

static void field_chart(struct page *p, const struct report_run *r, const char *title, const char *note,
                        const char *unit, enum chart_unit y_unit, enum layer_field field, bool from_zero, bool cut)
{
    double top = cut ? 1.6 * quantile(p, r->layer[field], r->L * r->bins, 0.97) : 0;
    layer_chart(p, r, title, note, unit, y_unit, r->bin_tokens, r->layer[field], r->bins_used, r->L, false, from_zero,
                isfinite(top) ? top : 0);
}

static void load_heat(struct page *p, const struct report_run *r)
{
    long first = r->bins_used - (r->bins_used + 9) / 10;
    double *value = numbers(p, r->L * r->E);
    if (!value) return;
    for (long l = 0; l < r->L; l++) {
        double sum = 0;
        for (long e = 0; e < r->E; e++) {
            value[l * r->E + e] = 0;
            for (long b = first; b < r->bins_used; b++) value[l * r->E + e] += r->load[(l * r->bins + b) * r->E + e];
            sum += value[l * r->E + e];
        }
        for (long e = 0; e < r->E; e++) value[l * r->E + e] *= (double)r->E / sum; // 0/0: NaN, an empty cell
    }
    chart_heat(p->m, &(struct heat){.title = "Expert load, all layers",
                                    .note = "Tokens sent to each expert over the last tenth of the run.",
                                    .row_name = "layer",
                                    .column_name = "expert",
                                    .rows = r->L,
                                    .columns = r->E,
                                    .value = value});
    free(value);
}

// The load of layer l over time, in at most HEAT_COLUMNS columns.
static void time_heat(struct page *p, const struct report_run *r, long l)
{
    long columns = r->bins_used < HEAT_COLUMNS ? r->bins_used : HEAT_COLUMNS;
    double *value = numbers(p, r->E * columns), *x = numbers(p, columns);
    char title[64];
    for (long k = 0; value && x && k < columns; k++) {
        long from = k * r->bins_used / columns, to = (k + 1) * r->bins_used / columns;
        double sum = 0;
        for (long e = 0; e < r->E; e++) {
            double load = 0;
            for (long b = from; b < to; b++) load += r->load[(l * r->bins + b) * r->E + e];
            value[e * columns + k] = load;
            sum += load;
        }
        for (long e = 0; e < r->E; e++) value[e * columns + k] *= (double)r->E / sum;
        x[k] = r->bin_tokens[to - 1];
    }
    snprintf(title, sizeof title, "Expert load over time, layer %ld", l + 1);
    if (value && x)
        chart_heat(p->m, &(struct heat){.title = title,
                                        .row_name = "expert",
                                        .column_name = "tokens",
                                        .rows = r->E,
                                        .columns = columns,
                                        .value = value,
                                        .column_x = x});
    free(value);
    free(x);
}

// A choice of layers without a script: radio buttons show one pane each.
static void time_heats(struct page *p, const struct report_run *r, long index)
{
    long n = r->L < REPORT_PANES ? r->L : REPORT_PANES, layer[REPORT_PANES];
    for (long i = 0; i < n; i++) layer[i] = n > 1 ? i * (r->L - 1) / (n - 1) : 0;
    markup_print(p->m,
                 "<div class=\"pick\"><h3>Expert load over time</h3><p>Tokens sent to each expert, relative to an even "
                 "share.</p><span>layer</span>");
    for (long i = 0; i < n; i++)
        markup_print(p->m,
                     "<input type=\"radio\" name=\"layer%ld\" id=\"r%ldl%ld\"%s><label for=\"r%ldl%ld\">%ld</label>",
                     index, index, i, i ? "" : " checked", index, i, layer[i] + 1);
    markup_print(p->m, "<div class=\"panes\">");
    for (long i = 0; i < n; i++) {
        markup_print(p->m, "<div>");
        time_heat(p, r, layer[i]);
        markup_print(p->m, "</div>");
    }
    markup_print(p->m, "</div></div>");
}

void figures_experts(struct page *p, const struct report_run *r, long index)
{
    static const struct {
        enum layer_field field;
        const char *title, *note, *unit;
        enum chart_unit y_unit;
        bool from_zero, cut; // cut: the first steps may lie above the frame
    } chart[] = {
        {LAYER_DROP, "Drop rate", "Assignments over an expert's capacity, per layer.", "share dropped", UNIT_PERCENT,
         true, true},
        {LAYER_COEFF, "Auxiliary loss coefficient", "Follows the drop rate of its layer.", "coefficient", UNIT_NUMBER,
         true, false},
        {LAYER_MAX12, "Max1 / Max2", "How clearly the router prefers its first choice to the second; 1: not at all.",
         "mean ratio of gates", UNIT_NUMBER, false, false},
        {LAYER_MAX23, "Max2 / Max3", "The same for the second choice and the third, which is not used.",
         "mean ratio of gates", UNIT_NUMBER, false, false},
        {LAYER_OVERLOAD, "Overload", "Load of the busiest expert relative to an even share.", "max / mean", UNIT_NUMBER,
         false, true},
        {LAYER_ENTROPY, "Router entropy", "Of the gate's distribution over all experts.", "nats", UNIT_NUMBER, false,
         false},
        {LAYER_AUX, "Auxiliary loss", "Before its coefficient.", "loss", UNIT_NUMBER, true, true},
    };
    markup_print(p->m, "<section class=\"run%ld\"><h2>Experts of ", index);
    markup_text(p->m, r->label);
    markup_print(p->m, "</h2><div class=\"grid\">");
    for (size_t i = 0; i < 2; i++)
        field_chart(p, r, chart[i].title, chart[i].note, chart[i].unit, chart[i].y_unit, chart[i].field,
                    chart[i].from_zero, chart[i].cut);
    if (r->E && r->bins_used) {
        load_heat(p, r);
        time_heats(p, r, index);
    }
    if (r->similarities)
        layer_chart(
            p, r, "Expert similarity",
            "Mean pairwise cosine of the experts' weights, at evaluations. 1: copies; falling: they specialise.",
            "cosine", UNIT_NUMBER, r->eval_tokens, r->similarity, r->evals, r->similarities, true, false, 0);
    for (size_t i = 2; i < sizeof chart / sizeof *chart; i++)
        field_chart(p, r, chart[i].title, chart[i].note, chart[i].unit, chart[i].y_unit, chart[i].field,
                    chart[i].from_zero, chart[i].cut);
    markup_print(p->m, "</div></section>\n");
}

// ---- several mixtures in one picture ----

// Mean over layers of y[layer][bin] (across: y[evaluation][layer]).
static void layers_mean(double *mean, const double *y, long n, long layers, long stride, bool across)
{
    for (long i = 0; i < n; i++) {
        double sum = 0;
        for (long l = 0; l < layers; l++) sum += across ? y[i * layers + l] : y[l * stride + i];
        mean[i] = sum / (double)layers; // NaN where a layer has none
    }
}

// Points of a line: bins without a training step have no value and would cut it.
static long without_gaps(double *x, double *y, long n)
{
    long kept = 0;
    for (long i = 0; i < n; i++) {
        if (!isfinite(y[i])) continue;
        x[kept] = x[i];
        y[kept++] = y[i];
    }
    return kept;
}

enum { SIMILARITY = LAYER_FIELDS }; // after the fields of layers

static struct curve mixture_curve(struct page *p, const struct report_run *r, int field)
{
    bool evaluations = field == SIMILARITY;
    long n = evaluations ? r->similarities ? r->evals : 0 : r->bins_used;
    double *x = numbers(p, n), *mean = numbers(p, n);
    struct curve c = {0};
    if (x && mean) {
        for (long i = 0; i < n; i++) x[i] = evaluations ? r->eval_tokens[i] : r->bin_tokens[i];
        if (evaluations) layers_mean(mean, r->similarity, n, r->similarities, 0, true);
        else layers_mean(mean, r->layer[field], n, r->L, r->bins, false);
        c = smooth(p, x, mean, without_gaps(x, mean, n), evaluations);
    }
    free(x);
    free(mean);
    return c;
}

static void mixtures_chart(struct page *p, const char *title, const char *note, const char *unit,
                           enum chart_unit y_unit, int field, bool from_zero)
{
    struct chart_line *line = calloc((size_t)p->runs + 1, sizeof *line);
    struct curve *curve = calloc((size_t)p->runs + 1, sizeof *curve);
    long lines = 0;
    if (!line || !curve) p->failed = true;
    for (long i = 0; !p->failed && i < p->runs; i++) {
        const struct report_run *r = &p->run[i];
        if (!r->L) continue;
        curve[i] = mixture_curve(p, r, field);
        if (!curve[i].n) continue;
        line[lines] = (struct chart_line){
            .label = r->label, .x = curve[i].x, .y = curve[i].y, .n = curve[i].n, .points = field == SIMILARITY};
        series_color(line[lines++].color, i); // the run's colour in every chart
    }
    if (!p->failed && lines)
        chart_lines(p->m, &(struct chart){.title = title,
                                          .note = note,
                                          .x_label = "tokens",
                                          .y_label = unit,
                                          .x_unit = UNIT_COUNT,
                                          .y_unit = y_unit,
                                          .line = line,
                                          .lines = lines,
                                          .from_zero = from_zero});
    for (long i = 0; curve && i < p->runs; i++) curve_free(&curve[i]);
    free(line);
    free(curve);
}

void figures_mixtures(struct page *p)
{
    long mixtures = 0;
    for (long i = 0; i < p->runs; i++) mixtures += p->run[i].L > 0;
    if (mixtures < 2) return;
    markup_print(p->m, "<section><h2>Mixtures side by side</h2><div class=\"grid\">");
    mixtures_chart(p, "Drop rate, mean over layers", "Assignments over an expert's capacity.", "share dropped",
                   UNIT_PERCENT, LAYER_DROP, true);
    mixtures_chart(p, "Overload, mean over layers", "Load of the busiest expert relative to an even share.",
                   "max / mean", UNIT_NUMBER, LAYER_OVERLOAD, false);
    mixtures_chart(p, "Coefficient, mean over layers", "Of the auxiliary loss; 0: none.", "coefficient", UNIT_NUMBER,
                   LAYER_COEFF, true);
    mixtures_chart(p, "Expert similarity, mean over layers", "Mean pairwise cosine, at evaluations. 1: copies.",
                   "cosine", UNIT_NUMBER, SIMILARITY, false);
    mixtures_chart(p, "Max1 / Max2, mean over layers", "How clearly the first choice stands out; 1: not at all.",
                   "mean ratio of gates", UNIT_NUMBER, LAYER_MAX12, false);
    mixtures_chart(p, "Max2 / Max3, mean over layers", "The same for the second choice and the third.",
                   "mean ratio of gates", UNIT_NUMBER, LAYER_MAX23, false);
    markup_print(p->m, "</div></section>\n");
}

// ---- all runs ----

void figures_runs(struct page *p)
{
    markup_print(p->m, "<section><h2>Training</h2><div class=\"grid\">");
    loss_chart(p);
    rows_chart(p, "Throughput", "Trained tokens per second of wall time.", "tokens per second", ROW_TOKENS_PER_S,
               UNIT_COUNT, true, true);
    rows_chart(p, "Arithmetic", "Model FLOPs: recomputation and padding do not count.", "TFLOP/s", ROW_TFLOPS,
               UNIT_NUMBER, true, true);
    rows_chart(p, "Learning rate", NULL, "learning rate", ROW_LR, UNIT_NUMBER, false, true);
    char note[128];
    double largest = NAN;
    for (long i = 0; i < p->runs; i++) {
        double high = quantile(p, p->run[i].row[ROW_GRAD_NORM], p->run[i].rows, 1);
        if (!(largest >= high)) largest = high;
    }
    snprintf(note, sizeof note, "Before clipping. Largest of a single step: %.4g.", largest);
    rows_chart(p, "Gradient norm", isfinite(largest) ? note : NULL, "norm", ROW_GRAD_NORM, UNIT_NUMBER, true, true);
    markup_print(p->m, "</div></section>\n");
}
