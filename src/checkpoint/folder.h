// A Hugging Face model folder: config.json and safetensors, one file or many shards with an index. What else is kept as
// tensors (a checkpoint's optimizer state) has files of the same kind under another stem.
#ifndef SKYMOE_CHECKPOINT_FOLDER_H
#define SKYMOE_CHECKPOINT_FOLDER_H

#include "checkpoint/safetensors.h"
#include "model/model.h"

// ---- reading ----

// STEM.safetensors of a folder, or what STEM.safetensors.index.json names: each tensor lies where it says, and it may
// not name files outside the folder. ERR_IO, ERR_FORMAT.
MUST_USE enum status shards_open(struct safetensors **shard, long *n, const char *folder, const char *stem);
void shards_close(struct safetensors *shard, long n);

struct model_folder {
    char path[PATH_LENGTH];
    struct config config;
    struct safetensors *shard;
    long shards;
    struct param_list params;              // what the config says must be there
    const struct stored_tensor **stored;   // [params.n] where each is
    const struct stored_tensor **scale;    // [params.n] scale of FP8 values, NULL where none
};
// Opens and checks everything but the values: every tensor of the parameter table exists once with the right shape and
// a dtype we read. ERR_IO, ERR_FORMAT. Tensors we do not know are ERR_FORMAT, except rotary inv_freq buffers, and a
// tied head that equals the embedding. A run's folder stands for its newest checkpoint.
MUST_USE enum status model_folder_open(struct model_folder *f, const char *path);
void model_folder_close(struct model_folder *f);

// Values of tensor i as f32 (scales applied): elements [from, from + n).
void model_folder_read(float *to, const struct model_folder *f, long i, long from, long n);

// Where tensor i lies; for whoever walks through the folder: it is wanted soon, it was used (see file_map_expect).
struct file_piece model_folder_piece(const struct model_folder *f, long i);
void model_folder_expect(const struct model_folder *f, long i);
void model_folder_forget(const struct model_folder *f, long i);

// What multiplies that element of an FP8 tensor; 1 for others.
float model_folder_scale(const struct model_folder *f, long i, long element);

// n floats as elements of `dtype` (not F8) and back: for whoever writes what it has read.
void values_from_float(void *to, enum dtype dtype, const float *from, long n);
void floats_from_values(float *to, const void *from, enum dtype dtype, long n);

// Which of f->params.item is parameter p of a model; looks from `from` on, for both lists have the same order. Only a
// gate bias, which starts at 0, may be missing in a folder that a model starts from: -1.
long model_folder_find(const struct model_folder *f, const struct param *p, long from);

// Weights as they lie in the files, for inference: a model uses them as o.mapped. A field of the parameter table is
// mapped where all its parts have the dtype it is to have in memory, begin at whole elements, and lie in their pages so
// that they fit behind each other (file_view_fits; parts of a page multiple in one file do); the others are left out,
// and the model has memory of its own for them.
struct mapped_weights {
    struct model_params p;
    struct file_view *view;
    long views;
};
// matrix, other: the dtypes of model_params_layout. The weights outlive f. ERR_MEMORY, ERR_IO.
MUST_USE enum status mapped_weights_open(struct mapped_weights *w, const struct model_folder *f, enum dtype matrix,
                                         enum dtype other);
void mapped_weights_close(struct mapped_weights *w);

// Fills what m holds of the parameters (converting dtypes) but for those that are mapped. m was initialised from
// f->config. FP8 tensors go in as they are when m->o.weights is QUANT_FP8. Does not set masters.
MUST_USE enum status model_folder_load(struct model *m, const struct model_folder *f);

// ---- writing ----
//
// A folder appears whole or not at all: everything goes to PATH.tmp, which commit renames. An existing PATH is refused
// unless it is the folder of an earlier, identical purpose (`replace`).

// ERR_IO where the disk that PATH would lie on has no room for `bytes` of weights. Nothing is made.
MUST_USE enum status folder_writer_room(const char *path, long bytes);

struct folder_writer; // opaque
// Declares all tensors, in the order in which their data will come; shards are cut at `shard_bytes` (0: 5e9). Refuses a
// disk that is too small before it makes anything.
MUST_USE enum status folder_writer_open(struct folder_writer **w, const char *path, const struct config *c,
                                        const struct tensor_plan *tensor, long n, long shard_bytes, bool replace);
// Data of the next tensor in pieces; the pieces must add up to the declared bytes before the next tensor starts.
MUST_USE enum status folder_writer_data(struct folder_writer *w, const void *data, long bytes);
// When all data have come: declares further tensors, in files of their own, STEM.safetensors (a constant; the part
// before a slash is a folder that exists) or shards of the same size. All that holds for the first ones holds for them.
MUST_USE enum status folder_writer_next(struct folder_writer *w, const char *stem, const struct tensor_plan *tensor,
                                        long n);
// Path of a further file inside the folder being written (tokenizer files, training/...): written by the caller.
MUST_USE enum status folder_writer_path(char path[PATH_LENGTH], const struct folder_writer *w, const char *name);
// Copies what a folder has beside its weights: tokenizer, chat template, generation settings, Python files. Writes
// generation_config.json when `from` has none (or is NULL).
MUST_USE enum status folder_writer_copy(struct folder_writer *w, const char *from);
// The folder from several processes: one opens it and makes the shards, the others join; all write pieces (bytes `at`
// of the named tensor) and close what they wrote (so_far: how it went); then all together learn the checksums of the
// shards, each of some. Who joined commits and aborts too, which does nothing on the disk.
MUST_USE enum status folder_writer_join(struct folder_writer **w, const char *path, const struct config *c,
                                        const struct tensor_plan *tensor, long n, long shard_bytes);
MUST_USE enum status folder_writer_shards(struct folder_writer *w);
MUST_USE enum status folder_writer_place(struct folder_writer *w, const char *tensor, const void *data, long at,
                                         long bytes);
MUST_USE enum status folder_writer_placed(struct folder_writer *w, enum status so_far);
MUST_USE enum status folder_writer_hash_shards(struct folder_writer *w); // all ranks of the world

// Finishes the last shard, writes the index, config.json and checksums.json (XXH3 of every file), renames.
MUST_USE enum status folder_writer_commit(struct folder_writer *w); // frees w either way
void folder_writer_abort(struct folder_writer *w);

// Sets plan from the parameter table: every tensor in `dtype`; what is counted comes first, in F32.
MUST_USE enum status tensor_plan_of(struct tensor_plan **plan, long *n, const struct config *c, enum dtype dtype);

// The data of every tensor of m, in the order of tensor_plan_of and in m->c.dtype.
MUST_USE enum status folder_writer_model(struct folder_writer *w, const struct model *m);

// A whole model (values, in c->dtype) as a folder; tokenizer files are copied from tokenizer_folder when not NULL.
MUST_USE enum status model_folder_write(const char *path, const struct model *m, const char *tokenizer_folder);

// Mean pairwise cosine of the experts of each layer, flattened and concatenated (docs/numerics.md), streamed from the
// folder; similarity has room for L. Nothing is done for a dense model.
MUST_USE enum status folder_similarity(double *similarity, const struct model_folder *f);

// Recomputes checksums.json: ERR_FORMAT names the first file that differs; ERR_IO without checksums.json.
MUST_USE enum status folder_verify(const char *path);
// Of its files only those that are part'th of `parts` (several processes verify together).
MUST_USE enum status folder_verify_share(const char *path, long part, long parts);

#endif
