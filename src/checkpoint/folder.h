// A Hugging Face model folder: config.json and safetensors, one file or many shards with an index.
#ifndef SKYMOE_CHECKPOINT_FOLDER_H
#define SKYMOE_CHECKPOINT_FOLDER_H

#include "checkpoint/safetensors.h"
#include "model/model.h"

// ---- reading ----

struct model_folder {
    char path[PATH_LENGTH];
    struct config config;
    struct safetensors *shard;
    long shards;
    struct param_list params;              // what the config says must be there
    const struct stored_tensor **stored;   // [params.n] where each is
    const struct stored_tensor **scale;    // [params.n] FP8 weight_scale, NULL where none
};
// Opens and checks everything but the values: every tensor of the parameter table exists once with the right shape and a
// dtype we read; an index may not name files outside the folder. ERR_IO, ERR_FORMAT. Tensors we do not know are
// ERR_FORMAT, except rotary inv_freq buffers, which are ignored.
MUST_USE enum status model_folder_open(struct model_folder *f, const char *path);
void model_folder_close(struct model_folder *f);

// Values of tensor i as f32 (scales applied): elements [from, from + n).
void model_folder_read(float *to, const struct model_folder *f, long i, long from, long n);

// Fills m's parameters (converting dtypes). m was initialised from f->config. FP8 tensors go in as they are when
// m->o.weights is QUANT_FP8. Does not set masters.
MUST_USE enum status model_folder_load(struct model *m, const struct model_folder *f);

// ---- writing ----
//
// A folder appears whole or not at all: everything goes to PATH.tmp, which commit renames. An existing PATH is refused
// unless it is the folder of an earlier, identical purpose (`replace`).

struct tensor_plan {
    char name[TENSOR_NAME];
    enum dtype dtype;
    int rank;
    long shape[2];
};
struct folder_writer; // opaque
// Declares all tensors, in the order in which their data will come; shards are cut at `shard_bytes` (0: 5e9).
MUST_USE enum status folder_writer_open(struct folder_writer **w, const char *path, const struct config *c,
                                        const struct tensor_plan *tensor, long n, long shard_bytes, bool replace);
// Data of the next tensor in pieces; the pieces must add up to the declared bytes before the next tensor starts.
MUST_USE enum status folder_writer_data(struct folder_writer *w, const void *data, long bytes);
// Path of a further file inside the folder being written (tokenizer files, training/...): written by the caller.
MUST_USE enum status folder_writer_path(char path[PATH_LENGTH], const struct folder_writer *w, const char *name);
// Finishes the last shard, writes the index, config.json and checksums.json (XXH3 of every file in the folder), renames.
MUST_USE enum status folder_writer_commit(struct folder_writer *w); // frees w either way
void folder_writer_abort(struct folder_writer *w);

// Sets plan from the parameter table: every tensor in `dtype`.
MUST_USE enum status tensor_plan_of(struct tensor_plan **plan, long *n, const struct config *c, enum dtype dtype);

// A whole model (values, in c->dtype) as a folder; tokenizer files are copied from tokenizer_folder when not NULL.
MUST_USE enum status model_folder_write(const char *path, const struct model *m, const char *tokenizer_folder);

// Recomputes checksums.json: ERR_FORMAT names the first file that differs; ERR_IO without checksums.json.
MUST_USE enum status folder_verify(const char *path);

#endif
