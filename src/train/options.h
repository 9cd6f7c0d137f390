// What a training run is told: one row a setting (the table in options.c), and the rules that fill what was left open.
#ifndef SKYMOE_TRAIN_OPTIONS_H
#define SKYMOE_TRAIN_OPTIONS_H

#include "base/setting.h"
#include "train/balance.h"
#include "train/layout.h"
#include "train/optimizer.h"
#include "train/schedule.h"

struct train_options {
    const char *data, *output, *model, *init;
    bool resume, data_restart;
    long data_skip;
    long seed; // its row replaces the common one: part of what a checkpoint keeps

    long micro_batch, global_batch, S, train_steps;
    double lr, min_lr;
    const char *lr_schedule;
    long lr_warmup_steps, lr_decay_steps, wsd_decay_steps;
    double weight_decay, adam_beta1, adam_beta2, adam_eps, clip_grad, skip_grad_norm;
    long max_skipped;
    const char *dtype;
    double init_std;
    bool document_mask;
    double memory_limit_gib;
    long save_interval, keep, eval_interval, eval_tokens, log_interval;
    double peak_tflops; // of one rank; 0: unknown
    bool eval_required; // --eval-interval was given: validation data must exist. Set by trainer_open, no row

    long num_experts, topk;
    double router_init_std, gate_norm_std;
    struct decimal capacity, virtual_capacity;
    const char *drop_policy, *aux_loss;
    double aux_coeff;
    bool aux_adaptive;
    double aux_xi, aux_beta;
    const char *aux_scope;
    double bias_rate, z_coeff;
    struct layout_options layout;
    double comm_timeout;
    bool print_grid;
    const char *dump_gradients, *dump_routing, *replay_routing; // of one call: a resumed run does not inherit them
};

extern const struct setting train_rows[];
extern const long train_rows_n;
bool train_option_given(const bool *set, const char *name); // set NULL: yes
struct settings train_settings(struct train_options *o);
extern struct train_options train_given; // the command line's
extern const struct settings train_settings_given;

// The command line alone: exactly one of --model, --init, --resume; --data and --output where needed. ERR_CONFIG.
MUST_USE enum status train_options_check(const struct train_options *o);

// --resume: o becomes the settings stored in a checkpoint (`text`, read from `path`) with what may be overridden taken
// from the command line (o and set). Anything else that was given with another value is ERR_CONFIG naming the option.
MUST_USE enum status train_options_resume(struct train_options *o, const bool *set, const char *text, const char *path);

bool train_layout_given(const bool *set); // then the whole layout is the command line's, else the stored one's

// Fills what was not given from the model's shape and applies the shape options (--num-experts ...) to c; then
// every field holds the value that is used, and c is what the checkpoints will say. `set` NULL: all were given, as on
// resume.
MUST_USE enum status train_options_resolve(struct train_options *o, const bool *set, struct config *c);

struct model_options train_model_options(const struct train_options *o); // but for what the layout adds
struct schedule train_schedule(const struct train_options *o);
struct optimizer train_optimizer(const struct train_options *o);
struct balance_rule train_balance_rule(const struct train_options *o);

#endif
