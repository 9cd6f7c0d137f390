// The weights of a model folder. Text that begins with '{' is a model.safetensors.index.json beside good shards;
// anything else is the model.safetensors of an FP8 model: refused with a sentence, or every tensor is there, and read.
#include "fuzz_folder.h"

#include "checkpoint/folder.h"
#include "kernels/kernels.h"

#define SHAPE                                                                                                          \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"num_hidden_layers\":1,"                      \
    "\"num_attention_heads\":2,\"max_position_embeddings\":8,\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,"            \
    "\"hidden_act\":\"silu\",\"torch_dtype\":\"float32\",\"bos_token_id\":1,\"eos_token_id\":2,"
static const char shards_config[] =
    SHAPE "\"hidden_size\":8,\"intermediate_size\":8,\"vocab_size\":16,\"tie_word_embeddings\":false}";
static const char single_config[] =
    SHAPE "\"hidden_size\":4,\"intermediate_size\":4,\"vocab_size\":8,\"tie_word_embeddings\":true,"
          "\"quantization_config\":{\"quant_method\":\"fp8\",\"activation_scheme\":\"dynamic\",\"fmt\":\"e4m3\"}}";

static void make_shards(const char *path)
{
    struct config c;
    struct tensor_plan *plan;
    struct folder_writer *w;
    long n;
    CHECK(config_parse(&c, shards_config, sizeof shards_config - 1, "config") == OK);
    CHECK(tensor_plan_of(&plan, &n, &c, F32) == OK);
    CHECK(folder_writer_open(&w, path, &c, plan, n, 1024, false) == OK); // several shards
    for (long i = 0; i < n; i++) {
        long bytes = tensor_plan_bytes(&plan[i]);
        void *zeros = calloc(1, (size_t)bytes);
        CHECK(zeros && folder_writer_data(w, zeros, bytes) == OK);
        free(zeros);
    }
    CHECK(folder_writer_commit(w) == OK);
    free(plan);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_folder f;
    if (!fuzz_folder[0]) {
        CHECK(kernels_init(1) == OK); // numbers are read through the cast kernel
        fuzz_folder_make();
        make_shards(fuzz_path("shards"));
        CHECK(folder_make(fuzz_path("single")) == OK);
        fuzz_put("single/config.json", single_config, sizeof single_config - 1);
    }
    bool index = size > 0 && data[0] == '{';
    const char *path = fuzz_path(index ? "shards" : "single");
    fuzz_put(index ? "shards/model.safetensors.index.json" : "single/model.safetensors", data, size);
    if (model_folder_open(&f, path) == OK) {
        float value[64];
        for (long i = 0; i < f.params.n; i++) model_folder_read(value, &f, i, 0, f.params.item[i].rows);
        model_folder_close(&f);
    } else {
        fuzz_blames(path);
    }
    return 0;
}
