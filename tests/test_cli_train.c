// The commands train, eval and generate as a user calls them: exit codes, sentences, files, signals.
#include "program_util.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#define SMALL "--micro-batch-size", "2", "--global-batch-size", "4", "--seq-length", "16", "--quiet"

static void test_train_refuses(void **state)
{
    (void)state;
    FAILS(2, "none was given", "train", "--data", at("text"), "--output", at("r0"));
    FAILS(2, "--output: is missing", "train", "--data", at("text"), "--model", at("moe.json"));
    FAILS(2, "--data: is missing", "train", "--model", at("moe.json"), "--output", at("r0"));
    FAILS(2, "did you mean --micro-batch-size", "train", "--micro-batchsize", "4");
    FAILS(2, "--tensor-parallel-sizes: unknown option", "train", "--tensor-parallel-sizes", "2");
    FAILS(2, "--lr", "train", "--lr", "fast");
    FAILS(2, "--lr-schedule", "train", "--lr-schedule", "cubic");
    FAILS(2, "--moe-aux-loss", "train", "--moe-aux-loss", "biases");
    FAILS(2, "--seq-length 128", "train", "--data", at("text"), "--model", at("moe.json"), "--output", at("r0"),
          "--seq-length", "128");
    FAILS(2, "too much", "train", "--data", at("text"), "--model", at("moe.json"), "--output", at("r0"), SMALL,
          "--memory-limit-gib", "1e-5");
    FAILS(1, "absent", "train", "--data", at("absent"), "--model", at("moe.json"), "--output", at("r0"), SMALL);
    FAILS(1, "absent.json", "train", "--data", at("text"), "--model", at("absent.json"), "--output", at("r0"), SMALL);
    FAILS(1, "no checkpoint", "train", "--output", at("r0"), "--resume");
    OK_OR_FAIL(file_write(at("broken.json"), "{\"architectures\":", 17));
    FAILS(1, "broken.json", "train", "--data", at("text"), "--model", at("broken.json"), "--output", at("r0"), SMALL);
    OK_OR_FAIL(file_write(at("wrong.conf"), "lrr = 1\n", 8));
    FAILS(2, "lrr", "train", "--config", at("wrong.conf"));
    assert_false(path_exists(at("r0"))); // nothing was written on the way
}

static void test_train_and_resume(void **state)
{
    (void)state;
    WORKS("train", "--data", at("text"), "--model", at("moe.json"), "--output", at("r1"), SMALL, "--train-steps", "4",
          "--save-interval", "2", "--json");
    cJSON *json = printed_json();
    assert_int_equal((long)number(json, "step"), 4);
    assert_int_equal((long)number(json, "tokens"), 4 * 4 * 16);
    cJSON_Delete(json);
    assert_true(path_exists(at("r1/step-000002/training/state.json")) && path_exists(at("r1/step-000004/config.json")));
    FAILS(2, "already holds a run (continue it with --resume", "train", "--data", at("text"), "--model", at("moe.json"),
          "--output", at("r1"), SMALL);
    FAILS(2, "--weight-decay: cannot change", "train", "--output", at("r1"), "--resume", "--weight-decay", "0.3");
    FAILS(2, "more than one was given", "train", "--output", at("r1"), "--resume", "--model", at("moe.json"));
    WORKS("train", "--output", at("r1"), "--resume", "--train-steps", "6", "--lr", "1e-3", "--threads", "1", "--quiet");
    assert_non_null(strstr(out_text, "r1/step-000006"));
    struct rows r = read_rows(at("r1"), "loss");
    assert_int_equal(r.n, 6);
    free_rows(&r);
    WORKS("train", "--output", at("r1"), "--resume"); // is at its end
    assert_non_null(strstr(err_text, "raise --train-steps"));
}

// A checkpoint whose optimizer state is in several files: all of them are needed, and each is checked.
static void test_shards_of_the_optimizer(void **state)
{
    (void)state;
    static struct trainer t;
    checkpoint_shard_bytes = 20000;
    log_quiet(true);
    OK_OR_FAIL(kernels_init(1));
    OK_OR_FAIL(OPEN(&t, "--data", at("text"), "--model", at("moe.json"), "--output", at("shards"), MOE_RUN,
                    "--train-steps", "1"));
    OK_OR_FAIL(trainer_run(&t));
    trainer_close(&t);
    struct path_list list;
    OK_OR_FAIL(folder_list(&list, at("shards/step-000001/training")));
    assert_true(list.n > 5);
    for (long i = 0; i < list.n; i++) {
        char file[256], *text;
        long bytes;
        snprintf(file, sizeof file, "shards/step-000001/training/%s", list.name[i]);
        if (strncmp(list.name[i], "optimizer", 9) != 0) continue;
        OK_OR_FAIL(file_read(&text, &bytes, at(file), 1 << 24));
        text[bytes / 2] ^= 1;
        OK_OR_FAIL(file_write(at(file), text, bytes));
        text[bytes / 2] ^= 1;
        FAILS(1, list.name[i], "inspect", at("shards/step-000001"), "--verify");
        FAILS(1, list.name[i], "train", "--output", at("shards"), "--resume", "--quiet");
        assert_null(strchr(err_text, '\n')); // one sentence
        assert_int_equal(unlink(at(file)), 0);
        FAILS(1, list.name[i], "inspect", at("shards/step-000001"), "--verify");
        FAILS(1, list.name[i], "train", "--output", at("shards"), "--resume", "--quiet");
        assert_non_null(strstr(err_text, "the file is missing"));
        OK_OR_FAIL(file_write(at(file), text, bytes));
        free(text);
    }
    path_list_free(&list);
    WORKS("inspect", at("shards/step-000001"), "--verify");
    WORKS("train", "--output", at("shards"), "--resume", "--train-steps", "2", "--keep", "1", "--quiet");
    assert_false(path_exists(at("shards/step-000001"))); // with all its files
    assert_true(path_exists(at("shards/step-000002/training/optimizer.safetensors"))); // the program cuts at 5 GB
}

// What a person sees: the model's shape, the formula, progress, the first drop rate of an initialised MoE.
static void test_train_says(void **state)
{
    (void)state;
    WORKS("train", "--data", at("text"), "--init", at("r1"), "--output", at("r2"), "--micro-batch-size", "2",
          "--global-batch-size", "4", "--seq-length", "16", "--train-steps", "2", "--eval-interval", "2");
    static const char *const said[] = {"SkyworkForCausalLM, 2 layers", "4 experts, top-2", "6 L H C S", "GiB planned",
                                       "step 2/2: loss", "tokens/s", "drop rate before the first update",
                                       "evaluation loss", "saved"};
    for (size_t i = 0; i < sizeof said / sizeof *said; i++)
        if (!strstr(err_text, said[i])) fail_msg("'%s' is missing in: %s", said[i], err_text);
}

static void test_signals(void **state)
{
    (void)state;
    static const int signals[] = {SIGTERM, SIGINT};
    for (int s = 0; s < 2; s++) {
        const char *run = at(s ? "r4" : "r3");
        pid_t child = start((const char *const[]){"train", "--data", at("text"), "--model", at("moe.json"), "--output",
                                                  run, SMALL, "--train-steps", "100000000", "--save-interval", "0",
                                                  "--eval-interval", "0", NULL});
        char metrics[PATH_LENGTH], path[PATH_LENGTH];
        OK_OR_FAIL(path_join(metrics, run, "metrics.jsonl"));
        struct file_map map = {0};
        for (int wait = 0; wait < 3000 && map.bytes == 0; wait++) { // until the first step is logged
            usleep(10000);
            if (path_exists(metrics)) {
                OK_OR_FAIL(file_map_open(&map, metrics));
                file_map_close(&(struct file_map){.data = map.data, .bytes = map.bytes});
            }
        }
        kill(child, signals[s]);
        int code = finish(child);
        if (code != 0) fail_msg("exit code %d: %s", code, err_text);
        OK_OR_FAIL(checkpoint_latest(path, run));
        OK_OR_FAIL(folder_verify(path));
        struct rows r = read_rows(run, "loss");
        char last[64];
        snprintf(last, sizeof last, "step-%06ld", r.n);
        assert_non_null(strstr(path, last)); // every step that was logged is in the checkpoint
        free_rows(&r);
    }
}

static void test_eval(void **state)
{
    (void)state;
    WORKS("eval", "--model", at("r1"), "--data", at("text"), "--seq-length", "16", "--json");
    cJSON *json = printed_json();
    assert_true(fabs(log(number(json, "ppl")) - number(json, "loss")) < 1e-9);
    assert_true(number(json, "tokens") > 100 && number(json, "bytes") == 0);
    assert_true(cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(json, "bits_per_byte"))); // there is no tokenizer
    cJSON_Delete(json);
    WORKS("eval", "--model", at("r1/step-000004"), "--data", at("text"), "--data-split", "train", "--max-tokens", "40",
          "--seq-length", "16");
    assert_non_null(strstr(out_text, "tokens 40\n"));
    FAILS(2, "none is given", "eval", "--model", at("r1"));
    FAILS(2, "more than one", "eval", "--model", at("r1"), "--data", at("text"), "--tokens", "1,2");
    FAILS(2, "--model: is missing", "eval", "--data", at("text"));
    FAILS(2, "--logits: needs --tokens", "eval", "--model", at("r1"), "--data", at("text"), "--logits", at("x.npy"));
    FAILS(1, "nowhere", "eval", "--model", at("nowhere"), "--data", at("text"));
    FAILS(1, "tokenizer.model", "eval", "--model", at("r1"), "--tasks", at("text_train.idx"));
    FAILS(2, "65 positions", "eval", "--model", at("r1"), "--data", at("text"), "--seq-length", "65");
}

static void test_logits(void **state)
{
    (void)state;
    WORKS("eval", "--model", at("r1"), "--tokens", "1,5,9,20", "--logits", at("logits.npy"), "--json");
    cJSON *json = printed_json();
    char *npy;
    long bytes, n = 4, rows_bytes = 4 * n * TINY_V;
    OK_OR_FAIL(file_read(&npy, &bytes, at("logits.npy"), 1 << 20));
    assert_memory_equal(npy, "\x93NUMPY\x01\x00", 8);
    long header = (unsigned char)npy[8] + 256 * (unsigned char)npy[9];
    assert_int_equal((10 + header) % 64, 0);
    assert_int_equal(bytes, 10 + header + rows_bytes);
    assert_int_equal(npy[10 + header - 1], '\n');
    assert_non_null(strstr(npy + 10, "'descr': '<f4', 'fortran_order': False, 'shape': (4, 61), "));
    const int ids[] = {1, 5, 9, 20};
    double nats = 0;
    for (long t = 0; t < 3; t++) {
        float row[TINY_V];
        double sum = 0;
        memcpy(row, npy + 10 + header + t * (long)sizeof row, sizeof row);
        for (long v = 0; v < TINY_V; v++) sum += exp((double)row[v]);
        nats += log(sum) - (double)row[ids[t + 1]];
    }
    assert_true(fabs(nats / 3 - number(json, "loss")) < 1e-6);
    assert_int_equal((long)number(json, "tokens"), 3);
    free(npy);
    cJSON_Delete(json);
    OK_OR_FAIL(file_write(at("ids.txt"), "1, 5\n9 20\n", 10));
    WORKS("eval", "--model", at("r1"), "--tokens", at("ids.txt"));
    FAILS(1, "nofile", "eval", "--model", at("r1"), "--tokens", at("nofile"));
    FAILS(2, "no token 61 (use ids from 0 to 60)", "eval", "--model", at("r1"), "--tokens", "1,61");
    OK_OR_FAIL(file_write(at("beyond.txt"), "1 61", 4));
    FAILS(1, "beyond.txt: there is no token 61", "eval", "--model", at("r1"), "--tokens", at("beyond.txt"));
    WORKS("eval", "--model", at("r1"), "--tokens", "1", "--logits", at("one.npy"));
    assert_string_equal(out_text, "");
    FAILS(2, "'-9' is not a token id", "eval", "--model", at("r1"), "--tokens", "1,5,-9");
    FAILS(2, "one token has nothing to predict", "eval", "--model", at("r1"), "--tokens", "1");

    // A file larger than `ulimit -f` allows ends in a sentence, not by the signal.
    char many[256] = "1";
    for (int i = 0; i < 60; i++) memcpy(many + 1 + 2 * i, ",5", 3);
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 4096;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int code = RUN("eval", "--model", at("r1"), "--tokens", many, "--logits", at("large.npy"));
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(code, 1);
    assert_non_null(strstr(err_text, "large.npy: cannot be written: File too large"));
    assert_false(path_exists(at("large.npy")) || path_exists(at("large.npy.tmp")));
    FAILS(1, "ids.txt", "eval", "--model", at("r1"), "--tokens", at("ids.txt"), "--logits", at("ids.txt/x.npy"));
}

// Both streams in one file: what was generated stands before what is said about it.
static void test_generate_order(void **state)
{
    (void)state;
    long id[3];
    program_joined = true;
    WORKS("generate", "--model", at("r1"), "--prompt-ids", "1,5,9", "--temperature", "0", "--max-tokens", "3");
    program_joined = false;
    if (sscanf(out_text, "%ld,%ld,%ld\n", &id[0], &id[1], &id[2]) != 3 || !strstr(out_text, "\n3 prompt tokens"))
        fail_msg("printed: %s", out_text);
}

static void test_generate(void **state)
{
    (void)state;
    char *first;
    WORKS("generate", "--model", at("r1"), "--prompt-ids", "1,5,9", "--max-tokens", "9", "--json", "--seed", "3");
    cJSON *json = printed_json();
    assert_true(number(json, "prompt_tokens") == 3);
    assert_true(cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(json, "text")));
    int n = cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(json, "token_ids"));
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(json, "logprobs")), n);
    const char *reason = cJSON_GetObjectItemCaseSensitive(json, "finish_reason")->valuestring;
    assert_true(n == 9 ? !strcmp(reason, "length") : !strcmp(reason, "stop"));
    cJSON_Delete(json);
    first = strdup(out_text);
    WORKS("generate", "--model", at("r1"), "--prompt-ids", "1,5,9", "--max-tokens", "9", "--json", "--seed", "3",
          "--threads", "2");
    assert_string_equal(first, out_text);
    WORKS("generate", "--model", at("r1"), "--prompt-ids", "1,5,9", "--max-tokens", "9", "--json", "--seed", "4");
    assert_string_not_equal(first, out_text);
    free(first);
    WORKS("generate", "--model", at("r1"), "--prompt-ids", "1,5,9", "--temperature", "0", "--max-tokens", "3");
    FAILS(2, "none is given", "generate", "--model", at("r1"));
    FAILS(2, "both are given", "generate", "--model", at("r1"), "--prompt", "a", "--prompt-ids", "1");
    FAILS(1, "tokenizer.model", "generate", "--model", at("r1"), "--prompt", "hello");
    FAILS(2, "is not a token id", "generate", "--model", at("r1"), "--prompt-ids", "1,x");
    FAILS(2, "no token 61", "generate", "--model", at("r1"), "--prompt-ids", "1,61");
    FAILS(2, "--top-p", "generate", "--model", at("r1"), "--prompt-ids", "1", "--top-p", "0");
    FAILS(2, "--max-tokens 100", "generate", "--model", at("r1"), "--prompt-ids", "1", "--max-tokens", "100");
    WORKS("generate", "--model", at("r1"), "--prompt-ids", "1", "--seed", "5", "--json"); // the default fits itself in
    json = printed_json();
    assert_true(cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(json, "token_ids")) <= 63);
    cJSON_Delete(json);
}

// From text to text with a tokenizer: what is streamed is what --json reports, and Unicode comes out whole.
static void test_text(void **state)
{
    (void)state;
    static const char *const line[] = {"The router chooses two experts for each token.",
                                       "Caf\xc3\xa9 \xe4\xb8\xad\xe6\x96\x87!",
                                       "A quick brown fox, and 1234 lazy dogs."};
    OK_OR_FAIL(folder_make(at("docs")));
    for (int d = 0; d < 30; d++) {
        char name[32], text[4096];
        int n = 0;
        for (int i = 0; i < 12; i++)
            n += snprintf(text + n, sizeof text - (size_t)n, "%s %d\n", line[(d * 7 + i * i) % 3], d * 31 + i);
        snprintf(name, sizeof name, "docs/%02d.txt", d);
        OK_OR_FAIL(file_write(at(name), text, n));
    }
    WORKS("prepare", "--input", at("docs"), "--output", at("prose"), "--train-tokenizer", "--vocab-size", "400",
          "--split", "70,30,0", "--quiet");
    write_config("prose.json", false, 64);
    char *config, changed[4096];
    long bytes = 0;
    OK_OR_FAIL(file_read(&config, &bytes, at("prose.json"), 1 << 20));
    FAILS(1, "raise vocab_size", "train", "--data", at("prose"), "--model", at("prose.json"), "--output", at("p"),
          SMALL);
    const char *v = strstr(config, ":61,");
    snprintf(changed, sizeof changed, "%.*s:512,%s", (int)(v - config), config, v + 4);
    OK_OR_FAIL(file_write(at("prose.json"), changed, (long)strlen(changed)));
    free(config);
    WORKS("train", "--data", at("prose"), "--model", at("prose.json"), "--output", at("p"), "--train-steps", "60",
          "--lr", "1e-2", "--lr-warmup-steps", "5", "--micro-batch-size", "4", "--global-batch-size", "4",
          "--seq-length", "32", "--eval-interval", "30", "--quiet");
    assert_true(path_exists(at("p/step-000060/tokenizer.model")) && path_exists(at("p/report.html")));
    WORKS("eval", "--model", at("p"), "--data", at("prose"), "--json", "--seq-length", "32");
    cJSON *json = printed_json();
    double bits = number(json, "bits_per_byte"), nats = number(json, "loss") * number(json, "tokens");
    assert_true(fabs(bits - nats / log(2) / number(json, "bytes")) < 1e-9 && bits > 0.1 && bits < 8);
    cJSON_Delete(json);

    OK_OR_FAIL(file_write(at("stdin"), "Caf\xc3\xa9", 5));
    char *streamed = NULL;
    WORKS("generate", "--model", at("p"), "--prompt", "-", "--max-tokens", "40", "--seed", "2", "--quiet");
    streamed = strdup(out_text);
    assert_true(utf8_valid(streamed, (long)strlen(streamed)));
    WORKS("generate", "--model", at("p"), "--prompt", "Caf\xc3\xa9", "--max-tokens", "40", "--seed", "2", "--json");
    json = printed_json();
    const char *text = cJSON_GetObjectItemCaseSensitive(json, "text")->valuestring;
    printf("  '%s'\n", text);
    size_t n = strlen(text);
    assert_true(n > 10 && strlen(streamed) >= n && !strncmp(streamed, text, n) && !strcmp(streamed + n, "\n"));
    cJSON_Delete(json);
    free(streamed);
    FAILS(2, "no token 512", "generate", "--model", at("p"), "--prompt-ids", "1,512");
    FAILS(2, "no token 450 (use ids from 0 to 399)", "generate", "--model", at("p"), "--prompt-ids", "1,450");
    FAILS(2, "room for 63", "generate", "--model", at("p"), "--prompt-ids", "1", "--max-tokens", "500");
    OK_OR_FAIL(file_copy(at("r1/step-000006/tokenizer.model"), at("p/step-000060/tokenizer.model")));
    FAILS(1, "not in the model's vocabulary of 61", "generate", "--model", at("r1"), "--prompt", "The router");
    const char *quiz = "{\"prompt\":\"The router\",\"choices\":[\" chooses\",\" zzzzz\"],\"answer\":0}\n";
    OK_OR_FAIL(file_write(at("quiz.jsonl"), quiz, (long)strlen(quiz)));
    WORKS("eval", "--model", at("p"), "--tasks", at("quiz.jsonl"), "--json");
    assert_non_null(strstr(out_text, "\"accuracy\":{\"quiz\":1"));
}

static int set_up(void **state)
{
    if (!find_program() || make_temporary(state) != 0) return -1;
    write_config("moe.json", true, 64);
    write_data("text_train", 20, 60, 1);
    write_data("text_valid", 10, 60, 2);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_train_refuses), cmocka_unit_test(test_train_and_resume),
        cmocka_unit_test(test_shards_of_the_optimizer),
        cmocka_unit_test(test_train_says),    cmocka_unit_test(test_signals),
        cmocka_unit_test(test_eval),          cmocka_unit_test(test_logits),
        cmocka_unit_test(test_generate),      cmocka_unit_test(test_generate_order),
        cmocka_unit_test(test_text),
    };
    return cmocka_run_group_tests(tests, set_up, remove_temporary);
}
