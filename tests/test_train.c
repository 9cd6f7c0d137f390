// The training loop: it learns, it logs what it does, it skips and stops in order.
#include "train_util.h"

// ---- learning ----

static double mean_loss(const struct rows *r, long from, long to)
{
    double sum = 0;
    for (long i = from; i < to; i++) sum += number(r->row[i], "loss");
    return sum / (double)(to - from);
}

// Random tokens cannot be predicted; only remembering them brings the loss down.
static void test_overfits(void **state)
{
    (void)state;
    static struct trainer t;
    struct dataset_writer w;
    int token[33];
    OK_OR_FAIL(dataset_writer_open(&w, at("poem_train"), TINY_V));
    for (int i = 0; i < 33; i++) token[i] = i == 0 ? 1 : i == 32 ? 2 : 3 + (int)(rng_bits(5, 5, (uint64_t)i) % 50);
    OK_OR_FAIL(dataset_writer_add(&w, token, 33));
    OK_OR_FAIL(dataset_writer_commit(&w));
    OK_OR_FAIL(OPEN(&t, "--data", at("poem"), "--model", at("moe.json"), "--output", at("poem-run"), "--train-steps",
                    "150", "--micro-batch-size", "4", "--global-batch-size", "4", "--seq-length", "16", "--lr", "1e-2",
                    "--lr-warmup-steps", "10", "--moe-capacity-factor", "0", "--weight-decay", "0", "--save-interval",
                        "0"));
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    struct rows r = read_rows(at("poem-run"), "loss");
    assert_int_equal(r.n, 150);
    double first = mean_loss(&r, 0, 1), last = mean_loss(&r, 140, 150);
    printf("  loss %.4f -> %.4f\n", first, last);
    assert_true(fabs(first - log(TINY_V)) < 0.2);
    assert_true(last < 0.2);
    free_rows(&r);
}

// ---- what is logged ----

static void check_row(const cJSON *row, long step, const cJSON *before, double xi, double beta, double most)
{
    assert_int_equal((long)number(row, "step"), step);
    assert_int_equal((long)number(row, "tokens"), step * 6 * 16);
    const cJSON *layers = cJSON_GetObjectItemCaseSensitive(row, "layers");
    assert_int_equal(cJSON_GetArraySize(layers), 2);
    double aux = 0;
    for (int l = 0; l < 2; l++) {
        const cJSON *layer = cJSON_GetArrayItem(layers, l);
        const cJSON *counts = cJSON_GetObjectItemCaseSensitive(layer, "tokens_per_expert");
        double alpha = number(layer, "aux_coeff"), sum = 0, largest = 0;
        for (int e = 0; e < 4; e++) {
            double n = cJSON_GetArrayItem(counts, e)->valuedouble;
            sum += n;
            if (n > largest) largest = n;
        }
        assert_true(sum == 2 * 6 * 16); // K tokens, before dropping
        assert_true(fabs(number(layer, "overload") - largest * 4 / sum) < 1e-12);
        assert_true(number(layer, "router_entropy") > 0 && number(layer, "router_entropy") <= log(4) + 1e-6);
        assert_true(number(layer, "max1_max2") >= 1 && number(layer, "max2_max3") >= 1);
        aux += alpha * number(layer, "aux_loss");
        const cJSON *then = before ? cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(before, "layers"), l) : NULL;
        double wanted = most;
        if (then) {
            double pull = xi * number(then, "drop_rate");
            wanted = beta * number(then, "aux_coeff") + (1 - beta) * (pull < most ? pull : most);
        }
        if (!(fabs(alpha - wanted) <= 1e-6 * wanted)) fail_msg("step %ld: alpha %.9g, expected %.9g", step, alpha,
                                                               wanted);
    }
    if (!(fabs(number(row, "aux_loss") - aux) <= 1e-6 * aux)) fail_msg("step %ld: aux_loss", step);
}

static void test_log(void **state)
{
    (void)state;
    static struct trainer t;
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("log-run"), MOE_RUN,
                    "--train-steps", "30", "--moe-aux-loss-xi", "0.05", "--moe-aux-loss-beta", "0.9",
                    "--eval-interval", "10", "--eval-tokens", "300"));
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    struct rows r = read_rows(at("log-run"), "loss"), e = read_rows(at("log-run"), "eval_loss");
    assert_int_equal(r.n, 30);
    double lowest = 1, highest = 0;
    for (long i = 0; i < r.n; i++) {
        const cJSON *row = r.row[i];
        check_row(row, i + 1, i ? r.row[i - 1] : NULL, 0.05, 0.9, 0.01);
        double alpha = number(cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(row, "layers"), 0), "aux_coeff");
        if (alpha < lowest) lowest = alpha;
        if (alpha > highest) highest = alpha;
        assert_true(cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(row, "skipped")));
        assert_true(cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(row, "mfu")));
        assert_true(number(row, "lr") > 0 && number(row, "grad_norm") > 0 && number(row, "tokens_per_s") > 0);
        assert_true(number(row, "tflops") > 0 && number(row, "rss_bytes") > 0 && number(row, "step_time_s") > 0);
        assert_true(number(row, "exposed_comm_s") == 0);
    }
    printf("  alpha %.6f .. %.6f\n", lowest, highest);
    assert_true(lowest < 0.8 * highest); // the test would be empty otherwise
    assert_int_equal(e.n, 3);
    for (long i = 0; i < e.n; i++) {
        assert_int_equal((long)number(e.row[i], "step"), 10 * (i + 1));
        assert_true(fabs(log(number(e.row[i], "eval_ppl")) - number(e.row[i], "eval_loss")) < 1e-9);
        assert_int_equal((long)number(e.row[i], "eval_tokens"), 300);
        assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(e.row[i], "expert_similarity")), 2);
    }
    free_rows(&r);
    free_rows(&e);
    assert_true(path_exists(at("log-run/config.json")) && path_exists(at("log-run/settings.conf")));
    assert_true(path_exists(at("log-run/step-000030/model.safetensors")) && path_exists(at("log-run/latest")));
}

// The share of a peak that each call is told anew.
static void test_mfu(void **state)
{
    (void)state;
    static struct trainer t;
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("mfu"), MOE_RUN,
                    "--train-steps", "1", "--eval-interval", "0", "--peak-tflops", "0.5"));
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    OK_OR_FAIL(OPEN(&t, "--resume", "--output", at("mfu"), "--train-steps", "2", "--peak-tflops", "0.25"));
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    struct rows r = read_rows(at("mfu"), "loss");
    assert_int_equal(r.n, 2);
    for (long i = 0; i < 2; i++)
        assert_true(fabs(number(r.row[i], "mfu") * (i ? 0.25 : 0.5) / number(r.row[i], "tflops") - 1) < 1e-9);
    free_rows(&r);
}

// The drop rate follows from the counts and the capacity: ceil(1.1 * 2 * 96 / 4) = 53 with all in one micro-batch.
static void test_drop_rate(void **state)
{
    (void)state;
    static struct trainer t;
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("drops"), "--micro-batch-size",
                    "6", "--global-batch-size", "6", "--seq-length", "16", "--eval-interval", "0"));
    OK_OR_FAIL(trainer_step(&t));
    for (long l = 0; l < 2; l++) {
        long over = 0;
        for (long e = 0; e < 4; e++) over += t.model.balance[l].count[e] > 53 ? t.model.balance[l].count[e] - 53 : 0;
        printf("  layer %ld: %ld assignments over the capacity\n", l, over);
        assert_true(over > 0);
        assert_true(fabs(t.result.drop[l] - (double)over / (2 * 96)) < 1e-15);
    }
    trainer_close(&t);
}

// ---- skipping ----

static void poison(struct trainer *t, const char *name, float value)
{
    const struct param *p = param_find(&t->model.params, name);
    assert_non_null(p);
    t->model.x.k->from_host(p->value.data, &value, sizeof value);
}

static float value_of(const struct trainer *t, const char *name)
{
    float value;
    t->model.x.k->to_host(&value, param_find(&t->model.params, name)->value.data, sizeof value);
    return value;
}

static void test_skips(void **state)
{
    (void)state;
    static struct trainer t;
    const char *last = "lm_head.weight", *w = "model.layers.1.self_attn.o_proj.weight";
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("skip"), MOE_RUN,
                    "--train-steps", "20", "--max-skipped", "3", "--dtype", "f32", "--moe-aux-loss-scope", "global",
                        "--save-interval", "1"));
    OK_OR_FAIL(trainer_step(&t));
    OK_OR_FAIL(trainer_save(&t));
    double alpha = t.model.balance[1].alpha, p = t.model.balance[1].global_p[2];
    float before = value_of(&t, w), good = value_of(&t, last);
    poison(&t, last, INFINITY);
    OK_OR_FAIL(trainer_step(&t));
    assert_true(t.result.skipped && t.result.culprit[0]);
    assert_int_equal(t.state.step, 2); // the data advances
    assert_int_equal(t.state.samples, 12);
    assert_int_equal(t.state.updates, 1);
    assert_int_equal(t.state.skipped_in_row, 1);
    assert_true(value_of(&t, w) == before);
    assert_true(t.model.balance[1].alpha == alpha && t.model.balance[1].global_p[2] == p);
    OK_OR_FAIL(trainer_step(&t));
    poison(&t, last, good); // a good step in between: the count begins again
    OK_OR_FAIL(trainer_step(&t));
    assert_false(t.result.skipped);
    assert_int_equal(t.state.updates, 2);
    assert_int_equal(t.state.skipped_in_row, 0);
    assert_true(value_of(&t, w) != before);
    poison(&t, last, NAN);
    assert_int_equal(trainer_run(&t), ERR_FORMAT);
    printf("  %s\n", fail_message());
    assert_non_null(strstr(fail_message(), "step 7: 3 steps in a row"));
    assert_non_null(strstr(fail_message(), "gradient of model.embed_tokens.weight is not finite"));
    assert_non_null(strstr(fail_message(), "step-"));
    assert_int_equal(t.state.step, 7);
    trainer_close(&t);
    char path[PATH_LENGTH];
    OK_OR_FAIL(checkpoint_latest(path, at("skip")));
    OK_OR_FAIL(folder_verify(path));
    struct rows r = read_rows(at("skip"), "loss");
    assert_int_equal(r.n, 7);
    assert_true(cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(r.row[1], "skipped")));
    assert_true(cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(r.row[1], "grad_norm")));
    assert_true(cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(r.row[3], "skipped")));
    free_rows(&r);
}

// The gradient that is named is the first of the table that is not finite, not just the first of the table.
static void test_culprit(void **state)
{
    (void)state;
    static struct trainer t;
    const float nan = NAN;
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("culprit"), MOE_RUN,
                    "--train-steps", "2"));
    OK_OR_FAIL(trainer_step(&t));
    assert_true(isfinite(zero_norm(&t.zero)));
    assert_int_equal(zero_not_finite(&t.zero), -1);
    const char *name = "model.layers.1.block_sparse_moe.experts.2.w3.weight";
    const struct param *p = param_find(&t.model.params, name);
    t.model.x.k->from_host((float *)p->grad + 17, &nan, sizeof nan);
    assert_false(isfinite(zero_norm(&t.zero)));
    assert_int_equal(zero_not_finite(&t.zero), p->index);
    trainer_close(&t);
}

static void test_skip_norm(void **state)
{
    (void)state;
    static struct trainer t;
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("dense.json"), "--output", at("spike"), MOE_RUN,
                    "--train-steps", "9", "--skip-grad-norm", "1e-9", "--max-skipped", "2"));
    assert_int_equal(trainer_run(&t), ERR_FORMAT);
    printf("  %s\n", fail_message());
    assert_non_null(strstr(fail_message(), "--skip-grad-norm"));
    assert_int_equal(t.state.updates, 0);
    trainer_close(&t);
}

// The norm counts every element once; clipping scales what the optimizer sees.
static void test_norm(void **state)
{
    (void)state;
    static struct trainer t;
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("norm"), MOE_RUN));
    OK_OR_FAIL(trainer_step(&t));
    double sum = 0;
    for (long i = 0; i < t.model.params.n; i++) {
        const struct param *p = &t.model.params.item[i];
        long n = p->rows * p->columns;
        float *g = malloc((size_t)n * sizeof *g);
        t.model.x.k->to_host(g, p->grad, n * (long)sizeof *g);
        for (long j = 0; j < n; j++) sum += (double)g[j] * (double)g[j];
        free(g);
    }
    assert_true(fabs(sqrt(sum) / t.result.norm - 1) < 1e-12);
    trainer_close(&t);
}

static float *copy_of(const struct trainer *t, const void *data, long n)
{
    float *copy = malloc((size_t)n * sizeof *copy);
    t->model.x.k->to_host(copy, data, n * (long)sizeof *copy);
    return copy;
}

static const struct zero_piece *state_of(const struct trainer *t, const struct param *p)
{
    const struct zero_piece *piece = t->zero.piece;
    while (piece->param != p) piece++;
    return piece;
}

// AdamW by the formula, with clipping, decay on matrices alone and bias correction.
static void check_adamw(struct trainer *t, const char *name, double decay)
{
    const struct optimizer o = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.5, .clip = 0.01};
    const struct param *p = param_find(&t->model.params, name);
    long n = p->rows * p->columns;
    const struct zero_piece *of = state_of(t, p);
    float *w = copy_of(t, p->value.data, n), *m = copy_of(t, of->m, n), *v = copy_of(t, of->v, n);
    float *g = copy_of(t, p->grad, n);
    double norm = zero_norm(&t->zero), worst = 0, moved = 0, lr = 0.01;
    assert_true(norm > 0.02);
    zero_update(&t->zero, optimizer_at(&o, lr, norm, 4));
    float *after = copy_of(t, p->value.data, n);
    for (long i = 0; i < n; i++) {
        double scaled = (double)g[i] * 0.01 / norm;
        double m1 = 0.9 * (double)m[i] + 0.1 * scaled, v1 = 0.95 * (double)v[i] + 0.05 * scaled * scaled;
        double step = m1 / (1 - pow(0.9, 4)) / (sqrt(v1 / (1 - pow(0.95, 4))) + 1e-8);
        double wanted = (double)w[i] - lr * (step + decay * (double)w[i]);
        double error = fabs((double)after[i] - wanted) / (fabs(wanted) + 1e-3);
        if (!(error <= worst)) worst = error;
        moved += fabs((double)after[i] - (double)w[i]);
    }
    printf("  %s: relative error %.2g\n", name, worst);
    assert_true(worst < 1e-5 && moved > 0);
    free(w);
    free(m);
    free(v);
    free(g);
    free(after);
}

static void test_adamw(void **state)
{
    (void)state;
    static struct trainer t;
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("adamw"), MOE_RUN));
    for (int i = 0; i < 3; i++) OK_OR_FAIL(trainer_step(&t));
    check_adamw(&t, "model.layers.1.self_attn.q_proj.weight", 0.5);
    check_adamw(&t, "model.layers.0.block_sparse_moe.experts.3.w2.weight", 0.5);
    check_adamw(&t, "model.layers.0.block_sparse_moe.gate.weight", 0);
    check_adamw(&t, "model.layers.1.input_layernorm.weight", 0);
    trainer_close(&t);
}

// How a step is cut into micro-batches changes no gradient where no token depends on another sequence: 1/N counts the
// whole step's targets, and the balance loss weighs micro-batches by their tokens.
static void check_accumulation(const char *model)
{
    static struct trainer t[3];
    static const char *const micro[] = {"6", "2", "4"}; // 4: the last one is short
    for (int i = 0; i < 3; i++) {
        OK_OR_FAIL(folder_remove(at("cut")));
        OK_OR_FAIL(OPEN(&t[i], "--data", at("text"), "--model", model, "--output", at("cut"), "--micro-batch-size",
                        micro[i], "--global-batch-size", "6", "--seq-length", "16", "--eval-interval", "0",
                        "--moe-capacity-factor", "0", "--moe-aux-loss-scope", "sequence", "--moe-aux-loss-coeff", "1"));
        OK_OR_FAIL(trainer_step(&t[i]));
        double loss = t[i].result.loss / t[0].result.loss - 1, norm = t[i].result.norm / t[0].result.norm - 1;
        double aux = t[i].model.balance ? t[i].result.aux_loss / t[0].result.aux_loss - 1 : 0;
        printf("  micro-batches of %s: loss differs by %.2g, balance loss %.6g by %.2g, norm by %.2g\n", micro[i], loss,
               t[i].result.aux_loss, aux, norm);
        assert_true(fabs(loss) < 1e-6 && fabs(aux) < 1e-5 && fabs(norm) < 1e-5);
    }
    long targets = 0;
    for (long i = 6 * 16; i < 2 * 6 * 16; i++) targets += t[0].ints[i] >= 0;
    assert_true(targets < 6 * 16); // documents end within: N is not the number of tokens
    for (int i = 0; i < 3; i++) trainer_close(&t[i]);
}

static void test_accumulation(void **state)
{
    (void)state;
    check_accumulation(at("dense.json"));
    check_accumulation(at("moe.json"));
}

// ---- the rest ----

static void test_stop(void **state)
{
    (void)state;
    static struct trainer t;
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("stop"), MOE_RUN,
                    "--train-steps", "50", "--save-interval", "0"));
    trainer_request_stop();
    OK_OR_FAIL(trainer_run(&t));
    assert_int_equal(t.state.step, 1);
    trainer_close(&t);
    OK_OR_FAIL(OPEN(&t, "--output", at("stop"), "--resume", "--train-steps", "3"));
    OK_OR_FAIL(trainer_run(&t));
    assert_int_equal(t.state.step, 3);
    trainer_close(&t);
}

// Weights from a folder: the same values, a fresh optimizer and schedule; f32 masters keep what bf16 values lose.
static void test_init(void **state)
{
    (void)state;
    static struct trainer t;
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("first"), MOE_RUN,
                    "--train-steps", "3", "--dtype", "f32"));
    OK_OR_FAIL(trainer_run(&t));
    const char *w = "model.layers.0.self_attn.k_proj.weight";
    float value = value_of(&t, w), master;
    trainer_close(&t);
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--init", at("first/step-000003"), "--output", at("second"), MOE_RUN,
                    "--train-steps", "3", "--dtype", "bf16"));
    const struct param *p = param_find(&t.model.params, w);
    t.model.x.k->to_host(&master, state_of(&t, p)->master, sizeof master);
    assert_true(master == value);
    assert_int_equal(t.state.step, 0);
    OK_OR_FAIL(trainer_run(&t));
    assert_int_equal(t.state.updates, 3);
    trainer_close(&t);
    assert_int_equal(OPEN(&t, "--data", at("text"), "--init", at("first/step-000003"), "--output", at("third"),
                          "--num-experts", "6"), ERR_CONFIG);
}

static void test_memory_limit(void **state)
{
    (void)state;
    static struct trainer t;
    assert_int_equal(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("limit"), MOE_RUN,
                          "--memory-limit-gib", "0.0001"), ERR_CONFIG);
    printf("  %s\n", fail_message());
    assert_non_null(strstr(fail_message(), "too much"));
    assert_false(path_exists(at("limit")));
}

static void test_sources(void **state)
{
    (void)state;
    static struct trainer t;
    char list[PATH_LENGTH * 2];
    snprintf(list, sizeof list, "0.75 %s 0.25 %s", at("text"), at("few"));
    OK_OR_FAIL(OPEN(&t, "--data", list, "--model", at("dense.json"), "--output", at("blend"), "--micro-batch-size", "3",
                    "--global-batch-size", "8", "--seq-length", "16", "--eval-interval", "0"));
    OK_OR_FAIL(trainer_step(&t));
    long count[2] = {0};
    for (long i = 0; i < 8; i++) count[t.which[i]]++;
    assert_int_equal(count[0], 6);
    assert_int_equal(count[1], 2);
    const double *n = t.sums + 3; // targets of each source
    double whole = (t.result.source_loss[0] * n[0] + t.result.source_loss[1] * n[1]) / (n[0] + n[1]);
    assert_true(fabs(whole - t.result.loss) < 1e-6);
    trainer_close(&t);
    struct rows r = read_rows(at("blend"), "source_loss");
    assert_int_equal(r.n, 1);
    free_rows(&r);
}

static void test_data_skip(void **state)
{
    (void)state;
    static struct trainer a, b;
    OK_OR_FAIL(OPEN(&a, "--data", at("text"), "--model", at("dense.json"), "--output", at("ahead"), MOE_RUN));
    for (int i = 0; i < 2; i++) OK_OR_FAIL(trainer_step(&a));
    OK_OR_FAIL(OPEN(&b, "--data", at("text"), "--model", at("dense.json"), "--output", at("behind"), MOE_RUN,
                    "--data-skip", "6"));
    OK_OR_FAIL(trainer_step(&b));
    assert_memory_equal(a.ints, b.ints, 4 * 6 * 16 * sizeof *a.ints); // its first step reads the other's second
    trainer_close(&a);
    trainer_close(&b);
}

// Data of a larger vocabulary than the model's is refused in a sentence.
static void test_wrong_data(void **state)
{
    (void)state;
    static struct trainer t;
    struct dataset_writer w;
    int token[64];
    for (int i = 0; i < 64; i++) token[i] = i == 40 ? TINY_V : 5;
    OK_OR_FAIL(dataset_writer_open(&w, at("wide_train"), 1000));
    OK_OR_FAIL(dataset_writer_add(&w, token, 64));
    OK_OR_FAIL(dataset_writer_commit(&w));
    OK_OR_FAIL(OPEN(&t, "--data", at("wide"), "--model", at("dense.json"), "--output", at("wide-run"), MOE_RUN,
                    "--train-steps", "3"));
    assert_int_equal(trainer_run(&t), ERR_FORMAT);
    assert_non_null(strstr(fail_message(), "holds token 61"));
    trainer_close(&t);
    assert_int_equal(OPEN(&t, "--data", at("absent"), "--model", at("dense.json"), "--output", at("absent-run")),
                     ERR_IO);
    OK_OR_FAIL(OPEN(&t, "--data", at("wide"), "--model", at("dense.json"), "--output", at("novalid-run"),
                    "--seq-length", "16"));
    assert_false(t.evaluates); // there is no validation part; nobody asked for one
    trainer_close(&t);
    assert_int_equal(OPEN(&t, "--data", at("wide"), "--model", at("dense.json"), "--output", at("novalid-run2"),
                          "--eval-interval", "5", "--seq-length", "16"), ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_overfits),       cmocka_unit_test(test_log),
        cmocka_unit_test(test_drop_rate),      cmocka_unit_test(test_skips),
        cmocka_unit_test(test_culprit),        cmocka_unit_test(test_skip_norm),
        cmocka_unit_test(test_norm),           cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_accumulation),   cmocka_unit_test(test_stop),
        cmocka_unit_test(test_init),           cmocka_unit_test(test_memory_limit),
        cmocka_unit_test(test_sources),        cmocka_unit_test(test_data_skip),
        cmocka_unit_test(test_wrong_data),     cmocka_unit_test(test_mfu),
    };
    return cmocka_run_group_tests(tests, training_set_up, remove_temporary);
}
