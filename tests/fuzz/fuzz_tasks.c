// A file of multiple-choice questions (eval --tasks) of any bytes, put to a very small model: refused with a sentence,
// or every question was answered.
#include "fuzz_folder.h"

#include "eval/tasks.h"
#include "kernels/kernels.h"

static struct inference inference;

static const char config_text[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":4,\"intermediate_size\":4,"
    "\"num_hidden_layers\":1,\"num_attention_heads\":1,\"vocab_size\":320,\"max_position_embeddings\":48,"
    "\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,\"hidden_act\":\"silu\",\"tie_word_embeddings\":false,"
    "\"torch_dtype\":\"float32\",\"bos_token_id\":1,\"eos_token_id\":2}";

static void release(void)
{
    inference_close(&inference);
}

static void start(void)
{
    static const char words[] = "the kernel reads a file from the disk and writes a table of pages to memory\n";
    char text[64 * sizeof words];
    struct config c;
    struct model_options o = {.dtype = F32, .B = 1, .S = 16, .positions = 48, .rule = moe_rule_inference};
    fuzz_folder_make();
    for (int i = 0; i < 64; i++) memcpy(text + i * ((int)sizeof words - 1), words, sizeof words);
    struct text all = {text, (long)strlen(text)};
    struct tokenizer_training t = {.text = &all, .texts = 1, .vocab_size = 280, .threads = 1};
    char path[PATH_LENGTH];
    snprintf(path, sizeof path, "%s", fuzz_path("tokenizer.model"));
    t.path = path;
    CHECK(setenv("SKYMOE_KERNELS", "ref", 1) == 0 && kernels_init(1) == OK);
    CHECK(tokenizer_train(&t) == OK && tokenizer_open(&inference.tokenizer, path) == OK);
    CHECK(config_parse(&c, config_text, sizeof config_text - 1, "config") == OK);
    CHECK(model_init(&inference.model, &c, &o) == OK);
    snprintf(inference.folder, sizeof inference.folder, "%s", fuzz_folder);
    atexit(release);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tasks tasks;
    if (!fuzz_folder[0]) start();
    fuzz_put("quiz.jsonl", data, size);
    if (evaluate_tasks(&tasks, &inference, fuzz_path("quiz.jsonl")) == OK) {
        CHECK(tasks.n > 0);
        for (long i = 0; i < tasks.n; i++) {
            const struct task *t = &tasks.item[i];
            CHECK(t->questions > 0 && t->correct >= 0 && t->correct <= t->questions && strlen(t->name) < TASK_NAME);
        }
        tasks_free(&tasks);
    } else {
        fuzz_blames(fuzz_path("quiz.jsonl"));
    }
    return 0;
}
