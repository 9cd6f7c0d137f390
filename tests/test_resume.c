// A run that is resumed is the run that was never interrupted, bit for bit.
#include "train_util.h"

static char *file_text(const char *folder, const char *name, long *bytes)
{
    char path[PATH_LENGTH], *text;
    OK_OR_FAIL(path_join(path, folder, name));
    OK_OR_FAIL(file_read(&text, bytes, path, 1 << 28));
    return text;
}

// Every file of two checkpoints, byte by byte; the time spent is the one thing that differs.
static void same_checkpoints(const char *a, const char *b)
{
    static const char *const names[] = {"model.safetensors", "config.json", "generation_config.json",
                                        "training/optimizer.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        long n, m;
        char *x = file_text(a, names[i], &n), *y = file_text(b, names[i], &m);
        assert_int_equal(n, m);
        for (long j = 0; j < n; j++)
            if (x[j] != y[j]) fail_msg("%s: byte %ld differs", names[i], j);
        free(x);
        free(y);
    }
    cJSON *state[2];
    char *text[2];
    for (int i = 0; i < 2; i++) {
        long n;
        char *raw = file_text(i ? b : a, "training/state.json", &n);
        OK_OR_FAIL(json_parse(&state[i], raw, n, "state.json"));
        cJSON_DeleteItemFromObjectCaseSensitive(state[i], "seconds");
        text[i] = cJSON_PrintUnformatted(state[i]);
        free(raw);
    }
    assert_string_equal(text[0], text[1]);
    for (int i = 0; i < 2; i++) {
        free(text[i]);
        cJSON_Delete(state[i]);
    }
}

// 2 + 5 steps against 7, where the epoch ends within: bf16, drops, adaptive coefficients, accumulation 3 (and a short
// micro-batch), another number of checkpoints and evaluations on the way.
static void resume_equals(const char *how, const char *aux, const char *model, const char *recompute)
{
    static struct trainer t;
    OK_OR_FAIL(folder_remove(at("whole")));
    OK_OR_FAIL(folder_remove(at("parts")));
#define SAME                                                                                                           \
    "--data", at("few"), "--model", model, "--micro-batch-size", "2", "--global-batch-size", "5", "--seq-length",      \
        "16", "--lr", "3e-3", "--lr-warmup-steps", "3", "--dtype", "bf16", "--lr-decay-steps", "7", "--recompute",     \
        recompute, "--moe-aux-loss", aux, how, "--moe-z-loss-coeff", "0.001",                                          \
        strcmp(aux, "bias") ? "--moe-aux-loss-xi=0.02" : "--no-moe-aux-loss-adaptive",                                 \
        strcmp(aux, "bias") ? "--moe-aux-loss-adaptive" : "--no-moe-aux-loss-adaptive"
    OK_OR_FAIL(OPEN(&t, SAME, "--output", at("whole"), "--train-steps", "7", "--eval-interval", "0"));
    double epochs = 7 * 5 * 16 / (double)t.data.source[0].data.tokens;
    OK_OR_FAIL(trainer_run(&t));
    double drops = 0;
    for (long l = 0; t.model.balance && l < 2; l++) drops += t.result.drop[l];
    trainer_close(&t);
    OK_OR_FAIL(OPEN(&t, SAME, "--output", at("parts"), "--train-steps", "2", "--eval-interval", "1", "--save-interval",
                    "1"));
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    OK_OR_FAIL(OPEN(&t, "--output", at("parts"), "--resume", "--train-steps", "7", "--eval-interval", "0"));
    assert_int_equal(t.state.step, 2);
    assert_int_equal(t.state.samples, 10);
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    printf("  %s, %s, recompute %s: %.2f epochs, drop rates sum to %.3f\n", how, aux, recompute, epochs, drops);
    assert_true(epochs > 1.2 && epochs != floor(epochs));
    same_checkpoints(at("whole/step-000007"), at("parts/step-000007"));
    struct rows a = read_rows(at("whole"), "loss"), b = read_rows(at("parts"), "loss");
    assert_int_equal(a.n, 7);
    assert_int_equal(b.n, 7);
    for (long i = 0; i < 7; i++) {
        assert_true(number(a.row[i], "loss") == number(b.row[i], "loss"));
        assert_true(number(a.row[i], "grad_norm") == number(b.row[i], "grad_norm"));
    }
    free_rows(&a);
    free_rows(&b);
}

static void test_resume(void **state)
{
    (void)state;
    resume_equals("--moe-aux-loss-scope=micro", "skywork", at("moe.json"), "none");
    resume_equals("--moe-aux-loss-scope=global", "switch", at("moe.json"), "moe");
    resume_equals("--moe-aux-loss-scope=sequence", "skywork", at("moe.json"), "full");
    resume_equals("--moe-bias-rate=0.0123", "bias", at("moe.json"), "none");
    resume_equals("--moe-aux-loss-scope=micro", "skywork", at("dense.json"), "none");
}

// Steps that were logged after the checkpoint are cut from the record, and logged again.
static void test_resume_after_crash(void **state)
{
    (void)state;
    static struct trainer t;
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("crash"), MOE_RUN,
                    "--train-steps", "6", "--save-interval", "2"));
    for (int i = 0; i < 5; i++) {
        OK_OR_FAIL(trainer_step(&t));
        if (t.state.step == 4) OK_OR_FAIL(trainer_save(&t));
    }
    trainer_close(&t); // as a crash would: step 5 is logged, not saved
    struct rows before = read_rows(at("crash"), "loss");
    assert_int_equal(before.n, 5);
    OK_OR_FAIL(OPEN(&t, "--output", at("crash"), "--resume"));
    assert_int_equal(t.state.step, 4);
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    struct rows after = read_rows(at("crash"), "loss");
    assert_int_equal(after.n, 6);
    for (long i = 0; i < 6; i++) assert_int_equal((long)number(after.row[i], "step"), i + 1);
    assert_true(number(after.row[4], "loss") == number(before.row[4], "loss"));
    free_rows(&before);
    free_rows(&after);
}

static void test_resume_refused(void **state)
{
    (void)state;
    static struct trainer t;
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("once"), MOE_RUN,
                    "--train-steps", "1"));
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    assert_int_equal(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("once"), MOE_RUN),
                     ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "--resume"));
    assert_int_equal(OPEN(&t, "--output", at("once"), "--resume", "--clip-grad", "3"), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "--clip-grad"));
    assert_int_equal(OPEN(&t, "--output", at("nowhere"), "--resume"), ERR_IO);
    OK_OR_FAIL(OPEN(&t, "--output", at("once"), "--resume", "--clip-grad", "1")); // the value it has
    OK_OR_FAIL(trainer_run(&t)); // nothing left to do
    assert_int_equal(t.state.step, 1);
    trainer_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_resume_after_crash),
        cmocka_unit_test(test_resume_refused),
    };
    return cmocka_run_group_tests(tests, training_set_up, remove_temporary);
}
