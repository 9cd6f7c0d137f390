// What makes two runs comparable number by number: the gradients of a step as a file, routing as a file, and a file's
// routing instead of one's own (docs/formats.md).
#ifndef SKYMOE_TRAIN_TRACE_H
#define SKYMOE_TRAIN_TRACE_H

#include "base/files.h"
#include "parallel/zero.h"

// FOLDER/gradients.safetensors: every gradient of the model in f32 under its parameter's name, from the ranks that own
// them. The folder exists. All ranks call, and fail together.
MUST_USE enum status gradients_write(const char *folder, const struct zero *z);

// ---- routing, one JSON object a line: {step, layer, token, experts, weights, dropped} ----
//
// token counts through the step's samples: sample * S + position, so that a line means the same in every layout.

struct routing_writer {
    struct output out;   // of rank 0, which writes what all route
    char *text;          // lines of the present step
    long used, room;
    int *expert, *row;   // [T K] host
    float *weight;       // [T K]
};
// A file that exists is ERR_IO.
MUST_USE enum status routing_write_open(struct routing_writer *w, const char *path, const struct model *m);
// After a micro-batch's forward through a chunk; its first token is `first` of the step.
MUST_USE enum status routing_write(struct routing_writer *w, const struct model *m, const struct micro *i, long step,
                                   long first, long T);
// After the last of a step. All ranks call.
MUST_USE enum status routing_write_step(struct routing_writer *w);
MUST_USE enum status routing_write_close(struct routing_writer *w); // the file appears
void routing_write_abort(struct routing_writer *w);

struct routing_reader {
    char path[PATH_LENGTH];
    struct file_map map;
    long at, line;       // of the next line to read
    long L, E, K, T;     // T: tokens of a step
    long step;           // that `given` holds; 0: none
    int *given;          // [L, T, K] of the present step, as kernels' route_given wants it
    bool *seen;          // [L, T]
};
// For steps first to last: reads the first, and finds out whether the last is there. ERR_IO, ERR_FORMAT, ERR_MEMORY.
MUST_USE enum status routing_read_open(struct routing_reader *r, const char *path, const struct config *c, long T,
                                       long first, long last);
// The lines of `step`, which must name every layer and token once; lines of earlier steps are passed over, so steps of
// the file ascend. Within a step the order is free. ERR_FORMAT names file and line.
MUST_USE enum status routing_read(struct routing_reader *r, long step);
// Makes m route tokens [first, first + T) of the step so.
void routing_force(const struct routing_reader *r, struct model *m, long first, long T);
void routing_read_close(struct routing_reader *r);

#endif
