// Checkpoints of a run: RUN/step-%06d/ is a Hugging Face folder plus training/ (masters, moments, state); RUN/latest
// names the newest. Invariants: a step folder is complete and durable before `latest` names it; nothing is deleted
// before that; a crash at any instruction leaves the previous checkpoint loadable.
//
//     training/optimizer.safetensors   master.NAME, m.NAME, v.NAME of every parameter, f32; or shards and an index
//     training/state.json              struct training_state
//     training/settings.conf           the run's settings
#ifndef SKYMOE_CHECKPOINT_CHECKPOINT_H
#define SKYMOE_CHECKPOINT_CHECKPOINT_H

#include "checkpoint/folder.h"
#include "parallel/zero.h"

struct training_state {
    long step;             // completed steps
    long samples;          // consumed
    long tokens;           // trained on
    long updates;          // optimizer steps that were applied (bias correction counts these)
    long skipped_in_row;
    double seconds;        // spent training
    double *alpha;         // [L] coefficients for the next step; NULL when dense
    double *global_p, *global_f; // [L, E] statistics of the last step (scope global); NULL when not kept
    bool has_global;
    double *bias;          // [L, E] of the gates (--moe-aux-loss bias), to the last bit; NULL when not kept
};

// All ranks of a job call the next two, and fail together. A file has the same bytes whatever the layout: rank 0 makes
// it, every rank writes what it owns, rank 0 gives it its name.
MUST_USE enum status checkpoint_save(const char *run, const struct zero *z, const struct training_state *s,
                                     const char *settings, const char *tokenizer_folder, long keep);
extern long checkpoint_shard_bytes; // where it cuts shards; 0: where every folder does (tests want small ones)
// Reads weights, masters, moments and state, as much as this rank holds; every checksum is verified. The arrays of s
// must have room (model's L, E).
MUST_USE enum status checkpoint_load(struct zero *z, struct training_state *s, const char *path);
// Path of the newest checkpoint of RUN (or RUN itself when it is a step folder). ERR_IO when there is none.
MUST_USE enum status checkpoint_latest(char path[PATH_LENGTH], const char *run);
MUST_USE enum status training_state_parse(struct training_state *s, const struct config *c, const char *text,
                                          long bytes, const char *name); // state.json alone (fuzzed)
MUST_USE enum status checkpoint_settings(char **text, const char *path); // the caller frees


// checkpoint_tensors.c: the optimizer's state in training/, and a model's values from several ranks.
MUST_USE enum status optimizer_write(struct folder_writer *w, const struct zero *z);
MUST_USE enum status optimizer_read(struct zero *z, const char *path);
MUST_USE enum status values_write(struct folder_writer *w, const struct zero *z);

#endif
