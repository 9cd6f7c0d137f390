// FP8 folders: scales, rounding, what shares a scale, what stays 16-bit.
#include "checkpoint_util.h"

#include "eval/inference.h"
#include "quant/quantize.h"
#include "train/upcycle.h"

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
    model_init_weights(&m, &(struct init_rule){11, 0.2, 0.1});
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

static struct quantize_result quantise(enum scaling scaling)
{
    static struct model_folder from;
    struct quantize_result r;
    OK_OR_FAIL(folder_remove(in("fp8")));
    OK_OR_FAIL(model_folder_open(&from, in("model")));
    OK_OR_FAIL(quantize_fp8(&r, &from, in("fp8"), scaling));
    model_folder_close(&from);
    OK_OR_FAIL(folder_verify(in("fp8")));
    return r;
}

static float *values_of(const struct model_folder *f, long i)
{
    long n = param_elements(&f->params.item[i]);
    float *x = malloc((size_t)n * sizeof *x);
    model_folder_read(x, f, i, 0, n);
    for (long at = 0, some; at < n; at += some) { // the same in pieces that begin and end anywhere
        float piece[333];
        some = n - at < 333 ? n - at : 333;
        model_folder_read(piece, f, i, at, some);
        assert_memory_equal(piece, x + at, (size_t)some * sizeof *piece);
    }
    return x;
}

// Nearest of all 256 codes, ties to the even code: the definition, slowly.
static float nearest_code(double x)
{
    float best = 0;
    double error = INFINITY;
    for (int code = 0; code < 256; code++) {
        float value = e4m3_to_float((uint8_t)code);
        double e = fabs(value - x);
        if (e < error || (e == error && code % 2 == 0)) best = value, error = e;
    }
    return best;
}

// How many rows and columns of p share a scale.
static long piece(const struct param *p, enum scaling scaling, bool rows)
{
    if (scaling == SCALING_BLOCK) return 128;
    return scaling == SCALING_TENSOR ? 1 << 20 : rows ? 1 : p->columns;
}

// Every element's largest neighbour under the same scale / 448, by the definition.
static float *scales_of(const struct model_folder *a, long i, enum scaling scaling, bool shared)
{
    const struct param *p = &a->params.item[i];
    long height = piece(p, scaling, true), width = piece(p, scaling, false), across = (p->columns - 1) / width + 1;
    float *scale = malloc((size_t)param_elements(p) * sizeof *scale);
    float *amax = calloc((size_t)(((p->rows - 1) / height + 1) * across), sizeof *amax);
    for (long k = 0; k < a->params.n; k++) { // all tensors whose scale this is
        const struct param *q = &a->params.item[k];
        bool same = k == i || (shared && scaling == SCALING_TENSOR && q->kind->field == p->kind->field &&
                               q->layer == p->layer && q->expert == p->expert && q->kind->quantise);
        if (!same) continue;
        float *z = values_of(a, k);
        for (long j = 0; j < param_elements(q); j++) {
            float *most = &amax[j / q->columns / height * across + j % q->columns / width];
            *most = fmaxf(*most, fabsf(z[j]));
        }
        free(z);
    }
    for (long j = 0; j < param_elements(p); j++)
        scale[j] = amax[j / p->columns / height * across + j % p->columns / width] / 448;
    free(amax);
    return scale;
}

static void check_scale_tensor(const struct model_folder *f, long i, enum scaling scaling)
{
    const struct param *p = &f->params.item[i];
    char name[128];
    snprintf(name, sizeof name, "%s_scale%s", p->name, scaling == SCALING_BLOCK ? "_inv" : "");
    const struct stored_tensor *scale = safetensors_find(&f->shard[0], name);
    if (!scale) fail_msg("no %s", name);
    assert_ptr_equal(scale, f->scale[i]);
    assert_int_equal(scale->type, F32);
    assert_int_equal(scale->rank, scaling == SCALING_TENSOR ? 0 : 2);
    if (scaling == SCALING_TENSOR) return;
    assert_int_equal(scale->shape[0], (p->rows - 1) / piece(p, scaling, true) + 1);
    assert_int_equal(scale->shape[1], (p->columns - 1) / piece(p, scaling, false) + 1);
}

// The matrices of the folder held as codes and scales in memory stand for the same values.
static void check_memory(const struct model_folder *f)
{
    static struct model m;
    struct model_options o = inference(BF16, 4, 4);
    o.weights = QUANT_FP8;
    OK_OR_FAIL(model_init(&m, &f->config, &o));
    OK_OR_FAIL(model_folder_load(&m, f));
    for (long i = 0; i < f->params.n; i++) {
        const struct param *p = &m.params.item[i];
        long n = param_elements(p);
        float *y = values_of(f, i), *held = malloc((size_t)n * sizeof *held);
        if (p->kind->quantise) assert_int_equal(p->value.dtype, F8_E4M3);
        kernels_for(F32)->cast((struct tensor){.data = held, .dtype = F32}, p->value, p->rows, p->columns);
        assert_memory_equal(held, y, (size_t)n * sizeof *y);
        free(held);
        free(y);
    }
    model_free(&m);
}

static void check_folder(struct config c, enum scaling scaling)
{
    static struct model_folder a, b;
    bool shared = c.arch == ARCH_SKYWORK;
    write_model(in("model"), c, 1);
    struct quantize_result r = quantise(scaling);
    OK_OR_FAIL(model_folder_open(&a, in("model")));
    OK_OR_FAIL(model_folder_open(&b, in("fp8")));
    assert_true(b.config.quant == QUANT_FP8 && b.config.scaling == scaling);
    assert_int_equal(b.config.arch, c.arch);
    assert_int_equal(b.config.dtype, c.dtype == F16 ? F16 : BF16); // of what stays 16-bit
    long matrices = 0, all = 0;
    double worst = 0;
    for (long i = 0; i < a.params.n; i++) {
        const struct param *p = &a.params.item[i];
        long n = param_elements(p);
        float *x = values_of(&a, i), *y = values_of(&b, i);
        assert_int_equal(b.stored[i]->type, p->kind->quantise ? F8_E4M3 : b.config.dtype);
        if (!p->kind->quantise) {
            for (long j = 0; j < n; j++)
                assert_true(y[j] == (c.dtype == F16 ? x[j] : bf16_to_float(bf16_from_float(x[j]))));
        } else {
            float *scale = scales_of(&a, i, scaling, shared);
            check_scale_tensor(&b, i, scaling);
            double lost = 0, squares = 0, most = 0;
            for (long j = 0; j < n; j++) {
                if (model_folder_scale(&b, i, j) != scale[j])
                    fail_msg("%s: scale %g, expected %g", p->name, model_folder_scale(&b, i, j), scale[j]);
                assert_true(y[j] == nearest_code((double)x[j] / scale[j]) * scale[j]);
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
            free(scale);
        }
        all++;
        free(x);
        free(y);
    }
    assert_int_equal(r.n, matrices);
    long stored = 0;
    for (long i = 0; i < b.shards; i++) stored += b.shard[i].n;
    assert_int_equal(stored, all + matrices); // a scale beside every matrix
    printf("  %s, scale %d: %ld matrices, largest relative error %.4f\n", arch_name(c.arch), scaling, matrices, worst);
    assert_true(worst > 0.01 && worst < 0.05); // 3 bits of fraction
    check_memory(&b);
    free(r.tensor);
    model_folder_close(&a);
    model_folder_close(&b);
}

static void test_values(void **state)
{
    (void)state;
    for (int s = SCALING_TENSOR; s <= SCALING_CHANNEL; s++) {
        check_folder(config_of(ARCH_LLAMA, 0, BF16), (enum scaling)s);
        check_folder(config_of(ARCH_MIXTRAL, 3, F32), (enum scaling)s);
        check_folder(config_of(ARCH_SKYWORK, 4, BF16), (enum scaling)s);
        check_folder(config_of(ARCH_SKYWORK, 0, F32), (enum scaling)s);
        check_folder(config_of(ARCH_LLAMA, 0, F16), (enum scaling)s);
    }
}

// Several blocks each way, the last ones short; k begins within a block of q's rows and w3 within one of w1's.
static void test_blocks(void **state)
{
    (void)state;
    struct config c = config_of(ARCH_SKYWORK, 2, BF16);
    c.L = 1;
    c.D = 136;
    c.C = 34;
    c.F = 131;
    check_folder(c, SCALING_BLOCK);
    c.arch = ARCH_LLAMA;
    c.E = c.K = 0;
    c.gate_norm_std = 0;
    c.D = 128; // whole blocks
    c.C = 32;
    c.F = 256;
    check_folder(c, SCALING_BLOCK);
    check_folder(config_of(ARCH_MIXTRAL, 3, F32), SCALING_BLOCK); // smaller than a block
}

// Rows of a matrix that differ much in size, some within a block and some not: what each kind of scale keeps of the
// small ones, and of the model's predictions.
static void test_errors(void **state)
{
    (void)state;
    static struct model m;
    static struct inference before, after;
    static struct model_folder a, b;
    enum { T = 48 };
    struct config c = config_of(ARCH_LLAMA, 0, BF16);
    double small[3], kl[3];
    int token[T];
    struct model_options o = training(BF16, 1, 4);
    c.D = 64;
    c.C = 16;
    c.F = 256;
    OK_OR_FAIL(model_init(&m, &c, &o));
    model_init_weights(&m, &(struct init_rule){11, 0.2, 0.1});
    for (long l = 0; l < c.L; l++) { // the upper half of w1 and w3 is 2^-16 of the lower, w2's columns 2^16
        uint16_t *w13 = m.p.layer[l].w13.data, *w2 = m.p.layer[l].w2.data;
        for (long i = 0; i < 2 * c.F * c.D; i++)
            if (i / c.D % c.F >= c.F / 2) w13[i] = bf16_from_float(bf16_to_float(w13[i]) * 0x1p-16f);
        for (long i = 0; i < c.D * c.F; i++)
            if (i % c.F >= c.F / 2) w2[i] = bf16_from_float(bf16_to_float(w2[i]) * 0x1p16f);
    }
    OK_OR_FAIL(folder_remove(in("model")));
    OK_OR_FAIL(model_folder_write(in("model"), &m, NULL));
    model_free(&m);
    for (int t = 0; t < T; t++) token[t] = (int)(rng_bits(5, 6, (uint64_t)t) % (uint64_t)c.V);
    for (int s = SCALING_TENSOR; s <= SCALING_BLOCK; s++) {
        float p[T * 31], q[T * 31], each[T];
        struct kv_cache x, y;
        free(quantise((enum scaling)s).tensor);
        OK_OR_FAIL(model_folder_open(&a, in("model")));
        OK_OR_FAIL(model_folder_open(&b, in("fp8")));
        long w1 = param_find(&a.params, "model.layers.0.mlp.gate_proj.weight") - a.params.item, n = c.F * c.D;
        float *v = values_of(&a, w1), *w = values_of(&b, w1);
        double lost = 0, squares = 0;
        for (long j = n / 2; j < n; j++) {
            lost += ((double)v[j] - w[j]) * ((double)v[j] - w[j]);
            squares += (double)v[j] * v[j];
        }
        small[s] = sqrt(lost / squares);
        free(v);
        free(w);
        model_folder_close(&a);
        model_folder_close(&b);
        OK_OR_FAIL(inference_open(&before, in("model"), T, T));
        OK_OR_FAIL(inference_open(&after, in("fp8"), T, T));
        OK_OR_FAIL(kv_cache_init(&x, &before.model, 1, T, T));
        OK_OR_FAIL(kv_cache_init(&y, &after.model, 1, T, T));
        OK_OR_FAIL(kv_append(&x, 0, token, T, NULL, p));
        OK_OR_FAIL(kv_append(&y, 0, token, T, NULL, q));
        kernels_for(F32)->kl_divergence(each, p, q, T, c.V);
        kl[s] = 0;
        for (int t = 0; t < T; t++) kl[s] += (double)each[t] / T;
        kv_cache_free(&x);
        kv_cache_free(&y);
        inference_close(&before);
        inference_close(&after);
        printf("  scale %d: error of the small rows %.4f, KL %.6f\n", s, small[s], kl[s]);
    }
    assert_true(small[SCALING_TENSOR] > 0.2);
    assert_true(small[SCALING_CHANNEL] < 0.03 && small[SCALING_BLOCK] < 0.03);
    assert_true(kl[SCALING_BLOCK] < 0.05); // only blocks follow columns too
    assert_true(kl[SCALING_CHANNEL] > 2 * kl[SCALING_BLOCK] && kl[SCALING_TENSOR] > 2 * kl[SCALING_BLOCK]);
}

// facts 2.3: the index of the released FP8 model has 5567 names.
static void test_skywork_names(void **state)
{
    (void)state;
    struct config c;
    struct param_list list;
    OK_OR_FAIL(config_read(&c, "configs/skywork-moe.json"));
    OK_OR_FAIL(param_list_of(&list, &c, NULL));
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
    free(quantise(SCALING_TENSOR).tensor);
    OK_OR_FAIL(model_folder_open(&b, in("fp8")));
    long seen = 0;
    for (long i = 0; i < b.params.n; i++) {
        if (!strstr(b.params.item[i].name, "o_proj")) continue;
        float *y = values_of(&b, i);
        assert_int_equal(b.stored[i]->type, F8_E4M3);
        assert_true(model_folder_scale(&b, i, 0) == 1);
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
    assert_int_equal(quantize_fp8(&r, &from, in("fp8"), SCALING_TENSOR), ERR_FORMAT);
    assert_non_null(strstr(fail_message(), "o_proj.weight holds infinity or NaN"));
    assert_false(path_exists(in("fp8")) || path_exists(in("fp8.tmp")));
    model_folder_close(&from);
    write_model(in("model"), config_of(ARCH_LLAMA, 0, F32), 1);
    free(quantise(SCALING_TENSOR).tensor);
    OK_OR_FAIL(model_folder_open(&from, in("fp8")));
    assert_int_equal(quantize_fp8(&r, &from, in("fp8again"), SCALING_BLOCK), ERR_FORMAT);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_skywork_names),
        cmocka_unit_test(test_zeros),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("quantize", tests, set_up, tear_down);
}
