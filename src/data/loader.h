// Which tokens sample i is. Pure functions of (data list, seed, S): nothing depends on ranks, threads or what was asked
// before; the position of a run is one number, consumed samples.
//
// Documents are stored as [bos] tokens [eos] (prepare writes them so); boundaries come from the .idx. Each epoch of a
// source is its documents in the order of a counter-based permutation, one behind the other; sample j of
// the source is tokens [j S, (j+1) S] of that endless stream (S+1 tokens, the last one is the next sample's first).
// Finding the document that holds a stream position needs prefix sums in permuted order: kept for the current epoch.
#ifndef SKYMOE_DATA_LOADER_H
#define SKYMOE_DATA_LOADER_H

#include <stdbool.h>

#include "data/dataset.h"

struct source {
    struct dataset data;
    double weight;
    long index;         // in the list: names the source's random stream
    long epoch;         // whose order is in memory; -1: none
    long *start;        // [documents + 1] stream position of each document of the epoch, in permuted order
};
struct loader {
    struct source *source;
    long sources;
    long S, seed;
    bool document_mask;
    long blend_n;       // blend_count tells how many of the first blend_n samples came from each source. Going forward
                        // costs one step a sample; going back replays from 0 (10 ns a sample)
    long *blend_count;  // [sources]
};

// list: "PREFIX" or "w1 PREFIX1 w2 PREFIX2 ..."; suffix ("_train") is appended to a prefix when PREFIX.idx is absent.
// ERR_CONFIG for a malformed list, ERR_IO/ERR_FORMAT for the files,
// ERR_FORMAT when a source has fewer than S+1 tokens.
MUST_USE enum status loader_open(struct loader *l, const char *list, const char *suffix, long S, long seed,
                                 bool document_mask);
void loader_close(struct loader *l);

// Sample i (0-based, over the whole run): S tokens, S targets (-1 where document_mask and the target begins another
// document), positions and starts as in model/batch.h, except that positions count from the part of the document that
// lies in the sample (rope is relative, so nothing else changes, and they stay below S). *which = source index.
MUST_USE enum status loader_sample(struct loader *l, long i, int *token, int *target, int *position, int *start,
                                   long *which);

// Evaluation: the documents in stored order, cut into ceil((tokens-1)/S) samples without overlap; the last one is
// padded with target -1. *samples = how many.
MUST_USE enum status loader_eval_count(const struct loader *l, long *samples);
MUST_USE enum status loader_eval_sample(struct loader *l, long i, int *token, int *target, int *position, int *start);

#endif
