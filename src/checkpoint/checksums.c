#include "checkpoint/checksums.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "checkpoint/folder.h"
#include "comm/alive.h"

enum { CHECKSUMS_LIMIT = 64 << 20, FILES_MOST = 100000 };

enum status checksum_file(uint64_t *hash, long *bytes, const char *path)
{
    struct file_map map;
    TRY(file_map_open(&map, path));
    *hash = file_map_xxh3(&map, alive_beat);
    *bytes = map.bytes;
    file_map_close(&map);
    return OK;
}

// ---- writing ----

enum status checksums_add(struct checksums *s, const char *name, long bytes, uint64_t hash)
{
    if (s->n == FILES_MOST) return fail(ERR_IO, "%s: more than %d files in a model folder", s->folder, FILES_MOST);
    struct checksum *grown = realloc(s->file, (size_t)(s->n + 1) * sizeof *grown);
    if (grown) s->file = grown;
    char *copy = grown ? strdup(name) : NULL;
    if (!copy) return fail(ERR_MEMORY, "%s: no memory to write it", s->folder);
    s->file[s->n++] = (struct checksum){copy, bytes, hash};
    return OK;
}

void checksums_free(struct checksums *s)
{
    for (long i = 0; i < s->n; i++) free(s->file[i].name);
    free(s->file);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct checksum *)a)->name, ((const struct checksum *)b)->name);
}

static enum status collect(struct checksums *s, const char *below, int depth);

// One file or folder; `name` is relative to the folder.
static enum status collect_one(struct checksums *s, const char *name, int depth)
{
    char path[PATH_LENGTH];
    TRY(path_join(path, s->folder, name));
    if (path_is_folder(path) && depth > 8) return fail(ERR_IO, "%s: is nested too deep in a model folder", path);
    if (path_is_folder(path)) return collect(s, name, depth + 1);
    for (long i = 0; i < s->n; i++)
        if (strcmp(s->file[i].name, name) == 0) return OK;
    uint64_t hash;
    long bytes;
    TRY(checksum_file(&hash, &bytes, path));
    return checksums_add(s, name, bytes, hash);
}

static enum status collect_list(struct checksums *s, const struct path_list *list, const char *below, int depth)
{
    for (long i = 0; i < list->n; i++) {
        char name[PATH_LENGTH];
        if (below) TRY(path_join(name, below, list->name[i]));
        TRY(collect_one(s, below ? name : list->name[i], depth));
    }
    return OK;
}

// Every file of the folder gets an entry; folders below it are made durable.
static enum status collect(struct checksums *s, const char *below, int depth)
{
    char path[PATH_LENGTH];
    struct path_list list;
    TRY(path_join(path, s->folder, below ? below : "."));
    TRY(folder_list(&list, path));
    enum status status = collect_list(s, &list, below, depth);
    path_list_free(&list);
    TRY(status);
    return folder_sync(path);
}

enum status checksums_write(struct checksums *s)
{
    char path[PATH_LENGTH];
    TRY(collect(s, NULL, 0));
    qsort(s->file, (size_t)s->n, sizeof *s->file, by_name);
    TRY(path_join(path, s->folder, "checksums.json"));
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_put_text(&o, "algorithm", "XXH3-64");
    json_begin(&o, "files", '{');
    for (long i = 0; i < s->n; i++) {
        char hex[17];
        snprintf(hex, sizeof hex, "%016lx", (unsigned long)s->file[i].xxh3);
        json_begin(&o, s->file[i].name, '{');
        json_put_long(&o, "bytes", s->file[i].bytes);
        json_put_text(&o, "xxh3", hex);
        json_end(&o, '}');
    }
    json_end(&o, '}');
    json_end(&o, '}');
    enum status status = json_out_status(&o);
    if (status == OK) status = file_write(path, o.text, o.used);
    json_out_free(&o);
    return status;
}

// ---- verifying ----

static enum status verify_file(const char *folder, const cJSON *file, const char *checksums)
{
    char path[PATH_LENGTH];
    long bytes, found_bytes;
    uint64_t found;
    const char *hex;
    if (file->string[0] == '/' || file->string[0] == '\0' || strstr(file->string, ".."))
        return fail(ERR_FORMAT, "%s: \"%.80s\" is not a file of this folder", checksums, file->string);
    if (!cJSON_IsObject(file)) return fail(ERR_FORMAT, "%s: %.80s is not an object", checksums, file->string);
    TRY(json_long(&bytes, file, "bytes", -1, 0, 1L << 53, checksums));
    TRY(json_text(&hex, file, "xxh3", "", checksums));
    TRY(path_join(path, folder, file->string));
    if (!path_exists(path)) return fail(ERR_FORMAT, "%s: the file is missing (checksums.json lists it)", path);
    TRY(checksum_file(&found, &found_bytes, path));
    if (found_bytes != bytes)
        return fail(ERR_FORMAT, "%s: has %ld bytes, but checksums.json says %ld (it is damaged)", path, found_bytes,
                    bytes);
    char found_hex[17];
    snprintf(found_hex, sizeof found_hex, "%016lx", (unsigned long)found);
    if (strcmp(found_hex, hex) != 0)
        return fail(ERR_FORMAT, "%s: its checksum differs from checksums.json (it is damaged)", path);
    return OK;
}

static enum status verify_files(const char *folder, const cJSON *json, const char *checksums, long part, long parts)
{
    const char *algorithm;
    if (!cJSON_IsObject(json)) return fail(ERR_FORMAT, "%s: not a JSON object", checksums);
    TRY(json_text(&algorithm, json, "algorithm", "", checksums));
    if (strcmp(algorithm, "XXH3-64") != 0)
        return fail(ERR_FORMAT, "%s: algorithm is \"%.40s\", expected XXH3-64", checksums, algorithm);
    const cJSON *files = cJSON_GetObjectItemCaseSensitive(json, "files");
    if (!cJSON_IsObject(files)) return fail(ERR_FORMAT, "%s: files is missing", checksums);
    long i = 0;
    for (const cJSON *file = files->child; file; file = file->next)
        if (i++ % parts == part) TRY(verify_file(folder, file, checksums));
    return OK;
}

enum status folder_verify(const char *path)
{
    return folder_verify_share(path, 0, 1);
}

enum status folder_verify_share(const char *path, long part, long parts)
{
    char checksums[PATH_LENGTH];
    cJSON *json;
    TRY(path_join(checksums, path, "checksums.json"));
    if (!path_exists(checksums))
        return fail(ERR_IO, "%s: has no checksums.json (only folders that skymoe wrote can be verified)", path);
    TRY(json_read(&json, checksums, CHECKSUMS_LIMIT));
    enum status status = verify_files(path, json, checksums, part, parts);
    cJSON_Delete(json);
    return status;
}
