// A model folder of any size that takes no room on the disk: real config.json, real headers and index, real FP8 scales,
// and shards that are long by ftruncate alone (their weights read as zeros).
#ifndef SKYMOE_TESTS_SPARSE_FOLDER_H
#define SKYMOE_TESTS_SPARSE_FOLDER_H

#include "checkpoint_util.h"

#include "base/log.h"

#include <fcntl.h>
#include <sys/wait.h>

static UNUSED void sparse_shard(const char *path, const struct tensor_plan *tensor, long n)
{
    struct json_out o = {0};
    long at = 0, scales = 0;
    json_begin(&o, NULL, '{');
    for (long i = 0; i < n; i++) {
        json_begin(&o, tensor[i].name, '{');
        json_put_text(&o, "dtype", dtype_name(tensor[i].dtype));
        json_begin(&o, "shape", '[');
        for (int d = 0; d < tensor[i].rank; d++) json_put_long(&o, NULL, tensor[i].shape[d]);
        json_end(&o, ']');
        json_begin(&o, "data_offsets", '[');
        json_put_long(&o, NULL, at);
        json_put_long(&o, NULL, at += tensor_plan_bytes(&tensor[i]));
        json_end(&o, ']');
        json_end(&o, '}');
        scales += tensor[i].rank == 0;
    }
    json_end(&o, '}');
    uint64_t header = (uint64_t)o.used;
    float *one = malloc((size_t)scales * sizeof *one + 1);
    for (long i = 0; i < scales; i++) one[i] = 0.5F;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    bool written = fd >= 0 && write(fd, &header, 8) == 8 && write(fd, o.text, (size_t)o.used) == o.used &&
                   write(fd, one, (size_t)scales * sizeof *one) == scales * (long)sizeof *one &&
                   ftruncate(fd, 8 + o.used + at) == 0;
    if (!written) fail_msg("%s was not written", path);
    close(fd);
    free(one);
    json_out_free(&o);
}

// The tensors in the order in which skymoe writes them: FP8 scales, 16-bit tensors, FP8 codes.
static UNUSED struct tensor_plan *sparse_plan(long *n, const struct config *c)
{
    struct param_list list;
    OK_OR_FAIL(param_list_of(&list, c, NULL));
    struct tensor_plan *plan = calloc((size_t)list.n * 2, sizeof *plan);
    *n = 0;
    for (int pass = 0; pass < 3; pass++)
        for (long i = 0; i < list.n; i++) {
            const struct param *p = &list.item[i];
            bool fp8 = c->quant == QUANT_FP8 && p->kind->quantise;
            if (pass == 1 ? fp8 : !fp8) continue;
            struct tensor_plan *t = &plan[(*n)++];
            snprintf(t->name, sizeof t->name, "%s%s", p->name, pass == 0 ? "_scale" : "");
            t->dtype = pass == 0 ? F32 : fp8 ? F8_E4M3 : c->dtype;
            t->rank = pass == 0 ? 0 : p->kind->columns == DIM_NONE ? 1 : 2;
            t->shape[0] = p->rows;
            t->shape[1] = p->columns;
        }
    param_list_free(&list);
    return plan;
}

// Returns the bytes of its tensors.
static UNUSED long sparse_folder(const char *path, const struct config *c, long shard_bytes)
{
    long n, total = 0, shards = 0;
    struct tensor_plan *plan = sparse_plan(&n, c);
    struct json_out index = {0};
    char name[64], file[PATH_LENGTH], *text;
    OK_OR_FAIL(folder_make(path));
    json_begin(&index, NULL, '{');
    json_begin(&index, "weight_map", '{');
    for (long first = 0, end; first < n; first = end) {
        long bytes = 0;
        snprintf(name, sizeof name, "model-%05ld.safetensors", ++shards);
        for (end = first; end < n && (end == first || bytes + tensor_plan_bytes(&plan[end]) <= shard_bytes); end++) {
            bytes += tensor_plan_bytes(&plan[end]);
            json_put_text(&index, plan[end].name, name);
        }
        OK_OR_FAIL(path_join(file, path, name));
        sparse_shard(file, plan + first, end - first);
        total += bytes;
    }
    json_end(&index, '}');
    json_end(&index, '}');
    OK_OR_FAIL(path_join(file, path, "model.safetensors.index.json"));
    OK_OR_FAIL(file_write(file, index.text, index.used));
    OK_OR_FAIL(config_write(&text, c));
    OK_OR_FAIL(path_join(file, path, "config.json"));
    OK_OR_FAIL(file_write(file, text, (long)strlen(text)));
    free(text);
    json_out_free(&index);
    free(plan);
    return total;
}

#endif
