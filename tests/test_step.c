// A training step against the sums written out: its gradients are those of the mean over all unmasked targets of the
// step, its loss is that mean, however the step is cut into micro-batches.
#include "train_util.h"

enum { SEQUENCES = 5, LENGTH = 16 }; // micro-batches of 2, 2 and 1

static int set_up(void **state)
{
    if (make_temporary(state)) return -1;
    write_data("text", 30, 14, 3); // documents shorter than a sample: many targets are masked
    write_config("dense.json", false, 64);
    write_config("moe.json", true, 64);
    return 0;
}

#define STEP_OPTIONS                                                                                                   \
    "--micro-batch-size", "2", "--global-batch-size", "5", "--seq-length", "16", "--eval-interval", "0", "--lr", "1e-3"

struct samples {
    int token[SEQUENCES * LENGTH], target[SEQUENCES * LENGTH], position[SEQUENCES * LENGTH], start[SEQUENCES * LENGTH];
    long targets;
};

static void read_samples(struct samples *s, struct trainer *t)
{
    long which;
    s->targets = 0;
    for (long i = 0; i < SEQUENCES; i++) {
        long a = i * LENGTH;
        OK_OR_FAIL(loader_sample(&t->data, i, s->token + a, s->target + a, s->position + a, s->start + a, &which));
    }
    for (long i = 0; i < SEQUENCES * LENGTH; i++) s->targets += s->target[i] >= 0;
}

// Gradients and mean loss of the samples, into t's model, which has not been trained.
static double by_hand(struct trainer *t, struct samples *s)
{
    double sum = 0;
    model_zero_gradients(&t->model);
    balance_begin(&t->model);
    for (long first = 0; first < SEQUENCES; first += 2) {
        long a = first * LENGTH, B = first + 2 <= SEQUENCES ? 2 : 1;
        struct batch b = {B, LENGTH, s->token + a, s->target + a, s->position + a, s->start + a};
        sum += model_forward_backward(&t->model, &b, 1.0 / (double)s->targets, (double)B / SEQUENCES, false);
    }
    return sum / (double)s->targets;
}

static void compare(const char *config)
{
    static struct trainer stepped, plain;
    static struct samples s;
    OK_OR_FAIL(OPEN(&stepped, "--data", at("text"), "--model", at(config), "--output", at("stepped"), STEP_OPTIONS));
    OK_OR_FAIL(OPEN(&plain, "--data", at("text"), "--model", at(config), "--output", at("plain"), STEP_OPTIONS));
    read_samples(&s, &plain);
    assert_in_range(s.targets, 40, SEQUENCES * LENGTH - 3); // some are masked, most are not
    double loss = by_hand(&plain, &s), norm = zero_norm(&plain.zero);
    OK_OR_FAIL(trainer_step(&stepped));
    assert_true(stepped.result.loss == loss);
    assert_true(stepped.result.norm == norm && norm > 0.1);
    for (long i = 0; i < plain.model.params.n; i++) {
        const struct param *a = &stepped.model.params.item[i], *b = &plain.model.params.item[i];
        assert_memory_equal(a->grad, b->grad, (size_t)(a->rows * a->columns) * sizeof(float));
    }
    for (long l = 0; plain.model.balance && l < plain.config.L; l++) {
        assert_true(stepped.model.balance[l].aux == plain.model.balance[l].aux);
        assert_true(stepped.result.drop[l] == drop_rate(&plain.model.balance[l], plain.config.K));
    }
    trainer_close(&stepped);
    trainer_close(&plain);
    OK_OR_FAIL(folder_remove(at("stepped")));
    OK_OR_FAIL(folder_remove(at("plain")));
}

static void test_dense(void **state)
{
    (void)state;
    compare("dense.json");
}

static void test_moe(void **state)
{
    (void)state;
    compare("moe.json");
}

int main(void)
{
    log_quiet(true);
    if (kernels_init(2) != OK) {
        fprintf(stderr, "%s\n", fail_message());
        return 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_dense), cmocka_unit_test(test_moe)};
    return cmocka_run_group_tests(tests, set_up, remove_temporary);
}
