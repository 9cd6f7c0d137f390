// Results do not depend on the layout: runs on 2 to 8 ranks against one rank's, number by number. Alone, this program
// makes the reference and starts itself once under mpirun for each number of ranks; under mpirun it is one of the ranks
// and goes through the layouts of that number. LAYOUT_RANKS=2 tries that number alone; MPIRUN names another mpirun.
#include "layouts.h"

enum { STEPS = 20, CLOSE_STEPS = 5, SHORT = 2, MOST_RANKS = 8 };

// ---- models and options ----

static void write_model(const char *name, bool moe, bool tied)
{
    char text[2048];
    snprintf(text, sizeof text,
             "{\"architectures\":[\"%s\"],\"model_type\":\"%s\",\"hidden_size\":36,\"intermediate_size\":29,"
             "\"num_hidden_layers\":5,\"num_attention_heads\":6,\"num_key_value_heads\":2,\"vocab_size\":251,"
             "\"max_position_embeddings\":64,\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,\"hidden_act\":\"silu\","
             "\"tie_word_embeddings\":%s,\"torch_dtype\":\"float32\",\"bos_token_id\":1,\"eos_token_id\":2%s}",
             moe ? "SkyworkForCausalLM" : "LlamaForCausalLM", moe ? "skywork_moe" : "llama", tied ? "true" : "false",
             moe ? ",\"num_experts\":[8],\"moe_expert_interval\":1,\"moe_use_logits_norm\":true,"
                   "\"moe_gate_norm_std\":1.0,\"moe_2layer_gate\":false,\"moe_use_skywork_gating\":false,"
                   "\"moe_feature_no_mul_topk\":true" : "");
    OK_OR_FAIL(file_write(at(name), text, (long)strlen(text)));
}

// 9 sequences in micro-batches of 2: the last one is short, and no number of data-parallel ranks above 1 divides the 5.
#define COMMON                                                                                                         \
    "--data", at("text"), "--micro-batch-size", "2", "--global-batch-size", "9", "--seq-length", "13", "--lr", "3e-3", \
        "--lr-warmup-steps", "3", "--clip-grad", "0.7", "--eval-interval", "0", "--save-interval", "0"

// Words of a call: the common ones, the case's, the layout's, and what this call wants.
struct words {
    const char *word[96];
    int n;
};
static void add_words(struct words *w, const char *const *word)
{
    for (; *word; word++) {
        assert_true(w->n < 95);
        w->word[w->n++] = *word;
    }
}
#define WORDS(w, ...) add_words(w, (const char *const[]){__VA_ARGS__, NULL})

static struct words words_of(const struct layout_case *c, const char *output, const char *steps)
{
    struct words w = {.n = 0};
    WORDS(&w, COMMON, "--output", at(output), "--train-steps", steps, "--lr-decay-steps", "20");
    WORDS(&w, "--model", at(c->model));
    add_words(&w, c->options);
    return w;
}

// A dense model's checkpoints keep one file of weights and one of optimizer state; the others have several.
static bool in_shards(const struct layout_case *c)
{
    checkpoint_shard_bytes = c == &layout_cases[DENSE] ? 0 : 60000;
    return checkpoint_shard_bytes != 0;
}

static void train(struct trainer *t, const struct words *w)
{
    OK_OR_FAIL(open_trainer(t, w->word, w->n));
    OK_OR_FAIL(trainer_run(t));
}

// ---- the reference: one rank ----

static void make_reference(const struct layout_case *c)
{
    static struct trainer t;
    bool shards = in_shards(c);
    struct words w = words_of(c, name_of("ref", c->name), "20");
    WORDS(&w, "--dump-gradients", at(name_of("gradients", c->name)));
    if (c->moe) WORDS(&w, "--dump-routing", at(name_of("routing", c->name)));
    train(&t, &w);
    if (c->moe) {
        double drops = 0;
        for (long l = 0; l < t.config.L; l++) drops += t.result.drop[l];
        assert_true(drops > 0.05); // the case is about dropping, too
    }
    trainer_close(&t);
    w = words_of(c, name_of("start", c->name), "1"); // the initial weights as a checkpoint
    WORDS(&w, "--lr", "0");
    train(&t, &w);
    trainer_close(&t);
    const char *start = at(name_of("start", c->name));
    for (int i = 0; i < 2; i++) {
        char index[PATH_LENGTH];
        OK_OR_FAIL(path_join(index, start, i ? "step-000001/training/optimizer.safetensors.index.json"
                                             : "step-000001/model.safetensors.index.json"));
        assert_true(path_exists(index) == shards);
    }
    w = words_of(c, name_of("short", c->name), "6"); // for resuming under other numbers of ranks
    train(&t, &w);
    trainer_close(&t);
}

// ---- one layout ----

// Optimizer state: every element of the model once in the world, and no rank above its share.
static void check_owners(const struct trainer *t, bool spread)
{
    long here = 0, owned = 0, all = 0;
    for (long i = 0; i < t->zero.pieces; i++) {
        here += t->zero.piece[i].n;
        owned += t->zero.piece[i].owned ? t->zero.piece[i].n : 0;
    }
    struct param_list list;
    OK_OR_FAIL(param_list_of(&list, &t->config, NULL));
    for (long i = 0; i < list.n; i++) all += list.item[i].kind->counted ? 0 : list.item[i].rows * list.item[i].columns;
    param_list_free(&list);
    if (spread) assert_int_equal(here, owned);
    group_sum_long(&t->grid.world, &owned, 1);
    assert_int_equal(owned, all);
}

static void try_layout(const struct layout_row *row)
{
    static struct trainer t;
    const struct layout_case *c = &layout_cases[row->of];
    bool speaks = transport_rank() == 0;
    const char *run = name_of("run", row->name), *gradients = name_of("dg", row->name);
    in_shards(c);
    if (speaks) printf("%ld ranks, %s\n", transport_ranks(), row->name);

    // With the reference's routing: 20 steps, and the gradients of the first.
    struct words w = words_of(c, run, "20");
    add_words(&w, row->options);
    WORDS(&w, "--dump-gradients", at(gradients));
    if (c->moe) WORDS(&w, "--replay-routing", at(name_of("routing", c->name)));
    train(&t, &w);
    check_owners(&t, t.o.layout.zero);
    trainer_close(&t);
    if (speaks) compare_runs(at(name_of("ref", c->name)), at(run), c, row->exact, CLOSE_STEPS);
    if (speaks) compare_gradients(at(name_of("gradients", c->name)), at(gradients), row->exact, c->bf16, 5);

    // Initial weights, tensor by tensor; a checkpoint of one layout read and written by another.
    w = words_of(c, name_of("init", row->name), "1");
    add_words(&w, row->options);
    WORDS(&w, "--lr", "0");
    train(&t, &w);
    trainer_close(&t);
    if (speaks)
        same_tensors(at(name_of("start", c->name)), at(name_of("init", row->name)), "step-000001");

    if (speaks) copy_run(at(name_of("start", c->name)), at(name_of("again", row->name)));
    struct group world = group_of("world", CHANNEL_WORLD, 0, 1, transport_ranks(), transport_rank());
    group_barrier(&world);
    w = (struct words){.n = 0};
    WORDS(&w, "--resume", "--output", at(name_of("again", row->name)));
    add_words(&w, row->options);
    OK_OR_FAIL(open_trainer(&t, w.word, w.n));
    OK_OR_FAIL(trainer_save(&t));
    trainer_close(&t);
    for (int i = 0; speaks && i < 2; i++)
        same_tensors(at(name_of("start", c->name)), at(name_of("again", row->name)),
                     i ? "step-000001/training" : "step-000001");
    if (!c->moe || c->bf16) return;

    // With routing of its own; the same layout twice gives the same bits.
    for (int twice = 0; twice < 2; twice++) {
        w = words_of(c, name_of(twice ? "own2" : "own", row->name), "3");
        add_words(&w, row->options);
        WORDS(&w, "--dump-routing", at(name_of(twice ? "routes2" : "routes", row->name)));
        train(&t, &w);
        trainer_close(&t);
    }
    if (!speaks) return;
    compare_routing(at(name_of("routing", c->name)), at(name_of("routes", row->name)), row->exact);
    for (int i = 0; i < 2; i++)
        same_tensors(at(name_of("own", row->name)), at(name_of("own2", row->name)),
                     i ? "step-000003/training" : "step-000003");
}

// 4 -> 3 -> 6 ranks: two steps each, against six on one rank.
static void relay(void)
{
    static struct trainer t;
    const struct layout_case *c = &layout_cases[0];
    long n = transport_ranks();
    struct words w = {.n = 0};
    if (n == 4) w = words_of(c, "relay", "2");
    else WORDS(&w, "--resume", "--output", at("relay"), "--train-steps", n == 3 ? "4" : "6");
    if (n == 4) WORDS(&w, "--tensor-parallel-size", "2");
    if (n == 3) WORDS(&w, "--tensor-parallel-size", "3");
    if (n == 6) WORDS(&w, "--tensor-parallel-size", "2", "--pipeline-parallel-size", "3", "--expert-parallel", "ep");
    WORDS(&w, "--replay-routing", at(name_of("routing", c->name)));
    train(&t, &w);
    trainer_close(&t);
    if (n == 6 && transport_rank() == 0) compare_runs(at(name_of("short", c->name)), at("relay"), c, false, 6);
}

static void as_rank(void **state)
{
    (void)state;
    snprintf(temporary, sizeof temporary, "%s", getenv("SKYMOE_RANKS"));
    log_quiet(true);
    assert_int_equal(kernels_init(1), OK);
    for (long i = 0; i < layout_rows_n; i++)
        if (layout_rows[i].ranks == transport_ranks()) try_layout(&layout_rows[i]);
    if (getenv("SKYMOE_RELAY") && (transport_ranks() == 4 || transport_ranks() == 3 || transport_ranks() == 6)) relay();
}

// ---- alone ----

static int set_up_reference(void **state)
{
    if (make_temporary(state) != 0 || kernels_init(1) != OK) return -1;
    log_quiet(true);
    write_model("moe.json", true, false);
    write_model("dense.json", false, false);
    write_model("tied.json", false, true);
    write_data("text_train", 60, 40, 1);
    for (long i = 0; i < layout_cases_n; i++) make_reference(&layout_cases[i]);
    return 0;
}

static void try_ranks(void **state)
{
    start_ranks(*(const long *)*state);
}

int main(void)
{
    if (!getenv("LAYOUT_RANKS")) setenv("SKYMOE_RELAY", "1", 1);
    static long n[] = {4, 3, 6, 2, 5, 7, 8}; // 4, 3 and 6 hand a run on
    static const char *const names[] = {"4 ranks", "3 ranks", "6 ranks", "2 ranks", "5 ranks", "7 ranks", "8 ranks"};
#define RANKS(i) {.name = names[i], .test_func = try_ranks, .initial_state = &n[i]}
    const struct CMUnitTest tests[] = {RANKS(0), RANKS(1), RANKS(2), RANKS(3), RANKS(4), RANKS(5), RANKS(6)};
    const struct CMUnitTest ranks[] = {cmocka_unit_test(as_rank)};
    const char *only = getenv("LAYOUT_RANKS");
    size_t first = 0, count = 7;
    for (size_t i = 0; only && i < 7; i++)
        if (strtol(only, NULL, 10) == n[i]) first = i, count = 1;
    return ranks_or_tests("layouts", ranks, 1, tests + first, count, set_up_reference, remove_temporary);
}
