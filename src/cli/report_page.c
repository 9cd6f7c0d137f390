// The page of a report: results, runs, curves, experts, text, settings.
#include "cli/report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "cli/report_figures.h"

static void put_number(struct page *p, const char *tag, double value, enum chart_unit unit, int decimals)
{
    char text[FIGURE_TEXT];
    if (isfinite(value) && decimals >= 0)
        snprintf(text, sizeof text, "%.*f", decimals, value);
    else
        number_text(text, value, unit);
    markup_print(p->m, "<%s>%s</%s>", tag, text, tag);
}

static void duration(char text[FIGURE_TEXT], double seconds)
{
    if (!isfinite(seconds))
        snprintf(text, FIGURE_TEXT, "–");
    else if (seconds < 100)
        snprintf(text, FIGURE_TEXT, "%.3g s", seconds);
    else if (seconds < 6000)
        snprintf(text, FIGURE_TEXT, "%.3g min", seconds / 60);
    else if (seconds < 48 * 3600)
        snprintf(text, FIGURE_TEXT, "%.3g h", seconds / 3600);
    else
        snprintf(text, FIGURE_TEXT, "%.4g d", seconds / 86400);
}

// ---- tables ----

static void runs_table(struct page *p)
{
    char text[FIGURE_TEXT];
    markup_print(p->m, "<section><h2>Runs</h2><div class=\"scroll\"><table><tr><th>run<th>parameters<th>active<th>steps"
                       "<th>tokens<th>time<th>train loss<th>eval loss<th>tokens/s</tr>");
    for (long i = 0; i < p->runs; i++) {
        const struct report_run *r = &p->run[i];
        const struct config *c = &r->config;
        double seconds = 0;
        for (long k = 0; k < r->rows; k++) seconds += isfinite(r->row[ROW_STEP_TIME][k]) ? r->row[ROW_STEP_TIME][k] : 0;
        long tail = r->rows / 20 + 1, from = r->rows > tail ? r->rows - tail : 0;
        double sum = 0, seen = 0;
        for (long k = from; k < r->rows; k++) {
            if (!isfinite(r->row[ROW_LOSS][k])) continue;
            sum += r->row[ROW_LOSS][k];
            seen++;
        }
        markup_print(p->m, "<tr><td class=\"text\"><span class=\"key\" style=\"--c:var(--s%ld)\">", i % CHART_SERIES);
        markup_text(p->m, r->label);
        markup_print(p->m, "</span>");
        if (r->has_config) {
            markup_print(p->m, "<small>%s, %ld layers, hidden %ld, FFN %ld, heads %ld/%ld, vocabulary %ld",
                         arch_name(c->arch), c->L, c->D, c->F, c->H, c->G, c->V);
            if (c->E) markup_print(p->m, ", %ld experts, top-%ld", c->E, c->K);
            markup_print(p->m, "</small></td>");
            put_number(p, "td", (double)config_params_total(c), UNIT_COUNT, -1);
            put_number(p, "td", (double)config_params_active(c), UNIT_COUNT, -1);
        } else {
            markup_print(p->m, "</td><td>–</td><td>–</td>");
        }
        markup_print(p->m, "<td>%ld", r->last_step < 0 ? 0 : r->last_step);
        if (r->skipped) markup_print(p->m, "<small>%ld skipped</small>", r->skipped);
        markup_print(p->m, "</td>");
        put_number(p, "td", last_finite(r->row[ROW_TOKENS], r->rows), UNIT_COUNT, -1);
        duration(text, seconds);
        markup_print(p->m, "<td>%s</td>", text);
        put_number(p, "td", seen > 0 ? sum / seen : NAN, UNIT_NUMBER, 4);
        put_number(p, "td", last_finite(r->eval_loss, r->evals), UNIT_NUMBER, 4);
        put_number(p, "td", quantile(p, r->row[ROW_TOKENS_PER_S], r->rows, 0.5), UNIT_COUNT, -1);
        markup_print(p->m, "</tr>");
    }
    markup_print(p->m, "</table></div><p class=\"note\">Train loss: mean of the last twentieth of the steps. Tokens/s: "
                       "median.</p></section>\n");
}

// Names of the demo's summary.json as a reader wants them.
static const char *result_title(const char *name)
{
    static const char *const title[][2] = {
        {"dense", "Dense"},
        {"dense_continued", "Dense, continued, equal tokens"},
        {"dense_continued_equal_flops", "Dense, continued, equal FLOPs"},
        {"moe", "MoE, equal tokens"},
        {"moe_equal_tokens", "MoE, equal tokens"},
        {"moe_equal_flops", "MoE, equal FLOPs"},
        {"moe_fp8", "MoE in FP8"},
    };
    for (size_t i = 0; i < sizeof title / sizeof *title; i++)
        if (!strcmp(name, title[i][0])) return title[i][1];
    return name;
}

static void results_table(struct page *p, const struct report_summary *s)
{
    char text[FIGURE_TEXT];
    double best = INFINITY;
    for (long i = 0; i < s->results; i++)
        if (s->result[i].eval_loss < best) best = s->result[i].eval_loss;
    markup_print(p->m,
                 "<section><h2>Results</h2><div class=\"scroll\"><table><tr><th>model<th>evaluation loss<th>above the "
                 "best<th>perplexity<th>bits per byte<th>trained tokens<th>training FLOPs<th>time</tr>");
    for (long i = 0; i < s->results; i++) {
        const struct report_result *r = &s->result[i];
        markup_print(p->m, "<tr%s><td class=\"text\">", r->eval_loss == best ? " class=\"best\"" : "");
        markup_text(p->m, result_title(r->name));
        markup_print(p->m, "</td>");
        put_number(p, "td", r->eval_loss, UNIT_NUMBER, 4);
        put_number(p, "td", r->eval_loss > best ? r->eval_loss - best : NAN, UNIT_NUMBER, 4);
        put_number(p, "td", exp(r->eval_loss), UNIT_NUMBER, 2);
        put_number(p, "td", r->bits_per_byte, UNIT_NUMBER, 3);
        put_number(p, "td", r->tokens, UNIT_COUNT, -1);
        number_text(text, r->flops, UNIT_NUMBER);
        if (isfinite(r->flops) && r->flops >= 1e3) {
            int power = (int)floor(log10(r->flops));
            snprintf(text, sizeof text, "%.2f × 10<sup>%d</sup>", r->flops / pow(10, power), power);
        }
        markup_print(p->m, "<td>%s</td>", text);
        duration(text, r->seconds);
        markup_print(p->m, "<td>%s</td></tr>", text);
    }
    markup_print(p->m, "</table></div><p class=\"note\">");
    if (isfinite(s->kl_fp8))
        markup_print(p->m, "KL divergence of FP8 from its original: %.4g nats per token. ", s->kl_fp8);
    if (isfinite(s->xz_bits_per_byte))
        markup_print(p->m, "xz -9e needs %.3f bits per byte for the same text. ", s->xz_bits_per_byte);
    if (isfinite(s->seed)) markup_print(p->m, "Seed %.0f.", s->seed);
    markup_print(p->m, "</p></section>\n");
}

static void samples_section(struct page *p, const struct report_summary *s)
{
    markup_print(p->m, "<section><h2>Generated text</h2><div class=\"grid\">");
    for (long i = 0; i < s->samples; i++) {
        markup_print(p->m, "<blockquote><p><b>");
        markup_text(p->m, s->sample[i].prompt);
        markup_print(p->m, "</b>");
        markup_text(p->m, s->sample[i].text);
        markup_print(p->m, "</p><footer>");
        markup_text(p->m, result_title(s->sample[i].model));
        markup_print(p->m, "</footer></blockquote>");
    }
    markup_print(p->m, "</div></section>\n");
}

static void settings_section(struct page *p)
{
    bool any = false;
    for (long i = 0; i < p->runs; i++) any = any || p->run[i].settings;
    if (!any) return;
    markup_print(p->m, "<section><h2>Settings</h2>");
    for (long i = 0; i < p->runs; i++) {
        if (!p->run[i].settings) continue;
        markup_print(p->m, "<details><summary>");
        markup_text(p->m, p->run[i].label);
        markup_print(p->m, "</summary><pre>");
        markup_text(p->m, p->run[i].settings);
        markup_print(p->m, "</pre></details>");
    }
    markup_print(p->m, "</section>\n");
}

// ---- the page ----

static const char style[] =
    "*{box-sizing:border-box}html{color-scheme:light dark}"
    "body{margin:0;background:var(--bg);color:var(--ink);"
    "font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','Noto Sans CJK SC',sans-serif;"
    "font-variant-numeric:tabular-nums}main{max-width:1060px;margin:0 auto;padding:32px 24px 64px}"
    "h1{font-size:26px;font-weight:650;letter-spacing:-.01em;margin:0}header p{color:var(--soft);margin:4px 0 0}"
    "h2{font-size:18px;font-weight:620;margin:40px 0 12px}h3{font-size:14.5px;font-weight:620;margin:0}"
    ".grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:16px}"
    "@media(max-width:760px){.grid{grid-template-columns:minmax(0,1fr)}main{padding:20px 12px}}"
    "figure,blockquote,.pick{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;"
    "padding:14px 16px 10px;min-width:0}.wide{grid-column:1/-1}"
    "figcaption p{margin:1px 0 0;font-size:12.5px;line-height:1.4;color:var(--soft)}"
    "svg{display:block;width:100%;height:auto;overflow:visible}svg svg{overflow:hidden}.axis line{stroke:var(--grid)}"
    ".axis path{stroke:var(--axis);fill:none}.axis text{fill:var(--soft);font-size:11.5px}"
    ".wide .axis text{font-size:12px}.axis .y{text-anchor:end}.axis .x{text-anchor:middle}"
    ".line{fill:none;stroke-width:1.9;stroke-linejoin:round;stroke-linecap:round}.thin{stroke-width:1.3;opacity:.85}"
    ".band{opacity:.16}.mark{stroke:var(--card);stroke-width:1.3}.hit{fill-opacity:0}.hit:hover{fill-opacity:1}"
    ".mark:hover{stroke:var(--ink)}.heat rect:hover{stroke:var(--ink);stroke-width:1.5}"
    ".name{font-size:12px;color:var(--soft);margin-top:8px}.right{text-align:right;margin-top:-4px}"
    ".none{color:var(--soft)}"
    ".legend{display:flex;flex-wrap:wrap;gap:2px 16px;align-items:center;font-size:12.5px;color:var(--soft);"
    "margin-top:8px}.ramp{width:110px;height:9px;border-radius:5px;margin:0 -7px}"
    ".key{display:inline-flex;align-items:center;gap:7px;color:var(--ink)}"
    ".key::before{content:'';width:16px;height:3px;border-radius:2px;background:var(--c)}"
    ".dot::before{width:8px;height:8px;border-radius:50%;margin:0 4px}"
    ".scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:4px 0}"
    "table{border-collapse:collapse;width:100%;font-size:13.5px}"
    "th{font-weight:500;color:var(--soft);text-align:right;padding:7px 14px;white-space:nowrap}"
    "th:first-child,.text{text-align:left}"
    "td{text-align:right;padding:7px 14px;border-top:1px solid var(--grid);white-space:nowrap}"
    "td.text{white-space:normal}td small{display:block;font-size:12px;color:var(--soft)}"
    "td.text small{padding-left:23px}.best td{font-weight:650}"
    ".note{font-size:12.5px;color:var(--soft);margin:8px 2px 0}"
    "blockquote p{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}"
    "blockquote footer{color:var(--soft);font-size:12.5px;margin-top:8px}"
    "details{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:8px 16px;margin-top:8px}"
    "summary{cursor:pointer}pre{font:12.5px/1.5 ui-monospace,'DejaVu Sans Mono',monospace;overflow-x:auto}"
    ".pick{min-width:0}.pick>p,.pick>span{font-size:12.5px;color:var(--soft);margin:1px 8px 7px 0}"
    ".pick figure{border:0;padding:0;background:none}.pick figcaption{display:none}"
    ".pick input{position:absolute;opacity:0}"
    ".pick label{display:inline-block;min-width:26px;text-align:center;font-size:12.5px;padding:1px 6px;"
    "margin:0 4px 6px 0;border:1px solid var(--line);border-radius:6px;cursor:pointer;color:var(--soft);"
    "background:var(--card)}"
    ".pick input:checked+label{color:var(--card);background:var(--ink);border-color:var(--ink)}"
    ".pick input:focus-visible+label{outline:2px solid var(--s0)}.panes>div{display:none}";

static void put_colors(struct page *p, bool dark)
{
    markup_print(
        p->m,
        dark ? "--bg:#121417;--card:#1a1d21;--ink:#e7e9ec;--soft:#9aa3ad;--line:#2b3036;--grid:#262a30;--axis:#565e68;"
             : "--bg:#f7f7f5;--card:#fff;--ink:#1c2126;--soft:#5b6570;--line:#e2e4e7;--grid:#ededee;--axis:#a9b0b8;");
    chart_colors(p->m, dark);
    markup_print(p->m, "}");
    for (long i = 0; i < p->runs; i++) {
        const struct report_run *r = &p->run[i];
        long layers = r->L > r->similarities ? r->L : r->similarities;
        if (!layers) continue;
        markup_print(p->m, ".run%ld{", i);
        chart_layer_colors(p->m, layers, dark);
        markup_print(p->m, "}");
    }
}

static void put_head(struct page *p)
{
    markup_print(
        p->m, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
              "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
              "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>");
    for (long i = 0; i < p->runs; i++) {
        if (i) markup_print(p->m, ", ");
        markup_text(p->m, p->run[i].label);
    }
    markup_print(p->m, " – skymoe report</title><style>%s", style);
    for (int i = 1; i <= REPORT_PANES; i++)
        markup_print(p->m, "%s.pick input:nth-of-type(%d):checked~.panes>:nth-child(%d)", i > 1 ? "," : "", i, i);
    markup_print(p->m, "{display:block}:root{");
    put_colors(p, false);
    markup_print(p->m, "@media(prefers-color-scheme:dark){:root{");
    put_colors(p, true);
    markup_print(p->m, "}</style></head>\n<body><main><header><h1>");
    for (long i = 0; i < p->runs; i++) {
        if (i) markup_print(p->m, ", ");
        markup_text(p->m, p->run[i].label);
    }
    markup_print(p->m, "</h1><p>skymoe training report</p></header>\n");
}

static enum status page_write(struct page *p, const struct report_summary *s, const char *path)
{
    put_head(p);
    if (s->results) results_table(p, s);
    runs_table(p);
    figures_runs(p);
    figures_mixtures(p);
    for (long i = 0; i < p->runs; i++)
        if (p->run[i].L || p->run[i].similarities) figures_experts(p, &p->run[i], i);
    if (s->samples) samples_section(p, s);
    settings_section(p);
    markup_print(p->m, "</main></body></html>\n");
    if (p->failed) p->m->failed = true;
    TRY(markup_status(p->m));
    return file_write(path, p->m->text, p->m->used);
}

// Runs of the same folder name are told apart by their paths.
static void label_runs(struct report_run *run, long n)
{
    for (long i = 0; i < n; i++) {
        bool twin = false;
        for (long k = 0; k < n; k++) twin = twin || (k != i && !strcmp(run[i].label, run[k].label));
        if (twin || !run[i].label[0] || !strcmp(run[i].label, ".")) run[i].rename = true;
    }
    for (long i = 0; i < n; i++)
        if (run[i].rename) snprintf(run[i].label, sizeof run[i].label, "%.120s", run[i].path);
}

static enum status write_runs(struct report_run *run, const char *const *paths, long *open, long n,
                              struct report_summary *s, const char *summary_path, const char *output_path)
{
    for (; *open < n; ++*open) TRY(report_run_read(&run[*open], paths[*open]));
    if (summary_path) TRY(report_summary_read(s, summary_path));
    label_runs(run, n);
    struct markup m = {0};
    struct page p = {.m = &m, .run = run, .runs = n};
    enum status status = page_write(&p, s, output_path);
    markup_free(&m);
    return status;
}

enum status report_write(const char *const *runs, long n, const char *summary_path, const char *output_path)
{
    struct report_summary summary = {.kl_fp8 = NAN, .seed = NAN, .xz_bits_per_byte = NAN};
    struct report_run *run = calloc((size_t)n + 1, sizeof *run);
    if (!run) return fail(ERR_MEMORY, "memory: %ld runs were refused (free some memory)", n);
    long open = 0;
    enum status status = write_runs(run, runs, &open, n, &summary, summary_path, output_path);
    for (long i = 0; i < open; i++) report_run_free(&run[i]);
    report_summary_free(&summary);
    free(run);
    return status;
}
