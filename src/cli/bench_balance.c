// One start, one data set, one seed; each run differs from the first in the options that the table below names. Figures
// come from the runs' own metrics.jsonl, so that `skymoe report` over the same folders shows the same numbers.
#include "cli/bench_balance.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "base/rng.h"
#include "cli/command.h"
#include "cli/report_data.h"
#include "data/dataset.h"
#include "train/trainer.h"

static const struct way {
    const char *name;
    const char *word[6]; // options of train
} ways[] = {
    {"fixed-0.01", {"--no-moe-aux-loss-adaptive"}},
    {"fixed-0.001", {"--no-moe-aux-loss-adaptive", "--moe-aux-loss-coeff", "0.001"}},
    {"adaptive", {NULL}},
    {"bias-0.001", {"--moe-aux-loss", "bias"}},
    {"bias-0.01", {"--moe-aux-loss", "bias", "--moe-bias-rate", "0.01"}},
    {"gate-norm-off", {"--moe-gate-norm-std", "0"}},
    {"gate-norm-0.5", {"--moe-gate-norm-std", "0.5"}},
    {"gate-norm-2", {"--moe-gate-norm-std", "2"}},
};
enum { WAYS = sizeof ways / sizeof *ways };

// ---- a start where none is given ----

enum { TOY_V = 128, TOY_DOCUMENTS = 600, TOY_TOKENS = 200 };

// Tokens that mostly follow from the one before, by one of eight rules that a document keeps: something for experts to
// tell apart, and nothing more.
static enum status toy_data(const char *prefix, const char *suffix, uint64_t seed)
{
    char path[PATH_LENGTH];
    struct dataset_writer w;
    if (snprintf(path, sizeof path, "%s%s", prefix, suffix) >= PATH_LENGTH)
        return fail(ERR_CONFIG, "--output: the path is too long (use a shorter one)");
    TRY(dataset_writer_open(&w, path, TOY_V));
    enum status status = OK;
    for (long d = 0; d < TOY_DOCUMENTS && status == OK; d++) {
        int token[TOY_TOKENS] = {1};
        long rule = (long)(rng_bits(seed, 1, (uint64_t)d) % 8);
        for (long i = 1; i < TOY_TOKENS - 1; i++) {
            uint64_t r = rng_bits(seed, 2, (uint64_t)(d * TOY_TOKENS + i));
            token[i] = 3 + (int)(r % 5 == 0 ? r / 5 % (TOY_V - 3)
                                            : (uint64_t)(token[i - 1] * (2 * rule + 3) + 7 * rule + 1) % (TOY_V - 3));
        }
        token[TOY_TOKENS - 1] = 2;
        status = dataset_writer_add(&w, token, TOY_TOKENS);
    }
    if (status == OK) return dataset_writer_commit(&w);
    dataset_writer_abort(&w);
    return status;
}

// The toy's files go into a folder of their own: among other runs they would be in the way of `report DIR/*`.
static enum status check_toy_output(const char *output)
{
    char toy[PATH_LENGTH];
    struct path_list found;
    TRY(path_join(toy, output, "toy.json"));
    if (!path_exists(output) || path_exists(toy)) return OK;
    TRY(folder_list(&found, output));
    long n = found.n;
    path_list_free(&found);
    if (n == 0) return OK;
    return fail(ERR_CONFIG, "--output %s: holds something other than runs of the toy (name another folder, or give "
                "--model and --data)", output);
}

static enum status toy_start(char model[PATH_LENGTH], char data[PATH_LENGTH], const char *output)
{
    static const char config[] =
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 64,\n"
        " \"intermediate_size\": 96, \"num_hidden_layers\": 3, \"num_attention_heads\": 4, \"vocab_size\": 128,\n"
        " \"max_position_embeddings\": 128, \"torch_dtype\": \"float32\"}\n";
    TRY(folder_make(output));
    TRY(path_join(model, output, "toy.json"));
    TRY(path_join(data, output, "toy"));
    TRY(file_write(model, config, (long)strlen(config)));
    TRY(toy_data(data, "_train", 1));
    return toy_data(data, "_valid", 2);
}

// ---- runs ----

struct words {
    const char *word[48];
    int n;
    char number[8][32]; // texts of numbers among them
    int numbers;
};

static void add_word(struct words *w, const char *word)
{
    CHECK(w->n < 48);
    w->word[w->n++] = word;
}

static void add_option(struct words *w, const char *name, const char *value)
{
    add_word(w, name);
    add_word(w, value);
}

static void add_number(struct words *w, const char *name, long value)
{
    CHECK(w->numbers < 8);
    snprintf(w->number[w->numbers], sizeof *w->number, "%ld", value);
    add_option(w, name, w->number[w->numbers++]);
}

// What every run has in common. A short run: the learning rate is constant, as in the middle of a long one.
static void common_words(struct words *w, const struct balance_options *o, const char *folder, bool toy)
{
    add_word(w, "train");
    add_option(w, "--output", folder);
    add_option(w, "--data", o->data);
    add_number(w, "--train-steps", o->steps);
    add_number(w, "--data-skip", o->data_skip);
    add_number(w, "--seed", o->seed);
    add_number(w, "--eval-interval", o->steps > 4 ? o->steps / 4 : 1);
    add_number(w, "--log-interval", o->steps > 4 ? o->steps / 4 : 1);
    add_option(w, "--seq-length", toy ? "128" : "256");
    add_option(w, "--micro-batch-size", "4");
    add_option(w, "--global-batch-size", "4");
    add_option(w, "--lr-schedule", "constant");
    add_option(w, "--lr", "2e-3");
    add_option(w, "--lr-warmup-steps", "10");
    add_option(w, "--eval-tokens", toy ? "2048" : "16384");
    add_option(w, "--save-interval", "0");
    if (toy) add_option(w, "--num-experts", "8");
}

static enum status train_with(const struct words *w)
{
    static struct trainer trainer;
    struct train_options o;
    struct settings s = train_settings(&o);
    struct common_options common;
    bool *set = calloc((size_t)train_rows_n, sizeof *set);
    if (!set) return fail(ERR_MEMORY, "memory: refused (free some memory)");
    enum status status = settings_parse(&s, &common, set, w->n, (char **)(uintptr_t)w->word);
    if (status == OK) status = trainer_open(&trainer, &o, set);
    free(set);
    TRY(status);
    status = trainer_run(&trainer);
    trainer_close(&trainer);
    return status;
}

static enum status train_way(const struct balance_options *o, const struct way *way, bool toy)
{
    char folder[PATH_LENGTH], latest[PATH_LENGTH];
    struct words w = {.n = 0};
    TRY(path_join(folder, o->output, way->name));
    TRY(path_join(latest, folder, "latest"));
    common_words(&w, o, folder, toy);
    if (path_exists(latest)) add_word(&w, "--resume"); // refuses other settings than the run began with
    else add_option(&w, toy ? "--model" : "--init", o->model);
    for (int i = 0; way->word[i]; i++) add_word(&w, way->word[i]);
    log_line("run %s", way->name);
    return train_with(&w);
}

// ---- what came of them ----

struct outcome {
    double drop_first, drop_last; // mean over layers, of the first and last tenth of the steps
    double alpha, alpha_least, alpha_most; // coefficients of the last step over layers
    double overload, max1_max2, max2_max3; // mean over layers, last tenth
    double similarity, loss;               // of the last evaluation
};

// Mean over layers and over bins [from, to) of those that the run has, one at least.
static double mean_of(const struct report_run *r, enum layer_field field, double from, double to)
{
    double sum = 0;
    long n = 0, first = (long)(from * (double)r->bins_used), bins = (long)(to * (double)r->bins_used + 0.5) - first;
    if (bins < 1) bins = 1;
    for (long l = 0; l < r->L; l++)
        for (long b = first; b < first + bins && b < r->bins_used; b++) {
            double v = r->layer[field][l * r->bins + b];
            if (!isfinite(v)) continue;
            sum += v;
            n++;
        }
    return n ? sum / (double)n : NAN;
}

static struct outcome outcome_of(const struct report_run *r)
{
    struct outcome a = {
        .drop_first = mean_of(r, LAYER_DROP, 0, 0.1),
        .drop_last = mean_of(r, LAYER_DROP, 0.9, 1),
        .overload = mean_of(r, LAYER_OVERLOAD, 0.9, 1),
        .max1_max2 = mean_of(r, LAYER_MAX12, 0.9, 1),
        .max2_max3 = mean_of(r, LAYER_MAX23, 0.9, 1),
        .alpha_least = INFINITY,
        .alpha_most = -INFINITY,
        .similarity = NAN,
        .loss = r->evals ? r->eval_loss[r->evals - 1] : NAN,
    };
    for (long l = 0; l < r->L; l++) {
        double v = NAN;
        for (long b = 0; b < r->bins_used; b++)
            if (isfinite(r->layer[LAYER_COEFF][l * r->bins + b])) v = r->layer[LAYER_COEFF][l * r->bins + b];
        a.alpha += v / (double)r->L;
        a.alpha_least = fmin(a.alpha_least, v);
        a.alpha_most = fmax(a.alpha_most, v);
    }
    if (r->evals && r->similarities) {
        a.similarity = 0;
        for (long l = 0; l < r->similarities; l++)
            a.similarity += r->similarity[(r->evals - 1) * r->similarities + l] / (double)r->similarities;
    }
    return a;
}

static enum status read_outcomes(struct outcome *out, const struct balance_options *o)
{
    for (long i = 0; i < WAYS; i++) {
        char folder[PATH_LENGTH];
        struct report_run r;
        TRY(path_join(folder, o->output, ways[i].name));
        TRY(report_run_read(&r, folder));
        out[i] = outcome_of(&r);
        report_run_free(&r);
    }
    return OK;
}

static void print_table(const struct outcome *out, const struct balance_options *o)
{
    printf("%-14s %9s %9s %9s %19s %9s %7s %7s %8s %8s\n", "run", "dropped", "dropped", "alpha", "of layers",
           "overload", "max1/2", "max2/3", "similar", "valid");
    printf("%-14s %9s %9s %9s %19s %9s %7s %7s %8s %8s\n", "", "first 10%", "last 10%", "at end", "from, to",
           "last 10%", "", "", "experts", "loss");
    for (long i = 0; i < WAYS; i++) {
        const struct outcome *a = &out[i];
        printf("%-14s %8.2f%% %8.2f%% %9.2g %9.2g %9.2g %9.3f %7.3f %7.3f %8.4f %8.4f\n", ways[i].name,
               100 * a->drop_first, 100 * a->drop_last, a->alpha, a->alpha_least, a->alpha_most, a->overload,
               a->max1_max2, a->max2_max3, a->similarity, a->loss);
    }
    printf("runs: %s/NAME (skymoe report draws them together)\n", o->output);
}

static enum status print_json(const struct outcome *out, const struct balance_options *o)
{
    struct json_out j = {0};
    json_begin(&j, NULL, '{');
    json_put_text(&j, "output", o->output);
    json_put_long(&j, "steps", o->steps);
    json_begin(&j, "balance", '[');
    for (long i = 0; i < WAYS; i++) {
        const struct outcome *a = &out[i];
        json_begin(&j, NULL, '{');
        json_put_text(&j, "name", ways[i].name);
        json_put_real(&j, "drop_rate_first", a->drop_first);
        json_put_real(&j, "drop_rate_last", a->drop_last);
        json_put_real(&j, "aux_coeff", a->alpha);
        json_put_real(&j, "aux_coeff_least", a->alpha_least);
        json_put_real(&j, "aux_coeff_most", a->alpha_most);
        json_put_real(&j, "overload", a->overload);
        json_put_real(&j, "max1_max2", a->max1_max2);
        json_put_real(&j, "max2_max3", a->max2_max3);
        json_put_real(&j, "expert_similarity", a->similarity);
        json_put_real(&j, "eval_loss", a->loss);
        json_end(&j, '}');
    }
    json_end(&j, ']');
    json_end(&j, '}');
    return command_print_json(&j);
}

static enum status check_experts(const char *model)
{
    struct config c;
    TRY(config_read(&c, model));
    return c.E ? OK : fail(ERR_CONFIG, "--model %s: has no experts to balance (upcycle it first)", model);
}

enum status bench_balance(const struct balance_options *given, bool json)
{
    char model[PATH_LENGTH], data[PATH_LENGTH];
    struct balance_options o = *given;
    struct outcome out[WAYS];
    bool toy = !o.model && !o.data;
    if (!o.output) return fail(ERR_CONFIG, "--output: is missing (name the folder where the runs of --balance stay)");
    if (!toy && !(o.model && o.data))
        return fail(ERR_CONFIG, "--balance: needs --model and --data, or neither of them (give both)");
    TRY(agree(toy ? check_toy_output(o.output) : check_experts(o.model))); // before any rank writes
    if (toy) TRY(toy_start(model, data, o.output));
    if (toy) {
        o.model = model;
        o.data = data;
    }
    for (long i = 0; i < WAYS; i++) TRY(train_way(&o, &ways[i], toy));
    TRY(read_outcomes(out, &o));
    if (json) return print_json(out, &o);
    print_table(out, &o);
    return OK;
}
