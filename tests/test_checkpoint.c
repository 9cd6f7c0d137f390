// safetensors, model folders and checkpoints: what is read, what is refused, what survives a failing disk.
#include "model_util.h"

#include "base/json.h"
#include "checkpoint/checkpoint.h"

#include <sys/stat.h>
#include <unistd.h>

static char folder[PATH_LENGTH]; // a fresh one for the whole program

static const char *in(const char *name)
{
    static char path[4][PATH_LENGTH];
    static int next;
    char *p = path[next++ % 4];
    OK_OR_FAIL(path_join(p, folder, name));
    return p;
}

static void expect(enum status status, enum status wanted, const char *sentence)
{
    if (status != wanted || (sentence && !strstr(fail_message(), sentence)))
        fail_msg("status %d, \"%s\", expected %d, \"%s\"", status, status ? fail_message() : "", wanted,
                 sentence ? sentence : "anything");
}

// ---- one safetensors file ----

// A file of a header and n bytes 0, 1, 2 ...; the caller frees it.
static uint8_t *file_of(const char *header, long data, long *bytes)
{
    long length = (long)strlen(header);
    *bytes = 8 + length + data;
    uint8_t *file = malloc((size_t)*bytes);
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)(length >> (8 * i));
    memcpy(file + 8, header, (size_t)length);
    for (long i = 0; i < data; i++) file[8 + length + i] = (uint8_t)i;
    return file;
}

static void refused(const char *header, long data, const char *sentence)
{
    long bytes;
    uint8_t *file = file_of(header, data, &bytes);
    struct safetensors s = {.n = 77};
    expect(safetensors_parse(&s, file, bytes, "x.safetensors"), ERR_FORMAT, sentence);
    assert_non_null(strstr(fail_message(), "x.safetensors: "));
    assert_int_equal(s.n, 77);
    free(file);
}

static void test_header(void **state)
{
    (void)state;
    struct safetensors s;
    long bytes;
    uint8_t *file = file_of("{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[2,1],\"data_offsets\":"
                            "[4,8]},\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},\"none\":{\"dtype\":\"I64\","
                            "\"shape\":[3,0],\"data_offsets\":[8,8]},\"c\":{\"dtype\":\"BOOL\",\"shape\":[1],"
                            "\"data_offsets\":[8,9]}}   ", 9, &bytes);
    OK_OR_FAIL(safetensors_parse(&s, file, bytes, "x"));
    assert_int_equal(s.n, 4);
    const struct stored_tensor *b = safetensors_find(&s, "b");
    assert_int_equal(b->type, BF16);
    assert_int_equal(b->elements, 2);
    assert_int_equal(b->data[0], 4);
    assert_int_equal(safetensors_find(&s, "a")->rank, 0);
    assert_int_equal(safetensors_find(&s, "none")->bytes, 0);
    assert_int_equal(safetensors_find(&s, "c")->type, -1);
    assert_null(safetensors_find(&s, "d"));
    safetensors_close(&s);
    for (long cut = 0; cut < bytes; cut++) { // truncated anywhere
        uint8_t *less = malloc((size_t)cut + 1);
        memcpy(less, file, (size_t)cut);
        expect(safetensors_parse(&s, less, cut, "x"), ERR_FORMAT, "x: ");
        free(less);
    }
    free(file);
    file = file_of("{}      ", 0, &bytes);
    OK_OR_FAIL(safetensors_parse(&s, file, bytes, "x"));
    assert_null(safetensors_find(&s, "a"));
    safetensors_close(&s);
    free(file);
}

#define F32_AT(name, shape, begin, end)                                                                                \
    "\"" name "\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

static void test_bad_headers(void **state)
{
    (void)state;
    refused("{" F32_AT("a", "[2]", 0, 8) "," F32_AT("b", "[2]", 4, 12) "}", 12, "tensors a and b overlap");
    refused("{" F32_AT("a", "[2]", 0, 8) "," F32_AT("b", "[2]", 0, 8) "}", 8, "overlap");
    refused("{" F32_AT("a", "[2]", 0, 8) "," F32_AT("b", "[1]", 12, 16) "}", 16, "4 bytes before tensor b");
    refused("{" F32_AT("a", "[2]", 4, 12) "}", 12, "4 bytes before tensor a");
    refused("{" F32_AT("a", "[2]", 0, 8) "}", 9, "the last 1 bytes belong to no tensor");
    refused("{" F32_AT("a", "[2]", 0, 8) "}", 7, "there are only 7");
    refused("{" F32_AT("a", "[3]", 0, 8) "}", 8, "do not hold the 12 bytes");
    refused("{" F32_AT("a", "[2]", 8, 0) "}", 8, "data_offsets");
    refused("{" F32_AT("a", "[-1]", 0, 8) "}", 8, "not a whole number");
    refused("{" F32_AT("a", "[1.5]", 0, 8) "}", 8, "not a whole number");
    refused("{" F32_AT("a", "[1e300]", 0, 8) "}", 8, "not a whole number");
    refused("{" F32_AT("a", "[4294967296,4294967296]", 0, 8) "}", 8, "multiply to more than 2^63");
    refused("{" F32_AT("a", "[4503599627370496,1024]", 0, 8) "}", 8, "multiply to more than 2^63");
    refused("{" F32_AT("a", "[0,4503599627370496,4503599627370496,1024]", 0, 8) "}", 8, "do not hold the 0 bytes");
    refused("{" F32_AT("a", "[1,1,1,1,1,1,1,1,2]", 0, 8) "}", 8, "more than 8 dimensions");
    refused("{" F32_AT("a", "[2]", 0, 8) "," F32_AT("a", "[2]", 0, 8) "}", 8, "a twice");
    refused("{" F32_AT("", "[2]", 0, 8) "}", 8, "tensor name");
    refused("{\"a\":{\"dtype\":\"F31\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "unknown dtype \"F31\"");
    refused("{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "whole bytes");
    refused("{\"a\":{\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "no dtype");
    refused("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "no shape");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "data_offsets");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,8]}}", 8, "data_offsets");
    refused("{\"a\":3}", 0, "not described by an object");
    refused("{\"__metadata__\":{\"x\":3}}", 0, "not a text");
    refused("{\"__metadata__\":3}", 0, "not an object");
    refused("[]", 0, "does not begin with {");
    refused("{\"a\":", 0, "not JSON");
    refused("{\"\xff\":{}}", 0, "UTF-8");
    struct safetensors s;
    uint8_t huge[16] = {0x01, 0xe1, 0xf5, 0x05, 0, 0, 0, 0, '{', '}'}; // 100,000,001
    expect(safetensors_parse(&s, huge, 16, "x"), ERR_FORMAT, "more than the 100000000 allowed");
    memset(huge, 0xff, 8);
    expect(safetensors_parse(&s, huge, 16, "x"), ERR_FORMAT, "more than the 100000000 allowed");
    memset(huge, 0, 8);
    expect(safetensors_parse(&s, huge, 16, "x"), ERR_FORMAT, "does not begin with {");
    huge[0] = 9;
    expect(safetensors_parse(&s, huge, 16, "x"), ERR_FORMAT, "cut short");
    expect(safetensors_open(&s, in("nowhere")), ERR_IO, "nowhere");
    expect(safetensors_open(&s, folder), ERR_IO, NULL);
}

static void test_writer(void **state)
{
    (void)state;
    struct tensor_plan plan[] = {{"one", F32, 2, {2, 3}}, {"empty", F32, 1, {0}}, {"scale", F32, 0, {0}},
                                 {"half", BF16, 1, {3}}, {"byte", F8_E4M3, 1, {5}}};
    uint64_t hash[2], read_hash;
    float values[7] = {1, 2, 3, 4, 5, 6, 7};
    for (int run = 0; run < 2; run++) {
        struct safetensors_writer w;
        OK_OR_FAIL(safetensors_write_open(&w, in("w.safetensors"), plan, 5));
        for (int i = 0; i < 6; i++) OK_OR_FAIL(safetensors_write_data(&w, &values[i], 4)); // in pieces
        OK_OR_FAIL(safetensors_write_data(&w, &values[6], 4));
        OK_OR_FAIL(safetensors_write_data(&w, "abcdef", 6));
        OK_OR_FAIL(safetensors_write_data(&w, "ABCDE", 5));
        assert_false(path_exists(in("w.safetensors")) && run == 0);
        OK_OR_FAIL(safetensors_write_commit(&w, &hash[run]));
    }
    assert_true(hash[0] == hash[1]); // deterministic
    struct safetensors s;
    OK_OR_FAIL(safetensors_open(&s, in("w.safetensors")));
    read_hash = xxh3(s.map.data, s.map.bytes);
    assert_true(read_hash == hash[0]);
    assert_int_equal(s.n, 5);
    assert_int_equal((s.tensor[0].data - s.map.data) % 1, 0);
    const struct stored_tensor *one = safetensors_find(&s, "one");
    assert_int_equal((one->data - s.map.data) % 8, 0); // header padded
    assert_memory_equal(one->data, values, 24);
    assert_int_equal(safetensors_find(&s, "scale")->elements, 1);
    assert_memory_equal(safetensors_find(&s, "half")->data, "abcdef", 6);
    assert_memory_equal(safetensors_find(&s, "byte")->data, "ABCDE", 5);
    safetensors_close(&s);
}

// ---- model folders ----

static struct config llama_config(void)
{
    struct config c = tiny_dense();
    c.pad = 0;
    return c;
}

static struct config moe_config(void)
{
    struct config c = tiny_moe();
    c.D = 12; // 4 heads of 3 are odd; Skywork needs H C = D
    c.C = 4;
    c.H = 3;
    c.G = 3;
    return c;
}

// All bytes of a model's parameters, masters and moments, in table order. The caller frees.
static char *snapshot(const struct model *m, long *bytes)
{
    long el_size = dtype_size(F64), room = 4 * m->params.elements * el_size;
    char *all = calloc(1, (size_t)room);
    *bytes = 0;
    for (long i = 0; i < m->params.n; i++) {
        const struct param *p = &m->params.item[i];
        const void *data[] = {p->value.data, p->master, p->m, p->v};
        for (int j = 0; j < 4; j++) {
            long n = param_elements(p) * dtype_size(j ? m->x.k->acc : p->value.dtype);
            if (!data[j]) continue;
            m->x.k->to_host(all + *bytes, data[j], n);
            *bytes += n;
        }
    }
    return all;
}

static bool same_model(const struct model *a, const struct model *b)
{
    long n, n2;
    char *x = snapshot(a, &n), *y = snapshot(b, &n2);
    bool same = n == n2 && memcmp(x, y, (size_t)n) == 0;
    free(x);
    free(y);
    return same;
}

// Moments and masters random too; values are the masters rounded.
static void randomise_all(struct model *m, int salt)
{
    model_init_weights(m, salt, 0.5, 0.3);
    for (long i = 0; i < m->params.n; i++) {
        struct param *p = &m->params.item[i];
        for (int j = 0; j < 2; j++)
            m->x.k->init_normal((struct tensor){.data = j ? p->v : p->m, .dtype = m->x.k->acc}, 0, 1e-3, param_elements(p),
                                salt + j, rng_stream(p->name), 0);
    }
}

static void write_and_read(struct config c, enum dtype dtype)
{
    static struct model a, b;
    struct model_folder f;
    struct model_options o = training(dtype, 1, 4);
    c.dtype = dtype;
    OK_OR_FAIL(model_init(&a, &c, &o));
    OK_OR_FAIL(model_init(&b, &c, &o));
    randomise_all(&a, 3);
    for (long i = 0; i < a.params.n; i++) { // what a folder in bf16 cannot hold is not asked of it
        struct param *p = &a.params.item[i];
        if (dtype == F32 || p->value.dtype == dtype) continue;
        double *x = host_of(a.x.k, p->value.data, p->value.dtype, param_elements(p));
        for (long j = 0; j < param_elements(p); j++) x[j] = bf16_to_float(bf16_from_float((float)x[j]));
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
    OK_OR_FAIL(param_list_of(&list, &c));
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
    strcpy(name, all[0].name);
    strcat(all[0].name, "_inv");
    raw_refused(&c, all, used, "scales per block are not implemented");
    strcpy(all[0].name, name);
    all[0].rank = 1;
    all[0].shape[0] = 2;
    raw_refused(&c, all, used, "expected one F32 number");
    all[0].rank = 0;
    c.quant = QUANT_NONE;
    raw_refused(&c, all, used, "no quantization_config");
    param_list_free(&list);
    free(plan);
}

// ---- checkpoints ----

struct run_state {
    struct training_state s;
    double alpha[2], p[10], f[10];
};

static void state_init(struct run_state *r)
{
    memset(r, 0, sizeof *r);
    r->s.alpha = r->alpha;
    r->s.global_p = r->p;
    r->s.global_f = r->f;
}

static void state_fill(struct run_state *r, long step)
{
    state_init(r);
    r->s.step = step;
    r->s.samples = (1L << 52) + 3;
    r->s.tokens = 12345678901;
    r->s.updates = step - 1;
    r->s.skipped_in_row = 2;
    r->s.seconds = 0.1 + (double)step;
    for (int i = 0; i < 2; i++) r->alpha[i] = rng_uniform(1, 2, (uint64_t)(10 * step + i)) / 3;
    for (int i = 0; i < 10; i++) r->p[i] = r->f[i] = rng_normal(3, 4, (uint64_t)i) * 1e-300;
    r->s.has_global = true;
}

static bool same_state(const struct run_state *a, const struct run_state *b)
{
    return a->s.step == b->s.step && a->s.samples == b->s.samples && a->s.tokens == b->s.tokens &&
           a->s.updates == b->s.updates && a->s.skipped_in_row == b->s.skipped_in_row && a->s.seconds == b->s.seconds &&
           a->s.has_global == b->s.has_global && memcmp(a->alpha, b->alpha, sizeof a->alpha) == 0 &&
           memcmp(a->p, b->p, sizeof a->p) == 0 && memcmp(a->f, b->f, sizeof a->f) == 0;
}

static void test_checkpoint(void **state)
{
    (void)state;
    static struct model a, b;
    const enum dtype dtypes[] = {F32, BF16, F32}; // the last: f32 arithmetic, bf16 in the folder
    for (int i = 0; i < 3; i++) {
        struct config c = moe_config();
        struct model_options o = training(dtypes[i], 1, 4);
        struct run_state saved, read;
        char path[PATH_LENGTH], *text;
        c.dtype = i == 2 ? BF16 : dtypes[i];
        OK_OR_FAIL(folder_remove(in("run")));
        OK_OR_FAIL(model_init(&a, &c, &o));
        OK_OR_FAIL(model_init(&b, &c, &o));
        randomise_all(&a, 5);
        expect(checkpoint_latest(path, in("run")), ERR_IO, "no checkpoint");
        state_fill(&saved, 7);
        OK_OR_FAIL(checkpoint_save(in("run"), &a, &saved.s, "lr = 1\n", NULL, 2));
        OK_OR_FAIL(checkpoint_latest(path, in("run")));
        assert_non_null(strstr(path, "run/step-000007"));
        state_init(&read);
        OK_OR_FAIL(checkpoint_load(&b, &read.s, path));
        assert_true(same_model(&a, &b));
        assert_true(same_state(&saved, &read));
        char self[PATH_LENGTH];
        OK_OR_FAIL(checkpoint_latest(self, path)); // a step folder stands for itself
        assert_string_equal(self, path);
        OK_OR_FAIL(checkpoint_settings(&text, path));
        assert_string_equal(text, "lr = 1\n");
        free(text);
        struct model_folder f; // a run's folder as a model
        OK_OR_FAIL(model_folder_open(&f, in("run")));
        assert_string_equal(f.path, path);
        model_folder_close(&f);
        randomise_all(&b, 6);
        assert_false(same_model(&a, &b));
        c.F++;
        model_free(&b);
        OK_OR_FAIL(model_init(&b, &c, &o));
        expect(checkpoint_load(&b, &read.s, path), ERR_FORMAT, "another model");
        model_free(&a);
        model_free(&b);
    }
}

static void test_keep(void **state)
{
    (void)state;
    static struct model a;
    struct config c = moe_config();
    struct model_options o = training(F32, 1, 4);
    struct run_state s;
    struct path_list list;
    OK_OR_FAIL(folder_remove(in("run")));
    OK_OR_FAIL(model_init(&a, &c, &o));
    randomise_all(&a, 5);
    OK_OR_FAIL(folder_make(in("run/step-notes"))); // the user's
    OK_OR_FAIL(folder_make(in("run/step-000000.tmp")));
    OK_OR_FAIL(folder_make(in("run/step-000001.old")));
    const long steps[] = {1, 2, 3, 999999, 1000000, 1000001};
    for (int i = 0; i < 6; i++) {
        state_fill(&s, steps[i]);
        OK_OR_FAIL(checkpoint_save(in("run"), &a, &s.s, "", NULL, i == 0 ? 0 : 2));
    }
    OK_OR_FAIL(folder_list(&list, in("run")));
    assert_int_equal(list.n, 4);
    assert_string_equal(list.name[0], "latest");
    assert_string_equal(list.name[1], "step-1000000");
    assert_string_equal(list.name[2], "step-1000001");
    assert_string_equal(list.name[3], "step-notes");
    path_list_free(&list);
    model_free(&a);
}

// The n-th write fails, for every n: the run still has a checkpoint, bit for bit the old or the new one.
static void fail_every_write(struct model *before, struct model *after, struct model *read, long new_step)
{
    struct run_state old_state, new_state, s;
    char path[PATH_LENGTH], *run = strdup(in("run"));
    state_fill(&old_state, 4);
    state_fill(&new_state, new_step);
    OK_OR_FAIL(folder_remove(run));
    OK_OR_FAIL(checkpoint_save(run, before, &old_state.s, "old = 1\n", NULL, 1));
    files_fail_write(0);
    OK_OR_FAIL(checkpoint_save(run, after, &new_state.s, "new = 1\n", NULL, 1));
    long writes = files_write_count(), kept_old = 0; // how many a save needs
    bool holds_new = true;
    for (long n = 1; n <= writes + 1; n++) {
        if (holds_new) { // else the old one is still there from the last round
            OK_OR_FAIL(folder_remove(run));
            OK_OR_FAIL(checkpoint_save(run, before, &old_state.s, "old = 1\n", NULL, 1));
        }
        files_fail_write(n);
        enum status status = checkpoint_save(run, after, &new_state.s, "new = 1\n", NULL, 1);
        files_fail_write(0);
        if (status == OK && n < writes - 1) // the last ones only remove the old folder
            fail_msg("write %ld of %ld failed unnoticed", n, writes);
        if (status != OK && !strstr(fail_message(), "No space left")) fail_msg("%s", fail_message());
        OK_OR_FAIL(checkpoint_latest(path, run));
        state_init(&s);
        enum status loaded = checkpoint_load(read, &s.s, path);
        if (loaded != OK) fail_msg("after write %ld of %ld failed: %s", n, writes, fail_message());
        bool is_old = same_model(read, before) && same_state(&s, &old_state);
        holds_new = same_model(read, after) && same_state(&s, &new_state);
        if (!is_old && !holds_new) fail_msg("after write %ld of %ld failed: neither checkpoint", n, writes);
        if (status == OK) assert_true(holds_new);
        kept_old += is_old;
        if (n % 8 != 0) continue;
        OK_OR_FAIL(checkpoint_save(run, after, &new_state.s, "new = 1\n", NULL, 1)); // saving works again
        OK_OR_FAIL(checkpoint_latest(path, run));
        OK_OR_FAIL(checkpoint_load(read, &s.s, path));
        assert_true(same_model(read, after));
        holds_new = true;
    }
    printf("  step 4, then step %ld: %ld writes, the old one kept %ld times\n", new_step, writes, kept_old);
    assert_true(kept_old > 10 && kept_old < writes + 1);
    free(run);
}

static void test_failing_writes(void **state)
{
    (void)state;
    static struct model a, b, c;
    struct config config = moe_config();
    struct model_options o = training(BF16, 1, 4);
    config.dtype = BF16;
    OK_OR_FAIL(model_init(&a, &config, &o));
    OK_OR_FAIL(model_init(&b, &config, &o));
    OK_OR_FAIL(model_init(&c, &config, &o));
    randomise_all(&a, 5);
    randomise_all(&b, 6);
    fail_every_write(&a, &b, &c, 5);
    fail_every_write(&a, &b, &c, 4); // the same step again: its folder is replaced
    model_free(&a);
    model_free(&b);
    model_free(&c);
}

// Any changed or missing byte of any file is found, and the file named.
static void test_damage(void **state)
{
    (void)state;
    static struct model a;
    struct config c = moe_config();
    struct model_options o = training(BF16, 1, 4);
    struct run_state s;
    char path[PATH_LENGTH];
    c.dtype = BF16;
    OK_OR_FAIL(folder_remove(in("run")));
    OK_OR_FAIL(model_init(&a, &c, &o));
    randomise_all(&a, 5);
    state_fill(&s, 1);
    OK_OR_FAIL(checkpoint_save(in("run"), &a, &s.s, "x = 1\n", NULL, 0));
    OK_OR_FAIL(checkpoint_latest(path, in("run")));
    static const char *const files[] = {"model.safetensors", "config.json", "generation_config.json",
                                        "training/optimizer.safetensors", "training/state.json",
                                        "training/settings.conf"};
    for (unsigned i = 0; i < sizeof files / sizeof *files; i++)
        for (int damage = 0; damage < 3; damage++) {
            char file[PATH_LENGTH], *text;
            long bytes;
            OK_OR_FAIL(path_join(file, path, files[i]));
            OK_OR_FAIL(file_read(&text, &bytes, file, 1 << 20));
            if (damage == 0) text[bytes / 2] ^= 1;
            OK_OR_FAIL(file_write(file, text, damage == 1 ? bytes - 1 : bytes));
            if (damage == 2) assert_int_equal(unlink(file), 0);
            expect(checkpoint_load(&a, &s.s, path), ERR_FORMAT, files[i]);
            if (damage == 0) text[bytes / 2] ^= 1;
            OK_OR_FAIL(file_write(file, text, bytes));
            free(text);
        }
    OK_OR_FAIL(checkpoint_load(&a, &s.s, path));
    char file[PATH_LENGTH], *text;
    long bytes;
    OK_OR_FAIL(path_join(file, path, "checksums.json"));
    OK_OR_FAIL(file_read(&text, &bytes, file, 1 << 20));
    for (long i = 0; i < bytes; i += 7) { // checksums.json itself: never a crash; mostly noticed
        text[i] ^= 1;
        OK_OR_FAIL(file_write(file, text, bytes));
        (void)!folder_verify(path);
        text[i] ^= 1;
    }
    const char *outside = "{\"algorithm\":\"XXH3-64\",\"files\":{\"../x\":{\"bytes\":0,\"xxh3\":\"\"}}}";
    OK_OR_FAIL(file_write(file, outside, (long)strlen(outside)));
    expect(folder_verify(path), ERR_FORMAT, "is not a file of this folder");
    free(text);
    assert_int_equal(unlink(file), 0);
    expect(folder_verify(path), ERR_IO, "has no checksums.json");
    OK_OR_FAIL(file_write(in("run/latest"), "../../etc\n", 10));
    expect(checkpoint_latest(path, in("run")), ERR_FORMAT, "is not the name of a step folder");
    OK_OR_FAIL(file_write(in("run/latest"), "step-000009\n", 12));
    expect(checkpoint_latest(path, in("run")), ERR_IO, "names it");
    model_free(&a);
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
    randomise_all(&m, 9);
    for (long l = 0; l < c.L; l++) { // layer 1: all experts alike but for a little
        const struct layer_params *p = &m.p.layer[l];
        float *w = p->w13.data;
        for (long i = c.F * c.D * 2; i < c.E * c.F * c.D * 2 && l == 1; i++) w[i] = w[i % (c.F * c.D * 2)] + 0.01f * w[i];
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

static int set_up(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/skymoe-checkpoint-XXXXXX", base ? base : "/tmp");
    return !mkdtemp(folder) || kernels_init(1) != OK;
}

static int tear_down(void **state)
{
    (void)state;
    return folder_remove(folder) != OK;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header),        cmocka_unit_test(test_bad_headers), cmocka_unit_test(test_writer),
        cmocka_unit_test(test_folder),        cmocka_unit_test(test_shards),      cmocka_unit_test(test_wrong_tensors),
        cmocka_unit_test(test_fp8),           cmocka_unit_test(test_checkpoint),  cmocka_unit_test(test_keep),
        cmocka_unit_test(test_failing_writes), cmocka_unit_test(test_damage),     cmocka_unit_test(test_similarity),
    };
    return cmocka_run_group_tests_name("checkpoint", tests, set_up, tear_down);
}
