#include "checkpoint/checksums.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "checkpoint/folder.h"
#include "comm/alive.h"

enum { FILES_MOST = 100000 };

enum status checksum_file(uint64_t *hash, long *bytes, const char *path)
{
    struct file_map map;
    TRY(file_map_open(&map, path));
    *hash = file_map_xxh3(&map, alive_beat);
    *bytes = map.bytes;
    file_map_close(&map);
    return OK;
}

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
    return json_out_write(&o, path);
}
