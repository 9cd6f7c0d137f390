// Dense to MoE: what is copied, drawn and refused; and that a copy computes what its parent computes.
#include "checkpoint_util.h"

#include "train/upcycle.h"

static long dense_F = 57;

static struct config dense_config(enum dtype dtype)
{
    return (struct config){.arch = ARCH_LLAMA, .D = 48, .F = dense_F, .L = 2, .H = 6, .G = 2, .C = 8, .V = 61,
                           .max_positions = 64, .norm_eps = 1e-5, .rope_theta = 1000, .dtype = dtype, .bos = 1,
                           .eos = 2, .pad = -1};
}

static void write_dense(const char *path, enum dtype dtype)
{
    static struct model m;
    struct config c = dense_config(dtype);
    struct model_options o = training(dtype, 1, 4);
    OK_OR_FAIL(model_init(&m, &c, &o));
    model_init_weights(&m, &(struct init_rule){11, 0.2, 0.1});
    OK_OR_FAIL(folder_remove(path));
    OK_OR_FAIL(model_folder_write(path, &m, NULL));
    model_free(&m);
}

static struct upcycle_options options_for(enum upcycle_method method)
{
    return (struct upcycle_options){.method = method, .E = 8, .K = 2, .arch = ARCH_SKYWORK, .gate_norm_std = 1,
                                    .router_std = 0.01, .noise = 0.25, .drop = 0.5, .granular = 2, .seed = 5};
}

static struct upcycle_result make_moe(const char *to, enum dtype dtype, const struct upcycle_options *o)
{
    static struct model_folder from;
    struct upcycle_result r;
    write_dense(in("dense"), dtype);
    OK_OR_FAIL(folder_remove(to));
    OK_OR_FAIL(model_folder_open(&from, in("dense")));
    OK_OR_FAIL(upcycle(&r, &from, to, o, false));
    model_folder_close(&from);
    return r;
}

// Names of the same matrix in both folders.
static const struct stored_tensor *stored(const struct model_folder *f, const char *format, long layer, long expert)
{
    char name[128];
    snprintf(name, sizeof name, format, layer, expert);
    for (long i = 0; i < f->params.n; i++)
        if (strcmp(f->params.item[i].name, name) == 0) return f->stored[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static const char *const dense_names[3] = {"model.layers.%ld.mlp.gate_proj.weight",
                                           "model.layers.%ld.mlp.up_proj.weight",
                                           "model.layers.%ld.mlp.down_proj.weight"};
static const char *const expert_names[3] = {"model.layers.%ld.block_sparse_moe.experts.%ld.w1.weight",
                                            "model.layers.%ld.block_sparse_moe.experts.%ld.w3.weight",
                                            "model.layers.%ld.block_sparse_moe.experts.%ld.w2.weight"};

static void test_copy(void **state)
{
    (void)state;
    const enum dtype dtypes[] = {F32, BF16};
    for (int d = 0; d < 2; d++) {
        static struct model_folder dense, moe;
        struct upcycle_options o = options_for(UPCYCLE_COPY);
        struct upcycle_result r = make_moe(in("moe"), dtypes[d], &o);
        OK_OR_FAIL(model_folder_open(&dense, in("dense")));
        OK_OR_FAIL(model_folder_open(&moe, in("moe")));
        OK_OR_FAIL(folder_verify(in("moe")));
        assert_true(path_exists(in("moe/generation_config.json")));
        assert_int_equal(moe.config.arch, ARCH_SKYWORK);
        assert_true(moe.config.E == 8 && moe.config.K == 2 && moe.config.gate_norm_std == 1);
        assert_int_equal(moe.config.dtype, dtypes[d]);
        long compared = 0;
        for (long l = 0; l < 2; l++)
            for (long e = 0; e < 8; e++)
                for (int w = 0; w < 3; w++) {
                    const struct stored_tensor *a = stored(&dense, dense_names[w], l, 0);
                    const struct stored_tensor *b = stored(&moe, expert_names[w], l, e);
                    assert_int_equal(a->bytes, b->bytes);
                    assert_memory_equal(a->data, b->data, (size_t)a->bytes);
                    compared++;
                }
        for (long i = 0; i < dense.params.n; i++) { // everything else keeps its name
            if (dense.params.item[i].kind->when == WHEN_DENSE) continue;
            const struct stored_tensor *b = stored(&moe, dense.params.item[i].name, 0, 0);
            assert_memory_equal(dense.stored[i]->data, b->data, (size_t)b->bytes);
            compared++;
        }
        assert_int_equal(compared, 2 * 8 * 3 + 2 * 6 + 3);
        float z[8 * 48];
        double sum = 0, squares = 0;
        for (long l = 0, i = 0; i < moe.params.n; i++) {
            if (moe.params.item[i].kind->init != INIT_ROUTER) continue;
            model_folder_read(z, &moe, i, 0, 8 * 48);
            for (int j = 0; j < 8 * 48; j++) sum += z[j], squares += (double)z[j] * z[j];
            l++;
        }
        double std = sqrt(squares / (2 * 8 * 48));
        printf("  router: mean %.5f, std %.5f\n", sum / (2 * 8 * 48), std);
        assert_true(fabs(std - 0.01) < 0.001 && fabs(sum / (2 * 8 * 48)) < 0.0015);
        double similarity[2];
        OK_OR_FAIL(folder_similarity(similarity, &moe));
        printf("  similarity %.15f\n", similarity[0]);
        assert_true(r.similarity[0] == 1 && r.similarity[1] == 1 && fabs(similarity[0] - 1) < 1e-9);
        assert_int_equal(r.params_total, config_params_total(&moe.config));
        assert_int_equal(r.params_active, config_params_active(&moe.config));
        assert_int_equal(r.output_bytes, r.params_total * dtype_size(dtypes[d]));
        free(r.similarity);
        model_folder_close(&dense);
        model_folder_close(&moe);
    }
}

static double loss_of(const char *path, enum dtype dtype, float *losses)
{
    static struct model m;
    static struct model_folder f;
    struct owned_batch b = batch_make(2, 16, 61, true, false, 3);
    struct model_options o = training(dtype, 2, 16);
    OK_OR_FAIL(model_folder_open(&f, path));
    OK_OR_FAIL(model_init(&m, &f.config, &o));
    OK_OR_FAIL(model_folder_load(&m, &f));
    double loss = model_loss(&m, &b.b, losses) / (double)b.targets;
    model_folder_close(&f);
    model_free(&m);
    batch_free(&b);
    return loss;
}

// For any router, since the combine weights of one token add up to 1.
static void test_equals_dense(void **state)
{
    (void)state;
    static const struct {
        enum dtype dtype;
        enum arch arch;
        long E, K;
        double norm, router, limit;
    } cases[] = {{F32, ARCH_SKYWORK, 8, 2, 1, 0.01, 1e-5}, {F32, ARCH_SKYWORK, 5, 3, 0.5, 1, 1e-5},
                 {F32, ARCH_MIXTRAL, 4, 1, 0, 3, 1e-5},    {F32, ARCH_MIXTRAL, 4, 4, 0, 0.01, 1e-5},
                 {BF16, ARCH_SKYWORK, 8, 2, 1, 0.01, 2e-3}, {BF16, ARCH_SKYWORK, 16, 5, 2, 1, 2e-3}};
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct upcycle_options o = options_for(UPCYCLE_COPY);
        float a[32], b[32];
        o.E = cases[i].E;
        o.K = cases[i].K;
        o.arch = cases[i].arch;
        o.gate_norm_std = cases[i].norm;
        o.router_std = cases[i].router;
        free(make_moe(in("moe"), cases[i].dtype, &o).similarity);
        double dense = loss_of(in("dense"), cases[i].dtype, a), moe = loss_of(in("moe"), cases[i].dtype, b);
        double error = fabs(moe - dense) / dense, token = 0;
        for (int t = 0; t < 32; t++) token = fmax(token, fabs((double)a[t] - b[t]));
        printf("  %s E %ld K %ld: dense %.7f, error %.2e; of one token %.2e\n", dtype_name(cases[i].dtype), o.E, o.K,
               dense, error, token);
        if (!(error <= cases[i].limit)) fail_msg("error %g", error);
        assert_true(dense > 1);
    }
}

// ---- granular ----

// Expert e is shard e % G: rows of w1 and w3, columns of w2, times `scale` of each.
static void check_shards(const char *path, long E, long G, const double *scale)
{
    static struct model_folder dense, moe;
    OK_OR_FAIL(model_folder_open(&dense, in("dense")));
    OK_OR_FAIL(model_folder_open(&moe, path));
    long F = moe.config.F, D = moe.config.D;
    assert_int_equal(F * G, dense.config.F);
    for (long l = 0; l < moe.config.L; l++) {
        const struct stored_tensor *router = stored(&moe, "model.layers.%ld.block_sparse_moe.gate.weight", l, 0);
        const float *z = (const float *)(const void *)router->data;
        for (long e = 1; e < E; e++) // one row of the router for each group
            assert_int_equal(memcmp(z + e * D, z + (e - 1) * D, (size_t)D * sizeof *z) == 0, e % G != 0);
        for (long e = 0; e < E; e++)
            for (int w = 0; w < 3; w++) {
                const struct stored_tensor *a = stored(&dense, dense_names[w], l, 0);
                const struct stored_tensor *b = stored(&moe, expert_names[w], l, e);
                const float *x = (const float *)(const void *)a->data, *y = (const float *)(const void *)b->data;
                assert_int_equal(b->elements, F * D);
                for (long i = 0; i < F * D; i++) {
                    long f = e % G * F + (w < 2 ? i / D : i % F), from = w < 2 ? f * D + i % D : i / F * F * G + f;
                    if (y[i] != (float)(x[from] * scale[w])) fail_msg("layer %ld expert %ld w %d at %ld", l, e, w, i);
                }
            }
    }
    model_folder_close(&dense);
    model_folder_close(&moe);
}

static void test_granular(void **state)
{
    (void)state;
    static const struct {
        enum dtype dtype;
        enum arch arch;
        long F, G, E, K;
        double norm, router, limit;
    } cases[] = {{F32, ARCH_SKYWORK, 56, 2, 8, 2, 1, 0.01, 1e-5}, {F32, ARCH_MIXTRAL, 57, 3, 9, 6, 0, 1, 1e-5},
                 {F32, ARCH_SKYWORK, 56, 4, 4, 4, 1, 1, 1e-5},    {F32, ARCH_SKYWORK, 56, 7, 28, 14, 2, 1, 1e-5},
                 {BF16, ARCH_SKYWORK, 56, 2, 8, 4, 1, 1, 2e-3}};
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct upcycle_options o = options_for(UPCYCLE_GRANULAR);
        float a[32], b[32];
        o.E = cases[i].E;
        o.K = cases[i].K;
        o.granular = cases[i].G;
        o.arch = cases[i].arch;
        o.gate_norm_std = cases[i].norm;
        o.router_std = cases[i].router;
        dense_F = cases[i].F;
        struct upcycle_result r = make_moe(in("moe"), cases[i].dtype, &o);
        double root = sqrt((double)o.granular), cube = cbrt((double)o.granular);
        if (cases[i].dtype == F32) check_shards(in("moe"), o.E, o.granular, (double[]){1, root, root});
        double dense = loss_of(in("dense"), cases[i].dtype, a), moe = loss_of(in("moe"), cases[i].dtype, b);
        double error = fabs(moe - dense) / dense;
        printf("  %s G %ld E %ld K %ld: dense %.7f, error %.2e, similarity %.4f\n", dtype_name(cases[i].dtype),
               o.granular, o.E, o.K, dense, error, r.similarity[0]);
        if (!(error <= cases[i].limit)) fail_msg("error %g", error);
        free(r.similarity);
        if (i > 0) continue;
        o.granular_scale = GRANULAR_NVIDIA;
        free(make_moe(in("moe"), F32, &o).similarity);
        check_shards(in("moe"), o.E, o.granular, (double[]){cube, cube, cube});
        error = fabs(loss_of(in("moe"), F32, b) - dense) / dense;
        printf("  cube roots: error %.2e\n", error);
        assert_true(error > 1e-4); // silu is not linear
    }
    dense_F = 57;
}

static double similarity_of_noise(double s)
{
    return 1 / (1 + s * s); // independent noise of s standard deviations on zero-mean weights
}

static void test_noise(void **state)
{
    (void)state;
    static struct model_folder dense, moe, again;
    struct upcycle_options o = options_for(UPCYCLE_NOISE);
    struct upcycle_result r = make_moe(in("moe"), F32, &o);
    free(make_moe(in("again"), F32, &o).similarity);
    OK_OR_FAIL(model_folder_open(&dense, in("dense")));
    OK_OR_FAIL(model_folder_open(&moe, in("moe")));
    OK_OR_FAIL(model_folder_open(&again, in("again")));
    for (long i = 0; i < moe.params.n; i++) // reproducible
        assert_memory_equal(moe.stored[i]->data, again.stored[i]->data, (size_t)moe.stored[i]->bytes);
    for (int w = 0; w < 3; w++) {
        const struct stored_tensor *a = stored(&dense, dense_names[w], 1, 0), *b = stored(&moe, expert_names[w], 1, 7);
        const float *x = (const float *)(const void *)a->data, *y = (const float *)(const void *)b->data;
        double squares = 0, noise = 0, sum = 0;
        for (long i = 0; i < a->elements; i++) {
            double d = (double)y[i] - x[i];
            squares += (double)x[i] * x[i];
            noise += d * d;
            sum += d;
        }
        double ratio = sqrt(noise / squares), mean = sum / sqrt(noise);
        printf("  noise %.4f of the weights' deviation, mean %.3f standard errors\n", ratio, mean);
        assert_true(fabs(ratio - 0.25) < 0.01 && fabs(mean) < 4);
    }
    printf("  similarity %.4f %.4f, expected %.4f\n", r.similarity[0], r.similarity[1], similarity_of_noise(0.25));
    for (int l = 0; l < 2; l++) assert_true(fabs(r.similarity[l] - similarity_of_noise(0.25)) < 0.005);
    free(r.similarity);
    o.seed++;
    free(make_moe(in("again"), F32, &o).similarity);
    model_folder_close(&again);
    OK_OR_FAIL(model_folder_open(&again, in("again")));
    const struct stored_tensor *a = stored(&again, expert_names[0], 0, 0), *b = stored(&moe, expert_names[0], 0, 0);
    const struct stored_tensor *c = stored(&moe, expert_names[0], 0, 1);
    assert_memory_not_equal(a->data, b->data, (size_t)a->bytes);
    assert_memory_not_equal(b->data, c->data, (size_t)b->bytes);
    model_folder_close(&dense);
    model_folder_close(&moe);
    model_folder_close(&again);
}

// Which intermediate columns of a matrix differ from the dense one: all of a column or none of it.
static long changed_columns(bool *changed, const struct stored_tensor *a, const struct stored_tensor *b, long F,
                            bool rows)
{
    const float *x = (const float *)(const void *)a->data, *y = (const float *)(const void *)b->data;
    long other = a->elements / F, n = 0;
    for (long f = 0; f < F; f++) {
        long different = 0;
        for (long j = 0; j < other; j++) {
            long at = rows ? f * other + j : j * F + f;
            different += x[at] != y[at];
        }
        if (different && different < other) fail_msg("column %ld: only %ld of %ld differ", f, different, other);
        changed[f] = different > 0;
        n += changed[f];
    }
    return n;
}

static void test_drop(void **state)
{
    (void)state;
    static struct model_folder dense, moe;
    enum { F = 57 };
    bool first[F], changed[F];
    struct upcycle_options o = options_for(UPCYCLE_DROP);
    struct upcycle_result r = make_moe(in("moe"), F32, &o);
    OK_OR_FAIL(model_folder_open(&dense, in("dense")));
    OK_OR_FAIL(model_folder_open(&moe, in("moe")));
    long alike = 0;
    for (long l = 0; l < 2; l++)
        for (long e = 0; e < 8; e++) {
            bool chosen[F];
            for (int w = 0; w < 3; w++) {
                const struct stored_tensor *a = stored(&dense, dense_names[w], l, 0);
                const struct stored_tensor *b = stored(&moe, expert_names[w], l, e);
                assert_int_equal(changed_columns(w ? changed : chosen, a, b, F, w < 2), 29); // half of 57, rounded
                if (w) assert_memory_equal(changed, chosen, F);
                double squares[2] = {0}; // of redrawn and of dense values in the same columns
                const float *x = (const float *)(const void *)a->data, *y = (const float *)(const void *)b->data;
                for (long i = 0; i < a->elements; i++) {
                    if (!chosen[w < 2 ? i / 48 : i % F]) continue;
                    squares[0] += (double)y[i] * y[i];
                    squares[1] += (double)x[i] * x[i];
                }
                if (!(fabs(squares[0] / squares[1] - 1) < 0.25)) fail_msg("variance ratio %g", squares[0] / squares[1]);
            }
            if (l == 0 && e == 0) memcpy(first, chosen, F);
            else alike += memcmp(first, chosen, F) == 0;
        }
    assert_int_equal(alike, 0);
    // Two experts share the columns that neither redrew: about a quarter.
    printf("  similarity %.4f %.4f\n", r.similarity[0], r.similarity[1]);
    for (int l = 0; l < 2; l++) assert_true(r.similarity[l] > 0.1 && r.similarity[l] < 0.4);
    free(r.similarity);
    model_folder_close(&dense);
    model_folder_close(&moe);
    o.drop = 0;
    free(make_moe(in("moe"), F32, &o).similarity);
    OK_OR_FAIL(model_folder_open(&dense, in("dense")));
    OK_OR_FAIL(model_folder_open(&moe, in("moe")));
    assert_int_equal(changed_columns(changed, stored(&dense, dense_names[2], 0, 0), stored(&moe, expert_names[2], 0, 3),
                                     F, false), 0);
    model_folder_close(&dense);
    model_folder_close(&moe);
}

static void refused(const char *path, const char *to, const struct upcycle_options *o, enum status wanted,
                    const char *sentence)
{
    static struct model_folder from;
    struct upcycle_result r;
    OK_OR_FAIL(model_folder_open(&from, path));
    enum status status = upcycle(&r, &from, to, o, false);
    model_folder_close(&from);
    if (status != wanted || !strstr(fail_message(), sentence))
        fail_msg("status %d, \"%s\", expected \"%s\"", status, status ? fail_message() : "", sentence);
}

static void test_refused(void **state)
{
    (void)state;
    static struct model_folder from;
    struct upcycle_options o = options_for(UPCYCLE_COPY);
    struct upcycle_result r;
    free(make_moe(in("moe"), BF16, &o).similarity);
    refused(in("moe"), in("moe2"), &o, ERR_FORMAT, "has 8 experts already");
    refused(in("dense"), in("moe"), &o, ERR_IO, "exists already");
    o.arch = ARCH_MIXTRAL;
    refused(in("dense"), in("moe2"), &o, ERR_CONFIG, "--moe-gate-norm-std");
    o.gate_norm_std = 0;
    o.K = 9;
    refused(in("dense"), in("moe2"), &o, ERR_CONFIG, "--moe-router-topk 9");
    o.K = 2;
    o.method = UPCYCLE_GRANULAR;
    o.E = 9;
    refused(in("dense"), in("moe2"), &o, ERR_CONFIG, "--granular 2: does not divide --num-experts 9");
    o.E = 8;
    o.K = 3;
    refused(in("dense"), in("moe2"), &o, ERR_CONFIG, "--granular 2: does not divide --moe-router-topk 3");
    o.K = 2;
    refused(in("dense"), in("moe2"), &o, ERR_CONFIG, "--granular 2: does not divide intermediate_size 57");
    o.method = UPCYCLE_COPY;
    assert_false(path_exists(in("moe2")) || path_exists(in("moe2.tmp")));
    OK_OR_FAIL(model_folder_open(&from, in("dense")));
    OK_OR_FAIL(upcycle(&r, &from, in("moe2"), &o, true)); // a dry run
    assert_true(r.params_total > r.params_active && r.output_bytes == 2 * r.params_total && !r.similarity);
    assert_false(path_exists(in("moe2")) || path_exists(in("moe2.tmp")));
    for (long n = 1; n < 12; n++) { // a full disk leaves nothing behind
        files_fail_write(n);
        assert_int_equal(upcycle(&r, &from, in("moe2"), &o, false), ERR_IO);
        files_fail_write(0);
        assert_non_null(strstr(fail_message(), "No space left"));
        assert_false(path_exists(in("moe2")) || path_exists(in("moe2.tmp")));
    }
    model_folder_close(&from);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copy), cmocka_unit_test(test_equals_dense), cmocka_unit_test(test_noise),
        cmocka_unit_test(test_drop), cmocka_unit_test(test_granular), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("upcycle", tests, set_up, tear_down);
}
