// The training loop. A step is: samples -> micro-batches forward and backward -> gradient norm -> AdamW -> balance ->
// one row of metrics. Nothing that a step computes depends on time, on evaluations or on where checkpoints were taken,
// so n + n steps give the bits of 2n.
#ifndef SKYMOE_TRAIN_TRAINER_H
#define SKYMOE_TRAIN_TRAINER_H

#include "base/metrics.h"
#include "eval/evaluate.h"
#include "parallel/pipeline.h"
#include "parallel/zero.h"
#include "train/options.h"
#include "train/trace.h"

// What one step gave, for its row of metrics and its line of progress.
struct step_result {
    long step;
    double loss;          // CE, nats, mean over the step's unmasked targets; NaN when there were none
    double aux_loss;      // sum over layers of alpha L_aux
    double z_loss;        // sum over layers of coefficient * L_z
    double lr, norm;
    bool skipped;
    char culprit[96];     // skipped because of this tensor's gradient; "": because of the norm's size
    double seconds;
    double tflops;
    double exposed;       // seconds spent waiting for other ranks' rows, gradients and weights; mean over ranks
    double rows_exposed;  // for experts' rows alone
    struct sent {         // bytes of this step, all ranks together: within hosts, between them
        long near, far;
    } sent, experts;      // everything but the few numbers that all must know; rows of experts alone
    double *source_loss;  // [sources], NaN where the step had no sample of it
    double *alpha, *drop; // [L] of MoE layers: coefficient used in this step, drop rate
};

struct trainer {
    struct train_options o;
    char settings[16384];        // text of settings.conf
    char tokenizer[PATH_LENGTH]; // folder whose files checkpoints carry; "" without
    struct schedule schedule;
    struct optimizer optimizer;
    struct balance_rule balance;
    struct config config;
    struct run_layout layout;
    struct grid grid;
    struct model_slots *slots;   // [virtual stages]
    struct model model;
    struct zero zero;
    struct pipeline_engine engine;
    long rounds;                 // micro-batches of a step on each data-parallel rank; the last may have no tokens
    long targets;                // unmasked in the present step
    struct loader data, valid;
    bool evaluates;              // validation data is open
    struct tokenizer text;       // for bits per byte; model NULL without
    struct training_state state;
    struct metrics metrics;
    struct step_result result;
    int *ints;                   // one step's samples of this rank [rounds, B]: token, target, position, start
    long *which;                 // [rounds, B] source of each sample
    float *losses;               // [T] of one micro-batch, for losses per source
    double *sums;                // [1 + 2 sources] of the step: CE; of each source CE, and unmasked targets
    struct routing_writer routing;  // --dump-routing; expert NULL without
    struct routing_reader replayed; // --replay-routing; given NULL without
    double started;              // when this process began to train
    long started_step;
};

// Reads model, data and, with --resume, the newest checkpoint; makes the run folder. `set` tells which options were
// given. Everything is checked before anything large is reserved or written. On failure nothing is held. All ranks of a
// job call; they fail together, with one sentence.
MUST_USE enum status trainer_open(struct trainer *t, const struct train_options *o, const bool *set);
void trainer_close(struct trainer *t);

// The planner's choice for --layer-split auto and --recompute-layers auto; the program sets it (train knows no
// planner).
extern enum status (*trainer_choose_split)(struct run_layout *l, const struct config *c, const struct train_options *o);

// Until --train-steps or until a stop is asked for, with evaluations and checkpoints on the way and one at the end.
MUST_USE enum status trainer_run(struct trainer *t);

// The parts of trainer_run, for tests.
MUST_USE enum status trainer_step(struct trainer *t);
MUST_USE enum status trainer_evaluate(struct trainer *t);
MUST_USE enum status trainer_save(struct trainer *t);

// Asks trainer_run to save and return after the present step. Safe in a signal handler.
void trainer_request_stop(void);

// record.c: a step's or an evaluation's row of metrics, and lines of progress.
MUST_USE enum status record_step(struct trainer *t);
MUST_USE enum status record_evaluation(struct trainer *t, const struct evaluation *e, double seconds);
void record_progress(const struct trainer *t);
void record_start(const struct trainer *t);

// step.c
long step_bytes(long rounds, long B, long S); // of one step's samples: trainer.ints
MUST_USE enum status step_init(struct trainer *t);
void step_free(struct trainer *t);

#endif
