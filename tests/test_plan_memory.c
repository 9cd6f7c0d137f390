// Planned bytes are those that a run would reserve: for every stage of many layouts, beside the layout functions of the
// run itself, asked for every rank of the stage.
#include "plan_util.h"

#include "parallel/pipeline.h"
#include "parallel/zero.h"

struct parts {
    double of[5]; // as in rank_bytes
};

static struct parts parts_of(const struct rank_bytes *b)
{
    return (struct parts){{b->parameters, b->gradients, b->optimizer, b->saved, b->scratch}};
}

static double total(const struct parts *p)
{
    double sum = 0;
    for (int i = 0; i < 5; i++) sum += p->of[i];
    return sum;
}

// What trainer_open would have reserved on that rank.
static struct parts reserved(const struct run *r, long rank)
{
    struct grid g = grid_of(&r->layout, rank);
    struct pipeline p = {r->schedule, r->layout.pp, r->layout.virtual_stages, run_micro_batches(r)};
    struct pipeline_schedule s;
    struct model_slots slots[8];
    struct model m;
    struct zero_bytes z;
    OK_OR_FAIL(pipeline_schedule_make(&s, &p, g.pp));
    for (long v = 0; v < p.chunks; v++)
        slots[v] = (struct model_slots){s.slots[v].saved, s.slots[v].backward, s.slots[v].weight};
    struct model_options o = {.dtype = r->dtype, .training = true, .B = r->B, .S = r->S, .positions = r->S,
                              .recompute = r->recompute,
                              .recompute_layers = r->recompute_layers ? r->recompute_layers[g.pp] : -1, .grid = &g,
                              .slots = slots, .exchange_chunks = r->exchange_chunks,
                              .rule = {.capacity = r->capacity, .scope = r->scope}};
    OK_OR_FAIL(model_outline(&m, r->c, &o));
    OK_OR_FAIL(zero_measure(&z, &m, &(struct zero_options){.spread = r->zero}));
    struct parts b = {{(double)m.parameters.peak, (double)m.gradients.peak, (double)z.optimizer,
                       (double)m.activations.peak,
                       (double)m.scratch_arena.peak + (double)z.room + (double)pipeline_message_bytes(&o, r->c, &s)}};
    model_free(&m);
    pipeline_schedule_free(&s);
    return b;
}

static void compare(const struct run *r, const char *name)
{
    struct plan p;
    long plane = r->layout.dp * r->layout.tp;
    OK_OR_FAIL(plan_make(&p, r, &(struct plan_wishes){0}));
    for (long stage = 0; stage < r->layout.pp; stage++) {
        struct parts planned = parts_of(&p.stage[stage].bytes);
        double most = 0;
        bool found = false;
        for (long q = 0; q < plane; q++) {
            struct parts b = reserved(r, stage * plane + q);
            most = fmax(most, total(&b));
            found |= !memcmp(&b, &planned, sizeof b);
        }
        if (total(&planned) != most)
            fail_msg("%s, stage %ld: %.0f bytes planned, %.0f reserved", name, stage, total(&planned), most);
        if (!found) fail_msg("%s, stage %ld: no rank has these parts", name, stage);
    }
    plan_free(&p);
}

static void test_ranks(void **state)
{
    (void)state;
    static const long split[] = {2, 3, 2}, first[] = {2, 1, 0}, heads[] = {1, 3, 2}, columns[] = {9, 31},
                      experts[] = {1, 5, 2}, rows[] = {21, 40, 40};
    enum { DENSE = 1, TIED = 2, IN_F32 = 4, SHARED_KV = 8, ALL_STATE = 16, DROPLESS = 32, ODD = 64, SCOPED = 128 };
    static const struct {
        const char *name;
        struct layout l; // pp, dp, tp, ep, etp, chunks
        enum pipeline_kind kind;
        enum recompute level;
        const long *recompute;
        int what;
    } cases[] = {
        {"one", {1, 1, 1, 1, 1, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_NONE, NULL, 0},
        {"data", {1, 4, 1, 1, 1, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_MOE, NULL, IN_F32},
        {"data, all state", {1, 3, 1, 1, 1, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_NONE, NULL, ALL_STATE | TIED},
        {"tensor", {1, 1, 2, 2, 1, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_FULL, NULL, 0},
        {"tensor of uneven heads", {1, 2, 4, 4, 1, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_MOE, NULL, ODD},
        {"shared kv heads", {1, 2, 4, 4, 1, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_NONE, NULL, SHARED_KV | DENSE},
        {"shared kv heads, stages", {3, 1, 3, 3, 1, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_MOE, first, SHARED_KV},
        {"experts over everyone", {1, 3, 2, 6, 1, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_NONE, NULL, IN_F32},
        {"experts within the data", {1, 4, 1, 2, 1, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_MOE, NULL, DROPLESS},
        {"slices", {1, 2, 2, 2, 2, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_FULL, NULL, 0},
        {"slices of three", {2, 2, 3, 2, 3, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_MOE, first, DROPLESS},
        {"blocks across replicas", {1, 3, 4, 3, 1, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_NONE, NULL, ODD},
        {"stages", {2, 1, 1, 1, 1, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_NONE, NULL, ODD},
        {"three stages", {3, 2, 1, 2, 1, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_FULL, first, IN_F32},
        {"three stages, lists", {3, 1, 2, 2, 1, 1, {[AXIS_LAYER] = split}}, PIPELINE_1F1B, RECOMPUTE_MOE, first, 0},
        {"tied over stages", {3, 2, 2, 2, 1, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_MOE, first, TIED},
        {"tied, dense", {2, 2, 3, 1, 1, 1, {0}}, PIPELINE_1F1B, RECOMPUTE_FULL, NULL, TIED | DENSE | IN_F32},
        {"interleaved", {2, 2, 1, 2, 1, 3, {0}}, PIPELINE_INTERLEAVED, RECOMPUTE_MOE, first, ODD},
        {"interleaved, tensor", {3, 1, 2, 1, 2, 2, {0}}, PIPELINE_INTERLEAVED, RECOMPUTE_NONE, NULL, 0},
        {"zero-bubble", {3, 1, 2, 2, 1, 1, {0}}, PIPELINE_ZERO_BUBBLE, RECOMPUTE_MOE, first, 0},
        {"zero-bubble, dense", {2, 2, 2, 1, 1, 1, {0}}, PIPELINE_ZERO_BUBBLE, RECOMPUTE_NONE, NULL, DENSE | IN_F32},
        {"lists of shares", {2, 2, 3, 3, 2, 1, {[AXIS_HEAD] = heads, [AXIS_EXPERT_FFN] = columns,
                                               [AXIS_EXPERT] = experts, [AXIS_VOCAB] = rows}},
         PIPELINE_1F1B, RECOMPUTE_MOE, first, ODD | SCOPED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct config c = shape(7);
        struct cluster k = machine(4, 8);
        struct run r = run_of(&c, &k, cases[i].l);
        int what = cases[i].what;
        if (what & DENSE) c.E = c.K = 0;
        if (what & TIED) c.tied = true;
        if (what & SHARED_KV) c.G = 2;
        if (what & IN_F32) r.dtype = F32;
        if (what & ALL_STATE) r.zero = false;
        if (what & DROPLESS) r.capacity = (struct decimal){0};
        if (what & ODD) c.V = 101, r.B = 3, r.S = 17;
        if (what & SCOPED) r.scope = SCOPE_SEQUENCE;
        r.schedule = cases[i].kind;
        r.recompute = cases[i].level;
        r.recompute_layers = cases[i].recompute;
        r.exchange_chunks = 1 + (long)i % 3;
        compare(&r, cases[i].name);
    }
}

static void test_memory_of_one(void **state)
{
    (void)state;
    for (int i = 0; i < 12; i++) {
        struct config c = shape(1 + i % 4);
        struct cluster k = machine(1, 1);
        struct run r = run_of(&c, &k, layout_of_one);
        struct plan p;
        struct model_bytes b;
        long recompute = i / 4;
        if (i % 2) c.E = c.K = 0;
        r.recompute = i % 3 == 0 ? RECOMPUTE_NONE : i % 3 == 1 ? RECOMPUTE_MOE : RECOMPUTE_FULL;
        r.recompute_layers = &recompute;
        r.dtype = i % 4 ? BF16 : F32;
        struct model_options o = {.dtype = r.dtype, .training = true, .B = r.B, .S = r.S, .positions = r.S,
                                  .recompute = r.recompute, .recompute_layers = recompute};
        OK_OR_FAIL(model_measure(&b, &c, &o));
        OK_OR_FAIL(plan_make(&p, &r, &(struct plan_wishes){0}));
        long total = config_params_total(&c), f32 = c.L * (2 + c.E) * c.D + c.D; // norms and routers: own masters
        assert_int_equal(p.stage[0].bytes.parameters, b.parameters);
        assert_int_equal(p.stage[0].bytes.gradients, b.gradients);
        assert_int_equal(p.stage[0].bytes.optimizer, 8 * total + (r.dtype == F32 ? 0 : 4 * (total - f32)));
        assert_int_equal(p.stage[0].bytes.saved, b.saved);
        assert_int_equal(p.stage[0].bytes.scratch, b.scratch);
        plan_free(&p);
    }
}

// A search's measurements are the same.
static void test_cache(void **state)
{
    (void)state;
    static struct memory_cache cache;
    struct config c = shape(6);
    struct cluster k = machine(4, 8);
    for (int i = 0; i < 40; i++) {
        struct layout l = {.pp = 1 + i % 3, .dp = 2, .tp = 1 + i % 4, .ep = 1 + i % 2, .etp = 1, .virtual_stages = 1};
        struct run r = run_of(&c, &k, l);
        struct memory kept, fresh;
        r.recompute = (enum recompute)(i % 3);
        OK_OR_FAIL(memory_of(&kept, &r, &cache));
        OK_OR_FAIL(memory_of(&fresh, &r, NULL));
        for (long layers = 1; layers < 4; layers++) {
            struct stage_shape s = {.layers = layers, .recompute = layers - 1, .held = {layers, 2}, .batches = 2,
                                    .first = true, .last = l.pp == 1};
            struct rank_bytes a = memory_stage(&kept, &s), b = memory_stage(&fresh, &s);
            assert_memory_equal(&a, &b, sizeof a);
        }
    }
}

static int setup(void **state)
{
    (void)state;
    return kernels_init(1) == OK ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_of_one),
        cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_cache),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
