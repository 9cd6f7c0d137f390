#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "checkpoint/safetensors.h"

long tensor_plan_bytes(const struct tensor_plan *t)
{
    long elements = 1;
    for (int i = 0; i < t->rank; i++) elements *= t->shape[i];
    return elements * dtype_size(t->dtype);
}

// Data begin where a page does: readers that map the file get vectors that do not straddle cache lines, and tensors of
// two shards that fit behind each other in memory.
enum { DATA_ALIGN = 4096 };

static enum status write_header(struct safetensors_writer *w)
{
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_begin(&o, "__metadata__", '{');
    json_put_text(&o, "format", "pt"); // transformers refuses files without it
    json_end(&o, '}');
    long at = 0;
    for (long i = 0; i < w->n; i++) {
        const struct tensor_plan *t = &w->tensor[i];
        CHECK(at % dtype_size(t->dtype) == 0); // readers make aligned views of the data
        json_begin(&o, t->name, '{');
        json_put_text(&o, "dtype", dtype_name(t->dtype));
        json_begin(&o, "shape", '[');
        for (int d = 0; d < t->rank; d++) json_put_long(&o, NULL, t->shape[d]);
        json_end(&o, ']');
        json_begin(&o, "data_offsets", '[');
        json_put_long(&o, NULL, at);
        at += tensor_plan_bytes(t);
        json_put_long(&o, NULL, at);
        json_end(&o, ']');
        json_end(&o, '}');
    }
    json_end(&o, '}');
    enum status status = json_out_status(&o);
    uint8_t size[8];
    uint64_t padded = (uint64_t)(8 + o.used + DATA_ALIGN - 1) / DATA_ALIGN * DATA_ALIGN - 8;
    for (int i = 0; i < 8; i++) size[i] = (uint8_t)(padded >> (8 * i));
    if (status == OK) status = output_write(&w->out, size, 8);
    if (status == OK) status = output_write(&w->out, o.text, o.used);
    for (long left = (long)padded - o.used; left > 0 && status == OK; left -= 8)
        status = output_write(&w->out, "        ", left < 8 ? left : 8);
    json_out_free(&o);
    return status;
}

// Moves on to the next tensor that has data.
static void skip_finished(struct safetensors_writer *w)
{
    while (w->left == 0 && w->at < w->n) {
        w->at++;
        w->left = w->at < w->n ? tensor_plan_bytes(&w->tensor[w->at]) : 0;
    }
}

enum status safetensors_write_open(struct safetensors_writer *w, const char *path, const struct tensor_plan *tensor,
                                   long n)
{
    *w = (struct safetensors_writer){.tensor = tensor, .n = n};
    TRY(output_open(&w->out, path));
    enum status status = write_header(w);
    if (status != OK) {
        output_abort(&w->out);
        return status;
    }
    w->left = n > 0 ? tensor_plan_bytes(&tensor[0]) : 0;
    skip_finished(w);
    return OK;
}

enum status safetensors_write_data(struct safetensors_writer *w, const void *data, long bytes)
{
    CHECK(bytes <= w->left);
    TRY(output_write(&w->out, data, bytes));
    w->left -= bytes;
    skip_finished(w);
    return OK;
}

enum status safetensors_write_commit(struct safetensors_writer *w, uint64_t *xxh3)
{
    CHECK(w->at == w->n && w->left == 0);
    return output_commit(&w->out, xxh3);
}

void safetensors_write_abort(struct safetensors_writer *w)
{
    output_abort(&w->out);
}

// ---- one file, many writers ----

static enum status part_name(char name[PATH_LENGTH], const char *path)
{
    if (snprintf(name, PATH_LENGTH, "%s.part", path) < PATH_LENGTH) return OK;
    return fail(ERR_IO, "%.200s...: the path is longer than %d bytes (use a shorter one)", path, PATH_LENGTH - 6);
}

static enum status header_alone(const char *part, const struct tensor_plan *tensor, long n, long *bytes)
{
    struct safetensors_writer w = {.tensor = tensor, .n = n};
    TRY(output_open(&w.out, part));
    enum status status = write_header(&w);
    *bytes = w.out.written;
    if (status == OK) return output_commit(&w.out, NULL);
    output_abort(&w.out);
    return status;
}

enum status placed_file_make(const char *path, const struct tensor_plan *tensor, long n)
{
    char part[PATH_LENGTH];
    long bytes;
    TRY(part_name(part, path));
    TRY(header_alone(part, tensor, n, &bytes));
    for (long i = 0; i < n; i++) bytes += tensor_plan_bytes(&tensor[i]);
    return file_extend(part, bytes);
}

static enum status find_places(struct placed_file *f)
{
    uint8_t size[8];
    f->at = malloc(((size_t)f->n + 1) * sizeof *f->at);
    if (!f->at) return fail(ERR_MEMORY, "%s: no memory to write it", f->path);
    if (pread(f->fd, size, 8, 0) != 8) return fail(ERR_IO, "%s: cannot be read back", f->path);
    long at = 8;
    for (int i = 0; i < 8; i++) at += (long)size[i] << (8 * i);
    for (long i = 0; i < f->n; i++) {
        f->at[i] = at;
        at += tensor_plan_bytes(&f->tensor[i]);
    }
    return OK;
}

enum status placed_file_open(struct placed_file *f, const char *path, const struct tensor_plan *tensor, long n)
{
    *f = (struct placed_file){.fd = -1, .tensor = tensor, .n = n};
    TRY(part_name(f->path, path));
    TRY(file_place_open(&f->fd, f->path));
    enum status status = find_places(f);
    if (status == OK) return OK;
    free(f->at);
    close(f->fd);
    return status;
}

enum status placed_file_write(struct placed_file *f, const char *tensor, const void *data, long at, long bytes)
{
    for (long i = 0; i < f->n; i++) { // mostly the same as before, or the next one
        long t = (f->last + i) % f->n;
        if (strcmp(f->tensor[t].name, tensor) != 0) continue;
        f->last = t;
        CHECK(at >= 0 && bytes >= 0 && at + bytes <= tensor_plan_bytes(&f->tensor[t]));
        return file_place(f->fd, f->path, data, bytes, f->at[t] + at);
    }
    CHECK(!"a tensor of the file");
}

enum status placed_file_close(struct placed_file *f, enum status so_far)
{
    char sentence[1024];
    snprintf(sentence, sizeof sentence, "%s", so_far == OK ? "" : fail_message());
    free(f->at);
    enum status closed = file_place_close(f->fd, f->path);
    return so_far == OK ? closed : fail(so_far, "%s", sentence);
}

enum status placed_file_finish(const char *path)
{
    char part[PATH_LENGTH];
    TRY(part_name(part, path));
    return path_rename(path, part);
}

void placed_file_abort(const char *path)
{
    char part[PATH_LENGTH];
    if (snprintf(part, sizeof part, "%s.part", path) < PATH_LENGTH) unlink(part);
}
