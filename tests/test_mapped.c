// Inference on weights where they lie in the files: the same bits as from a copy, which fields are mapped, what happens
// when a file shrinks.
#include "checkpoint_util.h"

#include "base/log.h"
#include "eval/inference.h"
#include "quant/quantize.h"

#include <fcntl.h>
#include <sys/wait.h>

enum { T = 9 };
static const int token[T] = {1, 5, 9, 3, 0, 7, 12, 2, 11};

// Matrices of whole pages, so that the parts of every field fit behind each other.
static struct config paged(long E, enum dtype dtype)
{
    return (struct config){.arch = E ? ARCH_SKYWORK : ARCH_LLAMA, .D = 64, .F = 96, .L = 2, .H = 4, .G = 4, .C = 16,
                           .V = 64, .E = E, .K = E ? 2 : 0, .gate_norm_std = E != 0, .max_positions = 64,
                           .norm_eps = 1e-5, .rope_theta = 100, .dtype = dtype, .bos = 1, .eos = 2, .pad = -1};
}

static void write_weights(const char *name, struct config c, long shard_bytes)
{
    static struct model m;
    struct model_options o = training(c.dtype == F32 ? F32 : BF16, 1, 4);
    struct tensor_plan *plan;
    struct folder_writer *w;
    long n;
    OK_OR_FAIL(folder_remove(in(name)));
    OK_OR_FAIL(model_init(&m, &c, &o));
    model_init_weights(&m, &(struct init_rule){3, 0.3, 0.3});
    OK_OR_FAIL(tensor_plan_of(&plan, &n, &c, c.dtype));
    OK_OR_FAIL(folder_writer_open(&w, in(name), &c, plan, n, shard_bytes, false));
    OK_OR_FAIL(folder_writer_model(w, &m));
    OK_OR_FAIL(folder_writer_commit(w));
    free(plan);
    model_free(&m);
}

static void logits_of(float *logits, struct model *m)
{
    struct kv_cache kv;
    OK_OR_FAIL(kv_cache_init(&kv, m, 1, T, T));
    OK_OR_FAIL(kv_append(&kv, 0, token, T, NULL, logits));
    kv_cache_free(&kv);
}

// Logits from mapped weights and from a copy; the fields of all layers that were mapped are counted.
static long compare(const char *name)
{
    static struct inference mapped;
    static struct model copied;
    static struct model_folder f;
    float a[T * 64], b[T * 64];
    OK_OR_FAIL(inference_open(&mapped, in(name), T, T));
    OK_OR_FAIL(model_folder_open(&f, in(name)));
    struct model_options o = mapped.model.o;
    o.mapped = NULL;
    OK_OR_FAIL(model_init(&copied, &f.config, &o));
    OK_OR_FAIL(model_folder_load(&copied, &f));
    model_folder_close(&f);
    logits_of(a, &mapped.model);
    logits_of(b, &copied);
    assert_memory_equal(a, b, (size_t)(T * copied.c.V) * sizeof *a);
    for (long i = 0; i < T * copied.c.V; i++) assert_true(a[i] != 0 && a[i] == a[i]);
    assert_true(same_model(&mapped.model, &copied));
    long fields = 0;
    for (long i = 0; i < mapped.weights.views; i++) {
        const char *data = (const char *)mapped.weights.view[i].data, *arena = mapped.model.parameters.base;
        assert_false(data >= arena && data < arena + mapped.model.parameters.capacity);
        fields++;
    }
    model_free(&copied);
    inference_close(&mapped);
    return fields;
}

static void weights_of_whole_pages_are_all_mapped(void **state)
{
    (void)state;
    for (int f32 = 0; f32 < 2; f32++)
        for (long E = 0; E <= 4; E += 4) {
            write_weights("model", paged(E, f32 ? F32 : BF16), 0);
            assert_int_equal(compare("model"), 2 * 4 + 2); // qkv, o, w13, w2 of each layer; embedding and head
        }
    struct config tied = paged(4, BF16);
    tied.arch = ARCH_MIXTRAL;
    tied.gate_norm_std = 0;
    tied.tied = true;
    write_weights("model", tied, 0);
    assert_int_equal(compare("model"), 2 * 4 + 1);
}

static void fp8_codes_are_mapped_too(void **state)
{
    static struct model_folder f;
    (void)state;
    struct quantize_result r;
    write_weights("model", paged(4, BF16), 0);
    OK_OR_FAIL(model_folder_open(&f, in("model")));
    OK_OR_FAIL(folder_remove(in("fp8")));
    OK_OR_FAIL(quantize_fp8(&r, &f, in("fp8"), SCALING_TENSOR));
    free(r.tensor);
    model_folder_close(&f);
    assert_int_equal(compare("fp8"), 2 * 3 + 2); // not w1 and w3: half a page of w2 lies between experts
}

static void what_cannot_be_mapped_is_copied(void **state)
{
    (void)state;
    write_weights("model", moe_config(), 0);
    long fields = compare("model");
    assert_in_range(fields, 2, 2 * 2 + 2); // a single tensor and q, k, v side by side always fit; odd experts do not
    struct config half = paged(4, F16);
    write_weights("model", half, 0);
    assert_int_equal(compare("model"), 0);
    write_weights("model", paged(4, BF16), 30000); // shards cut through the experts of every layer
    assert_in_range(compare("model"), 2, 2 * 4 + 1);
}

static void a_model_file_that_shrinks_ends_in_one_sentence(void **state)
{
    static struct inference i;
    (void)state;
    char file[PATH_LENGTH], *said;
    long bytes;
    int code;
    write_weights("model", paged(4, BF16), 0);
    OK_OR_FAIL(path_join(file, in("model"), "model.safetensors"));
    pid_t child = fork();
    if (child == 0) {
        float logits[T * 64];
        dup2(open(in("said"), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
        log_prefix("skymoe", "eval");
        if (inference_open(&i, in("model"), T, T) != OK || truncate(file, 20000) != 0) _exit(50);
        logits_of(logits, &i.model);
        _exit(51);
    }
    assert_int_equal(waitpid(child, &code, 0), child);
    assert_true(WIFEXITED(code) && WEXITSTATUS(code) == 1);
    OK_OR_FAIL(file_read(&said, &bytes, in("said"), 1 << 16));
    assert_non_null(strstr(said, "skymoe eval: "));
    assert_non_null(strstr(said, "/model/model.safetensors: cannot be read any more: "));
    assert_ptr_equal(strchr(said, '\n'), said + bytes - 1);
    free(said);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_of_whole_pages_are_all_mapped),
        cmocka_unit_test(fp8_codes_are_mapped_too),
        cmocka_unit_test(what_cannot_be_mapped_is_copied),
        cmocka_unit_test(a_model_file_that_shrinks_ends_in_one_sentence),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
