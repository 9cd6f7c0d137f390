// How bench measures: slices of work between slices of a probe. Figures are not looked at, but for what sleeping rules
// out.
#include "model_util.h"

#include "cli/bench.h"

#include <unistd.h>

enum { CALLS = 20, SLEEP_US = 130000 }; // longer than the slice after which a product ends it

static long calls;
static const struct kernels *sliced;
static float number_a = 2, number_b = 3, product;

static void short_call(void *context)
{
    (void)context;
    calls++;
    usleep(1000);
}

static void long_call(void *context)
{
    (void)context;
    calls++;
    usleep(SLEEP_US);
    sliced->matmul_nt(&product, &number_a, (struct tensor){.data = &number_b, .dtype = F32}, 1, 1, 1);
    usleep(1000);
}

static void check_order(const struct quartiles *q)
{
    assert_true(q->low > 0 && q->low <= q->median && q->median <= q->high && isfinite(q->high));
}

static struct bench_row measured(void (*call)(void *), double items)
{
    struct bench_row r = {.unit = "tokens/s"};
    calls = 0;
    bench_measure(&r, &(struct bench_work){call, NULL, PEAK_READ, 1e9, items}, 1);
    check_order(&r.value);
    check_order(&r.fraction);
    return r;
}

// Many short calls make a slice of 60 ms and more; the roof is in the row's unit.
static void test_short_calls(void **state)
{
    (void)state;
    struct bench_row r = measured(short_call, 7);
    printf("  %ld calls, %ld pairs\n", calls, r.pairs);
    assert_int_equal(r.pairs, 20);
    assert_true(calls > 20 && r.value.high <= 7 / 0.001);
    double reads = peak_best(PEAK_READ);
    assert_true(r.roof < 100 * reads / 1e9 * 7 && r.roof > reads / 1e9 * 7 / 100);
}

// A slice ends within a call, before a product; outside bench_measure the same table does not look at the clock.
static void test_long_calls(void **state)
{
    (void)state;
    sliced = bench_sliced(kernels_for(F32));
    long_call(NULL);
    assert_true(product == 6);
    struct bench_row r = measured(long_call, 1);
    printf("  %ld calls, %ld pairs\n", calls, r.pairs);
    assert_int_equal(calls, CALLS + 2);
    assert_int_equal(r.pairs, 2 * CALLS);
    assert_true(r.value.high <= 1e6 / SLEEP_US);
}

static int set_up(void **state)
{
    (void)state;
    return kernels_init(1) == OK && peaks_open() == OK ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    peaks_close();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_short_calls), cmocka_unit_test(test_long_calls)};
    return cmocka_run_group_tests_name("bench", tests, set_up, tear_down);
}
