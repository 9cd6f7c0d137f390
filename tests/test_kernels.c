// Every kernel of every table: the reference in float and bfloat16 against the reference in double, the reference with
// one thread against all threads (same bits), and each override of this machine against the reference, called twice
// for the same bits. `test_kernels NAME [SHAPE]` runs one entry or test, of an entry one of its shapes;
// `test_kernels --time` tests nothing and prints speeds.
#include "kernel_cases_attention.h"
#include "kernel_cases_moe.h"
#include "kernel_cases_rows.h"
#include "kernel_time.h"

#include <pthread.h>

#include "base/decimal.h"

static const struct {
    const char *name;
    kernel_case *run;
} cases[] = {
#define CASE(entry) {#entry, case_##entry}
    CASE(copy), CASE(to_host), CASE(from_host), CASE(zero), CASE(cast), CASE(add_parts), CASE(fill),
    CASE(init_normal),
    CASE(matmul_nt), CASE(matmul_nt_acc), CASE(matmul_nn), CASE(matmul_tn), CASE(grouped_nt), CASE(grouped_nn),
    CASE(grouped_tn), CASE(router_nt), CASE(router_nn), CASE(router_tn),
    CASE(embed), CASE(embed_backward), CASE(add), CASE(rmsnorm), CASE(rmsnorm_backward), CASE(rmsnorm_backward_weight),
    CASE(rope_angles), CASE(rope), CASE(attention), CASE(attention_backward), CASE(kv_store), CASE(attention_paged),
    CASE(gate), CASE(gate_backward), CASE(z_loss), CASE(z_loss_backward), CASE(gate_sums), CASE(gate_statistics),
    CASE(route), CASE(route_given), CASE(pick), CASE(place), CASE(permute), CASE(combine), CASE(swiglu),
    CASE(swiglu_backward), CASE(expert_similarity), CASE(logits_parts), CASE(cross_entropy), CASE(kl_divergence),
    CASE(adamw), CASE(sum_squares), CASE(sum), CASE(amax),
};
enum { CASES = sizeof cases / sizeof cases[0] };

static void report(const char *entry, const char *who, enum dtype type, const struct worst *w)
{
    print_message("  %-24s %-4s %-10s largest difference %-9.3g %5.1f %% of its bound, %ld values\n", entry,
                  dtype_name(type), who, w->difference, 100 * w->of_bound, w->values);
}

static void test_entry(void **state)
{
    long row = (long)*state;
    const char *entry = kernel_rows[row].name;
    kernel_case *run = NULL;
    for (long i = 0; i < CASES; i++)
        if (!strcmp(cases[i].name, entry)) run = cases[i].run;
    if (!run) fail_msg("%s has no case: add one to tests/kernel_cases_*.h", entry);

    struct kernels reference[F64 + 1];
    long failures = 0;
    for (int type = F32; type <= F64; type++) kernels_reference(&reference[type], (enum dtype)type);
    for (int type = F32; type <= F64; type++) {
        const struct kernels *k = kernels_for((enum dtype)type), *ref = &reference[type], *exact = &reference[F64];
        struct worst w = {0};
        failures += compare_tables(&w, entry, run, ref, ref, ref, ref, SAME_BITS_ONE_THREAD);
        if (type != F64) {
            w = (struct worst){0};
            failures += compare_tables(&w, entry, run, ref, ref, exact, exact, WITHIN_BOUNDS);
            report(entry, "ref", (enum dtype)type, &w);
            if (!w.nonzero) print_error("%s: every value was zero\n", entry), failures++;
        }
        long at = kernel_rows[row].offset;
        if (!memcmp((const char *)k + at, (const char *)ref + at, sizeof(void (*)(void)))) continue;
        w = (struct worst){0};
        failures += compare_tables(&w, entry, run, k, ref, ref, ref, WITHIN_BOUNDS);
        report(entry, kernel_source((enum dtype)type, row), (enum dtype)type, &w);
        failures += compare_tables(&w, entry, run, k, ref, k, ref, SAME_BITS);
    }
    assert_int_equal(failures, 0);
}

// ---- the row contract of inference ----

static bool from_dnnl(enum dtype type, const char *entry)
{
    for (long row = 0; row < kernel_rows_n; row++)
        if (!strcmp(kernel_rows[row].name, entry)) return !strcmp(kernel_source(type, row), "dnnl");
    return false;
}

static char *copy_of(const char *data, long bytes)
{
    char *copy = malloc((size_t)bytes);
    assert_non_null(copy);
    return memcpy(copy, data, (size_t)bytes);
}

struct products { // one product of each kind with the same rows and weights
    char *x, *y, *acc, *z, *grouped;
    struct tensor w;
    void *router;
    enum dtype el;
    long N, K;
};

static void products_run(const struct products *p, long from, long rows)
{
    const struct kernels *k = kernels_for(p->el);
    const char *x = p->x + from * p->K * dtype_size(p->el);
    k->matmul_nt(p->y, x, p->w, rows, p->N, p->K);
    k->matmul_nt_acc(p->acc, x, p->w, rows, p->N, p->K);
    k->router_nt(p->z, x, p->router, rows, p->N, p->K);
    k->grouped_nt(p->grouped, x, p->w, (long[]){0, 0, rows}, 2, p->N / 2, p->K);
}

enum { ROWS_M = 512 };

static struct products products_new(struct check *c, enum weight weight, long N, long K)
{
    struct products p = {.el = c->k->el, .N = N, .K = K};
    p.x = in_el(c, ROWS_M * K);
    p.w = in_weight(c, weight, N, K);
    p.router = in_acc(c, N * K);
    p.y = in_el(c, ROWS_M * N);
    p.acc = in_acc(c, ROWS_M * N);
    p.z = in_acc(c, ROWS_M * N);
    p.grouped = in_el(c, ROWS_M * N / 2);
    return p;
}

// What the last n rows give together against what each gave alone.
static void compare_rows(const struct products *p, const struct products *alone, long n)
{
    long from = ROWS_M - n, size = dtype_size(p->el), row = p->N * size;
    products_run(p, from, n);
    assert_memory_equal(p->y, alone->y + from * row, (size_t)(n * row));
    assert_memory_equal(p->acc, alone->acc + from * p->N * 4, (size_t)(n * p->N * 4));
    assert_memory_equal(p->z, alone->z + from * p->N * 4, (size_t)(n * p->N * 4));
    assert_memory_equal(p->grouped, alone->grouped + from * row / 2, (size_t)(n * row / 2));
}

// An output of products_nt is one sum in an order that K, the type and the level fix: a row has the same bits alone and
// among any number of rows, with any number of threads. oneDNN does not promise it, and inference does not ask it of
// oneDNN.
static void test_rows_alone(void **state)
{
    (void)state;
    static const struct {
        long K, N, most; // most: rows that are compared
    } shapes[] = {{33, 66, ROWS_M}, {3, 66, 113}, {517, 322, 113}, {1101, 66, ROWS_M}};
    static const long counts[] = {2, 5, 8, 9, 29, 113, 114, 128, 129, 255, 256, 257, 384, 511, 512};
    enum { SHAPES = sizeof shapes / sizeof *shapes, COUNTS = sizeof counts / sizeof *counts };
    for (int t = 0; t < 2 * WEIGHTS * SHAPES; t++) { // f32, bf16, and FP8 weights with each
        int d = t / (2 * WEIGHTS);
        long N = shapes[d].N, most = shapes[d].most;
        enum weight weight = (enum weight)(t / 2 % WEIGHTS);
        enum dtype type = t % 2 ? BF16 : F32;
        if (weight == 0 && from_dnnl(type, "matmul_nt")) {
            print_message("  %s products are oneDNN's: rows alone not compared\n", dtype_name(type));
            continue;
        }
        struct check c = {.k = kernels_for(type), .ref = kernels_for(type), .exact = type, .shape = d};
        struct products p = products_new(&c, weight, N, shapes[d].K), alone = p, row;
        long size = dtype_size(type);
        alone.y = copy_of(p.y, ROWS_M * N * size);
        alone.acc = copy_of(p.acc, ROWS_M * N * 4);
        alone.z = copy_of(p.z, ROWS_M * N * 4);
        alone.grouped = copy_of(p.grouped, ROWS_M * N / 2 * size);
        for (long i = ROWS_M - most; i < ROWS_M; i++) {
            row = alone;
            row.y += i * N * size;
            row.acc += i * N * 4;
            row.z += i * N * 4;
            row.grouped += i * N / 2 * size;
            products_run(&row, i, 1);
        }
        for (long n = 1; n <= ROWS_M && d == 0; n += n < 130 ? 1 : n < 500 ? 31 : 1) compare_rows(&p, &alone, n);
        for (int threads = d == 2 ? 1 : 3; threads <= 3; threads++) {
            assert_int_equal(kernels_init(threads), OK);
            for (int i = 0; i < COUNTS && counts[i] <= most; i++) compare_rows(&p, &alone, counts[i]);
        }
        assert_int_equal(kernels_init(0), OK);
        free(alone.y);
        free(alone.acc);
        free(alone.z);
        free(alone.grouped);
        check_free(&c);
    }
}

static long meanwhile_calls, meanwhile_strangers;
static pthread_t meanwhile_caller;

static void count_meanwhile(void)
{
    meanwhile_calls++;
    meanwhile_strangers += !pthread_equal(pthread_self(), meanwhile_caller);
}

// Large products and attention let the caller's thread, and no other, see to messages; without a call nothing happens.
// What they work in they keep.
static void test_meanwhile(void **state)
{
    (void)state;
    enum { M = 512, N = 256, K = 256, S = 256, H = 4, C = 64 };
    const enum dtype types[] = {F32, BF16};
    const long first[3] = {0, 200, M};
    meanwhile_caller = pthread_self();
    void *x = calloc(2 * M * K, 4), *y = calloc(M * 4 * N, 4), *w = calloc(2 * N * K, 4), *lse = calloc(S * H, 4);
    int *start = calloc(S, sizeof *start);
    struct attention_shape s = {.B = 1, .S = S, .H = H, .G = H, .C = C, .per_kv = 1, .window = 0, .scale = 1};
    struct kernel_buffers before = {0, 0};
    for (int threads = 1; threads <= 2; threads++)
        for (int which = 0; which < 2; which++) {
            enum dtype type = types[which];
            assert_int_equal(kernels_init(threads), OK);
            const struct kernels *k = kernels_for(type);
            struct tensor t = {.data = w, .dtype = type};
            const char *const entry[] = {"matmul_nt", "matmul_nn", "matmul_tn", "grouped_nt", "attention"};
            for (int i = 0; i < 5; i++)
                for (int told = 1; told >= 0; told--) {
                    meanwhile_calls = meanwhile_strangers = 0;
                    kernels_meanwhile(told ? count_meanwhile : NULL);
                    if (i == 0) k->matmul_nt(y, x, t, M, N, K);
                    if (i == 1) k->matmul_nn(y, x, t, M, N, K);
                    if (i == 2) k->matmul_tn(y, x, x, M, N, K);
                    if (i == 3) k->grouped_nt(y, x, t, first, 2, N, K);
                    if (i == 4) k->attention(y, lse, x, start, s);
                    const struct kernel_buffers kept = kernels_buffers();
                    if (told) before = kept;
                    else assert_true(kept.own == before.own && kept.library == before.library); // kept for the next
                    bool own = strstr(source_of(type, entry[i]), "avx") != NULL; // the others have no tasks of ours
                    // With several threads the caller's may come too late for any task.
                    if (told && own && threads == 1) assert_true(meanwhile_calls > 1);
                    if (!told || !own) assert_int_equal(meanwhile_calls, 0);
                    assert_int_equal(meanwhile_strangers, 0);
                    if (own) assert_true(kept.own > 0);
                }
        }
    kernels_meanwhile(NULL);
    assert_int_equal(kernels_init(0), OK);
    free(x);
    free(y);
    free(w);
    free(lse);
    free(start);
}

// Every FP8 code at every place of a vector is worth what dtype.c says, and NaN is NaN in its own column only.
static void test_fp8_codes(void **state)
{
    (void)state;
    enum { N = 259, K = 70 };
    static uint8_t code[N * K];
    float scale[N], y[K * N];
    uint8_t next = 0;
    for (long i = 0; i < N * K; i++, next++) {
        while (isnan(e4m3_to_float(next))) next++;
        code[i] = next;
    }
    for (long n = 0; n < N; n++) scale[n] = 0.5f + (float)n;
    code[3 * K + 5] = 0x7f;
    code[258 * K + 69] = 0xff;
    for (int t = F32; t <= BF16; t++) {
        const struct kernels *k = kernels_for((enum dtype)t);
        static double unit[K * K]; // room for either type
        for (long i = 0; i < K * K; i++) put(unit, t, i, i / K == i % K);
        struct tensor w = {.data = code, .scale = scale, .dtype = F8_E4M3};
        for (long m = 0, rows = 1; m < K; m += rows, rows++) {
            if (rows > 8 || rows > K - m) rows = K - m;
            k->matmul_nt_acc(y + m * N, (char *)unit + m * K * dtype_size((enum dtype)t), w, rows, N, K);
        }
        for (long m = 0; m < K; m++)
            for (long n = 0; n < N; n++) {
                if (n == 3 || n == 258) assert_true(isnan(y[m * N + n]));
                else assert_true(y[m * N + n] == e4m3_to_float(code[n * K + m]) * scale[n]);
            }
    }
}

struct pages { // rows of two sequences over pages
    const struct kernels *k;
    struct kv_view kv;
    char *qkv, *o;
    long H, G, C, window;
};

static void pages_run(struct pages *p, char *o, long from, long rows)
{
    struct kv_view kv = p->kv;
    kv.sequence += from;
    kv.position += from;
    p->k->attention_paged(o, p->qkv + from * (p->H + 2 * p->G) * p->C * dtype_size(p->k->el), kv, rows, p->H, p->G,
                          p->C, p->window, 1 / sqrt((double)p->C));
}

// The same of attention over pages: any rows of two prompts, together or a few at a time, with any number of threads.
static void test_paged_rows_alone(void **state)
{
    (void)state;
    enum { FIRST = 150, SECOND = 83, T = FIRST + SECOND, STRIDE = 10 };
    static const long shapes[][4] = {{4, 2, 64, 0}, {3, 3, 80, 0}, {2, 1, 128, 70}, {8, 1, 6, 5}, {2, 2, 32, 0}};
    static const long counts[] = {1, 2, 3, 7, 8, 9, 17, 33, 64, 100, T};
    for (int i = 0; i < 10; i++) {
        enum dtype type = i % 2 ? BF16 : F32;
        const long *s = shapes[i / 2];
        struct check c = {.k = kernels_for(type), .ref = kernels_for(type), .exact = type, .shape = i};
        struct pages p = {.k = c.k, .H = s[0], .G = s[1], .C = s[2], .window = s[3], .kv.table_stride = STRIDE};
        long n = 2 * STRIDE * PAGE_TOKENS * p.G * p.C, bytes = p.H * p.C * dtype_size(type);
        int *table = in_ints(&c, 2 * STRIDE, 1), *sequence = in_ints(&c, T, 1), *position = in_ints(&c, T, 1);
        for (int j = 0; j < 2 * STRIDE; j++) table[j] = j * 7 % (2 * STRIDE);
        for (int t = 0; t < T; t++) {
            sequence[t] = t >= FIRST;
            position[t] = t - (t >= FIRST) * FIRST;
        }
        p.kv.table = table;
        p.kv.sequence = sequence;
        p.kv.position = position;
        p.kv.k = in_el(&c, n);
        p.kv.v = in_el(&c, n);
        p.qkv = in_el(&c, T * (p.H + 2 * p.G) * p.C);
        p.o = in_el(&c, T * p.H * p.C);
        pages_run(&p, p.o, 0, T);
        char *o = copy_of(p.o, T * bytes);
        for (int j = 0; j < 11; j++) {
            omp_set_num_threads(j % 2 ? 1 : (int)kernels_threads());
            memset(p.o, 0xff, (size_t)(T * bytes));
            for (long t = 0; t < T; t += counts[j])
                pages_run(&p, p.o + t * bytes, t, counts[j] < T - t ? counts[j] : T - t);
            assert_memory_equal(p.o, o, (size_t)(T * bytes));
        }
        omp_set_num_threads((int)kernels_threads());
        free(o);
        check_free(&c);
    }
}

int main(int count, char **arguments)
{
    if (kernels_init(0) != OK) {
        fprintf(stderr, "%s\n", fail_message());
        return 1;
    }
    if (count > 1 && !strcmp(arguments[1], "--time")) return time_kernels(arguments + 2, count - 2);
    struct CMUnitTest tests[128];
    long n = 0;
    if (count > 2 && !long_parse(&only_shape, arguments[2])) return 1;
    for (long row = 0; row < kernel_rows_n && n < 128; row++) {
        if (count > 1 && strcmp(arguments[1], kernel_rows[row].name)) continue;
        tests[n++] = (struct CMUnitTest){.name = kernel_rows[row].name, .test_func = test_entry,
                                         .initial_state = (void *)row};
    }
    const struct CMUnitTest further[] = {cmocka_unit_test(test_rows_alone), cmocka_unit_test(test_fp8_codes),
                                         cmocka_unit_test(test_meanwhile)};
    for (int i = 0; i < 3; i++)
        if (count == 1 || !strcmp(arguments[1], further[i].name)) tests[n++] = further[i];
    if (count == 1 || (!strcmp(arguments[1], "attention_paged") && only_shape < 0))
        tests[n++] = (struct CMUnitTest){.name = "paged_rows_alone", .test_func = test_paged_rows_alone};
    return _cmocka_run_group_tests("kernels", tests, (size_t)n, NULL, NULL);
}
