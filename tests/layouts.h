// The layouts that tests/test_layouts.c tries, and how two runs are compared.
#ifndef SKYMOE_TESTS_LAYOUTS_H
#define SKYMOE_TESTS_LAYOUTS_H

#include "mpirun_util.h"

struct layout_case {
    const char *name, *model;
    bool moe, bf16;
    const char *options[16];
};
static const struct layout_case layout_cases[] = {
    {"moe", "moe.json", true, false, {"--moe-capacity-factor", "1.1", "--moe-z-loss-coeff", "0.001", NULL}},
    {"bf16", "moe.json", true, true, {"--dtype", "bf16", NULL}},
    {"tied", "tied.json", false, false, {NULL}},
    {"dense", "dense.json", false, false, {NULL}},
    {"scope", "moe.json", true, false,
     {"--moe-aux-loss-scope", "sequence", "--moe-aux-loss", "switch", "--moe-token-drop-policy", "position", NULL}},
    {"bias", "moe.json", true, false, {"--moe-aux-loss", "bias", "--moe-capacity-factor", "0", NULL}},
    {"global", "moe.json", true, false, {"--moe-aux-loss-scope", "global", NULL}},
};
static UNUSED const long layout_cases_n = sizeof layout_cases / sizeof *layout_cases;
enum { MOE, BF16_MOE, TIED, DENSE, SCOPE, BIAS, GLOBAL };

struct layout_row {
    long ranks;
    const char *name;
    int of;      // which case
    bool exact;  // nothing is summed in another order: the same bits
    const char *options[20];
};
#define TP(n) "--tensor-parallel-size", #n
#define PP(n) "--pipeline-parallel-size", #n
static const struct layout_row layout_rows[] = {
    {2, "dp2", MOE, false, {NULL}},
    {2, "dp2-zero0", MOE, false, {"--zero", "0", NULL}},
    {2, "tp2", MOE, false, {TP(2), NULL}},
    {2, "pp2", MOE, true, {PP(2), NULL}},
    {2, "ep2", MOE, false, {"--expert-parallel", "ep", "--exchange-chunks", "3", NULL}},
    {2, "tied-pp2", TIED, false, {PP(2), NULL}},
    {2, "dense-tp2", DENSE, false, {TP(2), "--head-split", "5,1", "--ffn-split", "9,20", NULL}},
    {2, "bf16-tp2", BF16_MOE, false, {TP(2), NULL}},
    {2, "bias-tp2", BIAS, false, {TP(2), NULL}},
    {2, "global-dp2", GLOBAL, false, {NULL}},
    {2, "global-ep2", GLOBAL, false, {"--expert-parallel", "ep", NULL}},
    {3, "dp3", MOE, false, {NULL}},
    {3, "tp3", MOE, false, {TP(3), NULL}},
    {3, "pp3-uneven", MOE, true, {PP(3), "--layer-split", "2,2,1", NULL}},
    {3, "pp3-zero-bubble", MOE, true, {PP(3), "--pipeline-schedule", "zero-bubble", NULL}},
    {3, "pp3-zero-bubble-recompute", MOE, true,
     {PP(3), "--pipeline-schedule", "zero-bubble", "--recompute", "full", "--recompute-layers", "1,2,0", NULL}},
    {3, "ep3", MOE, false, {"--expert-parallel", "ep", "--expert-split", "1,4,3", NULL}},
    {3, "ep3-none", MOE, false, {"--expert-parallel", "ep", "--expert-split", "0,5,3", NULL}}, // a rank without experts
    {3, "scope-tp3", SCOPE, false, {TP(3), NULL}},
    {3, "tied-pp3", TIED, false, {PP(3), "--recompute", "full", NULL}},
    {4, "tp4", MOE, false, {TP(4), NULL}}, // 6 heads on 4 ranks that share 2 kv heads
    {4, "edp", MOE, false, {TP(2), NULL}},
    {4, "etp", MOE, false, {TP(2), "--expert-parallel", "etp", NULL}},
    {4, "slices-alone", MOE, false,
     {TP(2), "--expert-parallel-size", "1", "--expert-tensor-parallel-size", "4", NULL}},
    {4, "tied-pp2-tp2", TIED, false, {PP(2), TP(2), NULL}},
    {4, "pp2-interleaved-dp2", MOE, false,
     {PP(2), "--pipeline-schedule", "interleaved", "--virtual-stages", "2", NULL}},
    {4, "bf16-pp2-ep", BF16_MOE, false, {PP(2), "--expert-parallel", "ep", "--recompute", "moe", NULL}},
    {5, "tp5", MOE, false, {TP(5), "--expert-parallel", "edp", NULL}}, // ffn of 29 and vocabulary of 251 on 5
    {5, "dense-tp5-weights", DENSE, false, {TP(5), "--device-weights", "1,2,1,1,1", NULL}},
    {5, "pp5", MOE, true, {PP(5), NULL}},
    {6, "tp6", MOE, false, {TP(6), NULL}},
    {6, "pp3-tp2", MOE, false, {PP(3), TP(2), "--layer-split", "1,3,1", "--recompute", "full", NULL}},
    {6, "dp3-etp2", MOE, false, {TP(2), "--expert-parallel-size", "3", "--expert-tensor-parallel-size", "2", NULL}},
    {7, "ep7", MOE, false, {"--expert-parallel", "ep", NULL}}, // more ranks than micro-batches: two have none
    {8, "edp-tp2-dp2-pp2", MOE, false, {TP(2), PP(2), NULL}},
    {8, "ep8", MOE, false, {TP(2), "--expert-parallel", "ep", "--exchange-chunks", "1", NULL}},
    {8, "scope-pp2-tp2-zb", SCOPE, false,
     {PP(2), TP(2), "--pipeline-schedule", "zero-bubble", "--recompute", "moe", "--recompute-layers", "2,0", NULL}},
    {8, "dense-pp2-tp2-interleaved", DENSE, false,
     {PP(2), TP(2), "--pipeline-schedule", "interleaved", "--virtual-stages", "2", "--zero", "0", NULL}},
};
static UNUSED const long layout_rows_n = sizeof layout_rows / sizeof *layout_rows;
#undef TP
#undef PP

// "a-b"; 16 of them live at a time.
static UNUSED const char *name_of(const char *a, const char *b)
{
    static char name[16][128];
    static int next;
    char *p = name[next++ % 16];
    snprintf(p, 128, "%s-%s", a, b);
    return p;
}

// ---- files ----

static UNUSED void same_file(const char *a, const char *b, const char *name)
{
    char path[2][PATH_LENGTH];
    struct file_map map[2];
    OK_OR_FAIL(path_join(path[0], a, name));
    OK_OR_FAIL(path_join(path[1], b, name));
    for (int i = 0; i < 2; i++) OK_OR_FAIL(file_map_open(&map[i], path[i]));
    if (map[0].bytes != map[1].bytes) fail_msg("%s: %ld bytes, expected %ld", path[1], map[1].bytes, map[0].bytes);
    for (long i = 0; i < map[0].bytes; i++)
        if (map[0].data[i] != map[1].data[i]) fail_msg("%s: byte %ld differs from %s", path[1], i, path[0]);
    for (int i = 0; i < 2; i++) file_map_close(&map[i]);
}

// The files of tensors, and their indexes, that both folders have.
static UNUSED void same_tensors(const char *a, const char *b, const char *inner)
{
    char path[2][PATH_LENGTH], name[PATH_LENGTH];
    struct path_list list[2];
    long files[2] = {0, 0};
    OK_OR_FAIL(path_join(path[0], a, inner));
    OK_OR_FAIL(path_join(path[1], b, inner));
    for (int f = 0; f < 2; f++) {
        OK_OR_FAIL(folder_list(&list[f], path[f]));
        for (long i = 0; i < list[f].n; i++) {
            if (!strstr(list[f].name[i], ".safetensors")) continue;
            files[f]++;
            OK_OR_FAIL(path_join(name, inner, list[f].name[i]));
            if (f == 0) same_file(a, b, name);
        }
        path_list_free(&list[f]);
    }
    assert_true(files[0] > 0);
    assert_int_equal(files[0], files[1]);
}

static UNUSED void copy_run(const char *from, const char *to)
{
    char command[2 * PATH_LENGTH + 16];
    snprintf(command, sizeof command, "cp -r %s %s", from, to);
    assert_int_equal(shell(command), 0);
}

// ---- numbers ----

// The difference as a fraction of `size`.
static void compare_number(double *worst, double got, double want, double size)
{
    double error = fabs(got - want) / (fabs(size) + 1e-12);
    if (!(error <= *worst)) *worst = error == error ? error : INFINITY;
}

// Layer `layer` of a row; the row itself for -1.
static const cJSON *row_part(const cJSON *row, int layer)
{
    return layer < 0 ? row : cJSON_GetArrayItem(cJSON_GetObjectItem(row, "layers"), layer);
}

// What a field's rounding is measured by: its value. A loss taken at the last step's P (scope global) is a sum of terms
// of either sign that nearly cancel, while the rounding stays that of the terms: the largest value of the run.
static double size_of(const struct rows *of, long i, int layer, const char *field, bool cancels)
{
    double size = 0;
    for (long r = cancels ? 0 : i; r < (cancels ? of->n : i + 1); r++)
        size = fmax(size, fabs(number(row_part(of->row[r], layer), field)));
    return size;
}

// Rows of metrics: loss, gradient norm, drop rates, coefficients, auxiliary losses. close_steps: so many within 1e-5,
// the others within 1e-4. bf16: one rounding of a sum in another order moves a loss by 2^-9 of an activation.
static UNUSED void compare_runs(const char *want, const char *got, const struct layout_case *c, bool exact,
                                long close_steps)
{
    static const char *const of_step[] = {"loss", "aux_loss", "grad_norm", "z_loss", NULL};
    static const char *const of_layer[] = {"drop_rate", "aux_coeff", "aux_loss", "router_entropy", "max1_max2", NULL};
    struct rows a = read_rows(want, "loss"), b = read_rows(got, "loss");
    double close = 0, later = 0;
    assert_int_equal(a.n, b.n);
    for (long i = 0; i < a.n; i++) {
        double *worst = i < close_steps ? &close : &later;
        int layers = cJSON_GetArraySize(cJSON_GetObjectItem(a.row[i], "layers"));
        assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(b.row[i], "layers")), layers);
        for (int l = -1; l < layers; l++) {
            const cJSON *x = row_part(a.row[i], l), *y = row_part(b.row[i], l);
            for (const char *const *f = l < 0 ? of_step : of_layer; *f; f++) {
                if (!cJSON_HasObjectItem(x, *f)) continue;
                bool cancels = c == &layout_cases[GLOBAL] && !strcmp(*f, "aux_loss");
                compare_number(worst, number(y, *f), number(x, *f), size_of(&a, i, l, *f, cancels));
            }
        }
    }
    printf("  first %ld steps: %.2g, all: %.2g\n", close_steps, close, later);
    if (exact && (close > 0 || later > 0)) fail_msg("%s: not the same bits", got);
    double bound = c->bf16 ? 0.03 : 1e-5, loose = c->bf16 ? 0.1 : 1e-4;
    if (!(close <= bound && later <= loose))
        fail_msg("%s: %g and %g, at most %g and %g", got, close, later, bound, loose);
    free_rows(&a);
    free_rows(&b);
}

// The layer a tensor counts as: 1 for the embedding, L for the head.
static long depth_of(const char *name, long L)
{
    const char *layer = strstr(name, ".layers.");
    return layer ? 1 + strtol(layer + 8, NULL, 10) : strstr(name, "embed") ? 1 : L;
}

// Each tensor's relative difference (Frobenius norm).
static UNUSED void compare_gradients(const char *want, const char *got, bool exact, bool bf16, long L)
{
    char path[2][PATH_LENGTH];
    struct safetensors a, b;
    double worst = 0;
    OK_OR_FAIL(path_join(path[0], want, "gradients.safetensors"));
    OK_OR_FAIL(path_join(path[1], got, "gradients.safetensors"));
    OK_OR_FAIL(safetensors_open(&a, path[0]));
    OK_OR_FAIL(safetensors_open(&b, path[1]));
    assert_int_equal(a.n, b.n);
    for (long i = 0; i < a.n; i++) {
        const struct stored_tensor *x = &a.tensor[i], *y = safetensors_find(&b, x->name);
        double difference = 0, size = 0;
        assert_non_null(y);
        assert_int_equal(x->elements, y->elements);
        for (long j = 0; j < x->elements; j++) {
            float p, q;
            memcpy(&p, x->data + 4 * j, 4);
            memcpy(&q, y->data + 4 * j, 4);
            difference += ((double)p - (double)q) * ((double)p - (double)q);
            size += (double)p * (double)p;
        }
        double error = size > 0 ? sqrt(difference / size) : difference;
        double bound = bf16 ? 4 * pow(1.03, (double)(L + 1 - depth_of(x->name, L))) / 256 : 1e-5;
        if (exact) bound = 0;
        if (!(error <= bound)) fail_msg("gradient of %s: %g, at most %g", x->name, error, bound);
        if (error / (bound > 0 ? bound : 1) > worst) worst = error / bound;
    }
    printf("  gradients: %.2g of what is allowed\n", worst);
    safetensors_close(&a);
    safetensors_close(&b);
}

// ---- routing ----

enum { ROUTED_STEPS = 3, ROUTED_LAYERS = 5, ROUTED_TOKENS = 9 * 13, ROUTED_K = 2 };
struct routed {
    bool known;
    int expert[ROUTED_K];
    bool dropped[ROUTED_K];
    double weight[ROUTED_K];
};
typedef struct routed routing[ROUTED_STEPS][ROUTED_LAYERS][ROUTED_TOKENS];

static void read_routing(routing *to, const char *path)
{
    long bytes;
    char *text;
    memset(to, 0, sizeof *to);
    OK_OR_FAIL(file_read(&text, &bytes, path, 1 << 28));
    for (char *line = text; *line;) {
        long length = (long)strcspn(line, "\n"), step, layer, token;
        int e[2];
        double w[2];
        char d[2][8];
        int n = sscanf(line, "{\"step\":%ld,\"layer\":%ld,\"token\":%ld,\"experts\":[%d,%d],\"weights\":[%lf,%lf],"
                       "\"dropped\":[%5[a-z],%5[a-z]]}", &step, &layer, &token, &e[0], &e[1], &w[0], &w[1], d[0], d[1]);
        assert_int_equal(n, 9);
        for (int k = 0; k < 2 && step <= ROUTED_STEPS; k++) {
            struct routed *r = &(*to)[step - 1][layer][token];
            r->known = true;
            r->expert[k] = e[k];
            r->weight[k] = w[k];
            r->dropped[k] = d[k][0] == 't';
        }
        line += length + (line[length] == '\n');
    }
    free(text);
}

// Decisions may differ only where the margin is below 1e-5: two experts whose weights would be the same to that, or two
// assignments of one expert of which one was dropped here and the other there.
static UNUSED void compare_routing(const char *want, const char *got, bool exact)
{
    static routing a, b;
    long other = 0, dropped = 0;
    read_routing(&a, want);
    read_routing(&b, got);
    for (long i = 0; i < (long)ROUTED_STEPS * ROUTED_LAYERS * ROUTED_TOKENS; i++) {
        const struct routed *x = &a[0][0][0] + i, *y = &b[0][0][0] + i;
        assert_true(x->known && y->known);
        for (int k = 0; k < ROUTED_K; k++) {
            if (x->expert[k] == y->expert[k]) {
                dropped += x->dropped[k] != y->dropped[k];
                continue;
            }
            other++;
            if (!(fabs(x->weight[k] - y->weight[k]) < 1e-5))
                fail_msg("token %ld goes to expert %d with %.9g, expected %d with %.9g", i, y->expert[k], y->weight[k],
                         x->expert[k], x->weight[k]);
        }
    }
    printf("  own routing: %ld other experts, %ld other drops in %d decisions\n", other, dropped,
           ROUTED_STEPS * ROUTED_LAYERS * ROUTED_TOKENS * ROUTED_K);
    if (exact && (other || dropped)) fail_msg("%s: not the same routing", got);
    if (dropped > 4) fail_msg("%s: %ld assignments were dropped or kept otherwise", got, dropped);
}

#endif
