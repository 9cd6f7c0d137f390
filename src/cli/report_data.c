#include "cli/report_data.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"

static const double far = 1e300;

// ---- metrics.jsonl ----

static const char *const row_names[ROW_FIELDS] = {"tokens",       "loss",        "lr",    "grad_norm",
                                                  "tokens_per_s", "step_time_s", "tflops"};
static const char *const layer_names[LAYER_FIELDS] = {"drop_rate",      "aux_coeff", "aux_loss", "overload",
                                                      "router_entropy", "max1_max2", "max2_max3"};

struct reading {
    struct report_run *run;
    const char *text;
    long bytes;
    long lines;         // training rows and evaluation rows together, counted beforehand
    double *sum, *seen; // [LAYER_FIELDS][L][bins]
    double last_tokens;
};

static long count_lines(const char *text, long bytes)
{
    long n = 0;
    for (long i = 0; i < bytes; i++) n += text[i] == '\n';
    return n + (bytes > 0 && text[bytes - 1] != '\n');
}

static enum status refused(const struct report_run *r)
{
    return fail(ERR_MEMORY, "memory: the metrics of %s were refused (free some memory)", r->path);
}

static enum status take(double **to, long n, const struct report_run *r)
{
    *to = malloc((size_t)(n > 0 ? n : 1) * sizeof **to);
    if (!*to) return refused(r);
    for (long i = 0; i < n; i++) (*to)[i] = NAN;
    return OK;
}

// The first row with layers says how many layers and experts there are; every later one must agree.
static enum status layers_start(struct reading *g, const cJSON *layers, const char *name)
{
    struct report_run *r = g->run;
    long L = cJSON_GetArraySize(layers);
    const cJSON *counts = cJSON_GetObjectItemCaseSensitive(layers->child, "tokens_per_expert");
    long E = cJSON_IsArray(counts) ? cJSON_GetArraySize(counts) : 0;
    if (L > 4096 || E > 4096)
        return fail(ERR_FORMAT, "%s: layers is %ld x %ld, expected at most 4096 each", name, L, E);
    r->bins = g->lines < REPORT_BINS ? g->lines : REPORT_BINS;
    long n = L * r->bins;
    TRY(take(&r->bin_tokens, r->bins, r));
    for (int f = 0; f < LAYER_FIELDS; f++) TRY(take(&r->layer[f], n, r));
    r->load = calloc((size_t)(n * E + 1), sizeof *r->load);
    g->sum = calloc((size_t)(LAYER_FIELDS * n + 1), sizeof *g->sum);
    g->seen = calloc((size_t)(LAYER_FIELDS * n + 1), sizeof *g->seen);
    if (!r->load || !g->sum || !g->seen) return refused(r);
    r->L = L;
    r->E = E;
    return OK;
}

static enum status read_layers(struct reading *g, const cJSON *row, long bin, const char *name)
{
    struct report_run *r = g->run;
    const cJSON *layers = cJSON_GetObjectItemCaseSensitive(row, "layers");
    if (!layers || cJSON_IsNull(layers)) return OK;
    if (!cJSON_IsArray(layers)) return fail(ERR_FORMAT, "%s: layers is no array (repair or remove the line)", name);
    if (cJSON_GetArraySize(layers) == 0) return OK;
    if (!r->L) TRY(layers_start(g, layers, name));
    if (cJSON_GetArraySize(layers) != r->L)
        return fail(ERR_FORMAT, "%s: layers has %d entries, the lines before have %ld (use the metrics of one model)",
                    name, cJSON_GetArraySize(layers), r->L);
    r->bin_tokens[bin] = g->last_tokens;
    long l = 0;
    for (const cJSON *layer = layers->child; layer; layer = layer->next, l++) {
        if (!cJSON_IsObject(layer)) return fail(ERR_FORMAT, "%s: layers[%ld] is no object (repair the line)", name, l);
        for (int f = 0; f < LAYER_FIELDS; f++) {
            double v;
            TRY(json_real(&v, layer, layer_names[f], NAN, -far, far, name));
            if (isnan(v)) continue;
            g->sum[(f * r->L + l) * r->bins + bin] += v;
            g->seen[(f * r->L + l) * r->bins + bin] += 1;
        }
        const cJSON *counts = cJSON_GetObjectItemCaseSensitive(layer, "tokens_per_expert");
        if (!counts || cJSON_IsNull(counts)) continue;
        if (!cJSON_IsArray(counts) || cJSON_GetArraySize(counts) != r->E)
            return fail(ERR_FORMAT,
                        "%s: layers[%ld].tokens_per_expert is not an array of %ld numbers (repair the line)", name, l,
                        r->E);
        long e = 0;
        for (const cJSON *n = counts->child; n; n = n->next, e++) {
            if (cJSON_IsNull(n)) continue;
            if (!cJSON_IsNumber(n) || !(n->valuedouble >= 0 && n->valuedouble <= far))
                return fail(ERR_FORMAT, "%s: layers[%ld].tokens_per_expert[%ld] is no count (repair the line)", name, l,
                            e);
            r->load[(l * r->bins + bin) * r->E + e] += n->valuedouble;
        }
    }
    return OK;
}

// Evaluation i's row of r->similarity; the first that has one says for how many layers.
static enum status read_similarity(struct report_run *r, long i, const cJSON *values, const char *name)
{
    bool given = values && !cJSON_IsNull(values);
    if (given && !cJSON_IsArray(values))
        return fail(ERR_FORMAT, "%s: expert_similarity is no array (repair the line)", name);
    long n = given ? cJSON_GetArraySize(values) : 0, had = r->similarities ? i : 0;
    if (n && (n > 4096 || (r->similarities && n != r->similarities)))
        return fail(ERR_FORMAT, "%s: expert_similarity has %ld entries, expected %ld (use the metrics of one model)",
                    name, n, r->similarities ? r->similarities : 4096);
    if (n) r->similarities = n;
    if (!r->similarities) return OK;
    double *more = realloc(r->similarity, (size_t)((i + 1) * r->similarities) * sizeof *more);
    if (!more) return refused(r);
    r->similarity = more;
    for (long k = had * r->similarities; k < (i + 1) * r->similarities; k++) more[k] = NAN;
    long l = i * r->similarities;
    for (const cJSON *v = n ? values->child : NULL; v; v = v->next, l++) {
        if (!cJSON_IsNumber(v) && !cJSON_IsNull(v))
            return fail(ERR_FORMAT, "%s: expert_similarity holds something that is no number (repair the line)", name);
        if (cJSON_IsNumber(v)) more[l] = v->valuedouble;
    }
    return OK;
}

static enum status read_evaluation(struct reading *g, const cJSON *row, const char *name)
{
    struct report_run *r = g->run;
    long i = r->evals;
    TRY(json_real(&r->eval_loss[i], row, "eval_loss", NAN, -far, far, name));
    r->eval_tokens[i] = g->last_tokens;
    TRY(read_similarity(r, i, cJSON_GetObjectItemCaseSensitive(row, "expert_similarity"), name));
    r->evals++;
    return OK;
}

static enum status read_step(struct reading *g, const cJSON *row, long line, const char *name)
{
    struct report_run *r = g->run;
    long i = r->rows, step;
    bool skipped;
    TRY(json_long(&step, row, "step", -1, 0, 1L << 53, name));
    if (step <= r->last_step)
        return fail(ERR_FORMAT, "%s: step %ld comes after step %ld (the file is of more than one run)", name, step,
                    r->last_step);
    for (int f = 0; f < ROW_FIELDS; f++) TRY(json_real(&r->row[f][i], row, row_names[f], NAN, -far, far, name));
    if (isnan(r->row[ROW_TOKENS][i]))
        return fail(ERR_FORMAT, "%s: there is no tokens (repair or remove the line)", name);
    if (r->row[ROW_TOKENS][i] < g->last_tokens)
        return fail(ERR_FORMAT, "%s: tokens is %.0f after %.0f (it must not fall)", name, r->row[ROW_TOKENS][i],
                    g->last_tokens);
    const cJSON *flag = cJSON_GetObjectItemCaseSensitive(row, "skipped");
    if (cJSON_IsNumber(flag))
        skipped = flag->valuedouble != 0;
    else
        TRY(json_bool(&skipped, row, "skipped", false, name));
    g->last_tokens = r->row[ROW_TOKENS][i];
    long bins = g->lines < REPORT_BINS ? g->lines : REPORT_BINS;
    TRY(read_layers(g, row, line * bins / g->lines, name));
    r->skipped += skipped;
    r->last_step = step;
    r->rows++;
    return OK;
}

static enum status read_line(struct reading *g, const char *text, long bytes, long line, const char *name)
{
    cJSON *row;
    TRY(json_parse(&row, text, bytes, name));
    enum status s;
    if (!cJSON_IsObject(row))
        s = fail(ERR_FORMAT, "%s: the line is no JSON object (repair or remove it)", name);
    else if (cJSON_GetObjectItemCaseSensitive(row, "eval_loss"))
        s = read_evaluation(g, row, name);
    else
        s = read_step(g, row, line, name);
    cJSON_Delete(row);
    return s;
}

static void finish_bins(struct reading *g)
{
    struct report_run *r = g->run;
    for (int f = 0; f < LAYER_FIELDS; f++) {
        for (long i = 0; i < r->L * r->bins; i++) {
            double seen = g->seen[f * r->L * r->bins + i];
            if (seen > 0) r->layer[f][i] = g->sum[f * r->L * r->bins + i] / seen;
        }
    }
    long kept = 0; // bins that hold evaluation rows only are closed up
    for (long b = 0; b < r->bins; b++) {
        if (isnan(r->bin_tokens[b])) continue;
        r->bin_tokens[kept] = r->bin_tokens[b];
        for (long l = 0; l < r->L; l++) {
            for (int f = 0; f < LAYER_FIELDS; f++) r->layer[f][l * r->bins + kept] = r->layer[f][l * r->bins + b];
            for (long e = 0; e < r->E; e++)
                r->load[(l * r->bins + kept) * r->E + e] = r->load[(l * r->bins + b) * r->E + e];
        }
        kept++;
    }
    r->bins_used = kept;
}

static enum status read_rows(struct reading *g, const char *path)
{
    struct report_run *r = g->run;
    char name[PATH_LENGTH + 32];
    g->lines = count_lines(g->text, g->bytes);
    for (int f = 0; f < ROW_FIELDS; f++) TRY(take(&r->row[f], g->lines, r));
    TRY(take(&r->eval_tokens, g->lines, r));
    TRY(take(&r->eval_loss, g->lines, r));
    long line = 0;
    for (long at = 0; at < g->bytes; line++) {
        const char *end = memchr(g->text + at, '\n', (size_t)(g->bytes - at));
        long n = end ? end - (g->text + at) : g->bytes - at;
        snprintf(name, sizeof name, "%s line %ld", path, line + 1);
        TRY(read_line(g, g->text + at, n, line, name));
        at += n + 1;
    }
    if (!r->rows && !r->evals) return fail(ERR_FORMAT, "%s: there is nothing in it (train at least one step)", path);
    if (r->L) finish_bins(g);
    return OK;
}

static enum status read_metrics(struct report_run *r, const char *path)
{
    struct file_map map;
    TRY(file_map_open(&map, path));
    struct reading g = {.run = r, .text = (const char *)map.data, .bytes = map.bytes};
    enum status s = read_rows(&g, path);
    free(g.sum);
    free(g.seen);
    file_map_close(&map);
    return s;
}

// ---- a run ----

static enum status read_run(struct report_run *r)
{
    char path[PATH_LENGTH];
    long bytes;
    TRY(path_join(path, r->path, "metrics.jsonl"));
    TRY(read_metrics(r, path));
    TRY(path_join(path, r->path, "config.json"));
    r->has_config = path_exists(path);
    if (r->has_config) TRY(config_read(&r->config, path));
    TRY(path_join(path, r->path, "settings.conf"));
    if (path_exists(path)) TRY(file_read(&r->settings, &bytes, path, 1 << 20));
    return OK;
}

enum status report_run_read(struct report_run *r, const char *path)
{
    *r = (struct report_run){.path = path, .last_step = -1};
    long end = (long)strlen(path);
    while (end > 1 && path[end - 1] == '/') end--;
    long first = end;
    while (first > 0 && path[first - 1] != '/') first--;
    snprintf(r->label, sizeof r->label, "%.*s", (int)(end - first), path + first);
    enum status s = read_run(r);
    if (s != OK) report_run_free(r);
    return s;
}

void report_run_free(struct report_run *r)
{
    for (int f = 0; f < ROW_FIELDS; f++) free(r->row[f]);
    for (int f = 0; f < LAYER_FIELDS; f++) free(r->layer[f]);
    free(r->eval_tokens);
    free(r->eval_loss);
    free(r->bin_tokens);
    free(r->load);
    free(r->similarity);
    free(r->settings);
    *r = (struct report_run){0};
}
