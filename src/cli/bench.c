// Speed beside what the machine can do at most, measured in the same run. Prints figures; never fails because of one.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/log.h"
#include "cli/bench_balance.h"
#include "cli/command.h"
#include "kernels/peak.h"
#include "model/decode.h"
#include "train/optimizer.h"

static struct options {
    bool kernels, train, decode, prefill, balance;
    const char *model;
    struct balance_options runs; // of --balance
} options;

#define AT(field) offsetof(struct options, field)
static const struct setting rows[] = {
    {"kernels", SETTING_SWITCH, AT(kernels), NULL, 0, 0, NULL, "who serves each kernel; matrix products and attention"},
    {"train", SETTING_SWITCH, AT(train), NULL, 0, 0, NULL, "training steps, dense and mixture of experts"},
    {"decode", SETTING_SWITCH, AT(decode), NULL, 0, 0, NULL, "one sequence, token by token"},
    {"prefill", SETTING_SWITCH, AT(prefill), NULL, 0, 0, NULL, "a prompt of 512 tokens"},
    {"balance", SETTING_SWITCH, AT(balance), NULL, 0, 0, NULL,
     "no speed: short training runs that differ in how experts are balanced, and a table of what came of them"},
    {"model", SETTING_TEXT, AT(model), NULL, 0, 0, NULL,
     "config.json of the model rows; default: 4 layers of hidden 1024, ffn 2816, vocabulary 32000. --balance: the "
     "folder of a mixture that all runs start from"},
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
    .usage = "[--kernels] [--train] [--decode] [--prefill] (default: all of them) | --balance --output DIR",
    .row = rows,
    .n = sizeof rows / sizeof *rows,
    .options = &options,
};

enum { ROWS_MAX = 64, REPEATS = 5 };
struct bench_row {
    char name[48], shape[96];
    double value, roof;
    const char *unit;
};
static struct bench {
    struct peaks peaks;
    struct bench_row row[ROWS_MAX];
    long n;
} bench;

static double product_roof(void) // of bf16 products: by whichever instruction is faster here
{
    return fmax(bench.peaks.f32_flops, bench.peaks.bf16_flops);
}

static struct bench_row *add_row(const char *name, const char *unit, double value, double roof)
{
    CHECK(bench.n < ROWS_MAX);
    struct bench_row *r = &bench.row[bench.n++];
    *r = (struct bench_row){.value = value, .roof = roof, .unit = unit};
    snprintf(r->name, sizeof r->name, "%s", name);
    return r;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Median seconds of one call, after one that warms up. Short calls are repeated to about 20 ms; of long ones there are
// fewer samples.
static double median_seconds(void (*call)(void *), void *context)
{
    double sample[REPEATS], begin = seconds_now();
    call(context);
    double once = seconds_now() - begin;
    long n = once < 0.02 ? (long)(0.02 / (once + 1e-7)) + 1 : 1;
    int taken = 0;
    for (double all = seconds_now(); taken < REPEATS && (!taken || seconds_now() - all < 5); taken++) {
        begin = seconds_now();
        for (long j = 0; j < n; j++) call(context);
        sample[taken] = (seconds_now() - begin) / (double)n;
    }
    qsort(sample, (size_t)taken, sizeof *sample, compare_doubles);
    return sample[taken / 2];
}

// ---- kernels ----

struct product {
    const struct kernels *k;
    void *y, *x, *w, *dw;
    long M, N, K;
    int kind; // 0 forward, 1 input gradient, 2 weight gradient
};

static void product_call(void *context)
{
    struct product *p = context;
    struct tensor w = {.data = p->w, .dtype = p->k->el};
    if (p->kind == 0) p->k->matmul_nt(p->y, p->x, w, p->M, p->N, p->K);
    if (p->kind == 1) p->k->matmul_nn(p->x, p->y, w, p->M, p->N, p->K);
    if (p->kind == 2) p->k->matmul_tn(p->dw, p->y, p->x, p->M, p->N, p->K);
}

static enum status bench_product(enum dtype type, long M, long N, long K)
{
    static const char *const kinds[] = {"forward", "input gradient", "weight gradient"};
    struct product p = {.k = kernels_for(type), .M = M, .N = N, .K = K};
    struct arena a = arena_measure("a product", DEVICE_CPU);
    for (int pass = 0; pass < 2; pass++) {
        p.y = arena_take(&a, M * N, dtype_size(type));
        p.x = arena_take(&a, M * K, dtype_size(type));
        p.w = arena_take(&a, N * K, dtype_size(type));
        p.dw = arena_take(&a, N * K, dtype_size(p.k->acc));
        if (pass == 0) TRY(arena_reserve(&a));
    }
    struct tensor filled[] = {{.data = p.y, .dtype = type}, {.data = p.x, .dtype = type}, {.data = p.w, .dtype = type}};
    long n[] = {M * N, M * K, N * K};
    for (int i = 0; i < 3; i++) p.k->init_normal(filled[i], 0, 1, n[i], 1, (uint64_t)i, 0);
    for (p.kind = 0; p.kind < 3; p.kind++) {
        double seconds = median_seconds(product_call, &p);
        char name[48];
        snprintf(name, sizeof name, "%s product, %s", dtype_name(type), kinds[p.kind]);
        struct bench_row *r = add_row(name, "GFLOP/s", 2e-9 * (double)M * (double)N * (double)K / seconds,
                                      1e-9 * (type == F32 ? bench.peaks.f32_flops : product_roof()));
        snprintf(r->shape, sizeof r->shape, "M=%ld N=%ld K=%ld", M, N, K);
    }
    arena_release(&a);
    return OK;
}

static enum status bench_kernels(bool print)
{
    if (print) {
        printf("%-26s %-12s %-12s\n", "kernel", "f32", "bf16");
        for (long i = 0; i < kernel_rows_n; i++)
            printf("%-26s %-12s %-12s\n", kernel_rows[i].name, kernel_source(F32, i), kernel_source(BF16, i));
    }
    static const long shape[][2] = {{704, 256}, {256, 704}, {2816, 1024}, {1024, 2816}};
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) TRY(bench_product(BF16, 2048, shape[i][0], shape[i][1]));
    return bench_product(F32, 2048, 2816, 1024);
}

// ---- models ----

static struct config default_config(void)
{
    return (struct config){.arch = ARCH_LLAMA, .D = 1024, .F = 2816, .L = 4, .H = 16, .G = 16, .C = 64, .V = 32000,
                           .max_positions = 2048, .norm_eps = 1e-6, .rope_theta = 1e4, .dtype = BF16, .bos = 1,
                           .eos = 2, .pad = -1};
}

struct step {
    struct model *m;
    struct batch b;
    struct optimizer o;
    long update;
};

static void step_call(void *context)
{
    struct step *s = context;
    long T = s->b.B * s->b.S;
    model_zero_gradients(s->m);
    for (long l = 0; s->m->balance && l < s->m->c.L; l++) moe_balance_reset(&s->m->balance[l], s->m->c.E);
    model_forward_backward(s->m, &s->b, 1.0 / (double)T, 1.0);
    optimizer_step(&s->o, s->m, 1e-4, gradient_norm(s->m), ++s->update);
}

static enum status time_steps(struct model *m, const char *name, struct decimal capacity)
{
    long T = m->o.B * m->o.S;
    int *ints = malloc((size_t)T * 4 * sizeof *ints);
    if (!ints) return fail(ERR_MEMORY, "memory: a batch of %ld tokens was refused", T);
    struct step s = {.m = m, .b = {.B = m->o.B, .S = m->o.S, .token = ints, .target = ints + T,
                                   .position = ints + 2 * T, .start = ints + 3 * T},
                     .o = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip = 1.0}};
    for (long t = 0; t < T; t++) {
        s.b.token[t] = (int)((t * 7919 + 13) % m->c.V);
        s.b.target[t] = (int)((t * 104729 + 7) % m->c.V);
        s.b.position[t] = (int)(t % m->o.S);
        s.b.start[t] = 0;
    }
    double seconds = median_seconds(step_call, &s);
    double flops = config_train_flops_per_token(&m->c, m->o.S) * (double)T;
    char shape[96];
    snprintf(shape, sizeof shape, "L=%ld D=%ld F=%ld V=%ld E=%ld K=%ld, %ld x %ld tokens%s", m->c.L, m->c.D, m->c.F,
             m->c.V, m->c.E, m->c.K, m->o.B, m->o.S,
             !m->c.E ? "" : capacity.numerator ? ", capacity 1.1" : ", dropless");
    struct bench_row *r = add_row(name, "GFLOP/s", 1e-9 * flops / seconds, 1e-9 * product_roof());
    snprintf(r->shape, sizeof r->shape, "%s", shape);
    r = add_row(name, "tokens/s", (double)T / seconds, product_roof() * (double)T / flops);
    snprintf(r->shape, sizeof r->shape, "%s", shape);
    free(ints);
    return OK;
}

static enum status bench_step(const char *name, const struct config *c, struct decimal capacity)
{
    static struct model m;
    struct model_options o = {.dtype = BF16, .training = true, .B = 4, .S = 512, .positions = 512,
                              .rule = {.capacity = capacity, .virtual_capacity = {11, 10}, .aux = AUX_SKYWORK}};
    TRY(model_init(&m, c, &o));
    model_init_weights(&m, 1, 0.02, 0.01);
    for (long l = 0; m.balance && l < c->L; l++) m.balance[l].alpha = 0.01;
    enum status status = time_steps(&m, name, capacity);
    model_free(&m);
    return status;
}

static enum status bench_train(const struct config *c)
{
    struct config moe = *c;
    if (c->E) return bench_step("training step, MoE", c, (struct decimal){11, 10});
    TRY(bench_step("training step, dense", c, (struct decimal){0, 1}));
    moe.arch = ARCH_SKYWORK;
    moe.E = 8;
    moe.K = 2;
    moe.gate_norm_std = 1.0;
    TRY(bench_step("training step, MoE", &moe, (struct decimal){11, 10}));
    return bench_step("training step, MoE", &moe, (struct decimal){0, 1});
}

struct decoding {
    struct kv_cache kv;
    int token[512];
    long n; // tokens a call appends
    long context;
    float *logits;
};

static void decode_call(void *context)
{
    struct decoding *d = context;
    if (d->kv.length[0] + d->n > d->kv.max_tokens || d->n > 1) kv_cache_drop(&d->kv, 0);
    if (d->n == 1 && d->kv.length[0] == 0 && kv_append(&d->kv, 0, d->token, d->context, d->logits, NULL) != OK) return;
    if (kv_append(&d->kv, 0, d->token, d->n, d->logits, NULL) != OK) return;
}

static enum status time_decoding(struct model *m, struct decoding *d)
{
    TRY(kv_cache_init(&d->kv, m, 1, 1024, 1024));
    d->logits = malloc((size_t)m->c.V * sizeof *d->logits);
    enum status status = d->logits ? OK : fail(ERR_MEMORY, "memory: %ld logits were refused", m->c.V);
    for (int i = 0; i < 512; i++) d->token[i] = (int)((i * 7919L + 13) % m->c.V);
    // A decode step reads every matrix once, but of the embedding one row.
    double bytes = 2.0 * (double)(config_params_active(&m->c) - (m->c.tied ? 0 : m->c.V * m->c.D));
    double flops = config_train_flops_per_token(&m->c, 512) / 3.0, roof = bench.peaks.read_bytes_per_s / bytes;
    for (int prefill = 0; prefill < 2 && status == OK; prefill++) {
        if (prefill ? !options.prefill : !options.decode) continue;
        d->n = prefill ? 512 : 1;
        d->context = 512;
        double seconds = median_seconds(decode_call, d);
        struct bench_row *r =
            prefill ? add_row("prefill of 512 tokens, bf16", "tokens/s", 512 / seconds, product_roof() / flops)
                    : add_row("decode, one sequence, bf16", "tokens/s", 1 / seconds, roof);
        snprintf(r->shape, sizeof r->shape, "L=%ld D=%ld F=%ld V=%ld E=%ld K=%ld, %.2f GB read a token", m->c.L, m->c.D,
                 m->c.F, m->c.V, m->c.E, m->c.K, 1e-9 * bytes);
    }
    free(d->logits);
    kv_cache_free(&d->kv);
    return status;
}

static enum status bench_decode(const struct config *c)
{
    static struct model m;
    static struct decoding d;
    struct model_options o = {.dtype = BF16, .B = 1, .S = 512, .positions = 1024, .rule = moe_rule_inference};
    TRY(model_init(&m, c, &o));
    model_init_weights(&m, 1, 0.02, 0.01);
    enum status status = time_decoding(&m, &d);
    model_free(&m);
    return status;
}

// ---- output ----

static void print_rows(void)
{
    const struct peaks *p = &bench.peaks;
    printf("peaks, %ld threads: f32 %.0f, bf16 %.0f GFLOP/s, int8 %.0f GOP/s, read %.1f GB/s\n", kernels_threads(),
           1e-9 * p->f32_flops, 1e-9 * p->bf16_flops, 1e-9 * p->int8_ops, 1e-9 * p->read_bytes_per_s);
    printf("%-32s %-58s %12s %-9s %10s %9s\n", "row", "shape", "value", "unit", "roof", "fraction");
    for (long i = 0; i < bench.n; i++) {
        const struct bench_row *r = &bench.row[i];
        printf("%-32s %-58s %12.1f %-9s %10.1f %8.1f%%\n", r->name, r->shape, r->value, r->unit, r->roof,
               100 * r->value / r->roof);
    }
}

static enum status print_json(void)
{
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_begin(&o, "peaks", '{');
    json_put_real(&o, "f32_flops", bench.peaks.f32_flops);
    json_put_real(&o, "bf16_flops", bench.peaks.bf16_flops);
    json_put_real(&o, "int8_ops", bench.peaks.int8_ops);
    json_put_real(&o, "read_bytes_per_s", bench.peaks.read_bytes_per_s);
    json_end(&o, '}');
    json_begin(&o, "rows", '[');
    for (long i = 0; i < bench.n; i++) {
        const struct bench_row *r = &bench.row[i];
        json_begin(&o, NULL, '{');
        json_put_text(&o, "name", r->name);
        json_put_text(&o, "shape", r->shape);
        json_put_real(&o, "value", r->value);
        json_put_text(&o, "unit", r->unit);
        json_put_real(&o, "roof", r->roof > 0 ? r->roof : NAN);
        json_put_real(&o, "fraction", r->roof > 0 ? r->value / r->roof : NAN);
        json_put_null(&o, "target");
        json_end(&o, '}');
    }
    json_end(&o, ']');
    json_end(&o, '}');
    enum status status = json_out_status(&o);
    if (status == OK) printf("%s\n", o.text);
    json_out_free(&o);
    return status;
}

static enum status run(int argc, char **argv)
{
    struct common_options common;
    bool done;
    TRY(command_start(&settings, &common, NULL, &done, argc, argv));
    if (done) return OK;
    if (options.balance) {
        options.runs.model = options.model;
        options.runs.seed = common.seed;
        return bench_balance(&options.runs, common.json);
    }
    if (!options.kernels && !options.train && !options.decode && !options.prefill)
        options.kernels = options.train = options.decode = options.prefill = true;
    struct config c = default_config();
    if (options.model) TRY(config_read(&c, options.model));
    log_line("measuring the machine's peaks");
    peaks_measure(&bench.peaks);
    if (options.kernels) TRY(bench_kernels(!common.json));
    if (options.train) TRY(bench_train(&c));
    if (options.decode || options.prefill) TRY(bench_decode(&c));
    if (common.json) return print_json();
    print_rows();
    return OK;
}

const struct command command_bench = {.name = "bench", .run = run, .settings = &settings};
