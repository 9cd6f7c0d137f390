// What tests of training share: a temporary folder, a tiny model and tiny prepared data on disk, options from words.
#ifndef SKYMOE_TESTS_TRAIN_UTIL_H
#define SKYMOE_TESTS_TRAIN_UTIL_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "base/rng.h"
#include "checkpoint/checkpoint.h"
#include "data/dataset.h"
#include "train/trainer.h"

#include <cmocka.h> // last: it defines fail as a macro

#define UNUSED __attribute__((unused))

#define OK_OR_FAIL(call)                                                                                               \
    do {                                                                                                               \
        if ((call) != OK) fail_msg("%s: %s", #call, fail_message());                                                   \
    } while (0)

static char temporary[PATH_LENGTH];

static UNUSED int make_temporary(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(temporary, sizeof temporary, "%s/skymoe-test-XXXXXX", base && *base ? base : "/tmp");
    return mkdtemp(temporary) ? 0 : -1;
}

static UNUSED int remove_temporary(void **state)
{
    (void)state;
    return folder_remove(temporary) == OK ? 0 : -1;
}

// A path in the temporary folder; 32 of them live at a time.
static UNUSED const char *at(const char *name)
{
    static char path[32][PATH_LENGTH];
    static int next;
    char *p = path[next++ % 32];
    if (snprintf(p, PATH_LENGTH, "%s/%s", temporary, name) >= PATH_LENGTH) abort();
    return p;
}

enum { TINY_V = 61 };

static UNUSED void write_config(const char *name, bool moe, int positions)
{
    char text[2048];
    snprintf(text, sizeof text,
             "{\"architectures\":[\"%s\"],\"model_type\":\"%s\",\"hidden_size\":32,\"intermediate_size\":40,"
             "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":%d,"
             "\"max_position_embeddings\":%d,\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,\"hidden_act\":\"silu\","
             "\"tie_word_embeddings\":false,\"torch_dtype\":\"float32\",\"bos_token_id\":1,\"eos_token_id\":2%s}",
             moe ? "SkyworkForCausalLM" : "LlamaForCausalLM", moe ? "skywork_moe" : "llama", TINY_V, positions,
             moe ? ",\"num_experts\":[4],\"moe_expert_interval\":1,\"moe_use_logits_norm\":true,"
                   "\"moe_gate_norm_std\":1.0,\"moe_2layer_gate\":false,\"moe_use_skywork_gating\":false,"
                   "\"moe_feature_no_mul_topk\":true" : "");
    OK_OR_FAIL(file_write(at(name), text, (long)strlen(text)));
}

// Documents of a language with structure: the next token is mostly a function of the last one.
static UNUSED void write_data(const char *name, long documents, long tokens, uint64_t seed)
{
    struct dataset_writer w;
    OK_OR_FAIL(dataset_writer_open(&w, at(name), TINY_V));
    int *token = malloc((size_t)tokens * sizeof *token);
    for (long d = 0; d < documents; d++) {
        long n = tokens / 2 + (long)(rng_uniform(seed, 1, (uint64_t)d) * (double)tokens / 2);
        token[0] = 1;
        for (long i = 1; i < n - 1; i++) {
            double u = rng_uniform(seed, 2, (uint64_t)(d * tokens + i));
            token[i] = u < 0.1 ? 3 + (int)(u * 10 * (TINY_V - 3)) : 3 + (token[i - 1] * 7 + 5) % (TINY_V - 3);
        }
        token[n - 1] = 2;
        OK_OR_FAIL(dataset_writer_add(&w, token, n));
    }
    free(token);
    OK_OR_FAIL(dataset_writer_commit(&w));
}

// Models moe.json and dense.json; data text, and few of it.
static UNUSED int training_set_up(void **state)
{
    if (make_temporary(state) != 0 || kernels_init(2) != OK) return -1;
    log_quiet(true);
    write_config("moe.json", true, 64);
    write_config("dense.json", false, 64);
    write_data("text_train", 40, 100, 1);
    write_data("text_valid", 10, 100, 2);
    write_data("few_train", 6, 80, 3);
    write_data("few_valid", 3, 80, 4);
    return 0;
}

// Options from words: settings_parse of the train table. set has train_rows_n entries.
static UNUSED enum status parse_options(struct train_options *o, bool *set, const char *const *word, int n)
{
    char *argv[128] = {(char *)"train"};
    struct common_options common;
    struct settings s = train_settings(o);
    assert_true(n < 127);
    for (int i = 0; i < n; i++) argv[i + 1] = (char *)word[i];
    return settings_parse(&s, &common, set, n + 1, argv);
}

static UNUSED enum status open_trainer(struct trainer *t, const char *const *word, int n)
{
    struct train_options o;
    bool set[256];
    assert_true(train_rows_n <= 256);
    enum status status = parse_options(&o, set, word, n);
    return status == OK ? trainer_open(t, &o, set) : status;
}
#define OPEN(t, ...)                                                                                                   \
    open_trainer(t, (const char *const[]){__VA_ARGS__}, (int)(sizeof(const char *[]){__VA_ARGS__} / sizeof(char *)))

// Options of a short run.
#define MOE_RUN                                                                                                        \
    "--micro-batch-size", "2", "--global-batch-size", "6", "--seq-length", "16", "--eval-interval", "0", "--lr",       \
        "3e-3", "--lr-warmup-steps", "3"

// Rows of RUN/metrics.jsonl that have `field`.
struct rows {
    cJSON **row;
    long n;
};
static UNUSED struct rows read_rows(const char *run, const char *field)
{
    char path[PATH_LENGTH], *text;
    long bytes;
    struct rows r = {0};
    OK_OR_FAIL(path_join(path, run, "metrics.jsonl"));
    OK_OR_FAIL(file_read(&text, &bytes, path, 1 << 26));
    for (char *line = text; *line;) {
        cJSON *json;
        long length = (long)strcspn(line, "\n");
        OK_OR_FAIL(json_parse(&json, line, length, path));
        line += length + (line[length] == '\n');
        if (!cJSON_GetObjectItemCaseSensitive(json, field)) {
            cJSON_Delete(json);
            continue;
        }
        r.row = realloc(r.row, (size_t)(r.n + 1) * sizeof *r.row);
        r.row[r.n++] = json;
    }
    free(text);
    return r;
}
static UNUSED void free_rows(struct rows *r)
{
    for (long i = 0; i < r->n; i++) cJSON_Delete(r->row[i]);
    free(r->row);
}
static UNUSED double number(const cJSON *object, const char *field)
{
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, field);
    assert_true(cJSON_IsNumber(value));
    return value->valuedouble;
}

#endif
