#include "train/options.h"

#include <stddef.h>
#include <string.h>

#include "base/log.h"

#define AT(field) offsetof(struct train_options, field)
#define HUGE_STEPS 1e12

const struct setting train_rows[] = {
    {"data", SETTING_TEXT, AT(data), NULL, 0, 0, NULL,
     "PREFIX of prepared data (PREFIX_train.bin ...), or a blend 'weight PREFIX weight PREFIX ...'"},
    {"output", SETTING_TEXT, AT(output), NULL, 0, 0, NULL, "run folder: checkpoints, metrics, settings"},
    {"model", SETTING_TEXT, AT(model), NULL, 0, 0, NULL, "config.json of a new model, started from random weights"},
    {"init", SETTING_TEXT, AT(init), NULL, 0, 0, NULL,
     "model folder whose weights are the start; optimizer and schedule begin afresh"},
    {"resume", SETTING_SWITCH, AT(resume), NULL, 0, 0, NULL,
     "continue the run in --output from its newest checkpoint with its settings"},
    {"data-restart", SETTING_SWITCH, AT(data_restart), NULL, 0, 0, NULL,
     "with --resume: allow another --data, read from its beginning"},

    {"data-skip", SETTING_LONG, AT(data_skip), "0", 0, 0x1p53, NULL,
     "new runs: first sample of --data; a run that goes on from another one starts behind what that one read"},

    {"seed", SETTING_LONG, AT(seed), "1", 0, 0x1p53, NULL, "order of the data and random weights follow from it"},

    {"micro-batch-size", SETTING_LONG, AT(micro_batch), "8", 1, 1 << 20, NULL,
     "sequences of one forward and backward; capacity and balance are counted over it"},
    {"global-batch-size", SETTING_LONG, AT(global_batch), "32", 1, 1 << 24, NULL, "sequences of one optimizer step"},
    {"seq-length", SETTING_LONG, AT(S), NULL, 1, 1 << 24, NULL,
     "tokens of a sequence; default 512, or the model's max_position_embeddings when smaller"},
    {"train-steps", SETTING_LONG, AT(train_steps), "1000", 1, HUGE_STEPS, NULL, "optimizer steps of the whole run"},
    {"lr", SETTING_REAL, AT(lr), "3e-4", 0, 1e3, NULL, "peak learning rate"},
    {"min-lr", SETTING_REAL, AT(min_lr), NULL, 0, 1e3, NULL, "learning rate after the decay; default a tenth of --lr"},
    {"lr-schedule", SETTING_CHOICE, AT(lr_schedule), "cosine", 0, 0, "cosine|linear|constant|wsd",
     "how the learning rate falls after the warm-up"},
    {"lr-warmup-steps", SETTING_LONG, AT(lr_warmup_steps), "100", 0, HUGE_STEPS, NULL,
     "steps of linear warm-up from 0"},
    {"lr-decay-steps", SETTING_LONG, AT(lr_decay_steps), "0", 0, HUGE_STEPS, NULL,
     "step at which --min-lr is reached; 0: --train-steps"},
    {"wsd-decay-steps", SETTING_LONG, AT(wsd_decay_steps), "0", 0, HUGE_STEPS, NULL,
     "wsd: steps of the linear decay at the end; 0: a tenth of all"},
    {"weight-decay", SETTING_REAL, AT(weight_decay), "0.1", 0, 1e3, NULL,
     "decoupled weight decay of matrices (not of norms and router)"},
    {"adam-beta1", SETTING_REAL, AT(adam_beta1), "0.9", 0, 0.999999999, NULL, "decay of the first moment"},
    {"adam-beta2", SETTING_REAL, AT(adam_beta2), "0.95", 0, 0.999999999, NULL, "decay of the second moment"},
    {"adam-eps", SETTING_REAL, AT(adam_eps), "1e-8", 0, 1, NULL, "added to the root of the second moment"},
    {"clip-grad", SETTING_REAL, AT(clip_grad), "1.0", 0, 1e30, NULL, "largest gradient norm applied; 0: no clipping"},
    {"skip-grad-norm", SETTING_REAL, AT(skip_grad_norm), "0", 0, 1e30, NULL,
     "skip steps whose gradient norm is above this; 0: only those that are not finite"},
    {"max-skipped", SETTING_LONG, AT(max_skipped), "10", 1, HUGE_STEPS, NULL,
     "skipped steps in a row that end the run"},
    {"dtype", SETTING_CHOICE, AT(dtype), NULL, 0, 0, "f32|bf16",
     "arithmetic and stored weights; default: the model's own (masters and moments are always f32)"},
    {"init-std", SETTING_REAL, AT(init_std), "0.02", 0, 1e3, NULL,
     "--model: standard deviation of random weights (output projections: divided by sqrt(2 layers))"},
    {"document-mask", SETTING_SWITCH, AT(document_mask), "on", 0, 0, NULL,
     "attention and positions restart at each document"},
    {"memory-limit-gib", SETTING_REAL, AT(memory_limit_gib), "0", 0, 1e9, NULL,
     "refuse to start when the planned memory is above this; 0: no limit"},
    {"save-interval", SETTING_LONG, AT(save_interval), "500", 0, HUGE_STEPS, NULL,
     "steps between checkpoints; 0: only at the end"},
    {"keep", SETTING_LONG, AT(keep), "3", 0, HUGE_STEPS, NULL, "newest checkpoints that stay; 0: all"},
    {"eval-interval", SETTING_LONG, AT(eval_interval), "100", 0, HUGE_STEPS, NULL,
     "steps between evaluations on the validation data (also after the last step); 0: none"},
    {"eval-tokens", SETTING_LONG, AT(eval_tokens), "65536", 0, HUGE_STEPS, NULL, "tokens of one evaluation; 0: all"},
    {"log-interval", SETTING_LONG, AT(log_interval), "10", 1, HUGE_STEPS, NULL,
     "steps between progress lines (metrics.jsonl has every step)"},
    {"peak-tflops", SETTING_REAL, AT(peak_tflops), "0", 0, 1e9, NULL,
     "what a rank could do at best (bench prints GFLOP/s): mfu of metrics.jsonl is the share of it; 0: mfu is null"},

    {"num-experts", SETTING_LONG, AT(num_experts), NULL, 0, 4096, NULL,
     "--model: experts of each layer; default: what config.json says"},
    {"moe-router-topk", SETTING_LONG, AT(topk), NULL, 0, 64, NULL,
     "--model: experts of a token; default: what config.json says, or 2"},
    {"moe-router-init-std", SETTING_REAL, AT(router_init_std), "0.01", 0, 1e3, NULL,
     "--model: standard deviation of the random router"},
    {"moe-gate-norm-std", SETTING_REAL, AT(gate_norm_std), NULL, 0, 1e6, NULL,
     "lambda of gating logit normalisation; 0: off; default: config.json"},
    {"moe-capacity-factor", SETTING_DECIMAL, AT(capacity), "1.1", 0, 1e6, NULL,
     "rows an expert takes of a micro-batch, as a multiple of the mean; 0: dropless"},
    {"moe-virtual-capacity-factor", SETTING_DECIMAL, AT(virtual_capacity), "1.1", 0, 1e6, NULL,
     "dropless: the factor at which the drop rate statistic is counted; above 0"},
    {"moe-token-drop-policy", SETTING_CHOICE, AT(drop_policy), "probs", 0, 0, "probs|position",
     "who is dropped first: the lowest gate, or the latest token"},
    {"moe-aux-loss", SETTING_CHOICE, AT(aux_loss), "skywork", 0, 0, "skywork|switch|bias|none",
     "load balance: a loss, or a bias of each expert that moves by its load (loss-free)"},
    {"moe-aux-loss-coeff", SETTING_REAL, AT(aux_coeff), NULL, 0, 1e6, NULL,
     "its coefficient, and the largest one when adaptive; default 0.01 (switch: 0.02 / experts)"},
    {"moe-aux-loss-adaptive", SETTING_SWITCH, AT(aux_adaptive), NULL, 0, 0, NULL,
     "follow the drop rate of each layer; default: on for skywork, off for switch"},
    {"moe-aux-loss-xi", SETTING_REAL, AT(aux_xi), NULL, 0, 1e6, NULL,
     "adaptive: wanted coefficient per drop rate; default 0.2 (switch: 0.4 / experts)"},
    {"moe-aux-loss-beta", SETTING_REAL, AT(aux_beta), "0.99", 0, 1, NULL, "adaptive: share of the old coefficient"},
    {"moe-aux-loss-scope", SETTING_CHOICE, AT(aux_scope), "micro", 0, 0, "micro|sequence|global",
     "tokens over which the balance is counted"},
    {"moe-bias-rate", SETTING_REAL, AT(bias_rate), "0.001", 0, 1e3, NULL,
     "--moe-aux-loss bias: how far a step moves the bias of each expert"},
    {"moe-z-loss-coeff", SETTING_REAL, AT(z_coeff), "0", 0, 1e6, NULL,
     "coefficient of the router z-loss, mean logsumexp(logits)^2; 0: none"},
    {"tensor-parallel-size", SETTING_LONG, AT(layout.tp), "1", 1, 1 << 20, NULL,
     "ranks that share each layer's heads and columns"},
    LAYOUT_SETTINGS(AT)
    {"comm-timeout", SETTING_REAL, AT(comm_timeout), "120", 1, 1e9, NULL,
     "seconds without progress after which a rank is given up"},
    {"print-grid", SETTING_SWITCH, AT(print_grid), NULL, 0, 0, NULL,
     "print who holds what and which ranks form groups, and stop"},
    {"dump-gradients", SETTING_TEXT, AT(dump_gradients), NULL, 0, 0, NULL,
     "folder for gradients.safetensors: f32 gradients of the first step of this call, before clipping"},
    {"dump-routing", SETTING_TEXT, AT(dump_routing), NULL, 0, 0, NULL,
     "file for the routing of every step of this call, a line of JSON for each step, layer and token"},
    {"replay-routing", SETTING_TEXT, AT(replay_routing), NULL, 0, 0, NULL,
     "such a file: its experts and drops are taken instead of the router's choice"},
};
const long train_rows_n = sizeof train_rows / sizeof *train_rows;

#define TABLE(place)                                                                                                   \
    {                                                                                                                  \
        .command = "train", .summary = "trains a dense or mixture-of-experts model",                                   \
        .usage = "--data PREFIX --output RUN (--model config.json | --init DIR | --resume)", .row = train_rows,        \
        .n = sizeof train_rows / sizeof *train_rows, .options = place                                                  \
    }

struct train_options train_given;
const struct settings train_settings_given = TABLE(&train_given);

struct settings train_settings(struct train_options *o)
{
    return (struct settings)TABLE(o);
}

static long row_of(const char *name)
{
    for (long i = 0; i < train_rows_n; i++)
        if (!strcmp(train_rows[i].name, name)) return i;
    CHECK(!"a row of the table");
    return -1;
}

bool train_option_given(const bool *set, const char *name)
{
    return !set || set[row_of(name)];
}

enum status train_options_check(const struct train_options *o)
{
    int starts = (o->model != NULL) + (o->init != NULL) + o->resume;
    if (!o->output) return fail(ERR_CONFIG, "--output: is missing (name the run folder)");
    if (starts != 1)
        return fail(ERR_CONFIG, "--model, --init, --resume: %s given (give exactly one of them)",
                    starts ? "more than one was" : "none was");
    if (!o->data && !o->resume) return fail(ERR_CONFIG, "--data: is missing (name the prefix that prepare wrote)");
    if (o->data_restart && !o->resume)
        return fail(ERR_CONFIG, "--data-restart: has no meaning without --resume (leave it out)");
    return OK;
}

static enum status check_schedule(const struct train_options *o, const bool *set)
{
    if (set && set[row_of("wsd-decay-steps")] && strcmp(o->lr_schedule, "wsd") != 0)
        return fail(ERR_CONFIG, "--wsd-decay-steps: only --lr-schedule wsd has them (leave it out)");
    bool constant = !strcmp(o->lr_schedule, "constant");
    if (set && set[row_of("min-lr")] && constant)
        return fail(ERR_CONFIG, "--min-lr: --lr-schedule constant never leaves --lr (leave it out)");
    if (o->min_lr > o->lr && !constant)
        return fail(ERR_CONFIG, "--min-lr %g: is above --lr %g (use at most that)", o->min_lr, o->lr);
    return OK;
}

// ---- resume ----

// What does not change what is computed, or what a run may change on its way.
static const char *const overridable[] = {
    "output", "resume", "data-restart", "train-steps", "lr", "min-lr", "lr-schedule", "lr-warmup-steps",
    "lr-decay-steps", "wsd-decay-steps", "save-interval", "keep", "eval-interval", "log-interval",
    "peak-tflops", "memory-limit-gib", "comm-timeout", "print-grid", "dump-gradients", "dump-routing",
    "replay-routing",
};

// Where a run's ranks sit is the business of each call: all of these come from the command line as soon as one does.
static const char *const of_layout[] = {
    "tensor-parallel-size", "pipeline-parallel-size", "expert-parallel", "expert-parallel-size",
    "expert-tensor-parallel-size", "layer-split", "head-split", "ffn-split", "expert-split", "device-weights",
    "pipeline-schedule", "virtual-stages", "recompute", "recompute-layers", "exchange-chunks", "zero",
};

bool train_layout_given(const bool *set)
{
    for (size_t i = 0; i < sizeof of_layout / sizeof *of_layout; i++)
        if (set[row_of(of_layout[i])]) return true;
    return false;
}

static bool may_override(const char *name, const struct train_options *o)
{
    for (size_t i = 0; i < sizeof of_layout / sizeof *of_layout; i++)
        if (!strcmp(of_layout[i], name)) return true;
    if (o->data_restart && !strcmp(name, "data")) return true;
    for (size_t i = 0; i < sizeof overridable / sizeof *overridable; i++)
        if (!strcmp(overridable[i], name)) return true;
    return false;
}

static size_t field_size(enum setting_type t)
{
    switch (t) {
    case SETTING_SWITCH: return sizeof(bool);
    case SETTING_LONG: return sizeof(long);
    case SETTING_REAL: return sizeof(double);
    case SETTING_DECIMAL: return sizeof(struct decimal);
    case SETTING_TEXT:
    case SETTING_CHOICE: return sizeof(const char *);
    case SETTING_LIST: return sizeof(struct text_list);
    }
    CHECK(!"a setting type");
    return 0;
}

static bool field_equal(enum setting_type t, const void *a, const void *b)
{
    if (t == SETTING_DECIMAL)
        return decimal_value(*(const struct decimal *)a) == decimal_value(*(const struct decimal *)b);
    if (t != SETTING_TEXT && t != SETTING_CHOICE) return !memcmp(a, b, field_size(t));
    const char *x = *(const char *const *)a, *y = *(const char *const *)b;
    return x == y || (x && y && !strcmp(x, y));
}

enum status train_options_resume(struct train_options *o, const bool *set, const char *text, const char *path)
{
    struct train_options stored = *o; // rows absent from the text keep the defaults
    struct settings s = train_settings(&stored);
    TRY(settings_read(&s, NULL, text, path));
    for (long i = 0; i < train_rows_n; i++) {
        const struct setting *r = &train_rows[i];
        const void *given = (const char *)o + r->offset;
        void *kept = (char *)&stored + r->offset;
        if (!set[i]) continue;
        if (may_override(r->name, o)) memcpy(kept, given, field_size(r->type));
        else if (!field_equal(r->type, given, kept))
            return fail(ERR_CONFIG, "--%s: cannot change when a run is resumed (leave it out, or start another run)",
                        r->name);
    }
    if (train_layout_given(set)) stored.layout = o->layout;
    stored.resume = o->resume;
    stored.print_grid = o->print_grid;
    stored.data_restart = o->data_restart;
    stored.output = o->output;
    stored.dump_gradients = o->dump_gradients;
    stored.dump_routing = o->dump_routing;
    stored.replay_routing = o->replay_routing;
    stored.eval_required = o->eval_required;
    *o = stored;
    return check_schedule(o, set);
}

// ---- defaults that depend on the model ----

static enum status resolve_shape(struct train_options *o, const bool *set, struct config *c)
{
    const char *made_of = o->model ? o->model : o->init ? o->init : o->output;
    if (!train_option_given(set, "num-experts")) o->num_experts = c->E;
    if (!o->model && o->num_experts != c->E)
        return fail(ERR_CONFIG, "--num-experts %ld: %s has %ld (leave it out, or make another model with upcycle)",
                    o->num_experts, made_of, c->E);
    if (!train_option_given(set, "moe-router-topk")) o->topk = c->K ? c->K : o->num_experts ? 2 : 0;
    if (!o->model && o->topk != c->K)
        return fail(ERR_CONFIG, "--moe-router-topk %ld: %s has %ld (leave it out)", o->topk, made_of, c->K);
    bool becomes_moe = !c->E && o->num_experts;
    if (!train_option_given(set, "moe-gate-norm-std")) o->gate_norm_std = becomes_moe ? 1.0 : c->gate_norm_std;

    if (o->num_experts == 1)
        return fail(ERR_CONFIG, "--num-experts 1: one expert is a dense model (use 0, or at least 2)");
    if (!o->num_experts && set && set[row_of("moe-router-topk")] && o->topk)
        return fail(ERR_CONFIG, "--moe-router-topk %ld: a dense model routes nothing (leave it out, or give "
                    "--num-experts)", o->topk);
    if (o->num_experts && (o->topk < 1 || o->topk > o->num_experts))
        return fail(ERR_CONFIG, "--moe-router-topk %ld: there are %ld experts (use 1 to %ld)", o->topk, o->num_experts,
                    o->num_experts);
    if (c->E && !o->num_experts) {
        o->topk = 0;
        o->gate_norm_std = 0;
        if (c->arch == ARCH_MIXTRAL) c->arch = ARCH_MISTRAL;
    }
    c->E = o->num_experts;
    c->K = o->num_experts ? o->topk : 0;
    c->gate_norm_std = o->num_experts ? o->gate_norm_std : 0;
    c->gate_bias = c->E && (c->gate_bias || !strcmp(o->aux_loss, "bias"));
    if (c->E && c->arch != ARCH_MIXTRAL) c->arch = c->K == 2 && !c->gate_bias ? ARCH_SKYWORK : ARCH_SKYMOE;
    return OK;
}

// What was given though the coefficient stays as it is.
static enum status check_fixed(const bool *set)
{
    static const char *const of_adapting[] = {"moe-aux-loss-xi", "moe-aux-loss-beta"};
    for (size_t i = 0; i < sizeof of_adapting / sizeof *of_adapting; i++)
        if (set[row_of(of_adapting[i])])
            return fail(ERR_CONFIG, "--%s: the coefficient is fixed (leave it out, or give --moe-aux-loss-adaptive)",
                        of_adapting[i]);
    return OK;
}

// What was given though this way of balancing has no loss that it could shape.
static enum status check_loss(const struct train_options *o, const bool *set)
{
    static const char *const of_loss[] = {"moe-aux-loss-coeff", "moe-aux-loss-xi", "moe-aux-loss-beta",
                                          "moe-aux-loss-scope"};
    for (size_t i = 0; i < sizeof of_loss / sizeof *of_loss; i++)
        if (set[row_of(of_loss[i])])
            return fail(ERR_CONFIG, "--%s: --moe-aux-loss %s has no loss (leave it out)", of_loss[i], o->aux_loss);
    return OK;
}

// The factor that stands in for a capacity where there is none.
static enum status check_virtual(const struct train_options *o)
{
    if (o->capacity.numerator)
        return fail(ERR_CONFIG, "--moe-virtual-capacity-factor: only --moe-capacity-factor 0 has one (leave it out)");
    if (!o->virtual_capacity.numerator)
        return fail(ERR_CONFIG, "--moe-virtual-capacity-factor 0: nothing would count as dropped (use more than 0)");
    return OK;
}

static enum status resolve_balance(struct train_options *o, const bool *set, const struct config *c)
{
    static const char *const moe_only[] = {
        "moe-router-init-std", "moe-gate-norm-std", "moe-capacity-factor", "moe-virtual-capacity-factor",
        "moe-token-drop-policy", "moe-aux-loss", "moe-aux-loss-coeff", "moe-aux-loss-adaptive", "moe-aux-loss-xi",
        "moe-aux-loss-beta", "moe-aux-loss-scope", "moe-bias-rate", "moe-z-loss-coeff",
    };
    if (!c->E) {
        for (size_t i = 0; set && i < sizeof moe_only / sizeof *moe_only; i++)
            if (set[row_of(moe_only[i])]) log_warning("--%s: has no effect on a dense model", moe_only[i]);
    }
    if (!c->E && (o->dump_routing || o->replay_routing))
        return fail(ERR_CONFIG, "--%s: a dense model routes nothing (leave it out)",
                    o->dump_routing ? "dump-routing" : "replay-routing");
    bool bias = !strcmp(o->aux_loss, "bias"), none = bias || !strcmp(o->aux_loss, "none");
    bool is_switch = !strcmp(o->aux_loss, "switch");
    double weaker = is_switch && c->E ? 2.0 / (double)c->E : 1; // its gradient is E/2 times skywork's
    if (!train_option_given(set, "moe-aux-loss-adaptive")) o->aux_adaptive = !none && !is_switch;
    if (none && o->aux_adaptive)
        return fail(ERR_CONFIG, "--moe-aux-loss-adaptive: --moe-aux-loss %s leaves nothing to adapt (leave it out)",
                    o->aux_loss);
    if (none && c->E && set) TRY(check_loss(o, set));
    if (!none && !o->aux_adaptive && c->E && set) TRY(check_fixed(set));
    if (c->E && set && set[row_of("moe-virtual-capacity-factor")]) TRY(check_virtual(o));
    if (!bias && set && set[row_of("moe-bias-rate")])
        return fail(ERR_CONFIG, "--moe-bias-rate: only --moe-aux-loss bias has one (leave it out)");
    if (!train_option_given(set, "moe-aux-loss-coeff")) o->aux_coeff = none ? 0 : 0.01 * weaker;
    if (!train_option_given(set, "moe-aux-loss-xi")) o->aux_xi = 0.2 * weaker;
    return OK;
}

enum status train_options_resolve(struct train_options *o, const bool *set, struct config *c)
{
    if (!train_option_given(set, "min-lr")) o->min_lr = o->lr / 10;
    TRY(check_schedule(o, set));
    if (!train_option_given(set, "dtype")) o->dtype = c->dtype == F32 ? "f32" : "bf16";
    if (!train_option_given(set, "seq-length")) o->S = c->max_positions < 512 ? c->max_positions : 512;
    if (o->S > c->max_positions)
        return fail(ERR_CONFIG, "--seq-length %ld: the model has max_position_embeddings %ld (use at most that)", o->S,
                    c->max_positions);
    long step_tokens;
    if (__builtin_mul_overflow(o->global_batch, o->S, &step_tokens) || step_tokens > 1L << 31)
        return fail(ERR_CONFIG, "--global-batch-size %ld: more than 2^31 tokens a step (use a smaller one)",
                    o->global_batch);
    long micro = o->micro_batch < o->global_batch ? o->micro_batch : o->global_batch;
    if (micro * o->S > 1L << 26)
        return fail(ERR_CONFIG, "--micro-batch-size %ld: more than 2^26 tokens (use a smaller one)", o->micro_batch);
    for (long i = 0; set && !o->model && i < 2; i++) {
        static const char *const random_only[] = {"init-std", "moe-router-init-std"};
        if (set[row_of(random_only[i])]) log_warning("--%s: has no effect on weights that exist", random_only[i]);
    }
    TRY(resolve_shape(o, set, c));
    TRY(resolve_balance(o, set, c));
    c->dtype = !strcmp(o->dtype, "f32") ? F32 : BF16;
    c->quant = QUANT_NONE;
    c->init_std = o->model ? o->init_std : c->init_std;
    return OK;
}

// ---- views for the parts that use them ----

struct model_options train_model_options(const struct train_options *o)
{
    return (struct model_options){
        .dtype = !strcmp(o->dtype, "f32") ? F32 : BF16,
        .training = true,
        .B = o->micro_batch < o->global_batch ? o->micro_batch : o->global_batch,
        .S = o->S,
        .positions = o->S,
        .recompute_layers = -1,
        .exchange_chunks = o->layout.exchange_chunks,
        .given_routing = o->replay_routing != NULL,
        .rule = {.capacity = o->capacity,
                 .virtual_capacity = o->virtual_capacity,
                 .policy = !strcmp(o->drop_policy, "position") ? DROP_POSITION : DROP_PROBS,
                 .aux = !strcmp(o->aux_loss, "skywork")  ? AUX_SKYWORK
                        : !strcmp(o->aux_loss, "switch") ? AUX_SWITCH
                                                         : AUX_NONE,
                 .scope = !strcmp(o->aux_scope, "global")     ? SCOPE_GLOBAL
                          : !strcmp(o->aux_scope, "sequence") ? SCOPE_SEQUENCE
                                                              : SCOPE_MICRO,
                 .z_coeff = o->z_coeff},
        .weights = QUANT_NONE,
    };
}

struct schedule train_schedule(const struct train_options *o)
{
    long decay = o->lr_decay_steps ? o->lr_decay_steps : o->train_steps;
    return (struct schedule){
        .kind = !strcmp(o->lr_schedule, "linear")     ? SCHEDULE_LINEAR
                : !strcmp(o->lr_schedule, "constant") ? SCHEDULE_CONSTANT
                : !strcmp(o->lr_schedule, "wsd")      ? SCHEDULE_WSD
                                                      : SCHEDULE_COSINE,
        .lr = o->lr,
        .min_lr = o->min_lr,
        .warmup = o->lr_warmup_steps,
        .decay = decay,
        .wsd_decay = o->wsd_decay_steps ? o->wsd_decay_steps : (decay + 9) / 10,
    };
}

struct optimizer train_optimizer(const struct train_options *o)
{
    return (struct optimizer){
        .beta1 = o->adam_beta1,
        .beta2 = o->adam_beta2,
        .eps = o->adam_eps,
        .weight_decay = o->weight_decay,
        .clip = o->clip_grad,
    };
}

struct balance_rule train_balance_rule(const struct train_options *o)
{
    return (struct balance_rule){
        .adaptive = o->aux_adaptive,
        .alpha_max = o->aux_coeff,
        .xi = o->aux_xi,
        .beta = o->aux_beta,
        .keep_global = !strcmp(o->aux_scope, "global"),
        .bias_rate = !strcmp(o->aux_loss, "bias") ? o->bias_rate : 0,
    };
}
