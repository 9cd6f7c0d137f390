#include "checkpoint/folder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "checkpoint/checkpoint.h"

enum { INDEX_LIMIT = 256 << 20 };

// ---- shards ----

// File names of an index, each once, in the order of first appearance.
static enum status add_file(struct path_list *files, const char *file, const char *index)
{
    long length = (long)strlen(file);
    bool plain = file[0] != '.' && !strchr(file, '/') && !strchr(file, '\\') && length < 256;
    if (!plain || length < 13 || strcmp(file + length - 12, ".safetensors") != 0)
        return fail(ERR_FORMAT, "%s: \"%.80s\" is not the name of a .safetensors file in this folder", index, file);
    for (long i = 0; i < files->n; i++)
        if (strcmp(files->name[i], file) == 0) return OK;
    char **grown = realloc(files->name, (size_t)(files->n + 1) * sizeof *grown);
    if (grown) files->name = grown;
    char *copy = grown ? strdup(file) : NULL;
    if (!copy) return fail(ERR_MEMORY, "%s: no memory to read it", index);
    files->name[files->n++] = copy;
    return OK;
}

static enum status index_files(struct path_list *files, const cJSON *index, const char *name)
{
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(index, "weight_map");
    if (!cJSON_IsObject(map)) return fail(ERR_FORMAT, "%s: weight_map is missing", name);
    for (const cJSON *item = map->child; item; item = item->next) {
        if (!cJSON_IsString(item))
            return fail(ERR_FORMAT, "%s: weight_map: %.80s names no file", name, item->string);
        TRY(add_file(files, item->valuestring, name));
    }
    if (files->n == 0) return fail(ERR_FORMAT, "%s: weight_map is empty", name);
    return OK;
}

// Files opened so far, also on failure.
struct opened {
    struct safetensors *shard;
    long n;
};

static enum status open_files(struct opened *o, const char *folder, const struct path_list *files)
{
    o->shard = calloc((size_t)files->n, sizeof *o->shard);
    if (!o->shard) return fail(ERR_MEMORY, "%s: no memory for %ld shards", folder, files->n);
    for (long i = 0; i < files->n; i++) {
        char path[PATH_LENGTH];
        TRY(path_join(path, folder, files->name[i]));
        if (!path_exists(path))
            return fail(ERR_IO, "%s: the file is missing (the index of this folder names it)", path);
        TRY(safetensors_open(&o->shard[i], path));
        o->n++;
    }
    return OK;
}

// Each tensor lies in the shard that the index says, and the index leaves none out.
static enum status check_index(const struct opened *o, const struct path_list *files, const cJSON *index,
                               const char *name)
{
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(index, "weight_map");
    long listed = 0, stored = 0;
    for (const cJSON *item = map->child; item; item = item->next, listed++) {
        long i = 0;
        while (strcmp(files->name[i], item->valuestring) != 0) i++;
        if (!safetensors_find(&o->shard[i], item->string))
            return fail(ERR_FORMAT, "%s: tensor %.100s is not in %s", name, item->string, item->valuestring);
    }
    for (long i = 0; i < o->n; i++) stored += o->shard[i].n;
    if (listed != stored)
        return fail(ERR_FORMAT, "%s: lists %ld tensors, but the shards hold %ld", name, listed, stored);
    return OK;
}

static enum status open_index(struct opened *o, const char *folder, const char *name)
{
    cJSON *index;
    TRY(json_read(&index, name, INDEX_LIMIT));
    struct path_list files = {0};
    enum status status = index_files(&files, index, name);
    if (status == OK) status = open_files(o, folder, &files);
    if (status == OK) status = check_index(o, &files, index, name);
    path_list_free(&files);
    cJSON_Delete(index);
    return status;
}

// The two files that a folder may begin with; "" where it has not that one.
static enum status look_for(char single[PATH_LENGTH], char index[PATH_LENGTH], const char *folder, const char *stem)
{
    char name[64];
    snprintf(name, sizeof name, "%s.safetensors", stem);
    TRY(path_join(single, folder, name));
    snprintf(name, sizeof name, "%s.safetensors.index.json", stem);
    TRY(path_join(index, folder, name));
    if (!path_exists(single)) single[0] = '\0';
    if (!path_exists(index)) index[0] = '\0';
    return OK;
}

enum status shards_open(struct safetensors **shard, long *n, const char *folder, const char *stem)
{
    char single[PATH_LENGTH], index[PATH_LENGTH];
    struct opened o = {0};
    TRY(look_for(single, index, folder, stem));
    if (!single[0] && !index[0])
        return fail(ERR_IO, "%s: no %s.safetensors or %s.safetensors.index.json in this folder", folder, stem, stem);
    char *name = single[0] ? strrchr(single, '/') + 1 : NULL;
    enum status status = name ? open_files(&o, folder, &(struct path_list){&name, 1}) : open_index(&o, folder, index);
    if (status != OK) {
        shards_close(o.shard, o.n);
        return status;
    }
    *shard = o.shard;
    *n = o.n;
    return OK;
}

void shards_close(struct safetensors *shard, long n)
{
    for (long i = 0; i < n; i++) safetensors_close(&shard[i]);
    free(shard);
}

static enum status open_weights(struct model_folder *f)
{
    char single[PATH_LENGTH], index[PATH_LENGTH], torch[PATH_LENGTH];
    TRY(look_for(single, index, f->path, "model"));
    TRY(path_join(torch, f->path, "pytorch_model.bin"));
    if (!single[0] && !index[0] && path_exists(torch))
        return fail(ERR_FORMAT, "%s: holds pytorch_model.bin, which is not read (convert it to safetensors)", f->path);
    return shards_open(&f->shard, &f->shards, f->path, "model");
}

// ---- matching tensors with the parameter table ----

struct found {
    const struct stored_tensor *tensor;
    const char *file;
    bool used;
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct found *)a)->tensor->name, ((const struct found *)b)->tensor->name);
}

static struct found *find(struct found *all, long n, const char *name)
{
    struct stored_tensor tensor = {.name = (char *)(uintptr_t)name};
    struct found key = {.tensor = &tensor};
    return n ? bsearch(&key, all, (size_t)n, sizeof *all, by_name) : NULL;
}

static void shape_text(char *text, size_t room, const struct stored_tensor *t)
{
    size_t used = (size_t)snprintf(text, room, "[");
    for (int i = 0; i < t->rank && used < room; i++)
        used += (size_t)snprintf(text + used, room - used, "%s%ld", i ? ", " : "", t->shape[i]);
    if (used < room) snprintf(text + used, room - used, "]");
}

static enum status check_tensor(const struct param *p, const struct found *found)
{
    const struct stored_tensor *t = found->tensor;
    bool vector = p->kind->columns == DIM_NONE;
    if (t->rank != (vector ? 1 : 2) || t->shape[0] != p->rows || (!vector && t->shape[1] != p->columns)) {
        char shape[200];
        shape_text(shape, sizeof shape, t);
        if (vector)
            return fail(ERR_FORMAT, "%s: tensor %s has shape %s, but config.json makes it [%ld]", found->file, p->name,
                        shape, p->rows);
        return fail(ERR_FORMAT, "%s: tensor %s has shape %s, but config.json makes it [%ld, %ld]", found->file, p->name,
                    shape, p->rows, p->columns);
    }
    if (t->type != F32 && t->type != F16 && t->type != BF16 && t->type != F8_E4M3)
        return fail(ERR_FORMAT, "%s: tensor %s is %s, expected F32, F16, BF16 or F8_E4M3", found->file, p->name,
                    t->dtype);
    return OK;
}

// Values of a scale, which the files of others also hold in 16 bits.
static float scale_value(const struct stored_tensor *t, long i)
{
    if (t->type == F32) {
        float value;
        memcpy(&value, t->data + i * (long)sizeof value, sizeof value);
        return value;
    }
    uint16_t half;
    memcpy(&half, t->data + i * (long)sizeof half, sizeof half);
    return t->type == BF16 ? bf16_to_float(half) : f16_to_float(half);
}

static enum status check_scale(const struct model_folder *f, long i, const struct found *scale)
{
    const struct param *p = &f->params.item[i];
    const struct stored_tensor *t = scale->tensor;
    struct scale_grid g = scale_grid_of(f->config.scaling, p->rows, p->columns);
    bool one = f->config.scaling == SCALING_TENSOR;
    bool shaped = one ? t->elements == 1 : t->rank == 2 && t->shape[0] == g.rows && t->shape[1] == g.columns;
    if (!shaped || (t->type != F32 && t->type != BF16 && t->type != F16)) {
        char shape[200], wanted[64] = "one number";
        shape_text(shape, sizeof shape, t);
        if (!one) snprintf(wanted, sizeof wanted, "F32 [%ld, %ld]", g.rows, g.columns);
        return fail(ERR_FORMAT, "%s: tensor %s is %s %s, expected %s (config.json says a scale per %s)", scale->file,
                    t->name, t->dtype, shape, wanted, scaling_name(f->config.scaling));
    }
    for (long j = 0; j < t->elements; j++) {
        float value = scale_value(t, j);
        if (!(value > 0 && value <= 3.4e38f))
            return fail(ERR_FORMAT, "%s: tensor %s holds %g, expected positive numbers", scale->file, t->name, value);
    }
    return OK;
}

// NAME.weight -> NAME.weight_scale, or NAME.weight_scale_inv, which multiplies just so.
static enum status find_scale(struct model_folder *f, long i, struct found *all, long n)
{
    const struct param *p = &f->params.item[i];
    char name[sizeof p->name + 16];
    snprintf(name, sizeof name, "%s_scale", p->name);
    struct found *scale = find(all, n, name);
    snprintf(name, sizeof name, "%s_scale_inv", p->name);
    struct found *other = find(all, n, name);
    if (scale && other)
        return fail(ERR_FORMAT, "%s: tensor %s has both _scale and _scale_inv (only one of them can be meant)",
                    scale->file, p->name);
    if (!scale) scale = other;
    if (!scale)
        return fail(ERR_FORMAT, "%s: tensor %s is F8_E4M3, but %s_scale%s is missing", f->path, p->name, p->name,
                    f->config.scaling == SCALING_BLOCK ? "_inv" : "");
    TRY(check_scale(f, i, scale));
    scale->used = true;
    f->scale[i] = scale->tensor;
    return OK;
}

static enum status match(struct model_folder *f, struct found *all, long n)
{
    for (long i = 1; i < n; i++)
        if (strcmp(all[i].tensor->name, all[i - 1].tensor->name) == 0)
            return fail(ERR_FORMAT, "%s: tensor %s is also in %s", all[i].file, all[i].tensor->name, all[i - 1].file);
    for (long i = 0; i < f->params.n; i++) {
        const struct param *p = &f->params.item[i];
        struct found *found = find(all, n, p->name);
        if (!found) return fail(ERR_FORMAT, "%s: tensor %s is missing", f->path, p->name);
        TRY(check_tensor(p, found));
        found->used = true;
        f->stored[i] = found->tensor;
        if (found->tensor->type != F8_E4M3) continue;
        if (f->config.quant != QUANT_FP8)
            return fail(ERR_FORMAT, "%s: tensor %s is F8_E4M3, but config.json has no quantization_config", found->file,
                        p->name);
        TRY(find_scale(f, i, all, n));
    }
    return OK;
}

static enum status check_unused(const struct model_folder *f, struct found *all, long n)
{
    for (long i = 0; i < n; i++) {
        const struct stored_tensor *t = all[i].tensor;
        if (all[i].used) continue;
        long length = (long)strlen(t->name);
        if (length > 9 && strcmp(t->name + length - 9, ".inv_freq") == 0) continue; // follows from rope_theta
        if (f->config.tied && strcmp(t->name, "lm_head.weight") == 0) {
            const struct stored_tensor *embed = f->stored[0];
            bool alike = t->type == embed->type && t->bytes == embed->bytes;
            if (alike && memcmp(t->data, embed->data, (size_t)t->bytes) == 0) continue;
            return fail(ERR_FORMAT, "%s: lm_head.weight differs from the embedding, but tie_word_embeddings is true",
                        all[i].file);
        }
        return fail(ERR_FORMAT, "%s: tensor %.200s is not part of a %s%s", all[i].file, t->name,
                    arch_name(f->config.arch), f->config.E ? "" : " without experts");
    }
    return OK;
}

static enum status match_all(struct model_folder *f)
{
    long n = 0;
    for (long i = 0; i < f->shards; i++) n += f->shard[i].n;
    TRY(param_list_of(&f->params, &f->config, NULL));
    CHECK(f->params.n > 0 && strcmp(f->params.item[0].name, "model.embed_tokens.weight") == 0);
    f->stored = calloc((size_t)f->params.n, sizeof *f->stored);
    f->scale = calloc((size_t)f->params.n, sizeof *f->scale);
    struct found *all = calloc((size_t)n + 1, sizeof *all);
    if (!f->stored || !f->scale || !all) {
        free(all);
        return fail(ERR_MEMORY, "%s: no memory for a table of %ld tensors", f->path, n);
    }
    n = 0;
    for (long i = 0; i < f->shards; i++)
        for (long j = 0; j < f->shard[i].n; j++)
            all[n++] = (struct found){.tensor = &f->shard[i].tensor[j], .file = f->shard[i].path};
    if (n) qsort(all, (size_t)n, sizeof *all, by_name);
    enum status status = match(f, all, n);
    if (status == OK) status = check_unused(f, all, n);
    free(all);
    return status;
}

// A run's folder has the model's config.json too, but no weights: its newest checkpoint has.
static enum status choose_path(char path[PATH_LENGTH], const char *given)
{
    char latest[PATH_LENGTH], single[PATH_LENGTH], index[PATH_LENGTH];
    if (!path_exists(given)) return fail(ERR_IO, "%s: no such folder", given);
    if (!path_is_folder(given)) return fail(ERR_IO, "%s: is not a folder (a model is a folder)", given);
    TRY(path_join(latest, given, "latest"));
    TRY(look_for(single, index, given, "model"));
    if (path_exists(latest) && !single[0] && !index[0]) return checkpoint_latest(path, given);
    if (snprintf(path, PATH_LENGTH, "%s", given) >= PATH_LENGTH)
        return fail(ERR_IO, "%.200s...: the path is longer than %d bytes (use a shorter one)", given, PATH_LENGTH - 1);
    return OK;
}

static enum status open_all(struct model_folder *f, const char *path)
{
    TRY(choose_path(f->path, path));
    TRY(config_read(&f->config, f->path));
    TRY(open_weights(f));
    return match_all(f);
}

enum status model_folder_open(struct model_folder *f, const char *path)
{
    struct model_folder *opened = calloc(1, sizeof *opened);
    if (!opened) return fail(ERR_MEMORY, "%s: no memory to open it", path);
    enum status status = open_all(opened, path);
    if (status == OK) *f = *opened;
    else model_folder_close(opened);
    free(opened);
    return status;
}

void model_folder_close(struct model_folder *f)
{
    shards_close(f->shard, f->shards);
    free(f->stored);
    free(f->scale);
    param_list_free(&f->params);
    *f = (struct model_folder){0};
}

// ---- values ----

static struct scale_grid scales_of(const struct model_folder *f, long i)
{
    return scale_grid_of(f->config.scaling, f->params.item[i].rows, f->params.item[i].columns);
}

float model_folder_scale(const struct model_folder *f, long i, long element)
{
    struct scale_grid g = scales_of(f, i);
    return f->scale[i] ? scale_value(f->scale[i], scale_at(&g, element)) : 1;
}

// Whole rows go to the kernel together, as many as have room for their scales; what begins or ends inside a row goes
// scale by scale.
static void read_fp8(float *to, const struct model_folder *f, long i, uint8_t *code, long from, long n)
{
    enum { SCALES = 2048 };
    float scale[SCALES];
    struct scale_grid g = scales_of(f, i);
    for (long at = 0, some; at < n; at += some) {
        long row = (from + at) / g.width, rows = g.columns > SCALES || (from + at) % g.width ? 0 : (n - at) / g.width;
        if (rows > SCALES / g.columns) rows = SCALES / g.columns;
        for (long j = 0; j < rows * g.columns; j++) {
            long element = (row + j / g.columns) * g.width + j % g.columns * g.piece_columns;
            scale[j] = scale_value(f->scale[i], scale_at(&g, element));
        }
        some = rows * g.width;
        if (rows == 0) {
            some = scale_run(&g, from + at) < n - at ? scale_run(&g, from + at) : n - at;
            scale[0] = scale_value(f->scale[i], scale_at(&g, from + at));
        }
        kernels_for(F32)->cast((struct tensor){.data = to + at, .dtype = F32},
                               (struct tensor){.data = code + at, .scale = scale, .dtype = F8_E4M3,
                                               .scale_columns = rows ? (int)g.columns : 0},
                               rows ? rows : 1, rows ? g.width : some);
    }
}

// n values without a scale as they lie in a file, at any address.
static void cast_from_file(struct tensor to, struct tensor from, long n)
{
    const struct kernels *k = kernels_for(F32);
    long size = dtype_size(from.dtype);
    if ((uintptr_t)from.data % (uintptr_t)size == 0) {
        k->cast(to, from, 1, n);
        return;
    }
    double aligned[512]; // room for any type
    for (long at = 0, some; at < n; at += some) {
        struct tensor piece = {.data = aligned, .dtype = from.dtype};
        some = n - at < 512 ? n - at : 512;
        memcpy(aligned, (const char *)from.data + at * size, (size_t)(some * size));
        k->cast((struct tensor){.data = (char *)to.data + at * dtype_size(to.dtype), .dtype = to.dtype}, piece, 1,
                some);
    }
}

void model_folder_read(float *to, const struct model_folder *f, long i, long from, long n)
{
    const struct stored_tensor *t = f->stored[i];
    CHECK(from >= 0 && n >= 0 && from + n <= t->elements);
    struct tensor values = {.data = (void *)(uintptr_t)(t->data + from * dtype_size(t->type)), .dtype = t->type};
    if (t->type == F8_E4M3) read_fp8(to, f, i, values.data, from, n);
    else cast_from_file((struct tensor){.data = to, .dtype = F32}, values, n);
}

static const struct file_map *map_of(const struct model_folder *f, const struct stored_tensor *t)
{
    const struct safetensors *s = f->shard;
    while (t < s->tensor || t >= s->tensor + s->n) s++;
    return &s->map;
}

struct file_piece model_folder_piece(const struct model_folder *f, long i)
{
    const struct stored_tensor *t = f->stored[i];
    const struct file_map *map = map_of(f, t);
    return (struct file_piece){map, t->data - map->data, t->bytes};
}

void model_folder_expect(const struct model_folder *f, long i)
{
    struct file_piece p = model_folder_piece(f, i);
    file_map_expect(p.map, p.at, p.bytes);
}

void model_folder_forget(const struct model_folder *f, long i)
{
    struct file_piece p = model_folder_piece(f, i);
    file_map_forget(p.map, p.at, p.bytes);
}

void values_from_float(void *to, enum dtype dtype, const float *from, long n)
{
    kernels_for(F32)->cast((struct tensor){.data = to, .dtype = dtype},
                           (struct tensor){.data = (void *)(uintptr_t)from, .dtype = F32}, 1, n);
}

void floats_from_values(float *to, const void *from, enum dtype dtype, long n)
{
    kernels_for(F32)->cast((struct tensor){.data = to, .dtype = F32},
                           (struct tensor){.data = (void *)(uintptr_t)from, .dtype = dtype}, 1, n);
}
