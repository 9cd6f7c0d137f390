#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "checkpoint/checksums.h"
#include "checkpoint/folder.h"
#include "comm/alive.h"
#include "comm/group.h"

static const long SHARD_BYTES = 5000000000;

struct shard {
    long first, n; // tensors
};

struct folder_writer {
    char path[PATH_LENGTH], temporary[PATH_LENGTH];
    bool replace;
    struct config config;
    long shard_bytes;
    const char *stem; // of the present tensors' files, relative to the folder
    struct tensor_plan *tensor;
    long n;
    struct shard *shard;
    long shards;
    long open_shard; // the one being written, or shards when all are
    bool file_open;
    struct safetensors_writer file;
    bool joined;     // another process makes the folder
    struct placed_file *placed; // [shards] when several processes write the folder; open ones have a `tensor`
    long placed_last; // the one written to last
    struct checksums sums;
};

// ---- what the folder will hold ----

// Greedy in the order declared; a tensor larger than the limit gets a shard of its own.
static enum status cut_shards(struct folder_writer *w)
{
    long limit = w->shard_bytes ? w->shard_bytes : SHARD_BYTES;
    w->shard = calloc((size_t)w->n + 1, sizeof *w->shard);
    if (!w->shard) return fail(ERR_MEMORY, "%s: no memory to write it", w->path);
    w->shards = 1;
    long bytes = 0;
    for (long i = 0; i < w->n; i++) {
        long size = tensor_plan_bytes(&w->tensor[i]);
        struct shard *last = &w->shard[w->shards - 1];
        if (last->n > 0 && size > limit - bytes) {
            last = &w->shard[w->shards++];
            last->first = i;
            bytes = 0;
        }
        last->n++;
        bytes += size;
    }
    return OK;
}

static void shard_name(char name[64], const struct folder_writer *w, long shard)
{
    if (w->shards == 1) snprintf(name, 64, "%s.safetensors", w->stem);
    else snprintf(name, 64, "%s-%05ld-of-%05ld.safetensors", w->stem, shard + 1, w->shards);
}

static enum status declare(struct folder_writer *w, const char *stem, const struct tensor_plan *tensor, long n)
{
    w->stem = stem;
    w->n = n;
    w->tensor = malloc(((size_t)n + 1) * sizeof *w->tensor);
    if (!w->tensor) return fail(ERR_MEMORY, "%s: no memory to write it", w->path);
    memcpy(w->tensor, tensor, (size_t)n * sizeof *w->tensor);
    return cut_shards(w);
}

static long tensor_bytes(const struct folder_writer *w)
{
    long bytes = 0;
    for (long i = 0; i < w->n; i++) bytes += tensor_plan_bytes(&w->tensor[i]);
    return bytes;
}

// ---- opening ----

static void parent_of(char parent[PATH_LENGTH], const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash) snprintf(parent, PATH_LENGTH, ".");
    else snprintf(parent, PATH_LENGTH, "%.*s", slash == path ? 1 : (int)(slash - path), path);
}

enum status folder_writer_room(const char *path, long bytes)
{
    enum { BESIDE_WEIGHTS = 1 << 20 }; // headers, index, tokenizer
    char at[PATH_LENGTH];
    if (snprintf(at, sizeof at, "%s", path) >= PATH_LENGTH) return OK; // whoever makes the folder says so
    while (!path_exists(at) && strcmp(at, "/") != 0 && strcmp(at, ".") != 0) {
        char parent[PATH_LENGTH];
        parent_of(parent, at);
        memcpy(at, parent, sizeof at);
    }
    long room = disk_free_bytes(at), need = bytes + BESIDE_WEIGHTS;
    if (room >= 0 && room < need)
        return fail(ERR_IO, "%s: needs %.2f GB, but only %.2f GB are free on that disk (free some room)", path,
                    (double)need / 1e9, (double)room / 1e9);
    return OK;
}

// A folder is replaced only by another one of the same kind.
static enum status check_target(const struct folder_writer *w)
{
    char config[PATH_LENGTH];
    if (!path_exists(w->path)) return OK;
    TRY(path_join(config, w->path, "config.json"));
    if (!w->replace) return fail(ERR_IO, "%s: exists already (choose another name or remove it)", w->path);
    if (path_exists(config)) return OK;
    return fail(ERR_IO, "%s: exists and is not a model folder (choose another name)", w->path);
}

static enum status set_paths(struct folder_writer *w, const char *path)
{
    long length = (long)strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    if (length == 0) return fail(ERR_IO, "folder name: is empty (name a folder)");
    if (length > PATH_LENGTH - 300)
        return fail(ERR_IO, "%.200s...: the path is longer than %d bytes (use a shorter one)", path, PATH_LENGTH - 300);
    snprintf(w->path, sizeof w->path, "%.*s", (int)length, path);
    snprintf(w->temporary, sizeof w->temporary, "%.*s.tmp", (int)length, path);
    w->sums.folder = w->temporary;
    return OK;
}

static enum status make_folder(const struct folder_writer *w)
{
    char parent[PATH_LENGTH];
    TRY(check_target(w));
    TRY(folder_remove(w->temporary)); // left by a crash
    TRY(folder_writer_room(w->path, tensor_bytes(w)));
    parent_of(parent, w->path);
    TRY(folder_make(parent));
    return folder_make(w->temporary);
}

static enum status writer_set_up(struct folder_writer *w, const char *path, const struct tensor_plan *tensor, long n)
{
    char *config;
    TRY(set_paths(w, path));
    TRY(config_write(&config, &w->config)); // before anything is made: can that architecture say it?
    free(config);
    TRY(declare(w, "model", tensor, n));
    return w->joined ? OK : make_folder(w);
}

static void writer_free(struct folder_writer *w)
{
    free(w->placed);
    checksums_free(&w->sums);
    free(w->shard);
    free(w->tensor);
    free(w);
}

static enum status writer_open(struct folder_writer **w, const char *path, const struct tensor_plan *tensor, long n,
                               struct folder_writer with)
{
    struct folder_writer *made = calloc(1, sizeof *made);
    if (!made) return fail(ERR_MEMORY, "%s: no memory to write it", path);
    *made = with;
    enum status status = writer_set_up(made, path, tensor, n);
    if (status == OK) *w = made;
    else writer_free(made);
    return status;
}

enum status folder_writer_open(struct folder_writer **w, const char *path, const struct config *c,
                               const struct tensor_plan *tensor, long n, long shard_bytes, bool replace)
{
    struct folder_writer with = {.config = *c, .shard_bytes = shard_bytes, .replace = replace};
    return writer_open(w, path, tensor, n, with);
}

enum status folder_writer_join(struct folder_writer **w, const char *path, const struct config *c,
                               const struct tensor_plan *tensor, long n, long shard_bytes)
{
    struct folder_writer with = {.config = *c, .shard_bytes = shard_bytes, .joined = true};
    return writer_open(w, path, tensor, n, with);
}

// ---- tensors ----

static enum status start_shard(struct folder_writer *w)
{
    char name[64], path[PATH_LENGTH];
    const struct shard *s = &w->shard[w->open_shard];
    shard_name(name, w, w->open_shard);
    TRY(path_join(path, w->temporary, name));
    TRY(safetensors_write_open(&w->file, path, w->tensor + s->first, s->n));
    w->file_open = true;
    return OK;
}

static enum status finish_shard(struct folder_writer *w)
{
    char name[64];
    uint64_t hash;
    shard_name(name, w, w->open_shard);
    w->file_open = false; // commit aborts by itself
    TRY(safetensors_write_commit(&w->file, &hash));
    TRY(checksums_add(&w->sums, name, w->file.out.written, hash));
    w->open_shard++;
    return OK;
}

enum status folder_writer_data(struct folder_writer *w, const void *data, long bytes)
{
    if (bytes == 0) return OK;
    CHECK(w->open_shard < w->shards);
    if (!w->file_open) TRY(start_shard(w));
    TRY(safetensors_write_data(&w->file, data, bytes));
    return w->file.at == w->file.n ? finish_shard(w) : OK;
}

// ---- tensors from several processes ----

static enum status shard_path(char path[PATH_LENGTH], const struct folder_writer *w, long shard)
{
    char name[64];
    shard_name(name, w, shard);
    return path_join(path, w->temporary, name);
}

enum status folder_writer_shards(struct folder_writer *w)
{
    for (long s = 0; s < w->shards; s++) {
        char path[PATH_LENGTH];
        TRY(shard_path(path, w, s));
        TRY(placed_file_make(path, w->tensor + w->shard[s].first, w->shard[s].n));
        alive_beat();
    }
    return OK;
}

// Mostly the shard, and there the tensor, that was asked for last: pieces of a tensor may be thousands.
static long shard_of(const struct folder_writer *w, const char *tensor)
{
    const struct placed_file *last = w->placed ? &w->placed[w->placed_last] : NULL;
    if (last && last->tensor && strcmp(last->tensor[last->last].name, tensor) == 0) return w->placed_last;
    for (long s = 0; s < w->shards; s++)
        for (long i = 0; i < w->shard[s].n; i++)
            if (strcmp(w->tensor[w->shard[s].first + i].name, tensor) == 0) return s;
    CHECK(!"a tensor of the folder");
}

enum status folder_writer_place(struct folder_writer *w, const char *tensor, const void *data, long at, long bytes)
{
    long s = shard_of(w, tensor);
    char path[PATH_LENGTH];
    if (!w->placed) w->placed = calloc((size_t)w->shards, sizeof *w->placed);
    if (!w->placed) return fail(ERR_MEMORY, "%s: no memory to write it", w->path);
    if (!w->placed[s].tensor) {
        TRY(shard_path(path, w, s));
        enum status status = placed_file_open(&w->placed[s], path, w->tensor + w->shard[s].first, w->shard[s].n);
        if (status != OK) w->placed[s].tensor = NULL;
        TRY(status);
    }
    w->placed_last = s;
    return placed_file_write(&w->placed[s], tensor, data, at, bytes);
}

enum status folder_writer_placed(struct folder_writer *w, enum status so_far)
{
    for (long s = 0; w->placed && s < w->shards; s++) {
        if (!w->placed[s].tensor) continue;
        so_far = placed_file_close(&w->placed[s], so_far);
        w->placed[s].tensor = NULL;
        alive_beat();
    }
    return so_far;
}

// Each rank gives some shards their names and reads them once more; all learn what it found.
static enum status hash_some(const struct folder_writer *w, long *hash_bytes)
{
    for (long s = transport_rank(); s < w->shards; s += transport_ranks()) {
        char path[PATH_LENGTH];
        uint64_t hash;
        TRY(shard_path(path, w, s));
        TRY(placed_file_finish(path));
        TRY(checksum_file(&hash, &hash_bytes[2 * s + 1], path));
        hash_bytes[2 * s] = (long)hash;
    }
    return OK;
}

enum status folder_writer_hash_shards(struct folder_writer *w)
{
    struct group world = group_of("world", CHANNEL_WORLD, 0, 1, transport_ranks(), transport_rank());
    long *found = calloc(2 * (size_t)w->shards, sizeof *found);
    enum status status = agree(found ? hash_some(w, found) : fail(ERR_MEMORY, "%s: no memory to write it", w->path));
    if (status == OK) group_sum_long(&world, found, 2 * w->shards);
    for (long s = 0; s < w->shards && status == OK; s++) {
        char name[64];
        shard_name(name, w, s);
        status = checksums_add(&w->sums, name, found[2 * s + 1], (uint64_t)found[2 * s]);
    }
    w->open_shard = w->shards;
    free(found);
    return agree(status);
}

// ---- when all data have come ----

static enum status write_index(const struct folder_writer *w)
{
    char path[PATH_LENGTH], name[64];
    snprintf(name, sizeof name, "%s.safetensors.index.json", w->stem);
    TRY(path_join(path, w->temporary, name));
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_begin(&o, "metadata", '{');
    json_put_long(&o, "total_size", tensor_bytes(w));
    json_end(&o, '}');
    json_begin(&o, "weight_map", '{');
    for (long s = 0; s < w->shards; s++) {
        shard_name(name, w, s);
        const char *slash = strrchr(name, '/'), *beside = slash ? slash + 1 : name; // the index lies in the same folder
        for (long i = 0; i < w->shard[s].n; i++) json_put_text(&o, w->tensor[w->shard[s].first + i].name, beside);
    }
    json_end(&o, '}');
    json_end(&o, '}');
    return json_out_write(&o, path);
}

static enum status finish_tensors(struct folder_writer *w)
{
    CHECK(w->open_shard == w->shards || (w->n == 0 && w->open_shard == 0));
    if (w->open_shard == 0) {
        TRY(start_shard(w));
        TRY(finish_shard(w));
    }
    return w->shards > 1 && !w->joined ? write_index(w) : OK;
}

enum status folder_writer_next(struct folder_writer *w, const char *stem, const struct tensor_plan *tensor, long n)
{
    TRY(finish_tensors(w));
    free(w->placed);
    free(w->shard);
    free(w->tensor);
    w->placed = NULL;
    w->shard = NULL;
    w->tensor = NULL;
    w->open_shard = w->placed_last = 0;
    TRY(declare(w, stem, tensor, n));
    return w->joined ? OK : folder_writer_room(w->path, tensor_bytes(w));
}

// ---- other files ----

enum status folder_writer_path(char path[PATH_LENGTH], const struct folder_writer *w, const char *name)
{
    return path_join(path, w->temporary, name);
}

static bool copied(const char *name)
{
    static const char *const names[] = {
        "tokenizer.model",         "tokenizer.json",    "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json",       "vocab.json",        "merges.txt",            "chat_template.jinja",
        "chat_template.json",      "generation_config.json",
    };
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) return true;
    long length = (long)strlen(name); // code of models and tokenizers that transformers does not know
    return length > 3 && strcmp(name + length - 3, ".py") == 0;
}

static enum status copy_listed(struct folder_writer *w, const char *from, const struct path_list *list)
{
    for (long i = 0; i < list->n; i++) {
        char source[PATH_LENGTH], target[PATH_LENGTH];
        if (!copied(list->name[i])) continue;
        TRY(path_join(source, from, list->name[i]));
        if (path_is_folder(source)) continue;
        TRY(path_join(target, w->temporary, list->name[i]));
        TRY(file_copy(target, source));
    }
    return OK;
}

static enum status write_generation(const struct folder_writer *w)
{
    char path[PATH_LENGTH];
    TRY(path_join(path, w->temporary, "generation_config.json"));
    if (path_exists(path)) return OK;
    const struct config *c = &w->config;
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_put_bool(&o, "_from_model_config", true);
    if (c->bos >= 0) json_put_long(&o, "bos_token_id", c->bos);
    if (c->eos >= 0) json_put_long(&o, "eos_token_id", c->eos);
    if (c->pad >= 0) json_put_long(&o, "pad_token_id", c->pad);
    json_end(&o, '}');
    return json_out_write(&o, path);
}

enum status folder_writer_copy(struct folder_writer *w, const char *from)
{
    if (from) {
        struct path_list list;
        TRY(folder_list(&list, from));
        enum status status = copy_listed(w, from, &list);
        path_list_free(&list);
        TRY(status);
    }
    return write_generation(w);
}

static enum status write_config(const struct folder_writer *w)
{
    char path[PATH_LENGTH], *text;
    TRY(path_join(path, w->temporary, "config.json"));
    TRY(config_write(&text, &w->config));
    enum status status = file_write(path, text, (long)strlen(text));
    free(text);
    return status;
}

// ---- the end ----

static enum status writer_finish(struct folder_writer *w)
{
    char parent[PATH_LENGTH], old[PATH_LENGTH];
    TRY(finish_tensors(w));
    TRY(write_config(w));
    TRY(checksums_write(&w->sums));
    TRY(folder_sync(w->temporary));
    parent_of(parent, w->path);
    if (!path_exists(w->path)) {
        TRY(path_rename(w->path, w->temporary));
        return folder_sync(parent);
    }
    TRY(check_target(w)); // it may have appeared meanwhile
    snprintf(old, sizeof old, "%.*s.old", PATH_LENGTH - 5, w->path);
    TRY(folder_remove(old));
    TRY(path_rename(old, w->path));
    enum status status = path_rename(w->path, w->temporary);
    if (status != OK && path_rename(w->path, old) != OK)
        log_warning("%s: the previous folder is now %s", w->path, old);
    TRY(status);
    TRY(folder_sync(parent));
    return folder_remove(old);
}

enum status folder_writer_commit(struct folder_writer *w)
{
    enum status status = w->joined ? OK : writer_finish(w);
    if (status != OK) folder_writer_abort(w);
    else writer_free(w);
    return status;
}

void folder_writer_abort(struct folder_writer *w)
{
    char sentence[1024]; // of the failure that led here
    snprintf(sentence, sizeof sentence, "%s", fail_message());
    if (w->file_open) safetensors_write_abort(&w->file);
    if (!w->joined && folder_remove(w->temporary) != OK) log_warning("%s", fail_message());
    if (fail(OK, "%s", sentence) == OK) writer_free(w);
}
