// Golden values of tiny models that tools/golden.py computed independently in NumPy and float64, for the tests that
// compare this program with them. In F64 the two must agree to rounding; in F32 to what single precision leaves.
#ifndef SKYMOE_TESTS_GOLDEN_UTIL_H
#define SKYMOE_TESTS_GOLDEN_UTIL_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/json.h"
#include "checkpoint/folder.h"
#include "model/model.h"

#include <cmocka.h> // last: it defines fail as a macro

#define OK_OR_FAIL(call)                                                                                               \
    do {                                                                                                               \
        if ((call) != OK) fail_msg("%s: %s", #call, fail_message());                                                   \
    } while (0)

static char golden_folder[PATH_LENGTH] = "tests/golden";

struct golden {
    char path[PATH_LENGTH];
    cJSON *json;
    struct safetensors values;
    struct model_folder folder;
    long B, S, T, micro, targets; // micro: sequences of a micro-batch
};

static void golden_open(struct golden *g, const char *name)
{
    char path[PATH_LENGTH];
    *g = (struct golden){0};
    OK_OR_FAIL(path_join(g->path, golden_folder, name));
    OK_OR_FAIL(path_join(path, g->path, "golden.json"));
    OK_OR_FAIL(json_read(&g->json, path, 1 << 20));
    OK_OR_FAIL(path_join(path, g->path, "golden.safetensors"));
    OK_OR_FAIL(safetensors_open(&g->values, path));
    OK_OR_FAIL(path_join(path, g->path, "model"));
    OK_OR_FAIL(model_folder_open(&g->folder, path));
    OK_OR_FAIL(json_long(&g->B, g->json, "batch", 0, 1, 100, name));
    OK_OR_FAIL(json_long(&g->S, g->json, "sequence", 0, 1, 100, name));
    OK_OR_FAIL(json_long(&g->micro, g->json, "micro_batch", 0, 1, 100, name));
    OK_OR_FAIL(json_long(&g->targets, g->json, "targets", 0, 1, 10000, name));
    g->T = g->B * g->S;
}

static void golden_close(struct golden *g)
{
    model_folder_close(&g->folder);
    safetensors_close(&g->values);
    cJSON_Delete(g->json);
}

static double number(const cJSON *object, const char *field)
{
    double x;
    OK_OR_FAIL(json_real(&x, object, field, NAN, -1e30, 1e30, "golden.json"));
    if (isnan(x)) fail_msg("golden.json: no number %s", field);
    return x;
}

static const char *word(const cJSON *object, const char *field)
{
    const char *text;
    OK_OR_FAIL(json_text(&text, object, field, "", "golden.json"));
    return text;
}

// A tensor of golden.safetensors as a new array of doubles (I32, U8, F32, F64).
static double *values_of(const struct golden *g, const char *prefix, const char *name, long *n)
{
    char full[300];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const struct stored_tensor *t = safetensors_find(&g->values, full);
    if (!t) fail_msg("%s: no tensor %s", g->path, full);
    double *x = test_malloc((size_t)(t->elements + 1) * sizeof *x);
    for (long i = 0; i < t->elements; i++) {
        if (!strcmp(t->dtype, "F64")) {
            memcpy(&x[i], t->data + 8 * i, 8);
        } else if (!strcmp(t->dtype, "F32")) {
            float f;
            memcpy(&f, t->data + 4 * i, 4);
            x[i] = f;
        } else if (!strcmp(t->dtype, "I32")) {
            int v;
            memcpy(&v, t->data + 4 * i, 4);
            x[i] = v;
        } else {
            assert_string_equal(t->dtype, "U8");
            x[i] = t->data[i];
        }
    }
    *n = t->elements;
    return x;
}

static int *ints_of(const struct golden *g, const char *name, long want)
{
    long n;
    double *x = values_of(g, "", name, &n);
    assert_int_equal(n, want);
    int *out = test_malloc((size_t)(n + 1) * sizeof *out);
    for (long i = 0; i < n; i++) out[i] = (int)x[i];
    test_free(x);
    return out;
}

// Largest |a - b| over the largest |b|. NaN and infinity anywhere give infinity.
static double difference(const double *a, const double *b, long n)
{
    double worst = 0, size = 1e-9;
    for (long i = 0; i < n; i++) {
        double d = fabs(a[i] - b[i]);
        if (!(d < INFINITY)) return INFINITY;
        if (d > worst) worst = d;
        if (fabs(b[i]) > size) size = fabs(b[i]);
    }
    return worst / size;
}

static void expect_near(const char *what, double got, double want, double tolerance)
{
    double error = fabs(got - want) / (fabs(want) > 1e-6 ? fabs(want) : 1e-6);
    if (!(error <= tolerance)) fail_msg("%s is %.12g, golden %.12g (relative error %.2e)", what, got, want, error);
}

static struct moe_rule rule_of(const struct golden *g)
{
    struct moe_rule r = {.virtual_capacity = {11, 10}};
    if (!g->folder.config.E) return moe_rule_inference;
    if (!strcmp(word(g->json, "capacity_factor"), "1.1")) r.capacity = (struct decimal){11, 10};
    r.policy = !strcmp(word(g->json, "policy"), "position") ? DROP_POSITION : DROP_PROBS;
    const char *aux = word(g->json, "aux");
    r.aux = !strcmp(aux, "switch") ? AUX_SWITCH : !strcmp(aux, "skywork") ? AUX_SKYWORK : AUX_NONE;
    r.z_coeff = number(g->json, "z_coeff");
    const char *scope = word(g->json, "scope");
    r.scope = !strcmp(scope, "sequence") ? SCOPE_SEQUENCE : !strcmp(scope, "global") ? SCOPE_GLOBAL : SCOPE_MICRO;
    return r;
}

static void open_model(struct model *m, const struct golden *g, enum dtype type, enum recompute recompute)
{
    struct model_options o = {.dtype = type, .training = true, .B = g->micro, .S = g->S, .positions = g->S,
                              .recompute = recompute, .recompute_layers = -1, .rule = rule_of(g)};
    struct config c = g->folder.config;
    c.dtype = type;
    OK_OR_FAIL(model_init(m, &c, &o));
    OK_OR_FAIL(model_folder_load(m, &g->folder));
    const cJSON *layers = cJSON_GetObjectItem(g->json, "layers");
    for (long l = 0; l < (c.E ? c.L : 0); l++) {
        const cJSON *layer = cJSON_GetArrayItem(layers, (int)l), *before = cJSON_GetObjectItem(layer, "previous_p");
        m->balance[l].alpha = number(layer, "alpha");
        m->balance[l].has_global = true; // used with scope global only
        for (long e = 0; e < c.E; e++)
            m->balance[l].global_p[e] = cJSON_GetArrayItem(before, (int)e)->valuedouble;
    }
}

static const char *const cases[] = {"llama", "mixtral", "skywork-probs", "skywork-position", "skymoe-bias"};
enum { CASES = sizeof cases / sizeof *cases };

// At the start of main: a folder other than tests/golden may be named.
static bool golden_start(int argc, char **argv)
{
    if (argc > 1) snprintf(golden_folder, sizeof golden_folder, "%s", argv[1]);
    setenv("OMP_NUM_THREADS", "2", 0);
    if (kernels_init(2) == OK) return true;
    fprintf(stderr, "%s\n", fail_message());
    return false;
}

#endif
