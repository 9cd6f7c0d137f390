// The parameter table: names, order, places and sums; what a model reserves for it.
#include "model_util.h"

static struct config skywork_moe(void)
{
    return (struct config){.arch = ARCH_SKYWORK, .D = 4608, .F = 12288, .L = 52, .H = 36, .G = 36, .C = 128, .V = 65532,
                           .E = 16, .K = 2, .max_positions = 8192, .norm_eps = 1e-6, .rope_theta = 10000,
                           .gate_norm_std = 1, .dtype = BF16};
}

// Written without the table.
static long formula(const struct config *c)
{
    long attention = c->D * (c->H + 2 * c->G) * c->C + c->H * c->C * c->D;
    long ffn = 3 * c->D * c->F;
    long layer = attention + 2 * c->D + (c->E ? c->E * (ffn + c->D) : ffn);
    return (c->tied ? 1 : 2) * c->V * c->D + c->L * layer + c->D;
}

static void test_sums(void **state)
{
    (void)state;
    struct config shapes[] = {tiny_dense(), tiny_moe(), skywork_moe(), tiny_dense(), tiny_moe()};
    shapes[3].tied = shapes[4].tied = true;
    for (long i = 0; i < 5; i++) {
        struct param_list list;
        OK_OR_FAIL(param_list_of(&list, &shapes[i], NULL));
        long sum = 0;
        for (long j = 0; j < list.n; j++) sum += param_elements(&list.item[j]);
        assert_int_equal(list.elements, sum);
        assert_int_equal(list.elements, formula(&shapes[i]));
        assert_int_equal(list.elements, config_params_total(&shapes[i]));
        param_list_free(&list);
    }
    struct config c = skywork_moe();
    double billions = (double)formula(&c) / 1e9;
    printf("  Skywork-MoE: %.2f billion parameters\n", billions);
    assert_true(fabs(billions - 146.36) < 0.005); // facts 2.1
}

static void test_names(void **state)
{
    (void)state;
    const char *moe[] = {"model.embed_tokens.weight",
                         "model.layers.0.input_layernorm.weight",
                         "model.layers.0.self_attn.q_proj.weight",
                         "model.layers.0.self_attn.k_proj.weight",
                         "model.layers.0.self_attn.v_proj.weight",
                         "model.layers.0.self_attn.o_proj.weight",
                         "model.layers.0.post_attention_layernorm.weight",
                         "model.layers.0.block_sparse_moe.gate.weight",
                         "model.layers.0.block_sparse_moe.experts.0.w1.weight",
                         "model.layers.0.block_sparse_moe.experts.0.w3.weight",
                         "model.layers.0.block_sparse_moe.experts.0.w2.weight",
                         "model.layers.0.block_sparse_moe.experts.1.w1.weight"};
    const char *dense[] = {"model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight",
                           "model.layers.1.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"};
    struct config c = tiny_moe();
    struct param_list list;
    OK_OR_FAIL(param_list_of(&list, &c, NULL));
    for (long i = 0; i < 12; i++) assert_string_equal(list.item[i].name, moe[i]);
    assert_string_equal(list.item[list.n - 2].name, "model.norm.weight");
    assert_string_equal(list.item[list.n - 1].name, "lm_head.weight");
    const struct param *w2 = param_find(&list, "model.layers.1.block_sparse_moe.experts.4.w2.weight");
    assert_non_null(w2);
    assert_int_equal(w2->layer, 1);
    assert_int_equal(w2->expert, 4);
    assert_int_equal(w2->rows, c.D);
    assert_int_equal(w2->columns, c.F);
    assert_null(param_find(&list, "model.layers.2.input_layernorm.weight"));
    param_list_free(&list);

    c = tiny_dense();
    OK_OR_FAIL(param_list_of(&list, &c, NULL));
    for (long i = 0; i < 5; i++) assert_string_equal(list.item[list.n - 5 + i].name, dense[i]);
    param_list_free(&list);
    c.tied = true;
    OK_OR_FAIL(param_list_of(&list, &c, NULL));
    assert_null(param_find(&list, "lm_head.weight"));
    param_list_free(&list);
}

// Every byte of a field belongs to exactly one tensor: mark and count.
static void test_parts_tile_fields(void **state)
{
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        struct config c = tiny_moe();
        c.tied = tied;
        struct model_options o = training(BF16, 1, 4);
        struct model m;
        struct zero z;
        OK_OR_FAIL(model_init(&m, &c, &o));
        OK_OR_FAIL(zero_init(&z, &m, &zero_spread));
        for (long i = 0; i < m.params.n; i++) {
            const struct param *p = &m.params.item[i];
            const struct zero_piece *of = piece_of(&z, p);
            assert_true(of->from == 0 && of->n == param_elements(p) && of->owned);
            bool in_acc = p->kind->in_acc;
            assert_int_equal(p->value.dtype, in_acc ? F32 : BF16);
            assert_true(in_acc ? !of->master : of->master != NULL);
            void *place[] = {p->value.data, p->grad, of->m, of->v, of->master};
            long size[] = {dtype_size(p->value.dtype), 4, 4, 4, 4};
            for (int j = 0; j < (in_acc ? 4 : 5); j++)
                for (long b = 0; b < param_elements(p) * size[j]; b++) ((unsigned char *)place[j])[b]++;
        }
        struct arena *arena[] = {&m.parameters, &m.gradients, &z.optimizer};
        long marked = 0, elements = m.params.elements;
        for (int i = 0; i < 3; i++) {
            for (long b = 0; b < arena[i]->capacity; b++) {
                assert_true((unsigned char)arena[i]->base[b] <= 1);
                marked += arena[i]->base[b];
            }
        }
        long in_acc = c.D * (2 * c.L + 1) + c.L * c.E * c.D;
        assert_int_equal(marked, (elements - in_acc) * (2 + 4 + 12) + in_acc * (4 + 4 + 8));
        assert_ptr_equal(m.p.head.data == m.p.embed.data, tied ? true : false);
        assert_ptr_equal(m.g.head.data == m.g.embed.data, tied ? true : false);
        zero_free(&z);
        model_free(&m);
    }
}

static void test_measure(void **state)
{
    (void)state;
    struct config shapes[] = {tiny_dense(), tiny_moe()};
    enum dtype dtypes[] = {F32, BF16, F64};
    for (long i = 0; i < 2 * 3 * 4; i++) {
        struct config c = shapes[i % 2];
        struct model_options o = training(dtypes[i / 2 % 3], 3, 5);
        o.recompute = (enum recompute)(i / 6 % 3);
        o.recompute_layers = i % 3 - 1;
        o.rule.scope = i % 5 ? SCOPE_MICRO : SCOPE_SEQUENCE;
        if (i / 6 == 3) {
            o = inference(dtypes[i / 2 % 3], 9, 20);
            o.weights = i % 4 ? QUANT_FP8 : QUANT_NONE;
        }
        struct model_bytes bytes;
        struct model m;
        OK_OR_FAIL(model_measure(&bytes, &c, &o));
        OK_OR_FAIL(model_init(&m, &c, &o));
        assert_int_equal(bytes.parameters, m.parameters.capacity);
        assert_int_equal(bytes.gradients, m.gradients.capacity);
        assert_int_equal(bytes.saved, m.activations.capacity);
        assert_int_equal(bytes.scratch, m.scratch_arena.capacity);
        struct arena *arena[] = {&m.parameters, &m.gradients, &m.activations, &m.scratch_arena, &m.host};
        for (int a = 0; a < 5; a++) assert_int_equal(arena[a]->peak, arena[a]->capacity); // placing asked for the same
        assert_true(bytes.parameters > 0 && bytes.saved > 0 && bytes.scratch > 0);
        assert_true((bytes.gradients > 0) == o.training);
        if (o.training) {
            struct zero z;
            struct zero_bytes optimizer;
            OK_OR_FAIL(zero_measure(&optimizer, &m, &zero_spread));
            OK_OR_FAIL(zero_init(&z, &m, &zero_spread));
            assert_true(optimizer.optimizer > 0 && optimizer.optimizer == z.optimizer.capacity);
            assert_int_equal(z.optimizer.peak, z.optimizer.capacity);
            assert_true(optimizer.room == 0 && z.room.capacity == 0); // a rank alone receives nothing
            zero_free(&z);
        }
        model_free(&m);
    }
}

static void test_recompute_saves_memory(void **state)
{
    (void)state;
    struct config c = skywork_moe();
    struct model_bytes none, moe, full, half;
    struct model_options o = training(BF16, 1, 8192);
    OK_OR_FAIL(model_measure(&none, &c, &o));
    o.recompute = RECOMPUTE_MOE;
    OK_OR_FAIL(model_measure(&moe, &c, &o));
    o.recompute_layers = 26;
    OK_OR_FAIL(model_measure(&half, &c, &o));
    o.recompute_layers = -1;
    o.recompute = RECOMPUTE_FULL;
    OK_OR_FAIL(model_measure(&full, &c, &o));
    printf("  saved GiB at S 8192: none %.1f, half moe %.1f, moe %.1f, full %.1f\n", (double)none.saved / (1L << 30),
           (double)half.saved / (1L << 30), (double)moe.saved / (1L << 30), (double)full.saved / (1L << 30));
    assert_true(full.saved < moe.saved && moe.saved < half.saved && half.saved < none.saved);
    long of_layers = full.scratch;
    c.L = 1;
    OK_OR_FAIL(model_measure(&full, &c, &o));
    assert_int_equal(full.scratch, of_layers); // all layers drop to one place
    struct model_options serving = inference(BF16, 512, 8192);
    struct model_bytes one, all;
    OK_OR_FAIL(model_measure(&one, &c, &serving));
    c.L = 52;
    OK_OR_FAIL(model_measure(&all, &c, &serving));
    assert_true(one.saved == all.saved && one.scratch == all.scratch); // in inference all values
    OK_OR_FAIL(model_measure(&full, &c, &o));
    long T = 8192, kept = 52 * T * (4608 * 2 + 16 * 4 * 2 + 4 + 4 + 2 * 5 * 4);
    assert_true(full.saved >= kept && full.saved < kept + 52 * 16 * 64);
}

static void test_refused(void **state)
{
    (void)state;
    struct model m;
    struct model_bytes bytes;
    struct param_list list;
    struct config c = tiny_moe();
    struct model_options o = training(F32, 1L << 40, 1L << 40);
    o.positions = 1L << 40;
    assert_int_equal(model_init(&m, &c, &o), ERR_CONFIG);
    assert_non_null(strstr(fail_message(), "micro-batch: "));
    o = training(F32, 1, 1 << 24);
    c.D = c.F = 1 << 20;
    c.L = 4096;
    assert_int_equal(model_measure(&bytes, &c, &o), ERR_MEMORY);
    c.E = 4096;
    assert_int_equal(param_list_of(&list, &c, NULL), ERR_MEMORY);
    assert_non_null(strstr(fail_message(), "too many tensors"));
    c = tiny_dense();
    c.D = c.F = 1 << 20;
    c.L = 4096;
    c.H = c.G = 4096;
    c.C = 4096;
    o = training(F32, 1, 1);
    assert_int_equal(param_list_of(&list, &c, NULL), ERR_MEMORY);
    assert_int_equal(model_init(&m, &c, &o), ERR_MEMORY); // and nothing leaks
    c = tiny_dense();
    o.weights = QUANT_FP8;
    assert_int_equal(model_init(&m, &c, &o), ERR_CONFIG);
    c.F = 1 << 20; // 2^20 layers' worth of memory that no machine has
    c.D = 1 << 20;
    c.L = 512;
    o = training(F32, 1, 1);
    assert_int_equal(model_init(&m, &c, &o), ERR_MEMORY);
    assert_non_null(strstr(fail_message(), "parameters"));
}

static void test_init_weights(void **state)
{
    (void)state;
    struct config c = tiny_moe();
    c.D = 96; // enough elements for statistics
    c.V = 100;
    struct model_options o = training(BF16, 1, 4);
    struct model m;
    struct zero z;
    const struct init_rule rule = {3, 0.02, 0.01}, other = {4, 0.02, 0.01};
    OK_OR_FAIL(model_init(&m, &c, &o));
    OK_OR_FAIL(zero_init(&z, &m, &zero_spread));
    model_init_weights(&m, &rule);
    zero_init_masters(&z, &rule);
    for (long i = 0; i < m.params.n; i++) {
        const struct param *p = &m.params.item[i];
        long n = param_elements(p);
        double want = p->kind->init == INIT_STD ? 0.02 : p->kind->init == INIT_ROUTER ? 0.01 : 0.02 / 2;
        double *x = host_of(m.x.k, p->value.data, p->value.dtype, n);
        double mean = 0, square = 0;
        for (long j = 0; j < n; j++) {
            mean += x[j] / (double)n;
            square += x[j] * x[j] / (double)n;
        }
        if (p->kind->init == INIT_ONE) {
            assert_true(fabs(mean - 1) < 1e-12 && fabs(square - 1) < 1e-12);
        } else {
            assert_true(fabs(mean) < 5 * want / sqrt((double)n));
            assert_true(fabs(sqrt(square) / want - 1) < 5 / sqrt(2.0 * (double)n));
        }
        if (piece_of(&z, p)->master) { // the unrounded draw
            double *master = host_of(m.x.k, piece_of(&z, p)->master, F32, n);
            long exact = 0;
            for (long j = 0; j < n; j++) {
                assert_true(x[j] == (double)bf16_to_float(bf16_from_float((float)master[j])));
                exact += x[j] == master[j];
            }
            assert_true(exact < n / 8);
            free(master);
        }
        free(x);
    }
    double *a = host_of(m.x.k, m.params.item[8].value.data, BF16, 50);
    model_init_weights(&m, &other);
    double *b = host_of(m.x.k, m.params.item[8].value.data, BF16, 50);
    assert_true(memcmp(a, b, 50 * sizeof *a) != 0);
    model_init_weights(&m, &rule);
    free(b);
    b = host_of(m.x.k, m.params.item[8].value.data, BF16, 50);
    expect_same_bits("the same seed", a, b, 50 * (long)sizeof *a);
    free(a);
    free(b);
    zero_free(&z);
    model_free(&m);
}

// Partition of heads over a tensor group: numbers of facts 2.4, and kv heads of GQA that ranks share.
static void test_local(void **state)
{
    (void)state;
    struct config c = skywork_moe();
    struct layout l = layout_of_one;
    long sum = 0;
    l.tp = 8;
    for (long rank = 0; rank < 8; rank++) {
        struct grid g = grid_of(&l, rank);
        struct local n = local_of(&c, &g);
        assert_int_equal(n.H, rank < 4 ? 5 : 4);
        assert_int_equal(n.first_head, rank < 4 ? 5 * rank : 20 + 4 * (rank - 4));
        assert_int_equal(n.G, n.H);
        assert_int_equal(n.E, 16);
        assert_int_equal(n.F, 12288);
        sum += n.V;
    }
    assert_int_equal(sum, 65532);
    c.H = 12;
    c.G = 3; // rank 1 of 5 has heads 3..5: kv heads 0 and 1
    l.tp = 5;
    struct grid g = grid_of(&l, 1);
    assert_int_equal(local_of(&c, &g).H, 3);
    assert_int_equal(local_of(&c, &g).G, 2);
    l.tp = 16;
    g = grid_of(&l, 15);
    assert_int_equal(local_of(&c, &g).H, 0);
    assert_int_equal(local_of(&c, &g).G, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_parts_tile_fields),
        cmocka_unit_test(test_measure),
        cmocka_unit_test(test_recompute_saves_memory),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_init_weights),
        cmocka_unit_test(test_local),
    };
    return cmocka_run_group_tests_name("params", tests, tests_start, NULL);
}
