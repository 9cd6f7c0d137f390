// `bench --calibrate FILE`: the constants of this machine as a cluster file for `plan`. Kernels run at the shapes of a
// model, with the threads of this process: a device is what one process uses. Under mpirun all ranks measure at the
// same time, as they would train, and the wire between the first two is measured too.
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "cli/bench.h"
#include "comm/group.h"
#include "plan/cost.h"

enum { SLICES = 9, EXPERTS = 8, TOP = 2 };
static const double most_elements = 6e7; // of the experts' weights: about 1 GB with gradients and moments
static const double slice_seconds = 0.08;

// Everything the kernels read and write, at the sizes of one model.
struct bench_shape {
    const struct kernels *k;
    struct attention_shape attention;
    const struct config *c;
    long T, D, N, F, E, R; // T: tokens of a micro-batch; N: columns of the attention's product; R: rows of E experts
    el *x, *y, *rows, *ab, *qkv, *o, *dqkv;
    struct tensor w, w13;
    acc *dw, *dw13, *lse, *moment[3];
    int *start;
    long *first; // host
    struct other { // of the kernels that are no products
        el *n, *dn, *h, *dab;
        acc *scale, *dscale, *rstd, *dxn, *angle;
        acc *z, *dz, *g, *inv_std, *weight, *score, *row_weight, *dweight;
        int *position, *expert, *row, *source;
        long *first, *count;
    } other;
};

static void other_layout(struct bench_shape *s, struct arena *a)
{
    long size = dtype_size(s->k->el), size_acc = dtype_size(s->k->acc), E = s->c->E, K = s->c->K, rows = s->T * K;
    s->other.n = arena_take(a, s->T * s->D, size);
    s->other.dn = arena_take(a, s->T * s->D, size);
    s->other.h = arena_take(a, rows * s->F, size);
    s->other.dab = arena_take(a, rows * 2 * s->F, size);
    acc **of_tokens[] = {&s->other.rstd, &s->other.inv_std};
    for (int i = 0; i < 2; i++) *of_tokens[i] = arena_take(a, s->T, size_acc);
    acc **of_gate[] = {&s->other.z, &s->other.dz, &s->other.g};
    for (int i = 0; i < 3; i++) *of_gate[i] = arena_take(a, s->T * E, size_acc);
    acc **of_rows[] = {&s->other.weight, &s->other.score, &s->other.row_weight, &s->other.dweight};
    for (int i = 0; i < 4; i++) *of_rows[i] = arena_take(a, rows, size_acc);
    s->other.scale = arena_take(a, s->D, size_acc);
    s->other.dscale = arena_take(a, s->D, size_acc);
    s->other.dxn = arena_take(a, s->T * s->D, size_acc);
    s->other.angle = arena_take(a, s->attention.S * s->attention.C, size_acc);
    s->other.position = arena_take(a, s->T, sizeof *s->other.position);
    int **indices[] = {&s->other.expert, &s->other.row, &s->other.source};
    for (int i = 0; i < 3; i++) *indices[i] = arena_take(a, rows, sizeof **indices[i]);
    s->other.first = arena_take(a, E + 1, sizeof *s->other.first);
    s->other.count = arena_take(a, E, sizeof *s->other.count);
}

static void shape_layout(struct bench_shape *s, struct arena *a)
{
    long size = dtype_size(s->k->el), size_acc = dtype_size(s->k->acc), HC = s->attention.H * s->attention.C;
    s->x = arena_take(a, s->T * s->D, size);
    s->y = arena_take(a, s->T * s->N, size);
    s->rows = arena_take(a, s->T * s->c->K * s->D, size);
    s->ab = arena_take(a, s->T * s->c->K * 2 * s->F, size);
    s->qkv = arena_take(a, s->T * s->N, size);
    s->dqkv = arena_take(a, s->T * s->N, size);
    s->o = arena_take(a, s->T * HC, size);
    s->w = (struct tensor){.data = arena_take(a, s->N * s->D, size), .dtype = s->k->el};
    s->w13 = (struct tensor){.data = arena_take(a, s->E * 2 * s->F * s->D, size), .dtype = s->k->el};
    s->dw = arena_take(a, s->N * s->D, size_acc);
    s->dw13 = arena_take(a, s->E * 2 * s->F * s->D, size_acc);
    for (int i = 0; i < 3; i++) s->moment[i] = arena_take(a, s->E * 2 * s->F * s->D, size_acc);
    s->lse = arena_take(a, s->T * s->attention.H, size_acc);
    s->start = arena_take(a, s->T, sizeof *s->start);
    s->first = arena_take(a, s->E + 1, sizeof *s->first);
    other_layout(s, a);
}

// ---- the kernels ----

static void product(struct bench_shape *s)
{
    s->k->matmul_nt(s->y, s->x, s->w, s->T, s->N, s->D);
    s->k->matmul_nn(s->x, s->y, s->w, s->T, s->N, s->D);
}
static void product_weight(struct bench_shape *s)
{
    s->k->matmul_tn(s->dw, s->y, s->x, s->T, s->N, s->D);
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
// A layer's kernels that are no products, forward and backward, but for attention's: as cost.c counts their bytes.
static void elements(struct bench_shape *s)
{
    const struct kernels *k = s->k;
    const struct other *o = &s->other;
    long T = s->T, D = s->D, F = s->F, E = s->c->E, K = s->c->K, C = s->attention.C, R;
    for (int half = 0; half < 2; half++) { // attention, experts
        k->rmsnorm(o->n, o->rstd, s->x, o->scale, 1e-6, T, D);
        if (half == 0) {
            for (int sign = 1; sign >= -1; sign -= 2)
                k->rope(s->qkv, o->position, o->angle, sign, T, s->attention.H + s->attention.G, C, s->N);
            k->add(o->dn, o->n, s->x, T * D);
        } else {
            k->gate(o->g, o->inv_std, o->expert, o->weight, o->score, o->z, NULL, 1, T, E, K);
            R = k->route(o->source, o->row, o->first, o->count, o->expert, o->score, LONG_MAX, DROP_PROBS, 0, T, T, E,
                         K);
            k->permute(s->rows, o->n, o->source, R, K, D);
            k->pick(o->row_weight, o->weight, o->source, R);
            k->swiglu(o->h, s->ab, o->row_weight, R, F);
            k->combine(o->dn, s->x, NULL, s->rows, o->row, T, K, D);
            k->permute(s->rows, o->dn, o->source, R, K, D);
            k->swiglu_backward(o->dab, o->dweight, o->h, s->ab, o->row_weight, R, F);
            k->gate_backward(o->dz, o->dweight, NULL, o->g, o->inv_std, o->z, o->expert, o->weight, 1, 0, T, T, E,
                             K);
            k->combine(o->n, NULL, o->dxn, s->rows, o->row, T, K, D);
        }
        k->rmsnorm_backward(o->dn, o->dn, o->n, s->x, o->scale, o->rstd, T, D);
        k->rmsnorm_backward_weight(o->dscale, o->n, s->x, o->rstd, T, D);
    }
}

// The bytes of it: what a plan of one device divides by its rate.
static double elements_bytes(const struct bench_shape *s)
{
    struct constant one = {1, SOURCE_MEASURED};
    struct cluster clock = {.hosts = 1, .devices = 1, .peak_flops = one, .read_bytes_per_s = one};
    struct run r = {.c = s->c, .cluster = &clock, .layout = grid_of_one().layout, .dtype = s->k->el,
                    .B = s->attention.B, .S = s->attention.S, .exchange_chunks = 1};
    struct costs costs;
    costs_of(&costs, &r);
    const struct work *w = &costs.layer;
    return w->forward.t[TERM_ELEMENTS] + w->input.t[TERM_ELEMENTS] + w->weight.t[TERM_ELEMENTS];
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
    double ND = (double)(s->N * s->D) * (double)s->T, FD = 2 * (double)s->F * (double)s->D * (double)s->R;
    double seen = (double)s->T * (double)(s->attention.S + 1) / 2 * (double)(s->attention.H * s->attention.C);
    double weights = (double)s->E * 2 * (double)s->F * (double)s->D;
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
    c->read_bytes_per_s = measure("memory", memory, s, weights * bytes);
    c->elements_bytes_per_s = measure("what is no product", elements, s, elements_bytes(s));
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

// The share of a transfer's time that is gone when products run meanwhile: both sides start at the same time.
static double overlap(struct bench_shape *s, char *data, long most, double bytes_per_s)
{
    double share[SLICES], begin;
    long peer = 1 - transport_rank(), bytes;
    struct group both = group_of("pair", CHANNEL_WORLD, 0, 1, 2, transport_rank());
    for (int i = 0; i < SLICES; i++) {
        exchange_seconds(data, 8, 1);
        begin = seconds_now();
        grouped(s);
        double alone = seconds_now() - begin;
        bytes = (long)(alone * bytes_per_s);
        if (bytes > most) bytes = most;
        group_max_long(&both, &bytes, 1);
        double travel = exchange_seconds(data, bytes, 1);
        exchange_seconds(data, 8, 1);
        begin = seconds_now();
        struct message send = {peer, data, bytes}, receive = {peer, data + bytes, bytes};
        struct transfer *t = transfer_start(CHANNEL_WORLD, &send, 1, &receive, 1);
        grouped(s);
        transfer_wait(t);
        double together = seconds_now() - begin;
        share[i] = (alone + travel - together) / (alone < travel ? alone : travel);
    }
    qsort(share, SLICES, sizeof *share, compare_doubles);
    return fmin(fmax(share[SLICES / 2], 0), 1);
}

static enum status measure_wire(struct cluster *c, struct bench_shape *s)
{
    enum { LARGE = 4 << 20, MOST = 64 << 20 };
    bool measures = transport_ranks() > 1 && transport_rank() < 2;
    char *data = measures ? calloc(2, MOST) : NULL;
    bool refused = measures && !data;
    enum status status = agree(refused ? fail(ERR_MEMORY, "memory: two messages of %d bytes were refused", MOST) : OK);
    if (status != OK || !measures) {
        free(data);
        return status;
    }
    log_line("messages between two ranks");
    exchange_seconds(data, LARGE, 10);
    struct wire *wire = transport_near(1 - transport_rank()) ? &c->inside : &c->between;
    wire->latency_s = (struct constant){exchange_seconds(data, 8, 1000), SOURCE_MEASURED};
    wire->bytes_per_s = (struct constant){LARGE / exchange_seconds(data, LARGE, 50), SOURCE_MEASURED};
    kernels_meanwhile(transport_meanwhile);
    wire->overlap = (struct constant){overlap(s, data, MOST, wire->bytes_per_s.value), SOURCE_MEASURED};
    kernels_meanwhile(NULL);
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

// Before half a minute of measuring: can the file be made?
static enum status may_write(const char *path)
{
    struct output out;
    TRY(output_open(&out, path));
    output_abort(&out);
    return OK;
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
    struct tensor z = {.data = s->other.z, .dtype = s->k->acc}, scale = z;
    scale.data = s->other.scale;
    qkv.data = s->qkv;
    rows.data = s->rows;
    for (long e = 0; e < s->E; e++) s->first[e] = partition(s->R, s->E, e).first;
    s->first[s->E] = s->R;
    s->k->init_normal(x, 0, 1, s->T * s->D, 1, 1, 0);
    s->k->init_normal(qkv, 0, 1, s->T * s->N, 1, 2, 0);
    s->k->fill(scale, 1, s->D);
    s->k->init_normal(z, 0, 1, s->T * s->c->E, 1, 6, 0);
    s->k->rope_angles(s->other.angle, 1e4, s->attention.S, s->attention.C);
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

static enum status measure_all(struct bench_shape *s, const char *path, bool json)
{
    struct cluster c = {0};
    fill(s);
    describe(&c);
    measure_kernels(&c, s);
    TRY(measure_wire(&c, s));
    round_constants(&c);
    return write_cluster(&c, path, json);
}

static enum status calibrate(struct bench_shape *s, const char *path, bool json)
{
    struct arena a = arena_measure("what kernels are measured on", DEVICE_CPU);
    shape_layout(s, &a);
    TRY(agree(transport_rank() == 0 ? may_write(path) : OK));
    enum status status = agree(arena_reserve(&a));
    if (status == OK) {
        shape_layout(s, &a);
        status = measure_all(s, path, json);
    }
    arena_release(&a);
    return status;
}

enum status bench_calibrate(const struct config *given, long B, long S, const char *path, bool json)
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
        .k = kernels_for(c.dtype == F32 ? F32 : BF16), .c = &c, .T = B * S, .D = c.D, .N = (c.H + 2 * c.G) * c.C,
        .F = c.F, .E = experts, .R = (B * S * c.K * experts + c.E - 1) / c.E,
        .attention = {.B = B, .S = S, .H = c.H, .G = c.G, .C = c.C, .per_kv = c.H / c.G,
                      .scale = 1.0 / 8},
    };
    return calibrate(&s, path, json);
}
