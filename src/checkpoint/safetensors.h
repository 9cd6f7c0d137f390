// One safetensors file: a checked header and a map of the rest (docs/formats.md). Untrusted bytes: everything is
// validated before a tensor is handed out.
#ifndef SKYMOE_CHECKPOINT_SAFETENSORS_H
#define SKYMOE_CHECKPOINT_SAFETENSORS_H

#include "base/files.h"
#include "kernels/dtype.h"

enum { TENSOR_RANK = 8, TENSOR_NAME = 512 };

struct stored_tensor {
    char *name;
    char dtype[12];      // as written; `type` is -1 for those we do not compute with
    int type;            // enum dtype or -1
    int rank;
    long shape[TENSOR_RANK];
    long elements, bytes;
    const uint8_t *data; // into the map, any alignment
};
struct safetensors {
    char path[PATH_LENGTH];
    struct file_map map;
    struct stored_tensor *tensor; // sorted by name
    long n;
};
MUST_USE enum status safetensors_open(struct safetensors *s, const char *path);
// The parser alone (fuzzed): header and data of `bytes` bytes in memory that outlives s.
MUST_USE enum status safetensors_parse(struct safetensors *s, const uint8_t *data, long bytes, const char *name);
void safetensors_close(struct safetensors *s);

const struct stored_tensor *safetensors_find(const struct safetensors *s, const char *name); // NULL when absent

#endif
