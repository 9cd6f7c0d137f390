// skymoe plan as a user calls it: the published runs, refusals, files.
#include "program_util.h"

#define MOE "configs/skywork-moe.json"
#define A800 "configs/clusters/a800-1536.json"
#define RTX "configs/clusters/rtx4090-8.json"
#define ON(cluster) "plan", "--model", MOE, "--cluster", cluster

static const cJSON *part(const cJSON *json, const char *name)
{
    const cJSON *f = json_field(json, name);
    if (!f) fail_msg("no %s in %.200s", name, out_text);
    return f;
}

static void test_refuses(void **state)
{
    (void)state;
    FAILS(2, "--model: is missing", "plan");
    FAILS(2, "--cluster: is missing", "plan", "--model", MOE);
    FAILS(1, "absent.json", "plan", "--model", MOE, "--cluster", at("absent.json"));
    FAILS(1, "absent.json", "plan", "--model", at("absent.json"), "--cluster", A800);
    OK_OR_FAIL(file_write(at("broken.json"), "{\"name\":", 8));
    FAILS(1, "broken.json", ON(at("broken.json")));
    OK_OR_FAIL(file_write(at("typo.json"), "{\"nam\": 1}", 10));
    FAILS(1, "nam: unknown field", ON(at("typo.json")));
    // 128 expert ranks for 16 experts.
    FAILS(2, "--expert-parallel-size 128: the model has 16 experts", ON(A800), "--pipeline-parallel-size", "12",
          "--tensor-parallel-size", "4", "--expert-parallel", "ep");
    FAILS(2, "--expert-parallel-size 32: the model has 16 experts", ON(A800), "--pipeline-parallel-size", "12",
          "--tensor-parallel-size", "4", "--expert-parallel", "etp");
    FAILS(2, "do not divide 1536 ranks", ON(A800), "--pipeline-parallel-size", "7");
    FAILS(2, "64 stages, but the model has 52 layers", ON(A800), "--pipeline-parallel-size", "64");
    FAILS(2, "--devices 9: 8 RTX 4090 has 8", ON(RTX), "--devices", "9");
    FAILS(2, "the model has 36 heads", ON(A800), "--tensor-parallel-size", "64");
    FAILS(2, "--expert-parallel-size 3 x --expert-tensor-parallel-size 1: do not divide", ON(A800),
          "--expert-parallel-size", "3", "--tensor-parallel-size", "4", "--pipeline-parallel-size", "48");
    FAILS(2, "--layer-split: 2 numbers, but there are 4 parts", ON(A800), "--pipeline-parallel-size", "4",
          "--layer-split", "26,26");
    FAILS(2, "--layer-split: the parts add up to 53", ON(A800), "--pipeline-parallel-size", "4", "--layer-split",
          "13,13,13,14");
    FAILS(2, "--layer-split: \"13,,13\" is no list", ON(A800), "--pipeline-parallel-size", "3", "--layer-split",
          "13,,13");
    FAILS(2, "--virtual-stages 2: --pipeline-schedule 1f1b", ON(A800), "--pipeline-parallel-size", "4",
          "--virtual-stages", "2");
    FAILS(2, "--recompute-layers: 2 numbers, but there are 4 stages", ON(A800), "--pipeline-parallel-size", "4",
          "--recompute", "full", "--recompute-layers", "1,2");
    FAILS(2, "--recompute-layers auto: --recompute is none", ON(A800), "--recompute-layers", "auto");
    FAILS(2, "--seq-length 10000", ON(A800), "--seq-length", "10000");
    FAILS(2, "did you mean --pipeline-parallel-size", ON(A800), "--pipeline-parallel", "2");
    FAILS(2, "none of", ON(RTX), "--search", "--global-batch-size", "8");
    FAILS(2, "--batch-size: \"1,x\" is no list", ON(RTX), "--inference", "--batch-size", "1,x");
    FAILS(2, "--inference: 2 stages", ON(RTX), "--inference", "--pipeline-parallel-size", "2",
          "--tensor-parallel-size", "4");
}

static void test_published_run(void **state)
{
    (void)state;
    WORKS(ON(A800), "--pipeline-parallel-size", "12", "--tensor-parallel-size", "4", "--recompute", "full",
          "--recompute-layers", "auto", "--layer-split", "auto", "--published", "1059840", "--svg", at("step.svg"),
          "--json");
    cJSON *json = printed_json();
    double step = number(json, "step_time_s"), sum = 0;
    const cJSON *terms = part(json, "terms"), *stages = part(json, "stages");
    for (const cJSON *t = terms->child; t; t = t->next) sum += t->valuedouble;
    assert_true(fabs(sum - step) < 1e-9 * step);
    assert_int_equal(cJSON_GetArraySize(stages), 12);
    long layers = 0;
    for (const cJSON *s = stages->child; s; s = s->next) layers += (long)number(s, "layers");
    assert_int_equal(layers, 52);
    assert_true(number(json, "mfu") > 0.38 && number(json, "mfu") < 1); // datasheet constants: an upper bound
    double published = 2048.0 * 8192 / 1059840;
    assert_true(fabs(number(json, "unexplained") - (published - step)) < 1e-9);
    assert_true(cJSON_GetArraySize(part(json, "assumptions")) >= 5);
    assert_true(cJSON_IsTrue(part(json, "fits")));
    cJSON_Delete(json);
    char *svg;
    long bytes;
    OK_OR_FAIL(file_read(&svg, &bytes, at("step.svg"), 1 << 22));
    assert_int_equal(strncmp(svg, "<svg ", 5), 0);
    assert_non_null(strstr(svg, "stage 11"));
    free(svg);
}

// Term by term: what sliced experts cost, and which ways are refused.
static void test_expert_ways(void **state)
{
    (void)state;
    WORKS(ON(A800), "--pipeline-parallel-size", "12", "--tensor-parallel-size", "4", "--recompute", "moe");
    assert_non_null(strstr(out_text, "ep 128x1 refused: --expert-parallel-size 128: the model has 16 experts"));
    assert_non_null(strstr(out_text, "etp 32x4 refused"));
    assert_non_null(strstr(out_text, "timeline"));
    double edp = 0, etp = 0;
    assert_non_null(strstr(out_text, "\nslices"));
    assert_int_equal(sscanf(strstr(strstr(out_text, "the other ways"), "\nstep"), " step %lf refused refused %lf", &edp,
                            &etp), 2);
    assert_true(edp > 0 && etp > edp);
}

static void test_search(void **state)
{
    (void)state;
    WORKS(ON(A800), "--search", "--json");
    cJSON *json = printed_json();
    const cJSON *search = part(json, "search"), *best = part(search, "best");
    assert_true(number(search, "tried") > 1000 && number(search, "fitting") > 0);
    double last = 0;
    for (const cJSON *b = best->child; b; b = b->next) {
        assert_true(number(b, "step_time_s") >= last && number(b, "memory_bytes") <= 85899345920);
        assert_int_equal((long)number(part(b, "layout"), "devices"), 1536);
        last = number(b, "step_time_s");
    }
    assert_true(fabs(number(json, "step_time_s") - number(best->child, "step_time_s")) < 1e-9);
    double found = number(json, "step_time_s");
    cJSON_Delete(json);
    WORKS(ON(A800), "--pipeline-parallel-size", "12", "--tensor-parallel-size", "4", "--recompute", "moe",
          "--recompute-layers", "auto", "--layer-split", "auto", "--json"); // one of those that were tried
    json = printed_json();
    assert_true(found <= number(json, "step_time_s") * (1 + 1e-9));
    cJSON_Delete(json);
}

static void test_inference(void **state)
{
    (void)state;
    WORKS(ON(RTX), "--inference", "--weights", "fp8", "--expert-parallel", "etp", "--published", "2200", "--compare",
          "configs/llama-70b.json");
    assert_non_null(strstr(out_text, "heads 5,5,5,5,4,4,4,4"));
    assert_non_null(strstr(out_text, "published   2200 tokens/s"));
    WORKS(ON(RTX), "--inference", "--weights", "fp8", "--expert-parallel", "etp", "--published", "2200", "--compare",
          "configs/llama-70b.json", "--json", "--batch-size", "1,64");
    cJSON *json = printed_json();
    const cJSON *rows = part(json, "rows"), *other = part(part(json, "compare"), "rows");
    // By hand: 16 experts x 3 x 1536 x 4608 + attention of 5 heads, 52 layers, a byte each; head and embedding 2 bytes.
    double L = 52, D = 4608, matrices = L * (16.0 * 3 * 1536 * D + 4 * 5 * 128 * D), ends = 2 * 2 * 8192 * D;
    assert_true(fabs(number(json, "weight_bytes") / (matrices + ends + 4 * L * 18 * D) - 1) < 1e-3);
    assert_true(fabs(number(json, "kv_bytes_per_token") - 2 * L * 5 * 128 * 2) < 1);
    assert_true(fabs(number(rows->child, "experts_hit") - 2) < 1e-9);
    double step = 0;
    const cJSON *terms = part(rows->child, "terms");
    for (const cJSON *t = terms->child; t; t = t->next) step += t->valuedouble;
    assert_true(fabs(step - number(rows->child, "step_time_s")) < 1e-9);
    assert_true(fabs(number(rows->child, "unexplained") - (1 / 2200.0 - step)) < 1e-9);
    // The announcement's three times cheaper: true of FLOPs, and of one sequence.
    assert_true(number(other->child, "flops_per_token") / number(rows->child, "flops_per_token") > 2.9);
    assert_true(number(other->child, "device_s_per_token") > 2 * number(rows->child, "device_s_per_token"));
    cJSON_Delete(json);
    WORKS(ON(RTX), "--inference", "--expert-parallel", "etp"); // 16-bit weights
    assert_non_null(strstr(out_text, "does not fit"));
}

// The pieces of the layout that a user gives reach the plan.
static void test_lists(void **state)
{
    (void)state;
    WORKS(ON(A800), "--devices", "96", "--pipeline-parallel-size", "12", "--tensor-parallel-size", "8", "--layer-split",
          "5,5,5,5,5,4,4,4,4,4,4,3", "--recompute", "full", "--recompute-layers", "4,4,3,3,2,2,1,1,0,0,0,0", "--json");
    cJSON *json = printed_json();
    const cJSON *stages = part(json, "stages");
    assert_int_equal((long)number(cJSON_GetArrayItem(stages, 11), "layers"), 3);
    assert_int_equal((long)number(cJSON_GetArrayItem(stages, 2), "recompute"), 3);
    double even = number(cJSON_GetArrayItem(stages, 6), "forward_s");
    cJSON_Delete(json);
    WORKS(ON(A800), "--devices", "96", "--pipeline-parallel-size", "12", "--tensor-parallel-size", "8", "--layer-split",
          "5,5,5,5,5,4,4,4,4,4,4,3", "--device-weights", "2,1,1,1,1,1,1,1", "--json");
    json = printed_json();
    assert_true(number(cJSON_GetArrayItem(part(json, "stages"), 6), "forward_s") > 1.3 * even);
    cJSON_Delete(json);
}

// What this machine measures of itself is a cluster to plan with.
static void test_calibrate(void **state)
{
    (void)state;
    FAILS(1, "/nowhere/here.json", "bench", "--threads", "1", "--calibrate", "/nowhere/here.json");
    FAILS(2, "--steps: is read by --balance only", "bench", "--steps", "3");
    FAILS(2, "--seq-length: is read by --calibrate only", "bench", "--balance", "--output", at("b"),
          "--seq-length", "8");
    FAILS(2, "--balance: measures nothing else", "bench", "--balance", "--output", at("b"), "--train");
    FAILS(2, "--balance: measures nothing else", "bench", "--balance", "--output", at("b"), "--calibrate", at("c"));
    WORKS("bench", "--quiet", "--threads", "1", "--model", "configs/tiny.json", "--calibrate", at("here.json"));
    assert_non_null(strstr(out_text, "kernels.grouped_weight_flops"));
    WORKS("plan", "--model", "configs/tiny.json", "--cluster", at("here.json"), "--global-batch-size", "8", "--json");
    cJSON *json = printed_json();
    assert_true(number(json, "tokens_per_s") > 0 && fabs(number(json, "bubble")) < 1e-9 && number(json, "mfu") > 0);
    cJSON_Delete(json);
}

int main(void)
{
    if (!find_program()) return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses), cmocka_unit_test(test_published_run), cmocka_unit_test(test_expert_ways),
        cmocka_unit_test(test_search),  cmocka_unit_test(test_inference),     cmocka_unit_test(test_lists),
        cmocka_unit_test(test_calibrate),
    };
    return cmocka_run_group_tests(tests, make_temporary, remove_temporary);
}
