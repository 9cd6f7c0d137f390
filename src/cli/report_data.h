// What a report shows, read from run folders. Numbers that were null are NaN.
#ifndef SKYMOE_CLI_REPORT_DATA_H
#define SKYMOE_CLI_REPORT_DATA_H

#include "base/json.h"
#include "model/config.h"

// Steps are gathered into at most this many bins for everything that has a value per layer.
enum { REPORT_BINS = 400 };

enum row_field { ROW_TOKENS, ROW_LOSS, ROW_LR, ROW_GRAD_NORM, ROW_TOKENS_PER_S, ROW_STEP_TIME, ROW_TFLOPS, ROW_FIELDS };
enum layer_field {
    LAYER_DROP, LAYER_COEFF, LAYER_AUX, LAYER_OVERLOAD, LAYER_ENTROPY, LAYER_MAX12, LAYER_MAX23, LAYER_FIELDS
};

struct report_run {
    const char *path;
    char label[128];              // the folder's name, or the path where two runs share one
    bool rename;
    bool has_config;
    struct config config;
    char *settings;               // text of settings.conf, or NULL
    long rows, evals;             // training and evaluation rows
    long skipped;                 // steps
    long last_step;
    double *row[ROW_FIELDS];      // [rows]
    double *eval_tokens, *eval_loss; // [evals]
    long L, E;                    // of the layers array; 0: dense
    long bins, bins_used;         // room, and how many hold something
    double *bin_tokens;           // [bins] at the end of each
    double *layer[LAYER_FIELDS];  // [L][bins] means
    double *load;                 // [L][bins][E] sums of tokens_per_expert
    long similarities;            // layers of the expert similarity; 0: none
    double *similarity;           // [evals][similarities]; NaN where not given
};
// ERR_IO, ERR_FORMAT "FILE line N: ...". The path must outlive r.
MUST_USE enum status report_run_read(struct report_run *r, const char *path);
void report_run_free(struct report_run *r);

// The demo's results, in the order of the file.
struct report_result {
    char name[64];
    double eval_loss, bits_per_byte, tokens, flops, seconds;
};
struct report_sample {
    char *prompt, *text, *model; // owned; "" when absent
};
struct report_summary {
    struct report_result *result;
    struct report_sample *sample;
    long results, samples;
    double kl_fp8, seed, xz_bits_per_byte; // NaN when absent
};
MUST_USE enum status report_summary_read(struct report_summary *s, const char *path);
void report_summary_free(struct report_summary *s);

#endif
