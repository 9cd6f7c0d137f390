// What makes runs comparable number by number: routing dumped and replayed, gradients dumped.
#include "train_util.h"

static char *text_of(const char *name, long *bytes)
{
    char *text;
    OK_OR_FAIL(file_read(&text, bytes, at(name), 1 << 26));
    return text;
}

static void put(const char *name, const char *text)
{
    OK_OR_FAIL(file_write(at(name), text, (long)strlen(text)));
}

// Rows of two runs agree to the last bit in everything that a step computes.
static void same_losses(const char *a, const char *b, long n)
{
    struct rows x = read_rows(at(a), "loss"), y = read_rows(at(b), "loss");
    assert_int_equal(x.n, n);
    assert_int_equal(y.n, n);
    for (long i = 0; i < n; i++) {
        assert_true(number(x.row[i], "loss") == number(y.row[i], "loss"));
        assert_true(number(x.row[i], "aux_loss") == number(y.row[i], "aux_loss"));
        assert_true(number(x.row[i], "z_loss") == number(y.row[i], "z_loss"));
        assert_true(number(x.row[i], "grad_norm") == number(y.row[i], "grad_norm"));
    }
    free_rows(&x);
    free_rows(&y);
}

#define SHORT                                                                                                          \
    "--data", at("text"), "--model", at("moe.json"), MOE_RUN, "--train-steps", "4", "--moe-z-loss-coeff", "0.01"

static void test_dump(void **state)
{
    (void)state;
    static struct trainer t;
    OK_OR_FAIL(OPEN(&t, SHORT, "--output", at("plain")));
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    OK_OR_FAIL(OPEN(&t, SHORT, "--output", at("dumped"), "--dump-routing", at("routing.jsonl")));
    OK_OR_FAIL(trainer_step(&t));
    assert_false(path_exists(at("routing.jsonl"))); // whole or not at all
    long want[2][4], dropped[2];
    for (int l = 0; l < 2; l++) {
        memcpy(want[l], t.model.balance[l].count, sizeof want[l]);
        dropped[l] = t.model.balance[l].dropped;
    }
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    same_losses("plain", "dumped", 4);

    // 4 steps, 2 layers, 96 tokens, in order of step, micro-batch, layer, token; step 1's counts are the balance's.
    long bytes, lines = 0, lost = 0;
    char *text = text_of("routing.jsonl", &bytes);
    for (char *line = text; *line; lines++) {
        long length = (long)strcspn(line, "\n");
        cJSON *json;
        OK_OR_FAIL(json_parse(&json, line, length, "routing.jsonl"));
        long l = (long)number(json, "layer"), micro = lines / 64 % 3;
        assert_int_equal((long)number(json, "step"), 1 + lines / 192);
        assert_int_equal(l, lines / 32 % 2);
        assert_int_equal((long)number(json, "token"), micro * 32 + lines % 32);
        const cJSON *experts = json_field(json, "experts"), *weights = json_field(json, "weights");
        const cJSON *drops = json_field(json, "dropped");
        double sum = 0;
        for (int k = 0; k < 2; k++) {
            sum += cJSON_GetArrayItem(weights, k)->valuedouble;
            if (lines < 192) want[l][(long)cJSON_GetArrayItem(experts, k)->valuedouble]--;
            if (lines < 192) dropped[l] -= cJSON_IsTrue(cJSON_GetArrayItem(drops, k));
            lost += cJSON_IsTrue(cJSON_GetArrayItem(drops, k));
        }
        assert_true(fabs(sum - 1) < 1e-6 && cJSON_GetArraySize(experts) == 2);
        cJSON_Delete(json);
        line += length + 1;
    }
    free(text);
    assert_int_equal(lines, 4 * 2 * 96);
    for (int l = 0; l < 2; l++) {
        assert_int_equal(dropped[l], 0);
        for (int e = 0; e < 4; e++) assert_int_equal(want[l][e], 0);
    }
    printf("  %ld of %ld assignments dropped\n", lost, 2 * lines);
    assert_true(lost > 10);
}

// The same bits again; the lines of a step in another order too; and from a resumed run as well.
static void test_replay(void **state)
{
    (void)state;
    static struct trainer t;
    OK_OR_FAIL(OPEN(&t, SHORT, "--output", at("replayed"), "--replay-routing", at("routing.jsonl"), "--dump-routing",
                    at("again.jsonl")));
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    same_losses("plain", "replayed", 4);
    long n, m;
    char *a = text_of("routing.jsonl", &n), *b = text_of("again.jsonl", &m);
    assert_int_equal(n, m);
    assert_memory_equal(a, b, (size_t)n);
    free(b);

    char *turned = malloc((size_t)n + 1), *to = turned, *line[768], *next = a;
    for (long i = 0; i < 768; i++, next++) {
        line[i] = next;
        next += strcspn(next, "\n");
    }
    for (long i = 0; i < 768; i++) { // each step's 192 lines backwards
        const char *from = line[i / 192 * 192 + 191 - i % 192];
        long length = (long)strcspn(from, "\n") + 1;
        memcpy(to, from, (size_t)length);
        to += length;
    }
    OK_OR_FAIL(file_write(at("turned.jsonl"), turned, n));
    free(turned);
    free(a);
    OK_OR_FAIL(OPEN(&t, SHORT, "--output", at("backwards"), "--replay-routing", at("turned.jsonl"), "--train-steps",
                    "2"));
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    OK_OR_FAIL(OPEN(&t, "--output", at("backwards"), "--resume", "--train-steps", "4", "--replay-routing",
                    at("turned.jsonl")));
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    OK_OR_FAIL(OPEN(&t, "--output", at("backwards"), "--resume", "--train-steps", "5")); // and is not inherited
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
}

// Other experts than the router's: what is forced is what happens, with weights of the forced experts' own gates.
static void test_forced(void **state)
{
    (void)state;
    static struct trainer t;
    char *text = malloc(1 << 20), *end = text;
    for (long i = 0; i < 2 * 96; i++)
        end += snprintf(end, 128, "{\"step\":1,\"layer\":%ld,\"token\":%ld,\"experts\":[%ld,%ld],"
                        "\"dropped\":[%s,false]}\n", i / 96, i % 96, i % 3, 3 - i % 3 % 2, i % 5 ? "false" : "true");
    OK_OR_FAIL(file_write(at("forced.jsonl"), text, end - text));
    free(text);
    assert_int_equal(OPEN(&t, SHORT, "--output", at("forced"), "--replay-routing", at("forced.jsonl")), ERR_FORMAT);
    printf("  %s\n", fail_message());
    assert_non_null(strstr(fail_message(), "forced.jsonl: ends with step 1")); // known before anything is written
    assert_false(path_exists(at("forced")));
    OK_OR_FAIL(OPEN(&t, SHORT, "--output", at("forced"), "--replay-routing", at("forced.jsonl"), "--dtype", "f32",
                    "--train-steps", "1"));
    OK_OR_FAIL(trainer_step(&t));
    assert_int_equal(t.model.balance[1].count[0], 32);
    const struct moe_saved *s = &t.model.saved[1].moe; // of the last micro-batch, tokens 64 to 95
    int expert[64], row[64];
    float weight[64], g[128];
    t.model.x.k->to_host(expert, s->expert, sizeof expert);
    t.model.x.k->to_host(row, s->row, sizeof row);
    t.model.x.k->to_host(weight, s->weight, sizeof weight);
    t.model.x.k->to_host(g, s->g, sizeof g);
    for (long i = 0; i < 32; i++) {
        long token = 96 + 64 + i;
        assert_int_equal(expert[2 * i], token % 3);
        assert_int_equal(expert[2 * i + 1], 3 - token % 3 % 2);
        assert_true((row[2 * i] < 0) == (token % 5 == 0) && row[2 * i + 1] >= 0);
        float a = g[4 * i + expert[2 * i]], b = g[4 * i + expert[2 * i + 1]];
        assert_true(fabsf(weight[2 * i] - a / (a + b)) < 1e-6f);
    }
    assert_int_equal(trainer_step(&t), ERR_FORMAT); // the file has one step
    printf("  %s\n", fail_message());
    assert_non_null(strstr(fail_message(), "no routing of step 2"));
    trainer_close(&t);
}

static void test_refused(void **state)
{
    (void)state;
    static struct trainer t;
    static const char *const bad[][2] = {
        {"{\"step\":1,\"layer\":2,\"token\":0,\"experts\":[0,1],\"dropped\":[false,false]}\n", "layer"},
        {"{\"step\":1,\"layer\":0,\"token\":96,\"experts\":[0,1],\"dropped\":[false,false]}\n", "token"},
        {"{\"step\":1,\"layer\":0,\"token\":1,\"experts\":[0,4],\"dropped\":[false,false]}\n", "below 4"},
        {"{\"step\":1,\"layer\":0,\"token\":1,\"experts\":[1.5,2],\"dropped\":[false,false]}\n", "whole numbers"},
        {"{\"step\":1,\"layer\":0,\"token\":1,\"experts\":[2,2],\"dropped\":[true,false]}\n", "stands twice"},
        {"{\"step\":1,\"layer\":0,\"token\":1,\"experts\":[2],\"dropped\":[true]}\n", "lists of 2"},
        {"{\"step\":1,\"layer\":0,\"token\":1,\"experts\":[2,1],\"dropped\":[true,0]}\n", "true or false"},
        {"{\"layer\":0,\"token\":1,\"experts\":[2,1],\"dropped\":[true,true]}\n", "missing"},
        {"{\"step\":1,\"layer\":0,\"token\":1,\"experts\":[2,1],\"dropped\":[true,true]}\n"
         "{\"step\":1,\"layer\":0,\"token\":1,\"experts\":[2,1],\"dropped\":[true,true]}\n",
         "line 2: layer 0, token 1"},
        {"{\"step\":2,\"layer\":0,\"token\":1,\"experts\":[2,1],\"dropped\":[true,true]}\n", "no routing of step 1"},
        {"no JSON", "line 1"},
        {"", "no routing of step 1, layer 0, token 0"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char run[32];
        snprintf(run, sizeof run, "bad-%zu", i);
        put("bad.jsonl", bad[i][0]);
        assert_int_equal(OPEN(&t, SHORT, "--output", at(run), "--replay-routing", at("bad.jsonl")), ERR_FORMAT);
        if (!strstr(fail_message(), bad[i][1])) fail_msg("case %zu: %s", i, fail_message());
        assert_false(path_exists(at(run)));
    }
    assert_int_equal(OPEN(&t, SHORT, "--output", at("none"), "--replay-routing", at("nowhere")), ERR_IO);
    assert_false(path_exists(at("none")));
    assert_int_equal(OPEN(&t, "--data", at("text"), "--model", at("dense.json"), MOE_RUN, "--output", at("none"),
                          "--dump-routing", at("x")), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "--dump-routing"));
}

// Where routing or gradients cannot be written, or routing stands already, no run is begun. Both may lie in the run's
// folder.
static void test_place_of_dump(void **state)
{
    (void)state;
    static struct trainer t;
    OK_OR_FAIL(file_write(at("kept.jsonl"), "kept\n", 5));
    assert_int_equal(OPEN(&t, SHORT, "--output", at("placed"), "--dump-routing", at("nowhere/r.jsonl")), ERR_IO);
    assert_false(path_exists(at("placed")));
    assert_int_equal(OPEN(&t, SHORT, "--output", at("placed"), "--dump-routing", at("kept.jsonl")), ERR_IO);
    assert_non_null(strstr(fail_message(), "kept.jsonl: exists already"));
    assert_false(path_exists(at("placed")));
    assert_int_equal(OPEN(&t, SHORT, "--output", at("placed"), "--dump-gradients", at("kept.jsonl/g")), ERR_IO);
    assert_false(path_exists(at("placed")));
    assert_int_equal(OPEN(&t, SHORT, "--output", at("placed"), "--dump-gradients", at("placed/g"), "--dump-routing",
                          at("kept.jsonl")), ERR_IO);
    assert_false(path_exists(at("placed")));
    OK_OR_FAIL(OPEN(&t, SHORT, "--output", at("placed"), "--dump-routing", at("placed/r.jsonl"), "--dump-gradients",
                    at("placed/g"), "--train-steps", "2"));
    assert_true(path_is_folder(at("placed/g")));
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    assert_int_equal(OPEN(&t, "--output", at("placed"), "--resume", "--train-steps", "3", "--dump-routing",
                          at("placed/r.jsonl")), ERR_IO); // it has steps that this call does not make again
    OK_OR_FAIL(OPEN(&t, "--output", at("placed"), "--resume", "--train-steps", "3", "--dump-routing",
                    at("placed/r3.jsonl")));
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    long bytes;
    char *text = text_of("placed/r3.jsonl", &bytes);
    assert_memory_equal(text, "{\"step\":3,", 10);
    free(text);
}

// The file holds what the optimizer was given, before clipping, in f32 under the parameters' names.
static void test_gradients(void **state)
{
    (void)state;
    static struct trainer t;
    struct safetensors f;
    OK_OR_FAIL(OPEN(&t, SHORT, "--output", at("gradients"), "--dump-gradients", at("grad"), "--moe-aux-loss", "bias",
                    "--clip-grad", "0.001"));
    OK_OR_FAIL(trainer_step(&t));
    OK_OR_FAIL(safetensors_open(&f, at("grad/gradients.safetensors")));
    double squares = 0;
    for (long i = 0; i < t.model.params.n; i++) {
        const struct param *p = &t.model.params.item[i];
        const struct stored_tensor *s = safetensors_find(&f, p->name);
        assert_true((s == NULL) == p->kind->counted);
        if (!s) continue;
        assert_string_equal(s->dtype, "F32");
        assert_int_equal(s->rank, p->kind->columns == DIM_NONE ? 1 : 2);
        assert_int_equal(s->elements, p->rows * p->columns);
        assert_memory_equal(s->data, p->grad, (size_t)s->bytes);
        const float *grad = p->grad;
        for (long j = 0; j < s->elements; j++) squares += (double)grad[j] * (double)grad[j];
    }
    assert_int_equal(f.n, t.model.params.n - 2); // without the two biases
    assert_true(t.result.norm > 0.001 && fabs(sqrt(squares) / t.result.norm - 1) < 1e-9);
    safetensors_close(&f);
    OK_OR_FAIL(folder_remove(at("grad")));
    OK_OR_FAIL(trainer_step(&t)); // of the first step only
    assert_false(path_exists(at("grad")));
    trainer_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dump),    cmocka_unit_test(test_replay),    cmocka_unit_test(test_forced),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_place_of_dump), cmocka_unit_test(test_gradients),
    };
    return cmocka_run_group_tests(tests, training_set_up, remove_temporary);
}
