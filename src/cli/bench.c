// Speed beside what the machine can do at most, measured in the same run. Prints figures; never fails because of one.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "cli/bench.h"
#include "cli/bench_balance.h"
#include "cli/command.h"

static struct options {
    bool kernels, train, decode, prefill, balance;
    const char *model, *calibrate;
    long B, S; // of --calibrate
    struct balance_options runs; // of --balance
} options;

#define AT(field) offsetof(struct options, field)
static const struct setting rows[] = {
    {"kernels", SETTING_SWITCH, AT(kernels), NULL, 0, 0, NULL, "who serves each kernel; matrix products and attention"},
    {"train", SETTING_SWITCH, AT(train), NULL, 0, 0, NULL,
     "training steps, dense and mixture of experts, and their memory"},
    {"decode", SETTING_SWITCH, AT(decode), NULL, 0, 0, NULL, "one sequence, token by token, bf16 and FP8"},
    {"prefill", SETTING_SWITCH, AT(prefill), NULL, 0, 0, NULL, "a prompt of 512 tokens, bf16 and FP8"},
    {"balance", SETTING_SWITCH, AT(balance), NULL, 0, 0, NULL,
     "no speed: short training runs that differ in how experts are balanced, and a table of what came of them"},
    {"calibrate", SETTING_TEXT, AT(calibrate), NULL, 0, 0, NULL,
     "no rows: measure kernels (and under mpirun messages) at --model's shapes and write a cluster file for plan"},
    {"micro-batch-size", SETTING_LONG, AT(B), "4", 1, 4096, NULL, "--calibrate: sequences of a micro-batch"},
    {"seq-length", SETTING_LONG, AT(S), "512", 1, 1 << 17, NULL, "--calibrate: tokens of each"},
    {"model", SETTING_TEXT, AT(model), NULL, 0, 0, NULL,
     "config.json of the model rows; default: a shape for each row, 13 GB of memory at most. --balance: the folder of "
     "a mixture that all runs start from"},
    {"data", SETTING_TEXT, AT(runs.data), NULL, 0, 0, NULL,
     "--balance: PREFIX of prepared data; without --model and --data a toy of 3 layers, 8 experts and made-up tokens "
     "is trained from random weights: it shows the mechanics, its figures mean nothing for text"},
    {"output", SETTING_TEXT, AT(runs.output), NULL, 0, 0, NULL,
     "--balance: folder of the runs, which stay; runs found there go on, or count as they are when done"},
    {"steps", SETTING_LONG, AT(runs.steps), "160", 1, 1e12, NULL, "--balance: steps of each run"},
    {"data-skip", SETTING_LONG, AT(runs.data_skip), "0", 0, 0x1p53, NULL,
     "--balance: first sample of --data, behind what --model has read"},
};
static const struct settings settings = {
    .command = "bench",
    .summary = "measures speed beside the machine's peaks",
    .usage = "[--kernels] [--train] [--decode] [--prefill] (default: all of them) | --balance --output DIR | "
             "--calibrate FILE",
    .row = rows,
    .n = sizeof rows / sizeof *rows,
    .options = &options,
};

enum { ROWS_MAX = 64 };
static struct bench_row row[ROWS_MAX];
static long rows_n;
static double best[PEAKS];

struct bench_row *bench_add(const char *name, const char *unit, double target)
{
    CHECK(rows_n < ROWS_MAX);
    log_line("%s", name);
    struct bench_row *r = &row[rows_n++];
    *r = (struct bench_row){.unit = unit, .target = target};
    snprintf(r->name, sizeof r->name, "%s", name);
    return r;
}

enum peak bench_product_peak(enum dtype type)
{
    return type == BF16 && best[PEAK_BF16] > best[PEAK_F32] ? PEAK_BF16 : PEAK_F32;
}

// ---- output ----

static void print_sources(void)
{
    printf("%-26s %-12s %-12s\n", "kernel", "f32", "bf16");
    for (long i = 0; i < kernel_rows_n; i++)
        printf("%-26s %-12s %-12s\n", kernel_rows[i].name, kernel_source(F32, i), kernel_source(BF16, i));
}

static void print_rows(void)
{
    printf("peaks, %ld threads: f32 %.0f, bf16 %.0f GFLOP/s, int8 %.0f GOP/s, read %.1f GB/s\n", kernels_threads(),
           1e-9 * best[PEAK_F32], 1e-9 * best[PEAK_BF16], 1e-9 * best[PEAK_INT8], 1e-9 * best[PEAK_READ]);
    printf("%-34s %10s %-9s %10s %9s %15s %7s %6s  %s\n", "row", "value", "unit", "roof", "fraction", "quartiles",
           "target", "pairs", "shape");
    for (long i = 0; i < rows_n; i++) {
        const struct bench_row *r = &row[i];
        printf("%-34s %10.2f %-9s %10.2f %8.1f%% %6.1f - %5.1f%%", r->name, r->value.median, r->unit, r->roof,
               100 * r->fraction.median, 100 * r->fraction.low, 100 * r->fraction.high);
        if (r->target > 0) printf(" %6.0f%%", 100 * r->target);
        else printf(" %7s", "");
        printf(" %6ld  %s\n", r->pairs, r->shape);
    }
}

static void put_quartiles(struct json_out *o, const char *name, struct quartiles q)
{
    json_begin(o, name, '[');
    json_put_real(o, NULL, q.low);
    json_put_real(o, NULL, q.high);
    json_end(o, ']');
}

static enum status print_json(void)
{
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_begin(&o, "peaks", '{');
    json_put_real(&o, "f32_flops", best[PEAK_F32]);
    json_put_real(&o, "bf16_flops", best[PEAK_BF16]);
    json_put_real(&o, "int8_ops", best[PEAK_INT8]);
    json_put_real(&o, "read_bytes_per_s", best[PEAK_READ]);
    json_end(&o, '}');
    json_begin(&o, "rows", '[');
    for (long i = 0; i < rows_n; i++) {
        const struct bench_row *r = &row[i];
        json_begin(&o, NULL, '{');
        json_put_text(&o, "name", r->name);
        json_put_text(&o, "shape", r->shape);
        json_put_real(&o, "value", r->value.median);
        put_quartiles(&o, "value_quartiles", r->value);
        json_put_text(&o, "unit", r->unit);
        json_put_real(&o, "roof", r->roof > 0 ? r->roof : NAN);
        json_put_real(&o, "fraction", r->roof > 0 ? r->fraction.median : NAN);
        put_quartiles(&o, "fraction_quartiles", r->fraction);
        json_put_real(&o, "target", r->target > 0 ? r->target : NAN);
        json_put_long(&o, "pairs", r->pairs);
        json_end(&o, '}');
    }
    json_end(&o, ']');
    json_end(&o, '}');
    return command_print_json(&o);
}

static enum status measure_rows(const struct config *c, bool json)
{
    for (enum peak p = 0; p < PEAKS; p++) best[p] = peak_best(p);
    if (options.calibrate) return bench_calibrate(c, options.B, options.S, options.calibrate, json);
    if (options.kernels) TRY(bench_kernels());
    if (options.train) TRY(bench_train(c));
    if (options.decode) TRY(bench_decode(c));
    if (options.prefill) TRY(bench_prefill(c));
    return OK;
}

// Which options only one mode reads; the modes exclude each other.
static const struct {
    const char *option, *mode;
} belongs[] = {{"data", "balance"}, {"output", "balance"}, {"steps", "balance"}, {"data-skip", "balance"},
               {"micro-batch-size", "calibrate"}, {"seq-length", "calibrate"}};

static enum status check_modes(const bool *set)
{
    const char *mode = options.balance ? "balance" : options.calibrate ? "calibrate" : "";
    bool measures = options.kernels || options.train || options.decode || options.prefill;
    if (*mode && (measures || (options.balance && options.calibrate)))
        return fail(ERR_CONFIG, "--%s: measures nothing else (leave out the other one)", mode);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t j = 0; j < sizeof belongs / sizeof *belongs; j++)
            if (set[i] && strcmp(rows[i].name, belongs[j].option) == 0 && strcmp(mode, belongs[j].mode) != 0)
                return fail(ERR_CONFIG, "--%s: is read by --%s only (give both, or neither)", rows[i].name,
                            belongs[j].mode);
    return OK;
}

static enum status run(int argc, char **argv)
{
    struct common_options common;
    struct config c;
    bool done, set[sizeof rows / sizeof *rows] = {false};
    TRY(command_start(&settings, &common, set, &done, argc, argv));
    if (done) return OK;
    TRY(check_modes(set));
    if (transport_rank() > 0) log_quiet(true);
    if (options.balance) {
        options.runs.model = options.model;
        options.runs.seed = common.seed;
        return bench_balance(&options.runs, common.json);
    }
    if (!options.kernels && !options.train && !options.decode && !options.prefill)
        options.kernels = options.train = options.decode = options.prefill = true;
    if (options.model) TRY(config_read(&c, options.model));
    log_line("measuring the machine's peaks");
    TRY(peaks_open());
    enum status status = measure_rows(options.model ? &c : NULL, common.json);
    peaks_close();
    if (status != OK || options.calibrate) return status;
    if (common.json) return print_json();
    if (options.kernels) print_sources();
    print_rows();
    return OK;
}

const struct command command_bench = {.name = "bench", .run = run, .settings = &settings, .ranks = true};
