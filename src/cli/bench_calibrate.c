// `bench --calibrate FILE`: the constants of this machine as a cluster file for `plan`. Kernels run at the shapes of a
// model, with the threads of this process: a device is what one process uses. Under mpirun all ranks measure at the
// same time, as they would train, and the wire between the first two is measured too.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "cli/bench.h"
#include "comm/group.h"
#include "plan/cluster.h"

enum { SLICES = 9, SEQUENCES = 4, LENGTH = 512, TOKENS = SEQUENCES * LENGTH, EXPERTS = 8, TOP = 2 };
static const double most_elements = 6e7; // of the experts' weights: about 1 GB with gradients and moments
static const double slice_seconds = 0.08;

// Everything the kernels read and write, at the sizes of one model.
struct bench_shape {
    const struct kernels *k;
    struct attention_shape attention;
    long D, N, F, E, R; // N: columns of the attention's product; R: rows of experts
    el *x, *y, *rows, *ab, *qkv, *o, *dqkv;
    struct tensor w, w13;
    acc *dw, *dw13, *lse, *moment[3];
    int *start;
    long *first; // host
};

static void shape_layout(struct bench_shape *s, struct arena *a)
{
    long size = dtype_size(s->k->el), size_acc = dtype_size(s->k->acc), HC = s->attention.H * s->attention.C;
    s->x = arena_take(a, TOKENS * s->D, size);
    s->y = arena_take(a, TOKENS * s->N, size);
    s->rows = arena_take(a, s->R * s->D, size);
    s->ab = arena_take(a, s->R * 2 * s->F, size);
    s->qkv = arena_take(a, TOKENS * s->N, size);
    s->dqkv = arena_take(a, TOKENS * s->N, size);
    s->o = arena_take(a, TOKENS * HC, size);
    s->w = (struct tensor){.data = arena_take(a, s->N * s->D, size), .dtype = s->k->el};
    s->w13 = (struct tensor){.data = arena_take(a, s->E * 2 * s->F * s->D, size), .dtype = s->k->el};
    s->dw = arena_take(a, s->N * s->D, size_acc);
    s->dw13 = arena_take(a, s->E * 2 * s->F * s->D, size_acc);
    for (int i = 0; i < 3; i++) s->moment[i] = arena_take(a, s->E * 2 * s->F * s->D, size_acc);
    s->lse = arena_take(a, TOKENS * s->attention.H, size_acc);
    s->start = arena_take(a, TOKENS, sizeof *s->start);
    s->first = arena_take(a, s->E + 1, sizeof *s->first);
}

// ---- the kernels ----

static void product(struct bench_shape *s)
{
    s->k->matmul_nt(s->y, s->x, s->w, TOKENS, s->N, s->D);
    s->k->matmul_nn(s->x, s->y, s->w, TOKENS, s->N, s->D);
}
static void product_weight(struct bench_shape *s)
{
    s->k->matmul_tn(s->dw, s->y, s->x, TOKENS, s->N, s->D);
}
static void grouped(struct bench_shape *s)
{
    s->k->grouped_nt(s->ab, s->rows, s->w13, s->first, s->E, 2 * s->F, s->D);
    s->k->grouped_nn(s->rows, s->ab, s->w13, s->first, s->E, 2 * s->F, s->D);
}
static void grouped_weight(struct bench_shape *s)
{
    s->k->grouped_tn(s->dw13, s->ab, s->rows, s->first, s->E, 2 * s->F, s->D);
}
static void attention(struct bench_shape *s)
{
    s->k->attention(s->o, s->lse, s->qkv, s->start, s->attention);
}
static void attention_backward(struct bench_shape *s)
{
    s->k->attention_backward(s->dqkv, s->o, s->qkv, s->o, s->lse, s->start, s->attention);
}
// What memory bounds: an update of weights far beyond the caches.
static void memory(struct bench_shape *s)
{
    struct adamw_step step = {.lr = 1e-9, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .correction1 = 1, .correction2 = 1,
                              .grad_scale = 1};
    acc *master = s->k->el == s->k->acc ? NULL : s->moment[2];
    s->k->adamw(s->w13, master, s->moment[0], s->moment[1], s->dw13, s->E * 2 * s->F * s->D, step);
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// `amount` of one call, a second: the median of slices.
static struct constant measure(const char *name, void (*call)(struct bench_shape *), struct bench_shape *s,
                               double amount)
{
    double rate[SLICES], begin;
    log_line("%s", name);
    call(s);
    for (int i = 0; i < SLICES; i++) {
        long n = 0;
        begin = seconds_now();
        do {
            call(s);
            n++;
        } while (seconds_now() - begin < slice_seconds);
        rate[i] = amount * (double)n / (seconds_now() - begin);
    }
    qsort(rate, SLICES, sizeof *rate, compare_doubles);
    return (struct constant){rate[SLICES / 2], SOURCE_MEASURED};
}

static void measure_kernels(struct cluster *c, struct bench_shape *s)
{
    double ND = (double)s->N * (double)s->D * TOKENS, FD = 2 * (double)s->F * (double)s->D * (double)s->R;
    double seen = TOKENS * (LENGTH + 1) / 2.0 * (double)(s->attention.H * s->attention.C);
    double elements = (double)s->E * 2 * (double)s->F * (double)s->D;
    bool masters = s->k->el != s->k->acc;
    double peak = peak_best(bench_product_peak(s->k->el));
    c->flops[RATE_PRODUCT] = measure("products", product, s, 2 * 2 * ND);
    c->flops[RATE_PRODUCT_WEIGHT] = measure("products of weight gradients", product_weight, s, 2 * ND);
    c->flops[RATE_GROUPED] = measure("products of experts", grouped, s, 2 * 2 * FD);
    c->flops[RATE_GROUPED_WEIGHT] = measure("weight gradients of experts", grouped_weight, s, 2 * FD);
    c->flops[RATE_ATTENTION] = measure("attention", attention, s, 4 * seen);
    c->flops[RATE_ATTENTION_BACKWARD] = measure("attention, backward", attention_backward, s, 2.5 * 4 * seen);
    for (int i = 0; i < RATES; i++) // at levels without a probe, the best kernel
        if (c->flops[i].value > peak) peak = c->flops[i].value;
    c->peak_flops = (struct constant){peak, SOURCE_MEASURED};
    double bytes = masters ? 28 + (double)dtype_size(s->k->el) : 28; // gradient; master and moments both ways; value
    c->read_bytes_per_s = measure("memory", memory, s, elements * bytes);
}

// ---- the wire ----

// Both ranks send `bytes` to each other, `times` times one after another.
static double exchange_seconds(char *data, long bytes, int times)
{
    long peer = 1 - transport_rank();
    double begin = seconds_now();
    for (int i = 0; i < times; i++) {
        struct message send = {peer, data, bytes}, receive = {peer, data + bytes, bytes};
        transfer_wait(transfer_start(CHANNEL_WORLD, &send, 1, &receive, 1));
    }
    return (seconds_now() - begin) / times;
}

static enum status measure_wire(struct cluster *c)
{
    enum { LARGE = 4 << 20 };
    if (transport_ranks() < 2 || transport_rank() > 1) return OK;
    char *data = calloc(2, LARGE);
    if (!data) return fail(ERR_MEMORY, "memory: two messages of %d bytes were refused", LARGE);
    log_line("messages between two ranks");
    exchange_seconds(data, LARGE, 10);
    struct wire *wire = transport_near(1 - transport_rank()) ? &c->inside : &c->between;
    wire->latency_s = (struct constant){exchange_seconds(data, 8, 1000), SOURCE_MEASURED};
    wire->bytes_per_s = (struct constant){LARGE / exchange_seconds(data, LARGE, 50), SOURCE_MEASURED};
    free(data);
    return OK;
}

// ---- the file ----

// A device is the share of this machine that one process takes; without ranks to measure a wire there is one.
static void describe(struct cluster *c)
{
    struct sysinfo info = {0};
    char host[64] = "host";
    (void)sysinfo(&info);
    (void)gethostname(host, sizeof host - 1);
    c->devices = transport_ranks();
    c->hosts = 1;
    c->memory_bytes = (struct constant){(double)info.totalram * info.mem_unit / (double)c->devices, SOURCE_MEASURED};
    snprintf(c->name, sizeof c->name, "%ld process%s on one host", c->devices, c->devices == 1 ? "" : "es");
    snprintf(c->device, sizeof c->device, "%ld thread%s of its processors", kernels_threads(),
             kernels_threads() == 1 ? "" : "s");
}

static enum status write_cluster(const struct cluster *c, const char *path, bool json)
{
    struct json_out o = {0};
    if (transport_rank() != 0) return OK;
    cluster_put(&o, c);
    enum status status = json_out_status(&o);
    if (status == OK) status = file_write(path, o.text, (long)strlen(o.text));
    if (status == OK && json) printf("%s\n", o.text);
    json_out_free(&o);
    struct cluster copy = *c;
    for (long i = 0; status == OK && !json && i < CLUSTER_CONSTANTS; i++) {
        struct constant *k;
        const char *name = cluster_constant(&k, &copy, i);
        if (k->source != SOURCE_ABSENT) printf("%-32s %.4g\n", name, k->value);
    }
    return status;
}

static void fill(const struct bench_shape *s)
{
    struct tensor x = {.data = s->x, .dtype = s->k->el}, qkv = x, rows = x;
    qkv.data = s->qkv;
    rows.data = s->rows;
    for (long e = 0; e < s->E; e++) s->first[e] = partition(s->R, s->E, e).first;
    s->first[s->E] = s->R;
    s->k->init_normal(x, 0, 1, TOKENS * s->D, 1, 1, 0);
    s->k->init_normal(qkv, 0, 1, TOKENS * s->N, 1, 2, 0);
    s->k->init_normal(rows, 0, 1, s->R * s->D, 1, 3, 0);
    s->k->init_normal(s->w, 0, 0.02, s->N * s->D, 1, 4, 0);
    s->k->init_normal(s->w13, 0, 0.02, s->E * 2 * s->F * s->D, 1, 5, 0);
}

// Four digits are more than such a measurement has.
static void round_constants(struct cluster *c)
{
    for (long i = 0; i < CLUSTER_CONSTANTS; i++) {
        struct constant *k;
        char text[32];
        cluster_constant(&k, c, i);
        snprintf(text, sizeof text, "%.4g", k->value);
        k->value = strtod(text, NULL);
    }
}

static enum status calibrate(struct bench_shape *s, const char *path, bool json)
{
    struct cluster c = {0};
    struct arena a = arena_measure("what kernels are measured on", DEVICE_CPU);
    shape_layout(s, &a);
    TRY(arena_reserve(&a));
    shape_layout(s, &a);
    fill(s);
    describe(&c);
    measure_kernels(&c, s);
    enum status status = measure_wire(&c);
    round_constants(&c);
    if (status == OK) status = write_cluster(&c, path, json);
    arena_release(&a);
    return status;
}

static enum status calibrate_shape(const struct config *given, const char *path, bool json)
{
    struct config c = given ? *given : (struct config){.D = 1024, .F = 2816, .H = 16, .G = 16, .C = 64, .dtype = BF16};
    if (!c.E) {
        c.E = EXPERTS;
        c.K = TOP;
    }
    // As many experts as memory allows, with as many rows each as the model's.
    double most = most_elements / (2 * (double)c.F * (double)c.D);
    long experts = (double)c.E < most ? c.E : most > 1 ? (long)most : 1;
    struct bench_shape s = {
        .k = kernels_for(c.dtype == F32 ? F32 : BF16), .D = c.D, .N = (c.H + 2 * c.G) * c.C, .F = c.F,
        .E = experts, .R = (TOKENS * c.K * experts + c.E - 1) / c.E,
        .attention = {.B = SEQUENCES, .S = LENGTH, .H = c.H, .G = c.G, .C = c.C, .per_kv = c.H / c.G,
                      .scale = 1.0 / 8},
    };
    return calibrate(&s, path, json);
}

enum status bench_calibrate(const struct config *c, const char *path, bool json)
{
    TRY(transport_open()); // of use under mpirun only
    if (transport_rank() != 0) log_quiet(true);
    enum status status = calibrate_shape(c, path, json);
    transport_close();
    return status;
}
