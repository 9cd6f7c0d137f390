// Grids, groups and the transport. Alone it looks at layouts; under mpirun every rank runs it and the groups talk.
#include "mpirun_util.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "comm/grid.h"

// ---- layouts ----

static void test_coordinates(void **state)
{
    (void)state;
    struct layout l = {.pp = 3, .dp = 4, .tp = 2, .ep = 2, .etp = 2, .virtual_stages = 1};
    for (long r = 0; r < layout_ranks(&l); r++) {
        struct grid g = grid_of(&l, r);
        assert_int_equal(r, (g.pp * l.dp + g.dp) * l.tp + g.tp);
        assert_int_equal(g.dp * l.tp + g.tp, (g.replica * l.ep + g.ep) * l.etp + g.etp);
        const struct group *groups[] = {&g.world, &g.pipeline, &g.data, &g.tensor, &g.expert, &g.expert_tensor,
                                        &g.replicas, &g.plane, &g.tied};
        for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
            assert_int_equal(group_world_rank(groups[i], groups[i]->rank), r);
            // Every member sees the same members.
            for (long m = 0; m < groups[i]->size; m++) {
                struct grid other = grid_of(&l, group_world_rank(groups[i], m));
                const struct group *same = (const struct group *)((char *)&other + ((char *)groups[i] - (char *)&g));
                assert_int_equal(same->size, groups[i]->size);
                assert_int_equal(same->rank, m);
                for (long k = 0; k < same->size; k++)
                    assert_int_equal(group_world_rank(same, k), group_world_rank(groups[i], k));
            }
        }
    }
}

static void expect_refused(struct layout l, const long items[AXES], long ranks, const char *sentence)
{
    assert_int_equal(layout_check(&l, items, ranks), ERR_CONFIG);
    if (!strstr(fail_message(), sentence)) fail_msg("\"%s\" lacks \"%s\"", fail_message(), sentence);
}

static void test_refused(void **state)
{
    (void)state;
    const long items[AXES] = {5, 6, 0, 251, 8, 24}, four[] = {2, 2, 2}, zero[] = {5, 0};
    struct layout ok = layout_of_one, l = ok;
    assert_int_equal(layout_check(&ok, items, 1), OK);
    expect_refused(ok, items, 2, "do not divide 2 ranks");
    l.pp = 6;
    expect_refused(l, items, 6, "--pipeline-parallel-size 6: 6 stages, but the model has 5 layers");
    l = ok;
    l.dp = l.ep = 9;
    expect_refused(l, items, 9, "--expert-parallel-size 9: the model has 8 experts");
    l.ep = 2;
    expect_refused(l, items, 9, "do not divide the 9 ranks of a stage");
    l = ok;
    l.tp = 3;
    l.given[AXIS_HEAD] = four;
    assert_int_equal(layout_check(&l, items, 3), OK);
    l.given[AXIS_HEAD] = NULL;
    l.given[AXIS_VOCAB] = four;
    expect_refused(l, items, 3, "add up to 6, but the model has 251");
    l = ok;
    l.pp = 2;
    l.given[AXIS_LAYER] = zero;
    expect_refused(l, items, 2, "--layer-split: part 2 is 0");
}

static void test_given_lists(void **state)
{
    (void)state;
    const long count[] = {1, 4, 0, 2};
    struct layout l = layout_of_one;
    l.tp = 4;
    l.given[AXIS_HEAD] = count;
    long next = 0;
    for (long i = 0; i < 4; i++) {
        struct range r = layout_range(&l, AXIS_HEAD, 7, i);
        assert_int_equal(r.first, next);
        assert_int_equal(r.count, count[i]);
        next += r.count;
    }
}

// ---- groups that talk ----

static struct group world(void)
{
    return group_of("world", CHANNEL_WORLD, 0, 1, transport_ranks(), transport_rank());
}

static void test_sums(void **state)
{
    (void)state;
    struct group g = world();
    float x[3];
    double y[2] = {1e-17 * (double)(g.rank + 1), 1};
    long z[2] = {g.rank, -g.rank};
    for (long i = 0; i < 3; i++) x[i] = (float)(g.rank + 1) * 0.1f + (float)i;
    group_sum_f32(&g, x, 3);
    group_sum_f64(&g, y, 2);
    for (long i = 0; i < 3; i++) { // in rank order, to the last bit
        float sum = 0.1f + (float)i;
        for (long r = 1; r < g.size; r++) sum += (float)(r + 1) * 0.1f + (float)i;
        assert_memory_equal(&sum, &x[i], sizeof sum);
    }
    assert_true(y[1] == (double)g.size);
    group_sum_long(&g, z, 1);
    group_max_long(&g, z + 1, 1);
    assert_int_equal(z[0], g.size * (g.size - 1) / 2);
    assert_int_equal(z[1], 0);
}

static void test_gather_broadcast(void **state)
{
    (void)state;
    enum { BYTES = 9 << 20 }; // more than two pieces
    struct group g = world();
    char *all = malloc((size_t)(g.size * BYTES));
    assert_non_null(all);
    memset(all + g.rank * BYTES, (int)g.rank + 1, BYTES);
    group_gather(&g, all, BYTES);
    for (long r = 0; r < g.size; r++)
        for (long i = 0; i < BYTES; i += 4099) assert_int_equal(all[r * BYTES + i], r + 1);
    memset(all, g.rank == 0 ? 77 : 0, BYTES);
    group_broadcast(&g, all, BYTES);
    for (long i = 0; i < BYTES; i += 4099) assert_int_equal(all[i], 77);
    free(all);
    group_barrier(&g);
}

// The two channels are waited for in the other order than they were started.
static void test_channels(void **state)
{
    (void)state;
    struct group g = world();
    long right = (g.rank + 1) % g.size, left = (g.rank + g.size - 1) % g.size;
    int out[2] = {(int)g.rank, 100 + (int)g.rank}, in[2] = {-1, -1};
    if (g.size == 1) return;
    struct message send[2] = {{right, &out[0], sizeof(int)}, {right, &out[1], sizeof(int)}};
    struct message receive[2] = {{left, &in[0], sizeof(int)}, {left, &in[1], sizeof(int)}};
    long sent = transport_traffic(CHANNEL_EXPERT).near_bytes;
    struct transfer *a = transfer_start(CHANNEL_EXPERT, &send[0], 1, &receive[0], 1);
    struct transfer *b = transfer_start(CHANNEL_DATA, &send[1], 1, &receive[1], 1);
    transfer_wait(b);
    assert_int_equal(in[1], 100 + left);
    transfer_wait(a);
    assert_int_equal(in[0], left);
    assert_int_equal(transport_traffic(CHANNEL_EXPERT).near_bytes, sent + (long)sizeof(int));
}

static void test_agree(void **state)
{
    (void)state;
    assert_int_equal(agree(OK), OK);
    assert_false(agreed());
    enum status own = OK;
    if (transport_rank() == transport_ranks() - 1) own = (fail)(ERR_FORMAT, "x: the last rank's sentence");
    assert_int_equal(agree(own), ERR_FORMAT);
    assert_string_equal(fail_message(), "x: the last rank's sentence");
}

static void on_two(void **state) { (void)state; start_ranks(2); }
static void on_five(void **state) { (void)state; start_ranks(5); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_coordinates), cmocka_unit_test(test_refused),  cmocka_unit_test(test_given_lists),
        cmocka_unit_test(test_sums),        cmocka_unit_test(test_gather_broadcast), cmocka_unit_test(test_channels),
        cmocka_unit_test(test_agree),
    };
    const struct CMUnitTest alone[] = {
        cmocka_unit_test(test_coordinates), cmocka_unit_test(test_refused),  cmocka_unit_test(test_given_lists),
        cmocka_unit_test(test_sums),        cmocka_unit_test(test_gather_broadcast), cmocka_unit_test(test_channels),
        cmocka_unit_test(on_two),           cmocka_unit_test(on_five),
    };
    return ranks_or_tests("comm", tests, sizeof tests / sizeof *tests, alone, sizeof alone / sizeof *alone,
                          make_temporary, remove_temporary);
}
