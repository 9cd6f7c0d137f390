// `bench --balance` on its toy: every run is trained once, and the table says what the runs' metrics say.
#include <fcntl.h>
#include <unistd.h>

#include "cli/bench_balance.h"
#include "train_util.h"

// The JSON that a call printed.
static cJSON *result_of(const struct balance_options *o)
{
    char *text;
    long bytes;
    cJSON *json;
    fflush(stdout);
    int saved = dup(1), to = open(at("out"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(to, 1);
    enum status status = bench_balance(o, true);
    fflush(stdout);
    dup2(saved, 1);
    close(saved);
    close(to);
    OK_OR_FAIL(status);
    OK_OR_FAIL(file_read(&text, &bytes, at("out"), 1 << 20));
    OK_OR_FAIL(json_parse(&json, text, bytes, "out"));
    free(text);
    return json;
}

static const cJSON *row_of(const cJSON *result, const char *name)
{
    const cJSON *row = json_field(result, "balance")->child;
    while (row && strcmp(json_field(row, "name")->valuestring, name)) row = row->next;
    if (!row) fail_msg("no row %s", name);
    return row;
}

// Mean over layers of a field in one row of the run's metrics.
static double layers_mean(const cJSON *row, const char *field)
{
    const cJSON *layers = json_field(row, "layers");
    double sum = 0;
    for (const cJSON *l = layers->child; l; l = l->next) sum += number(l, field);
    return sum / cJSON_GetArraySize(layers);
}

// Of a tenth of 20 steps, from row `first` on.
static double tenth_mean(const struct rows *steps, long first, const char *field)
{
    return (layers_mean(steps->row[first], field) + layers_mean(steps->row[first + 1], field)) / 2;
}

static void near(double a, double b)
{
    if (!(fabs(a - b) <= 1e-12 * (1 + fabs(b)))) fail_msg("%.17g, expected %.17g", a, b);
}

static void test_table(void **state)
{
    (void)state;
    enum { STEPS = 20 };
    const struct balance_options o = {.output = at("runs"), .steps = STEPS, .seed = 1};
    static const char *const names[] = {"fixed-0.01", "fixed-0.001", "adaptive", "bias-0.001", "bias-0.01",
                                        "gate-norm-off", "gate-norm-0.5", "gate-norm-2"};
    cJSON *result = result_of(&o);
    assert_int_equal(cJSON_GetArraySize(json_field(result, "balance")), 8);
    for (int i = 0; i < 8; i++) {
        char run[64];
        const cJSON *row = row_of(result, names[i]);
        snprintf(run, sizeof run, "runs/%s", names[i]);
        struct rows steps = read_rows(at(run), "loss"), evals = read_rows(at(run), "eval_loss");
        assert_int_equal(steps.n, STEPS);
        near(number(row, "drop_rate_first"), tenth_mean(&steps, 0, "drop_rate"));
        near(number(row, "drop_rate_last"), tenth_mean(&steps, STEPS - 2, "drop_rate"));
        near(number(row, "aux_coeff"), layers_mean(steps.row[STEPS - 1], "aux_coeff"));
        near(number(row, "max1_max2"), tenth_mean(&steps, STEPS - 2, "max1_max2"));
        near(number(row, "eval_loss"), number(evals.row[evals.n - 1], "eval_loss"));
        const cJSON *similar = json_field(evals.row[evals.n - 1], "expert_similarity");
        double sum = 0;
        for (const cJSON *v = similar->child; v; v = v->next) sum += v->valuedouble;
        near(number(row, "expert_similarity"), sum / 3);
        free_rows(&steps);
        free_rows(&evals);
    }
    assert_true(number(row_of(result, "fixed-0.01"), "aux_coeff") == 0.01);
    assert_true(number(row_of(result, "fixed-0.001"), "aux_coeff") == 0.001);
    assert_true(number(row_of(result, "adaptive"), "aux_coeff") < 0.01);
    assert_true(number(row_of(result, "bias-0.001"), "aux_coeff") == 0);
    double soft = number(row_of(result, "gate-norm-0.5"), "max1_max2");
    double hard = number(row_of(result, "gate-norm-2"), "max1_max2");
    assert_true(soft < number(row_of(result, "adaptive"), "max1_max2"));
    assert_true(hard > 2 * soft);

    // Again: nothing is trained, the same is said.
    cJSON *again = result_of(&o);
    assert_true(cJSON_Compare(result, again, true));
    struct rows steps = read_rows(at("runs/adaptive"), "loss");
    assert_int_equal(steps.n, STEPS);
    free_rows(&steps);
    cJSON_Delete(again);
    cJSON_Delete(result);

    // Another seed is another experiment.
    struct balance_options other = o;
    other.seed = 2;
    assert_int_equal(bench_balance(&other, true), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "--seed"));
}

// Fewer steps than tenths: the first and the last one stand for them.
static void test_short(void **state)
{
    (void)state;
    const struct balance_options o = {.output = at("short"), .steps = 3, .seed = 1};
    cJSON *result = result_of(&o);
    struct rows steps = read_rows(at("short/adaptive"), "loss");
    const cJSON *row = row_of(result, "adaptive");
    near(number(row, "drop_rate_first"), layers_mean(steps.row[0], "drop_rate"));
    near(number(row, "drop_rate_last"), layers_mean(steps.row[2], "drop_rate"));
    free_rows(&steps);
    cJSON_Delete(result);
}

static void test_refused(void **state)
{
    (void)state;
    struct balance_options o = {.steps = 4, .seed = 1};
    assert_int_equal(bench_balance(&o, true), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "--output"));
    o.output = at("none");
    o.data = at("text");
    assert_int_equal(bench_balance(&o, true), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "--model"));
    write_config("dense.json", false, 64);
    o.model = at("dense.json");
    assert_int_equal(bench_balance(&o, true), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "dense.json: has no experts to balance"));
    assert_false(path_exists(at("none")));

    // Other runs are left as they are.
    o = (struct balance_options){.output = at("others"), .steps = 4, .seed = 1};
    OK_OR_FAIL(folder_make(at("others/fixed-0.01")));
    assert_int_equal(bench_balance(&o, true), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "holds something other"));
    assert_false(path_exists(at("others/toy.json")));
}

static int set_up(void **state)
{
    log_quiet(true);
    return make_temporary(state) == 0 && kernels_init(1) == OK ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_table), cmocka_unit_test(test_short),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, set_up, remove_temporary);
}
