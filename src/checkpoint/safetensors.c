#include "checkpoint/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

enum { HEADER_LIMIT = 100000000 }; // the format's own limit

// Every dtype the format knows, so that a file which also holds others can still be read.
static const struct {
    const char *name;
    int bits;
} stored_dtypes[] = {
    {"BOOL", 8},    {"U8", 8},      {"I8", 8},          {"F8_E5M2", 8},     {"F8_E4M3", 8}, {"F8_E8M0", 8},
    {"I16", 16},    {"U16", 16},    {"F16", 16},        {"BF16", 16},       {"I32", 32},    {"U32", 32},
    {"F32", 32},    {"F64", 64},    {"I64", 64},        {"U64", 64},        {"C64", 64},    {"F4", 4},
    {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
};

static enum status read_dtype(struct stored_tensor *t, int *bits, const cJSON *entry, const char *file)
{
    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(entry, "dtype");
    if (!cJSON_IsString(dtype)) return fail(ERR_FORMAT, "%s: tensor %s has no dtype", file, t->name);
    for (unsigned i = 0; i < sizeof stored_dtypes / sizeof *stored_dtypes; i++)
        if (strcmp(dtype->valuestring, stored_dtypes[i].name) == 0) {
            snprintf(t->dtype, sizeof t->dtype, "%s", stored_dtypes[i].name);
            t->type = dtype_from_name(t->dtype);
            *bits = stored_dtypes[i].bits;
            return OK;
        }
    return fail(ERR_FORMAT, "%s: tensor %s has the unknown dtype \"%.40s\"", file, t->name, dtype->valuestring);
}

// Whole numbers that a double holds exactly.
static bool whole(const cJSON *item, long *value)
{
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= 9007199254740992.0)) return false;
    *value = (long)item->valuedouble;
    return (double)*value == item->valuedouble;
}

static enum status read_shape(struct stored_tensor *t, int bits, const cJSON *entry, const char *file)
{
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(entry, "shape");
    if (!cJSON_IsArray(shape)) return fail(ERR_FORMAT, "%s: tensor %s has no shape", file, t->name);
    t->elements = 1;
    bool overflow = false;
    for (const cJSON *dim = shape->child; dim; dim = dim->next) {
        if (t->rank == TENSOR_RANK)
            return fail(ERR_FORMAT, "%s: tensor %s has more than %d dimensions", file, t->name, TENSOR_RANK);
        if (!whole(dim, &t->shape[t->rank]))
            return fail(ERR_FORMAT, "%s: tensor %s: a dimension is not a whole number", file, t->name);
        overflow |= __builtin_mul_overflow(t->elements, t->shape[t->rank], &t->elements);
        t->rank++;
    }
    long all_bits;
    if (overflow || __builtin_mul_overflow(t->elements, (long)bits, &all_bits))
        return fail(ERR_FORMAT, "%s: tensor %s: its dimensions multiply to more than 2^63", file, t->name);
    if (all_bits % 8 != 0) return fail(ERR_FORMAT, "%s: tensor %s does not fill whole bytes", file, t->name);
    t->bytes = all_bits / 8;
    return OK;
}

static enum status read_offsets(struct stored_tensor *t, const cJSON *entry, const uint8_t *data, long bytes,
                                const char *file)
{
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
    long begin, end;
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 || !whole(offsets->child, &begin) ||
        !whole(offsets->child->next, &end))
        return fail(ERR_FORMAT, "%s: tensor %s: data_offsets is not two whole numbers", file, t->name);
    if (begin > end || end - begin != t->bytes)
        return fail(ERR_FORMAT, "%s: tensor %s: data_offsets [%ld, %ld] do not hold the %ld bytes of its shape", file,
                    t->name, begin, end, t->bytes);
    if (end > bytes)
        return fail(ERR_FORMAT, "%s: tensor %s ends at byte %ld of the data, but there are only %ld (the file is cut "
                    "short)", file, t->name, end, bytes);
    t->data = data + begin;
    return OK;
}

// On failure the name is still owned by *t.
static enum status read_tensor(struct stored_tensor *t, const cJSON *entry, const uint8_t *data, long bytes,
                               const char *file)
{
    if (entry->string[0] == '\0' || strlen(entry->string) >= TENSOR_NAME)
        return fail(ERR_FORMAT, "%s: tensor name \"%.40s\" has not 1 to %d bytes", file, entry->string,
                    TENSOR_NAME - 1);
    t->name = strdup(entry->string);
    if (!t->name) return fail(ERR_MEMORY, "%s: no memory for its tensor names", file);
    if (!cJSON_IsObject(entry)) return fail(ERR_FORMAT, "%s: tensor %s is not described by an object", file, t->name);
    int bits = 0;
    TRY(read_dtype(t, &bits, entry, file));
    TRY(read_shape(t, bits, entry, file));
    return read_offsets(t, entry, data, bytes, file);
}

static enum status check_metadata(const cJSON *metadata, const char *file)
{
    if (!cJSON_IsObject(metadata)) return fail(ERR_FORMAT, "%s: __metadata__ is not an object", file);
    for (const cJSON *item = metadata->child; item; item = item->next)
        if (!cJSON_IsString(item))
            return fail(ERR_FORMAT, "%s: __metadata__ \"%.40s\" is not a text", file, item->string);
    return OK;
}

static int by_place(const void *a, const void *b)
{
    const struct stored_tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); // empty ones first
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct stored_tensor *)a)->name, ((const struct stored_tensor *)b)->name);
}

// Every byte belongs to exactly one tensor.
static enum status check_places(struct safetensors *s, const uint8_t *data, long bytes, const char *file)
{
    if (s->n) qsort(s->tensor, (size_t)s->n, sizeof *s->tensor, by_place);
    const uint8_t *end = data;
    for (long i = 0; i < s->n; i++) {
        const struct stored_tensor *t = &s->tensor[i];
        if (t->data < end) return fail(ERR_FORMAT, "%s: tensors %s and %s overlap", file, t[-1].name, t->name);
        if (t->data > end)
            return fail(ERR_FORMAT, "%s: %ld bytes before tensor %s belong to no tensor", file, (long)(t->data - end),
                        t->name);
        end = t->data + t->bytes;
    }
    if (end != data + bytes)
        return fail(ERR_FORMAT, "%s: the last %ld bytes belong to no tensor", file, (long)(data + bytes - end));
    if (s->n) qsort(s->tensor, (size_t)s->n, sizeof *s->tensor, by_name);
    return OK;
}

static enum status read_header(struct safetensors *s, const cJSON *json, const uint8_t *data, long bytes,
                               const char *file)
{
    if (!cJSON_IsObject(json)) return fail(ERR_FORMAT, "%s: the header is not a JSON object", file);
    long n = 0;
    for (const cJSON *entry = json->child; entry; entry = entry->next) n++;
    s->tensor = calloc((size_t)n + 1, sizeof *s->tensor);
    if (!s->tensor) return fail(ERR_MEMORY, "%s: no memory for a table of %ld tensors", file, n);
    for (const cJSON *entry = json->child; entry; entry = entry->next) {
        if (strcmp(entry->string, "__metadata__") == 0) {
            TRY(check_metadata(entry, file));
            continue;
        }
        s->n++; // counted before it is read: closing frees its name
        TRY(read_tensor(&s->tensor[s->n - 1], entry, data, bytes, file));
    }
    return check_places(s, data, bytes, file);
}

enum status safetensors_parse(struct safetensors *s, const uint8_t *data, long bytes, const char *name)
{
    struct safetensors read = {0};
    uint64_t header = 0;
    if (bytes < 8) return fail(ERR_FORMAT, "%s: has %ld bytes, too few for a safetensors file", name, bytes);
    for (int i = 0; i < 8; i++) header |= (uint64_t)data[i] << (8 * i);
    if (header > HEADER_LIMIT)
        return fail(ERR_FORMAT, "%s: its header would have %lu bytes, more than the 100000000 allowed (is it a "
                    "safetensors file?)", name, (unsigned long)header);
    if ((long)header > bytes - 8)
        return fail(ERR_FORMAT, "%s: its header should have %ld bytes, but the file has only %ld (it is cut short)",
                    name, (long)header, bytes);
    if (header == 0 || data[8] != '{') return fail(ERR_FORMAT, "%s: its header does not begin with {", name);
    cJSON *json;
    TRY(json_parse(&json, (const char *)data + 8, (long)header, name));
    enum status status = read_header(&read, json, data + 8 + header, bytes - 8 - (long)header, name);
    cJSON_Delete(json);
    if (status != OK) {
        safetensors_close(&read);
        return status;
    }
    snprintf(read.path, sizeof read.path, "%s", name);
    *s = read;
    return OK;
}

enum status safetensors_open(struct safetensors *s, const char *path)
{
    struct file_map map;
    TRY(file_map_open(&map, path));
    enum status status = safetensors_parse(s, map.data, map.bytes, path);
    if (status == OK) s->map = map;
    else file_map_close(&map);
    return status;
}

void safetensors_close(struct safetensors *s)
{
    for (long i = 0; i < s->n; i++) free(s->tensor[i].name);
    free(s->tensor);
    file_map_close(&s->map);
    *s = (struct safetensors){0};
}

const struct stored_tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    if (s->n == 0) return NULL;
    struct stored_tensor key = {.name = (char *)(uintptr_t)name};
    return bsearch(&key, s->tensor, (size_t)s->n, sizeof *s->tensor, by_name);
}
