// Loss, divergence, bytes, generation and tasks, each against another way to compute it.
#include "train_util.h"

#include "eval/generate.h"
#include "eval/inference.h"
#include "eval/sample.h"
#include "eval/tasks.h"

enum { S = 24 };

// A folder with random weights, saved by one step of training.
static void make_model(const char *run, const char *config, const char *seed, const char *dtype, const char *data)
{
    static struct trainer t;
    OK_OR_FAIL(OPEN(&t, "--data", at(data), "--model", at(config), "--output", at(run), "--train-steps", "1", "--seed",
                    seed, "--dtype", dtype, "--init-std", "0.3", "--seq-length", "16", "--micro-batch-size", "2",
                    "--global-batch-size", "2", "--eval-interval", "0"));
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
}

static struct loader open_valid(long length, bool mask)
{
    struct loader l;
    OK_OR_FAIL(loader_open(&l, at("text"), "_valid", length, 1, mask));
    return l;
}

// log p of every row's target by the paged forward, one document of the sample at a time. Returns rows scored.
static long paged_log_probs(double *sum, struct model *m, const int *token, const int *target, const int *start, long n)
{
    struct kv_cache kv;
    long scored = 0, V = m->c.V;
    float *logits = malloc((size_t)(n * V) * sizeof *logits);
    OK_OR_FAIL(kv_cache_init(&kv, m, 1, n, n));
    for (long from = 0, to; from < n; from = to) {
        for (to = from; to < n && start[to] == start[from];) to++;
        kv_cache_drop(&kv, 0);
        OK_OR_FAIL(kv_append(&kv, 0, token + from, to - from, NULL, logits));
        for (long i = from; i < to; i++) {
            if (target[i] < 0) continue;
            const float *row = logits + (i - from) * V;
            *sum += (double)row[target[i]] - log_sum_exp(row, V);
            scored++;
        }
    }
    kv_cache_free(&kv);
    free(logits);
    return scored;
}

static void check_loss(const char *run, double bound)
{
    static struct inference inference;
    OK_OR_FAIL(inference_open(&inference, at(run), S, 64));
    struct loader l = open_valid(S, true);
    struct evaluation e, part;
    OK_OR_FAIL(evaluate_loss(&e, &inference.model, &l, NULL, 0, model_sum));
    int token[S], target[S], position[S], start[S];
    long samples, scored = 0;
    double sum = 0;
    OK_OR_FAIL(loader_eval_count(&l, &samples));
    for (long i = 0; i < samples; i++) {
        OK_OR_FAIL(loader_eval_sample(&l, i, token, target, position, start));
        scored += paged_log_probs(&sum, &inference.model, token, target, start, S);
    }
    double wanted = -sum / (double)scored, error = fabs(e.loss - wanted) / wanted;
    printf("  %s: loss %.6f, by paged logits %.6f, error %.2g over %ld tokens\n", run, e.loss, wanted, error, e.tokens);
    assert_int_equal(e.tokens, scored);
    assert_true(error < bound);
    assert_true(fabs(e.perplexity - exp(e.loss)) < 1e-9 * e.perplexity);
    assert_true(isnan(e.bits_per_byte) && e.bytes == 0);

    OK_OR_FAIL(evaluate_loss(&part, &inference.model, &l, NULL, 100, model_sum));
    assert_int_equal(part.tokens, 100);
    assert_true(part.loss != e.loss);
    OK_OR_FAIL(evaluate_loss(&part, &inference.model, &l, NULL, 1L << 40, model_sum));
    assert_int_equal(part.tokens, e.tokens);
    assert_true(part.loss == e.loss);
    loader_close(&l);
    inference_close(&inference);
}

static void test_loss(void **state)
{
    (void)state;
    check_loss("f32", 1e-5);
    check_loss("bf16", 1e-2);
    check_loss("dense", 1e-5);
}

// KL of 50 tokens by the definition, from logits of paged forwards.
static void divergence_by_definition(double *sum, double *most, struct model *p, struct model *q,
                                     const struct loader *l)
{
    int token[S], target[S], position[S], start[S];
    long left = 50, V = TINY_V;
    for (long i = 0; left > 0; i++) {
        OK_OR_FAIL(loader_eval_sample((struct loader *)l, i, token, target, position, start));
        for (long t = 0; t < S; t++) {
            if (target[t] < 0 || left-- <= 0) continue;
            float a[TINY_V], b[TINY_V];
            struct kv_cache ka, kb;
            OK_OR_FAIL(kv_cache_init(&ka, p, 1, S, S));
            OK_OR_FAIL(kv_cache_init(&kb, q, 1, S, S));
            OK_OR_FAIL(kv_append(&ka, 0, token + start[t], t + 1 - start[t], a, NULL));
            OK_OR_FAIL(kv_append(&kb, 0, token + start[t], t + 1 - start[t], b, NULL));
            double la = log_sum_exp(a, V), lb = log_sum_exp(b, V), kl = 0;
            for (long v = 0; v < V; v++)
                kl += exp((double)a[v] - la) * (((double)a[v] - la) - ((double)b[v] - lb));
            *sum += kl;
            if (kl > *most) *most = kl;
            kv_cache_free(&ka);
            kv_cache_free(&kb);
        }
    }
}

static void test_divergence(void **state)
{
    (void)state;
    static struct inference p, q;
    struct loader l = open_valid(S, true);
    struct divergence d;
    double sum = 0, most = 0;
    OK_OR_FAIL(inference_open(&p, at("f32"), S, 0));
    OK_OR_FAIL(inference_open(&q, at("other"), S, 0));
    OK_OR_FAIL(evaluate_kl(&d, &p.model, &p.model, &l, 0));
    assert_true(fabs(d.mean) < 1e-6 && d.max < 1e-5);
    OK_OR_FAIL(evaluate_kl(&d, &p.model, &q.model, &l, 50));
    assert_int_equal(d.tokens, 50);
    divergence_by_definition(&sum, &most, &p.model, &q.model, &l);
    printf("  KL %.6f, by definition %.6f; largest %.6f, %.6f\n", d.mean, sum / 50, d.max, most);
    assert_true(fabs(d.mean * 50 / sum - 1) < 1e-4 && fabs(d.max / most - 1) < 1e-3);
    loader_close(&l);
    inference_close(&p);
    inference_close(&q);

    // Samples of 300 tokens are compared in two chunks of rows; a model is no further from itself in the second.
    l = open_valid(300, true);
    OK_OR_FAIL(inference_open(&p, at("long"), 300, 0));
    OK_OR_FAIL(inference_open(&q, at("long"), 300, 0));
    OK_OR_FAIL(evaluate_kl(&d, &p.model, &q.model, &l, 0));
    assert_true(d.tokens > 350 && fabs(d.mean) < 1e-6 && d.max < 1e-5);
    loader_close(&l);
    inference_close(&p);
    inference_close(&q);
}

// ---- text ----

static const char *const sentences[] = {
    "The quick brown fox jumps over the lazy dog.\n", "A model has weights; weights have numbers.\n",
    "\xe4\xb8\xad\xe6\x96\x87\xe6\x96\x87\xe6\x9c\xac\xe3\x80\x82\n", "12345 is a number, 678 another.\n",
    "Experts are chosen by a router, two for each token.\n", "caf\xc3\xa9 \xf0\x9f\x98\x80 ok\n",
};
enum { SENTENCES = sizeof sentences / sizeof *sentences };

static void make_text_model(void)
{
    char corpus[200 * 64];
    long used = 0;
    for (int i = 0; i < 200; i++) used += snprintf(corpus + used, 64, "%s", sentences[i % SENTENCES]);
    const struct text text = {corpus, used};
    struct tokenizer_training training = {.text = &text, .texts = 1, .vocab_size = 360, .threads = 1,
                                          .path = at("bpe.model")};
    OK_OR_FAIL(tokenizer_train(&training));
    struct tokenizer t;
    OK_OR_FAIL(tokenizer_open(&t, at("bpe.model")));
    OK_OR_FAIL(folder_make(at("prose_tokenizer")));
    OK_OR_FAIL(tokenizer_write_folder(at("prose_tokenizer"), at("bpe.model"), &t));
    static const char *const parts[] = {"prose_train", "prose_valid"};
    for (int part = 0; part < 2; part++) {
        struct dataset_writer w;
        OK_OR_FAIL(dataset_writer_open(&w, at(parts[part]), t.pieces));
        for (int i = 0; i < 4 * SENTENCES; i++) {
            int *ids, whole[1000];
            long n;
            const char *line = sentences[i % SENTENCES];
            OK_OR_FAIL(tokenizer_encode(&ids, &n, &t, line, (long)strlen(line)));
            whole[0] = t.bos;
            memcpy(whole + 1, ids, (size_t)n * sizeof *ids);
            whole[n + 1] = t.eos;
            OK_OR_FAIL(dataset_writer_add(&w, whole, n + 2));
            free(ids);
        }
        OK_OR_FAIL(dataset_writer_commit(&w));
    }
    char *config = NULL;
    long bytes = 0;
    OK_OR_FAIL(file_read(&config, &bytes, at("dense.json"), 1 << 20));
    char *v = strstr(config, "\"vocab_size\":61");
    assert_non_null(v);
    char changed[4096];
    snprintf(changed, sizeof changed, "%.*s\"vocab_size\":%ld%s", (int)(v - config), config, t.pieces + 5, v + 15);
    OK_OR_FAIL(file_write(at("prose.json"), changed, (long)strlen(changed)));
    free(config);
    tokenizer_close(&t);
    make_model("prose", "prose.json", "3", "f32", "prose");
}

static void test_bytes(void **state)
{
    (void)state;
    static struct inference i;
    struct loader l;
    struct evaluation e;
    long bytes = 0;
    for (int s = 0; s < 4 * SENTENCES; s++) bytes += (long)strlen(sentences[s % SENTENCES]);
    OK_OR_FAIL(inference_open(&i, at("prose"), S, 0));
    assert_non_null(i.tokenizer.model); // the checkpoint carries the data's tokenizer
    OK_OR_FAIL(loader_open(&l, at("prose"), "_valid", S, 1, true));
    OK_OR_FAIL(evaluate_loss(&e, &i.model, &l, &i.tokenizer, 0, model_sum));
    printf("  %ld bytes counted, %ld in the text; %.3f bits per byte\n", e.bytes, bytes, e.bits_per_byte);
    assert_int_equal(e.bytes, bytes);
    assert_true(fabs(e.bits_per_byte - e.loss * (double)e.tokens / log(2) / (double)bytes) < 1e-9);
    loader_close(&l);
    inference_close(&i);
}

struct taken {
    int id[64];
    double logprob[64];
    long n, most; // most 0: any number
};
static enum status take(void *user, struct sampled token, bool *stop)
{
    struct taken *t = user;
    *stop = t->most && t->n + 1 == t->most;
    t->id[t->n] = token.token;
    t->logprob[t->n++] = token.logprob;
    return OK;
}

static void test_generate(void **state)
{
    (void)state;
    static struct inference i;
    const int prompt[] = {1, 7, 12, 5};
    const struct sampling greedy = {0, 0, 1, 0, 1};
    struct end_ids none = {.n = 0}, ends;
    struct taken taken = {.n = 0}, again = {.n = 0};
    struct generation g = {.prompt = prompt, .prompt_n = 4, .max_tokens = 12, .ends = &none, .on_token = take,
                           .user = &taken};
    struct sampler s;
    struct kv_cache kv;
    enum finish finish;
    OK_OR_FAIL(inference_open(&i, at("f32"), 8, 64));
    OK_OR_FAIL(sampler_init(&s, &greedy, TINY_V, TINY_V));
    OK_OR_FAIL(kv_cache_init(&kv, &i.model, 1, 64, 64));
    OK_OR_FAIL(generate(&finish, &kv, 0, &s, &g));
    assert_int_equal(finish, FINISH_LENGTH);
    assert_int_equal(taken.n, 12);
    int ids[16] = {1, 7, 12, 5};
    for (long n = 4; n < 16; n++) { // each from a fresh sequence
        float logits[TINY_V];
        long best = 0;
        kv_cache_drop(&kv, 0);
        OK_OR_FAIL(kv_append(&kv, 0, ids, n, logits, NULL));
        for (long v = 1; v < TINY_V; v++)
            if (logits[v] > logits[best]) best = v;
        ids[n] = (int)best;
        assert_int_equal(taken.id[n - 4], best);
        assert_true(fabs(taken.logprob[n - 4] - ((double)logits[best] - log_sum_exp(logits, TINY_V))) < 1e-5);
    }
    const int more[] = {taken.id[11], 9}; // behind what is there, as a longer prompt from the start would
    struct taken on = {.n = 0}, afresh = {.n = 0, .most = 5};
    g = (struct generation){.prompt = more, .prompt_n = 2, .max_tokens = 5, .ends = &none, .on_token = take,
                            .user = &on};
    kv_cache_drop(&kv, 0);
    OK_OR_FAIL(kv_append(&kv, 0, ids, 15, NULL, NULL));
    OK_OR_FAIL(generate(&finish, &kv, 0, &s, &g));
    int long_prompt[17];
    memcpy(long_prompt, ids, 15 * sizeof *ids);
    memcpy(long_prompt + 15, more, sizeof more);
    g = (struct generation){.prompt = long_prompt, .prompt_n = 17, .max_tokens = 30, .ends = &none, .on_token = take,
                            .user = &afresh};
    kv_cache_drop(&kv, 0);
    OK_OR_FAIL(generate(&finish, &kv, 0, &s, &g));
    assert_int_equal(finish, FINISH_STOP); // the callback stopped it
    assert_int_equal(afresh.n, 5);
    assert_memory_equal(on.id, afresh.id, 5 * sizeof *on.id);
    g = (struct generation){.prompt = prompt, .prompt_n = 4, .max_tokens = 12, .on_token = take};
    ends.n = 2; // the fourth token now ends the text, if it did not appear before
    ends.id[0] = 60;
    ends.id[1] = taken.id[3];
    long wanted = 0;
    while (taken.id[wanted] != ends.id[0] && taken.id[wanted] != ends.id[1]) wanted++;
    g.ends = &ends;
    g.user = &again;
    kv_cache_drop(&kv, 0);
    OK_OR_FAIL(generate(&finish, &kv, 0, &s, &g));
    assert_int_equal(finish, FINISH_STOP);
    assert_int_equal(again.n, wanted);
    sampler_free(&s);

    const struct sampling warm = {1, 0, 1, 0, 1}; // each draw is the one of its position
    struct taken drawn = {.n = 0};
    g.ends = &none;
    g.user = &drawn;
    g.choice = 3;
    OK_OR_FAIL(sampler_init(&s, &warm, TINY_V, TINY_V));
    kv_cache_drop(&kv, 0);
    OK_OR_FAIL(generate(&finish, &kv, 0, &s, &g));
    kv_cache_drop(&kv, 0);
    for (long n = 0; n < 12; n++) {
        float logits[TINY_V];
        struct sampled wanted_token;
        if (n == 0) OK_OR_FAIL(kv_append(&kv, 0, prompt, 4, logits, NULL));
        else OK_OR_FAIL(kv_append(&kv, 0, &drawn.id[n - 1], 1, logits, NULL));
        OK_OR_FAIL(sampler_draw(&wanted_token, &s, logits, 3, 4 + n));
        assert_int_equal(drawn.id[n], wanted_token.token);
    }
    kv_cache_free(&kv);
    sampler_free(&s);

    OK_OR_FAIL(end_ids_read(&ends, &i.model.c, temporary)); // no generation_config.json: the config's
    assert_true(ends.n == 1 && ends.id[0] == 2);
    OK_OR_FAIL(file_write(at("generation_config.json"), "{\"eos_token_id\":[5,9]}", 22));
    OK_OR_FAIL(end_ids_read(&ends, &i.model.c, temporary));
    assert_true(ends.n == 2 && ends.id[0] == 5 && ends.id[1] == 9);
    OK_OR_FAIL(file_write(at("generation_config.json"), "{\"eos_token_id\":[5,\"x\"]}", 24));
    assert_int_equal(end_ids_read(&ends, &i.model.c, temporary), ERR_FORMAT);
    inference_close(&i);
}

static double score_of(struct inference *i, const char *prompt, const char *choice)
{
    char text[1000];
    int *a, *b, ids[1000];
    long n, m, from = 0;
    snprintf(text, sizeof text, "%s%s", prompt, choice);
    OK_OR_FAIL(tokenizer_encode(&a, &n, &i->tokenizer, prompt, (long)strlen(prompt)));
    OK_OR_FAIL(tokenizer_encode(&b, &m, &i->tokenizer, text, (long)strlen(text)));
    while (from < n && from < m && a[from] == b[from]) from++;
    ids[0] = i->tokenizer.bos;
    memcpy(ids + 1, b, (size_t)m * sizeof *b);
    free(a);
    free(b);
    double sum = 0;
    struct kv_cache kv;
    OK_OR_FAIL(kv_cache_init(&kv, &i->model, 1, 64, 64));
    float *logits = malloc((size_t)i->model.c.V * sizeof *logits);
    for (long t = 0; t < m; t++) { // predicts ids[t + 1]
        OK_OR_FAIL(kv_append(&kv, 0, ids + t, 1, logits, NULL));
        if (t >= from) sum += (double)logits[ids[t + 1]] - log_sum_exp(logits, i->model.c.V);
    }
    free(logits);
    kv_cache_free(&kv);
    return sum / (double)strlen(choice);
}

static void test_tasks(void **state)
{
    (void)state;
    static struct inference i;
    struct tasks tasks;
    struct output o;
    static const char *const choice[] = {" the lazy dog. Experts are chosen by a router", " xqz", " 12"};
    static const char *const prompt[] = {"The quick brown", "A model has", "Experts are"};
    OK_OR_FAIL(inference_open(&i, at("prose"), 16, 64));
    OK_OR_FAIL(output_open(&o, at("quiz.jsonl")));
    long right = 0;
    for (int q = 0; q < 3; q++) {
        int best = 0;
        for (int c = 1; c < 3; c++)
            if (score_of(&i, prompt[q], choice[c]) > score_of(&i, prompt[q], choice[best])) best = c;
        int said = q == 1 ? (best + 1) % 3 : best;
        right += said == best;
        OK_OR_FAIL(output_print(&o, "{\"prompt\":\"%s\",\"choices\":[\"%s\",\"%s\",\"%s\"],\"answer\":%d}\n\n",
                                prompt[q], choice[0], choice[1], choice[2], said));
    }
    OK_OR_FAIL(output_commit(&o, NULL));
    OK_OR_FAIL(evaluate_tasks(&tasks, &i, at("quiz.jsonl")));
    assert_int_equal(tasks.n, 1);
    assert_string_equal(tasks.item[0].name, "quiz");
    assert_int_equal(tasks.item[0].questions, 3);
    assert_int_equal(tasks.item[0].correct, right);
    tasks_free(&tasks);

    static const char *const wrong[] = {
        "{\"prompt\":\"a\"}", "{\"prompt\":\"a\",\"choices\":[\"b\"],\"answer\":0}", "nonsense", "[]", "",
        "{\"prompt\":\"a\",\"choices\":[\"b\",\"c\"],\"answer\":2}",
        "{\"prompt\":\"a\",\"choices\":[\"b\",1],\"answer\":0}", "{\"prompt\":\"a\",\"choices\":[\"b\",\"c\"]}",
    "{\"prompt\":\"a\",\"choices\":[\"b\",\"\"],\"answer\":0}", };
    for (size_t w = 0; w < sizeof wrong / sizeof *wrong; w++) {
        OK_OR_FAIL(file_write(at("quiz.jsonl"), wrong[w], (long)strlen(wrong[w])));
        assert_int_equal(evaluate_tasks(&tasks, &i, at("quiz.jsonl")), ERR_FORMAT);
    }
    inference_close(&i);
}

// The validation loss in a run's log is the loss that evaluating its checkpoint gives.
static void test_same_as_training(void **state)
{
    (void)state;
    static struct trainer t;
    static struct inference i;
    struct evaluation e;
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("logged"), "--train-steps", "3",
                    "--seq-length", "24", "--micro-batch-size", "2", "--global-batch-size", "4", "--eval-interval", "3",
                    "--eval-tokens", "0", "--dtype", "f32"));
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    struct rows r = read_rows(at("logged"), "eval_loss");
    struct loader l = open_valid(S, true);
    OK_OR_FAIL(inference_open(&i, at("logged"), S, 0));
    OK_OR_FAIL(evaluate_loss(&e, &i.model, &l, NULL, 0, model_sum));
    double logged = number(r.row[0], "eval_loss");
    printf("  logged %.8f, evaluated %.8f\n", logged, e.loss);
    assert_true(fabs(logged - e.loss) < 1e-6 * e.loss);
    loader_close(&l);
    inference_close(&i);
    free_rows(&r);
}

static int set_up(void **state)
{
    if (make_temporary(state) != 0 || kernels_init(2) != OK) return -1;
    log_quiet(true);
    write_config("moe.json", true, 64);
    write_config("dense.json", false, 64);
    write_data("text_train", 20, 60, 1);
    write_data("text_valid", 10, 60, 2);
    make_model("f32", "moe.json", "1", "f32", "text");
    make_model("other", "moe.json", "2", "f32", "text");
    write_config("long.json", true, 400);
    make_model("long", "long.json", "1", "f32", "text");
    make_model("bf16", "moe.json", "1", "bf16", "text");
    make_model("dense", "dense.json", "1", "f32", "text");
    make_text_model();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss),     cmocka_unit_test(test_divergence), cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_generate), cmocka_unit_test(test_tasks),      cmocka_unit_test(test_same_as_training),
    };
    return cmocka_run_group_tests(tests, set_up, remove_temporary);
}
