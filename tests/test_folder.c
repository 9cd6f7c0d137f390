// Model folders: what is written reads back; what is missing, extra or of the wrong kind is refused.
#include "checkpoint_util.h"

static void write_and_read(struct config c, enum dtype dtype)
{
    static struct model a, b;
    struct model_folder f;
    struct model_options o = training(dtype == F16 ? F32 : dtype, 1, 4);
    c.dtype = dtype;
    OK_OR_FAIL(model_init(&a, &c, &o));
    OK_OR_FAIL(model_init(&b, &c, &o));
    randomise_values(&a, 3);
    for (long i = 0; i < a.params.n; i++) { // what a folder in 16 bits cannot hold is not asked of it
        struct param *p = &a.params.item[i];
        if (dtype == F32 || p->value.dtype == dtype) continue;
        double *x = host_of(a.x.k, p->value.data, p->value.dtype, param_elements(p));
        for (long j = 0; j < param_elements(p); j++) {
            float y = (float)x[j];
            x[j] = dtype == F16 ? f16_to_float(f16_from_float(y)) : bf16_to_float(bf16_from_float(y));
        }
        device_set(a.x.k, p->value.data, p->value.dtype, x, param_elements(p));
        free(x);
    }
    OK_OR_FAIL(folder_remove(in("model")));
    OK_OR_FAIL(model_folder_write(in("model/"), &a, NULL)); // a trailing slash is a folder too
    assert_false(path_exists(in("model.tmp")));
    assert_true(path_exists(in("model/generation_config.json")));
    expect(model_folder_write(in("model"), &a, NULL), ERR_IO, "exists already");
    OK_OR_FAIL(folder_verify(in("model")));
    OK_OR_FAIL(model_folder_open(&f, in("model")));
    assert_int_equal(f.config.dtype, dtype);
    OK_OR_FAIL(model_folder_load(&b, &f));
    for (long i = 0; i < a.params.n; i++) {
        struct param *p = &a.params.item[i];
        double *x = host_of(a.x.k, p->value.data, p->value.dtype, param_elements(p));
        double *y = host_of(b.x.k, b.params.item[i].value.data, p->value.dtype, param_elements(p));
        float *z = malloc((size_t)param_elements(p) * sizeof *z);
        model_folder_read(z, &f, i, 0, param_elements(p));
        for (long j = 0; j < param_elements(p); j++)
            if (x[j] != y[j] || x[j] != z[j]) fail_msg("%s[%ld]: %g, read %g and %g", p->name, j, x[j], y[j], z[j]);
        free(x);
        free(y);
        free(z);
    }
    model_folder_close(&f);
    model_free(&a);
    model_free(&b);
}

static void test_folder(void **state)
{
    (void)state;
    struct config tied = llama_config();
    tied.tied = true;
    write_and_read(llama_config(), F32);
    write_and_read(llama_config(), BF16);
    write_and_read(moe_config(), F32);
    write_and_read(moe_config(), BF16);
    write_and_read(llama_config(), F16);
    write_and_read(moe_config(), F16);
    write_and_read(tied, F32);
}

// Writes a folder of all tensors with value `base + its number`, cut into shards of at most shard_bytes.
static void write_folder(const char *path, const struct config *c, enum dtype dtype, long shard_bytes)
{
    struct tensor_plan *plan;
    struct folder_writer *w;
    long n;
    OK_OR_FAIL(folder_remove(path));
    OK_OR_FAIL(tensor_plan_of(&plan, &n, c, dtype));
    OK_OR_FAIL(folder_writer_open(&w, path, c, plan, n, shard_bytes, false));
    for (long i = 0; i < n; i++) {
        long elements = tensor_plan_bytes(&plan[i]) / dtype_size(dtype);
        for (long j = 0; j < elements; j++) {
            float value = (float)(i + 1);
            double piece;
            values_from_float(&piece, dtype, &value, 1);
            OK_OR_FAIL(folder_writer_data(w, &piece, dtype_size(dtype)));
        }
    }
    OK_OR_FAIL(folder_writer_copy(w, NULL));
    OK_OR_FAIL(folder_writer_commit(w));
    free(plan);
}

static void test_shards(void **state)
{
    (void)state;
    struct config c = moe_config();
    struct model_folder f;
    c.dtype = F16;
    for (long limit = 1; limit < 20000; limit = limit * 5 + 1) {
        write_folder(in("shards"), &c, F16, limit);
        OK_OR_FAIL(model_folder_open(&f, in("shards")));
        for (long i = 0; i < f.params.n; i++) {
            float last;
            model_folder_read(&last, &f, i, param_elements(&f.params.item[i]) - 1, 1);
            assert_true(last == (float)(i + 1));
        }
        printf("  shards of %ld bytes: %ld\n", limit, f.shards);
        if (limit == 1) assert_int_equal(f.shards, f.params.n);
        assert_true(f.shards > 1 || limit > 5000);
        assert_true(path_exists(in("shards/model.safetensors.index.json")) == (f.shards > 1));
        model_folder_close(&f);
        OK_OR_FAIL(folder_verify(in("shards")));
    }
    write_folder(in("shards"), &c, F16, 3000);
    OK_OR_FAIL(model_folder_open(&f, in("shards")));
    long shards = f.shards;
    model_folder_close(&f);
    assert_true(shards > 2);
    char name[64];
    snprintf(name, sizeof name, "shards/model-00002-of-%05ld.safetensors", shards);
    assert_int_equal(rename(in(name), in("away")), 0);
    expect(model_folder_open(&f, in("shards")), ERR_IO, "model-00002-of-");
    expect(folder_verify(in("shards")), ERR_FORMAT, "missing");
    assert_int_equal(rename(in("away"), in(name)), 0);
    // an index that lies
    static const struct {
        const char *index, *sentence;
    } lies[] = {
        {"{\"weight_map\":{\"a\":\"../x.safetensors\"}}", "is not the name of a .safetensors file in this folder"},
        {"{\"weight_map\":{\"a\":\"/etc/x.safetensors\"}}", "is not the name"},
        {"{\"weight_map\":{\"a\":\"sub/x.safetensors\"}}", "is not the name"},
        {"{\"weight_map\":{\"a\":\"..\"}}", "is not the name"},
        {"{\"weight_map\":{\"a\":\"\"}}", "is not the name"},
        {"{\"weight_map\":{\"a\":\".safetensors\"}}", "is not the name"},
        {"{\"weight_map\":{\"a\":\"config.json\"}}", "is not the name"},
        {"{\"weight_map\":{\"a\":3}}", "names no file"},
        {"{\"weight_map\":{}}", "weight_map is empty"},
        {"{\"weight_map\":[]}", "weight_map is missing"},
        {"[]", "weight_map is missing"},
        {"{", "not JSON"},
        {"{\"weight_map\":{\"a\":\"no.safetensors\"}}", "no.safetensors: the file is missing"},
        {"{\"weight_map\":{\"a\":\"model-00001-of-%05ld.safetensors\"}}", "tensor a is not in"},
        {"{\"weight_map\":{\"model.embed_tokens.weight\":\"model-00001-of-%05ld.safetensors\"}}", "lists 1 tensors"},
    };
    for (unsigned i = 0; i < sizeof lies / sizeof *lies; i++) {
        char text[512];
        snprintf(text, sizeof text, lies[i].index, shards);
        OK_OR_FAIL(file_write(in("shards/model.safetensors.index.json"), text, (long)strlen(text)));
        enum status status = model_folder_open(&f, in("shards"));
        if (status == OK || !strstr(fail_message(), lies[i].sentence))
            fail_msg("%s: %d %s", text, status, status ? fail_message() : "");
    }
}

// A folder whose single file is described here, tensor by tensor.
static void write_raw(const struct config *c, const struct tensor_plan *plan, long n)
{
    struct safetensors_writer w;
    char *config;
    OK_OR_FAIL(folder_remove(in("raw")));
    OK_OR_FAIL(folder_make(in("raw")));
    OK_OR_FAIL(config_write(&config, c));
    OK_OR_FAIL(file_write(in("raw/config.json"), config, (long)strlen(config)));
    free(config);
    OK_OR_FAIL(safetensors_write_open(&w, in("raw/model.safetensors"), plan, n));
    for (long i = 0; i < n; i++) {
        long bytes = tensor_plan_bytes(&plan[i]);
        char *data = malloc((size_t)bytes + 1);
        for (long j = 0; j < bytes; j++) data[j] = plan[i].dtype == F32 ? "\0\0\x80\x3f"[j % 4] : 1; // 1.0
        OK_OR_FAIL(safetensors_write_data(&w, data, bytes));
        free(data);
    }
    OK_OR_FAIL(safetensors_write_commit(&w, NULL));
}

static void raw_refused(const struct config *c, const struct tensor_plan *plan, long n, const char *sentence)
{
    struct model_folder f;
    write_raw(c, plan, n);
    expect(model_folder_open(&f, in("raw")), ERR_FORMAT, sentence);
}

// That the disk is too small is said before the first byte, of further tensors too.
static void test_next(void **state)
{
    (void)state;
    struct config c = llama_config();
    struct folder_writer *w;
    const struct tensor_plan huge = {.name = "huge", .dtype = F32, .rank = 1, .shape = {1L << 58}};
    expect(folder_writer_open(&w, in("next"), &c, &huge, 1, 0, false), ERR_IO, " GB are free on that disk");
    OK_OR_FAIL(folder_writer_open(&w, in("next"), &c, &huge, 0, 0, false));
    expect(folder_writer_next(w, "more", &huge, 1), ERR_IO, " GB are free on that disk");
    folder_writer_abort(w);
    assert_false(path_exists(in("next")));
}

static void test_wrong_tensors(void **state)
{
    (void)state;
    struct config c = llama_config();
    struct tensor_plan *plan, extra[64];
    struct model_folder f;
    long n;
    OK_OR_FAIL(tensor_plan_of(&plan, &n, &c, F32));
    assert_true(n + 4 < 64);
    write_raw(&c, plan, n);
    OK_OR_FAIL(model_folder_open(&f, in("raw")));
    model_folder_close(&f);
    raw_refused(&c, plan + 1, n - 1, "tensor model.embed_tokens.weight is missing");
    raw_refused(&c, plan, n - 1, "tensor lm_head.weight is missing");
    memcpy(extra, plan, (size_t)n * sizeof *plan);
    struct tensor_plan *more = &extra[n];
    *more = (struct tensor_plan){"model.layers.0.self_attn.rotary_emb.inv_freq", F32, 1, {3}};
    write_raw(&c, extra, n + 1);
    OK_OR_FAIL(model_folder_open(&f, in("raw")));
    model_folder_close(&f);
    *more = (struct tensor_plan){"model.layers.0.self_attn.q_proj.bias", F32, 1, {24}};
    raw_refused(&c, extra, n + 1, "q_proj.bias is not part of a LlamaForCausalLM");
    *more = (struct tensor_plan){"model.layers.2.input_layernorm.weight", F32, 1, {10}};
    raw_refused(&c, extra, n + 1, "model.layers.2.input_layernorm.weight is not part");
    extra[1].shape[0] = 11;
    raw_refused(&c, extra, n, "has shape [11], but config.json makes it [10]");
    extra[1].shape[0] = 10;
    extra[1].rank = 2;
    extra[1].shape[1] = 1;
    raw_refused(&c, extra, n, "has shape [10, 1], but config.json makes it [10]");
    extra[1].rank = 1;
    extra[0].shape[0] = 10;
    extra[0].shape[1] = 13;
    raw_refused(&c, extra, n, "has shape [10, 13], but config.json makes it [13, 10]");
    free(plan);
    OK_OR_FAIL(tensor_plan_of(&plan, &n, &c, F64));
    raw_refused(&c, plan, n, "is F64, expected F32, F16, BF16 or F8_E4M3");
    // a tied head may be stored if it equals the embedding
    memcpy(extra, plan, (size_t)n * sizeof *plan);
    for (long i = 0; i < n; i++) extra[i].dtype = F32;
    c.tied = true;
    write_raw(&c, extra, n);
    OK_OR_FAIL(model_folder_open(&f, in("raw")));
    model_folder_close(&f);
    extra[n - 1].dtype = BF16;
    raw_refused(&c, extra, n, "lm_head.weight differs from the embedding");
    free(plan);
    struct model_folder g;
    expect(model_folder_open(&g, in("nowhere")), ERR_IO, "no such folder");
    expect(model_folder_open(&g, in("raw/config.json")), ERR_IO, "is not a folder");
    OK_OR_FAIL(folder_make(in("bin")));
    OK_OR_FAIL(file_copy(in("bin/config.json"), in("raw/config.json")));
    expect(model_folder_open(&g, in("bin")), ERR_IO, "no model.safetensors");
    OK_OR_FAIL(file_write(in("bin/pytorch_model.bin"), "x", 1));
    expect(model_folder_open(&g, in("bin")), ERR_FORMAT, "pytorch_model.bin");
}

// FP8: every matrix of a layer has a scale beside it.
static void test_fp8(void **state)
{
    (void)state;
    struct config c = llama_config();
    struct tensor_plan *plan, all[64];
    struct model_folder f;
    struct param_list list;
    long n, used = 0;
    c.quant = QUANT_FP8;
    OK_OR_FAIL(tensor_plan_of(&plan, &n, &c, F32));
    OK_OR_FAIL(param_list_of(&list, &c, NULL));
    for (int rank = 0; rank < 2; rank++) { // the scale may be a number or a list of one
        used = 0;
        for (long i = 0; i < n; i++)
            if (list.item[i].kind->quantise) {
                all[used] = (struct tensor_plan){.dtype = F32, .rank = rank, .shape = {1}};
                snprintf(all[used++].name, sizeof all->name, "%.90s_scale", plan[i].name);
            }
        long scales = used;
        for (long i = 0; i < n; i++)
            if (!list.item[i].kind->quantise) all[used++] = plan[i];
        for (long i = 0; i < n; i++)
            if (list.item[i].kind->quantise) {
                all[used] = plan[i];
                all[used++].dtype = F8_E4M3;
            }
        assert_int_equal(used, n + scales);
        write_raw(&c, all, used);
        OK_OR_FAIL(model_folder_open(&f, in("raw")));
        for (long i = 0; i < n; i++) {
            float x;
            model_folder_read(&x, &f, i, 1, 1);
            assert_true(x == (list.item[i].kind->quantise ? 0.001953125f : 1.0f)); // byte 1 is 2^-9
        }
        model_folder_close(&f);
    }
    static struct model m; // the same weights held as FP8 and as f32 floats
    struct model_options o = inference(F32, 4, 4);
    o.weights = QUANT_FP8;
    OK_OR_FAIL(model_init(&m, &c, &o));
    OK_OR_FAIL(model_folder_open(&f, in("raw")));
    OK_OR_FAIL(model_folder_load(&m, &f));
    struct tensor q = m.params.item[2].value;
    assert_int_equal(q.dtype, F8_E4M3);
    assert_true(q.scale[0] == 1 && q.scale[m.params.item[2].rows - 1] == 1 && ((uint8_t *)q.data)[3] == 1);
    model_free(&m);
    model_folder_close(&f);
    raw_refused(&c, all + 1, used - 1, "_scale is missing");
    char name[TENSOR_NAME];
    memcpy(name, all[0].name, sizeof name);
    memcpy(all[0].name + strlen(name), "_inv", 5); // DeepSeek's name of the same thing
    write_raw(&c, all, used);
    OK_OR_FAIL(model_folder_open(&f, in("raw")));
    model_folder_close(&f);
    all[used] = all[0];
    memcpy(all[used].name, name, sizeof name);
    raw_refused(&c, all, used + 1, "weight has both _scale and _scale_inv (only one of them can be meant)");
    memcpy(all[0].name, name, sizeof name);
    all[0].rank = 1;
    all[0].shape[0] = 2;
    raw_refused(&c, all, used, "is F32 [2], expected one number (config.json says a scale per tensor)");
    long rows = list.item[2].rows; // all[0] belongs to q_proj
    all[0].rank = 2;
    all[0].shape[0] = rows;
    all[0].shape[1] = 1;
    raw_refused(&c, all, used, "expected one number (config.json says a scale per tensor)");
    c.scaling = SCALING_CHANNEL;
    raw_refused(&c, all, used, "k_proj.weight_scale is F32 [1], expected F32 ["); // q's is right now
    c.scaling = SCALING_BLOCK;
    all[0].shape[0] = all[0].shape[1] = 1;
    raw_refused(&c, all, used, "k_proj.weight_scale is F32 [1], expected F32 [1, 1] (config.json says");
    all[0].shape[1] = 2;
    raw_refused(&c, all, used, "q_proj.weight_scale is F32 [1, 2], expected F32 [1, 1]");
    c.scaling = SCALING_TENSOR;
    all[0].rank = 0;
    c.quant = QUANT_NONE;
    raw_refused(&c, all, used, "no quantization_config");
    param_list_free(&list);
    free(plan);
}

// ---- expert similarity ----

static void test_similarity(void **state)
{
    (void)state;
    static struct model m;
    struct config c = moe_config();
    struct model_folder f;
    struct model_options o = training(F32, 1, 4);
    double streamed[2];
    OK_OR_FAIL(model_init(&m, &c, &o));
    randomise_values(&m, 9);
    for (long l = 0; l < c.L; l++) { // layer 1: all experts alike but for a little
        const struct layer_params *p = &m.p.layer[l];
        float *w = p->w13.data;
        long one = 2 * c.F * c.D;
        for (long i = one; i < c.E * one && l == 1; i++) w[i] = w[i % one] + 0.01f * w[i];
    }
    OK_OR_FAIL(folder_remove(in("model")));
    OK_OR_FAIL(model_folder_write(in("model"), &m, NULL));
    OK_OR_FAIL(model_folder_open(&f, in("model")));
    OK_OR_FAIL(folder_similarity(streamed, &f));
    for (long l = 0; l < c.L; l++) {
        const struct tensor w[] = {m.p.layer[l].w13, m.p.layer[l].w2};
        const long n[] = {2 * c.F * c.D, c.F * c.D};
        double kernel = m.x.k->expert_similarity(w, n, 2, c.E);
        printf("  layer %ld: %.12f streamed, %.12f by the kernel\n", l, streamed[l], kernel);
        assert_true(fabs(streamed[l] - kernel) < 1e-9);
    }
    assert_true(streamed[1] > 0.3 && fabs(streamed[0]) < 0.2);
    model_folder_close(&f);
    model_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_folder),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_next),
        cmocka_unit_test(test_wrong_tensors),
        cmocka_unit_test(test_fp8),
        cmocka_unit_test(test_similarity),
    };
    return cmocka_run_group_tests_name("folder", tests, set_up, tear_down);
}
