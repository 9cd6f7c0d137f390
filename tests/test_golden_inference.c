// Inference and folders against golden values (golden_util.h): logits over KV pages, FP8, expert similarity.
#include "golden_util.h"

#include "model/decode.h"
#include "quant/quantize.h"

// Whether a row's products are the same bits however many rows there are: all but oneDNN promise it.
static bool rows_alone(void)
{
    for (long i = 0; i < kernel_rows_n; i++) {
        bool product = strstr(kernel_rows[i].name, "matmul") || strstr(kernel_rows[i].name, "grouped");
        if (product && !strcmp(kernel_source(F32, i), "dnnl") && strstr(kernel_rows[i].name, "_nt")) return false;
    }
    return true;
}

// Inference over KV pages gives the same logits, whatever the pieces in which the tokens come.
static void test_decode(void **state)
{
    (void)state;
    static const long pieces[][4] = {{13}, {1, 12}, {5, 3, 5}, {12, 1}};
    for (int i = 0; i < CASES; i++) {
        struct golden g;
        struct model m;
        struct kv_cache kv;
        golden_open(&g, cases[i]);
        struct model_options o = {.dtype = F32, .B = 1, .S = g.S, .positions = g.S, .rule = moe_rule_inference};
        struct config c = g.folder.config;
        OK_OR_FAIL(model_init(&m, &c, &o));
        OK_OR_FAIL(model_folder_load(&m, &g.folder));
        OK_OR_FAIL(kv_cache_init(&kv, &m, 1, 2 * PAGE_TOKENS, g.S));
        int *token = ints_of(&g, "token", g.T);
        long n;
        double *want = values_of(&g, "", "decode_logits", &n);
        assert_int_equal(n, g.S * c.V);
        float *all = test_malloc((size_t)n * sizeof *all), *last = test_malloc((size_t)c.V * sizeof *last);
        double *got = test_malloc((size_t)n * sizeof *got);
        float *whole = test_malloc((size_t)n * sizeof *whole);
        for (int way = 0; way < 4; way++) {
            long at = 0;
            for (int p = 0; p < 4 && pieces[way][p]; p++) {
                OK_OR_FAIL(kv_append(&kv, 0, token + at, pieces[way][p], last, all + at * c.V));
                at += pieces[way][p];
                if (rows_alone()) assert_memory_equal(last, all + (at - 1) * c.V, (size_t)c.V * sizeof *last);
            }
            if (way == 0) memcpy(whole, all, (size_t)n * sizeof *all);
            if (rows_alone()) assert_memory_equal(all, whole, (size_t)n * sizeof *all);
            for (long j = 0; j < n; j++) got[j] = all[j];
            double error = difference(got, want, n);
            print_message("%s decode way %d: %.1e\n", cases[i], way, error);
            if (!(error <= 5e-5)) fail_msg("decode logits differ by %.2e of the largest", error);
            kv_cache_drop(&kv, 0);
        }
        test_free(all);
        test_free(last);
        test_free(whole);
        test_free(got);
        test_free(want);
        test_free(token);
        kv_cache_free(&kv);
        model_free(&m);
        golden_close(&g);
    }
}

// FP8 folders: bytes and scales of layer 0 (q, k, v share a scale; w1 and w3 share one).
static void test_fp8(void **state)
{
    (void)state;
    for (int i = 2; i < CASES; i++) {
        struct golden g;
        struct quantize_result r;
        struct model_folder q;
        char base[] = "/tmp/skymoe-golden-XXXXXX", path[PATH_LENGTH];
        golden_open(&g, cases[i]);
        assert_non_null(mkdtemp(base));
        OK_OR_FAIL(path_join(path, base, "fp8"));
        OK_OR_FAIL(quantize_fp8(&r, &g.folder, path, SCALING_TENSOR));
        free(r.tensor);
        OK_OR_FAIL(model_folder_open(&q, path));
        long seen = 0, bytes = 0;
        for (long t = 0; t < q.params.n; t++) {
            char name[300];
            snprintf(name, sizeof name, "fp8.%s", q.params.item[t].name);
            if (!safetensors_find(&g.values, name)) continue;
            long n, one;
            double *want = values_of(&g, "", name, &n);
            double *scale = values_of(&g, "fp8_scale.", q.params.item[t].name, &one);
            assert_string_equal(q.stored[t]->dtype, "F8_E4M3");
            assert_int_equal(q.stored[t]->elements, n);
            for (long j = 0; j < n; j++)
                if (q.stored[t]->data[j] != (int)want[j])
                    fail_msg("%s: element %ld is 0x%02x, golden 0x%02x", name, j, q.stored[t]->data[j], (int)want[j]);
            float s;
            assert_non_null(q.scale[t]);
            memcpy(&s, q.scale[t]->data, sizeof s);
            expect_near("scale", s, scale[0], 1e-7);
            test_free(want);
            test_free(scale);
            seen++;
            bytes += n;
        }
        long expected = 0;
        for (long t = 0; t < g.values.n; t++) expected += !strncmp(g.values.tensor[t].name, "fp8.", 4);
        assert_int_equal(seen, expected);
        print_message("%s: %ld FP8 tensors, %ld bytes equal\n", cases[i], seen, bytes);
        model_folder_close(&q);
        OK_OR_FAIL(folder_remove(base));
        golden_close(&g);
    }
}

static void test_similarity(void **state)
{
    (void)state;
    for (int i = 1; i < CASES; i++) {
        struct golden g;
        struct model m;
        golden_open(&g, cases[i]);
        open_model(&m, &g, F64, RECOMPUTE_NONE);
        for (long l = 0; l < m.c.L; l++) {
            const struct tensor w[] = {m.p.layer[l].w13, m.p.layer[l].w2};
            const long n[] = {2 * m.c.F * m.c.D, m.c.F * m.c.D};
            double got = m.x.k->expert_similarity(w, n, 2, m.c.E);
            double want = number(cJSON_GetArrayItem(cJSON_GetObjectItem(g.json, "layers"), (int)l), "similarity");
            expect_near("similarity", got, want, 1e-6);
        }
        model_free(&m);
        golden_close(&g);
    }
}

int main(int argc, char **argv)
{
    if (!golden_start(argc, argv)) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_fp8),
        cmocka_unit_test(test_similarity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
