// One safetensors file: a checked header and a map of the rest (docs/formats.md). Untrusted bytes: everything is
// validated before a tensor is handed out. And its writer, which streams: names and shapes first, data afterwards.
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

// ---- writing ----

struct tensor_plan {
    char name[TENSOR_NAME];
    enum dtype dtype;
    int rank;
    long shape[2];
};
long tensor_plan_bytes(const struct tensor_plan *t);

struct safetensors_writer {
    struct output out;
    const struct tensor_plan *tensor; // the caller's; must outlive the writer
    long n, at;                       // tensors; the one whose data come next
    long left;                        // bytes of it still to come
};
// Declares all tensors in the order in which their data will come and stand in the file. Since nothing may lie between
// them, types of larger elements come first. Ends with exactly one of commit and abort, like struct output.
MUST_USE enum status safetensors_write_open(struct safetensors_writer *w, const char *path,
                                            const struct tensor_plan *tensor, long n);
// Data of the next tensor in pieces of any size; a piece may not reach into the tensor after it.
MUST_USE enum status safetensors_write_data(struct safetensors_writer *w, const void *data, long bytes);
// Aborts by itself on failure.
MUST_USE enum status safetensors_write_commit(struct safetensors_writer *w, uint64_t *xxh3);
void safetensors_write_abort(struct safetensors_writer *w);

// ---- one file, many writers ----
//
// One process makes PATH.part, whole but for its data; then any number of processes write pieces of tensors into it,
// each where it belongs; and when all have closed it, one gives it its name.

MUST_USE enum status placed_file_make(const char *path, const struct tensor_plan *tensor, long n);
struct placed_file {
    int fd;
    char path[PATH_LENGTH];
    const struct tensor_plan *tensor; // the caller's; must outlive it
    long *at;                         // [n] where each begins in the file
    long n, last;                     // last: a guess at what is asked for next
};
MUST_USE enum status placed_file_open(struct placed_file *f, const char *path, const struct tensor_plan *tensor,
                                       long n);
// `at`: bytes from the tensor's beginning.
MUST_USE enum status placed_file_write(struct placed_file *f, const char *tensor, const void *data, long at,
                                       long bytes);
// Makes what was written durable. `so_far`: how the writing went; returned when it failed.
MUST_USE enum status placed_file_close(struct placed_file *f, enum status so_far);
MUST_USE enum status placed_file_finish(const char *path);
void placed_file_abort(const char *path); // instead: what was made is removed, and the last failure's sentence kept

#endif
