// FP8 folders: scales, rounding, what shares a scale, what stays 16-bit.
#include "model_util.h"

#include "quant/quantize.h"
#include "train/upcycle.h"

#include <sys/stat.h>

static char folder[PATH_LENGTH];

static const char *in(const char *name)
{
    static char path[4][PATH_LENGTH];
    static int next;
    char *p = path[next++ % 4];
    OK_OR_FAIL(path_join(p, folder, name));
    return p;
}

static struct config config_of(enum arch arch, long E, enum dtype dtype)
{
    return (struct config){.arch = arch, .D = 24, .F = 21, .L = 2, .H = 4, .G = 2, .C = 6, .V = 31, .E = E,
                           .K = E ? 2 : 0, .gate_norm_std = E && arch == ARCH_SKYWORK, .max_positions = 64,
                           .norm_eps = 1e-5, .rope_theta = 1000, .dtype = dtype, .bos = 1, .eos = 2, .pad = -1};
}

static void write_model(const char *path, struct config c, double zero_tensor)
{
    static struct model m;
    struct model_options o = training(c.dtype == F32 ? F32 : BF16, 1, 4);
    OK_OR_FAIL(model_init(&m, &c, &o));
    model_init_weights(&m, 11, 0.2, 0.1);
    for (long i = 0; i < m.params.n; i++) { // each tensor another size of values
        struct param *p = &m.params.item[i];
        double *x = host_of(m.x.k, p->value.data, p->value.dtype, param_elements(p));
        for (long j = 0; j < param_elements(p); j++) x[j] *= 1 + (double)i;
        if (strstr(p->name, "o_proj")) for (long j = 0; j < param_elements(p); j++) x[j] *= zero_tensor;
        device_set(m.x.k, p->value.data, p->value.dtype, x, param_elements(p));
        free(x);
    }
    OK_OR_FAIL(folder_remove(path));
    OK_OR_FAIL(model_folder_write(path, &m, NULL));
    model_free(&m);
}

static struct quantize_result quantise(void)
{
    static struct model_folder from;
    struct quantize_result r;
    OK_OR_FAIL(folder_remove(in("fp8")));
    OK_OR_FAIL(model_folder_open(&from, in("model")));
    OK_OR_FAIL(quantize_fp8(&r, &from, in("fp8")));
    model_folder_close(&from);
    OK_OR_FAIL(folder_verify(in("fp8")));
    return r;
}

static float *values_of(const struct model_folder *f, long i)
{
    long n = param_elements(&f->params.item[i]);
    float *x = malloc((size_t)n * sizeof *x);
    model_folder_read(x, f, i, 0, n);
    return x;
}

// Nearest of all 256 codes, ties to the even code: the definition, slowly.
static float nearest_code(float x)
{
    float best = 0, error = INFINITY;
    for (int code = 0; code < 256; code++) {
        float value = e4m3_to_float((uint8_t)code), e = fabsf(value - x);
        if (e < error || (e == error && code % 2 == 0)) best = value, error = e;
    }
    return best;
}

static void check_folder(enum arch arch, long E, enum dtype dtype)
{
    static struct model_folder a, b;
    struct config c = config_of(arch, E, dtype);
    bool shared = arch == ARCH_SKYWORK;
    write_model(in("model"), c, 1);
    struct quantize_result r = quantise();
    OK_OR_FAIL(model_folder_open(&a, in("model")));
    OK_OR_FAIL(model_folder_open(&b, in("fp8")));
    assert_int_equal(b.config.quant, QUANT_FP8);
    assert_int_equal(b.config.arch, arch);
    assert_int_equal(b.config.dtype, BF16);
    long matrices = 0, all = 0;
    double worst = 0;
    for (long i = 0; i < a.params.n; i++) {
        const struct param *p = &a.params.item[i];
        long n = param_elements(p);
        float *x = values_of(&a, i), *y = values_of(&b, i);
        assert_int_equal(b.stored[i]->type, p->kind->quantise ? F8_E4M3 : BF16);
        if (!p->kind->quantise) {
            for (long j = 0; j < n; j++) assert_true(y[j] == bf16_to_float(bf16_from_float(x[j])));
        } else {
            float amax = 0, scale = model_folder_scale(&b, i);
            for (long k = 0; k < a.params.n; k++) { // all tensors whose scale this is
                const struct param *q = &a.params.item[k];
                bool same = k == i || (shared && q->kind->field == p->kind->field && q->layer == p->layer &&
                                       q->expert == p->expert && q->kind->quantise);
                if (!same) continue;
                float *z = values_of(&a, k);
                for (long j = 0; j < param_elements(q); j++) amax = fmaxf(amax, fabsf(z[j]));
                free(z);
            }
            if (scale != amax / 448) fail_msg("%s: scale %g, expected %g", p->name, scale, amax / 448);
            double lost = 0, squares = 0, most = 0;
            for (long j = 0; j < n; j++) {
                assert_true(y[j] == nearest_code(x[j] / scale) * scale);
                double d = fabs((double)x[j] - y[j]);
                lost += d * d;
                squares += (double)x[j] * x[j];
                most = fmax(most, d);
            }
            double error = sqrt(lost / squares);
            worst = fmax(worst, error);
            assert_string_equal(r.tensor[matrices].name, p->name);
            assert_true(fabs(r.tensor[matrices].rel_error - error) < 1e-12);
            assert_true(fabs(r.tensor[matrices].max_error - most) < 1e-12);
            matrices++;
        }
        all++;
        free(x);
        free(y);
    }
    assert_int_equal(r.n, matrices);
    long stored = 0;
    for (long i = 0; i < b.shards; i++) stored += b.shard[i].n;
    assert_int_equal(stored, all + matrices); // a scale beside every matrix
    const struct stored_tensor *scale = safetensors_find(&b.shard[0], "model.layers.0.self_attn.q_proj.weight_scale");
    assert_true(scale && scale->rank == 0 && scale->type == F32);
    printf("  %s: %ld matrices, largest relative error %.4f\n", arch_name(arch), matrices, worst);
    assert_true(worst > 0.01 && worst < 0.05); // 3 bits of fraction
    free(r.tensor);
    model_folder_close(&a);
    model_folder_close(&b);
}

static void test_values(void **state)
{
    (void)state;
    check_folder(ARCH_LLAMA, 0, BF16);
    check_folder(ARCH_MIXTRAL, 3, F32);
    check_folder(ARCH_SKYWORK, 4, BF16);
    check_folder(ARCH_SKYWORK, 0, F32);
}

// facts 2.3: the index of the released FP8 model has 5567 names.
static void test_skywork_names(void **state)
{
    (void)state;
    struct config c;
    struct param_list list;
    OK_OR_FAIL(config_read(&c, "configs/skywork-moe.json"));
    OK_OR_FAIL(param_list_of(&list, &c));
    long names = list.n;
    for (long i = 0; i < list.n; i++) names += list.item[i].kind->quantise;
    printf("  Skywork-MoE in FP8: %ld tensors\n", names);
    assert_int_equal(names, 5567);
    param_list_free(&list);
}

static void test_zeros(void **state)
{
    (void)state;
    static struct model_folder b;
    write_model(in("model"), config_of(ARCH_LLAMA, 0, F32), 0);
    free(quantise().tensor);
    OK_OR_FAIL(model_folder_open(&b, in("fp8")));
    long seen = 0;
    for (long i = 0; i < b.params.n; i++) {
        if (!strstr(b.params.item[i].name, "o_proj")) continue;
        float *y = values_of(&b, i);
        assert_int_equal(b.stored[i]->type, F8_E4M3);
        assert_true(model_folder_scale(&b, i) == 1);
        for (long j = 0; j < param_elements(&b.params.item[i]); j++) assert_true(y[j] == 0);
        free(y);
        seen++;
    }
    assert_int_equal(seen, 2);
    model_folder_close(&b);
}

static void test_refused(void **state)
{
    (void)state;
    static struct model_folder from;
    struct quantize_result r;
    write_model(in("model"), config_of(ARCH_LLAMA, 0, F32), NAN);
    OK_OR_FAIL(model_folder_open(&from, in("model")));
    OK_OR_FAIL(folder_remove(in("fp8")));
    assert_int_equal(quantize_fp8(&r, &from, in("fp8")), ERR_FORMAT);
    assert_non_null(strstr(fail_message(), "o_proj.weight holds infinity or NaN"));
    assert_false(path_exists(in("fp8")) || path_exists(in("fp8.tmp")));
    model_folder_close(&from);
    write_model(in("model"), config_of(ARCH_LLAMA, 0, F32), 1);
    free(quantise().tensor);
    OK_OR_FAIL(model_folder_open(&from, in("fp8")));
    assert_int_equal(quantize_fp8(&r, &from, in("fp8again")), ERR_FORMAT);
    assert_non_null(strstr(fail_message(), "FP8 already"));
    // An FP8 parent is upcycled from the values that it stands for.
    struct upcycle_options o = {.method = UPCYCLE_COPY, .E = 3, .K = 2, .arch = ARCH_MIXTRAL, .router_std = 0.01};
    struct upcycle_result u;
    static struct model_folder moe;
    OK_OR_FAIL(upcycle(&u, &from, in("moe"), &o, false));
    free(u.similarity);
    OK_OR_FAIL(model_folder_open(&moe, in("moe")));
    assert_int_equal(moe.config.quant, QUANT_NONE);
    struct param *w2 = param_find(&moe.params, "model.layers.1.block_sparse_moe.experts.2.w2.weight");
    struct param *down = param_find(&from.params, "model.layers.1.mlp.down_proj.weight");
    float *x = values_of(&from, down - from.params.item), *y = values_of(&moe, w2 - moe.params.item);
    for (long j = 0; j < param_elements(w2); j++) assert_true(y[j] == bf16_to_float(bf16_from_float(x[j])));
    free(x);
    free(y);
    model_folder_close(&moe);
    model_folder_close(&from);
}

static int set_up(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/skymoe-quantize-XXXXXX", base ? base : "/tmp");
    return !mkdtemp(folder) || kernels_init(1) != OK;
}

static int tear_down(void **state)
{
    (void)state;
    return folder_remove(folder) != OK;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_skywork_names),
        cmocka_unit_test(test_zeros),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("quantize", tests, set_up, tear_down);
}
