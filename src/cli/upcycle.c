#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "cli/command.h"
#include "train/upcycle.h"

static struct options {
    const char *model, *output, *method, *arch, *granular_scale;
    long E, K, granular;
    double router_std, gate_norm_std, noise, drop;
    bool dry_run;
} options;

#define AT(field) offsetof(struct options, field)
enum { GATE_NORM_STD = 7, NOISE, DROP, GRANULAR, GRANULAR_SCALE, ROWS = 13 };
static const struct setting rows[ROWS] = {
    {"model", SETTING_TEXT, AT(model), NULL, 0, 0, NULL,
     "dense model folder (or a run: its newest checkpoint; with --dry-run also a config.json, or NAME for "
     "configs/NAME.json)"},
    {"output", SETTING_TEXT, AT(output), NULL, 0, 0, NULL, "folder to write"},
    {"num-experts", SETTING_LONG, AT(E), "8", 2, 4096, NULL, "experts of each layer"},
    {"moe-router-topk", SETTING_LONG, AT(K), "2", 1, 64, NULL, "experts of each token"},
    {"method", SETTING_CHOICE, AT(method), "copy", 0, 0, "copy|noise|drop|granular",
     "copy: experts equal the dense FFN; noise: plus noise; drop: some columns are redrawn; granular: experts are "
     "shards of it"},
    {"arch", SETTING_CHOICE, AT(arch), "skywork", 0, 0, "skywork|mixtral", "layout of the folder"},
    {"moe-router-init-std", SETTING_REAL, AT(router_std), "0.01", 1e-9, 100, NULL, "standard deviation of the router"},
    [GATE_NORM_STD] = {"moe-gate-norm-std", SETTING_REAL, AT(gate_norm_std), "1", 0, 1000, NULL,
                       "gating logit normalisation, 0: off (always off with --arch mixtral)"},
    [NOISE] = {"noise-scale", SETTING_REAL, AT(noise), "0.1", 0, 100, NULL,
               "method noise: its standard deviation in units of each tensor's own"},
    [DROP] = {"drop-ratio", SETTING_REAL, AT(drop), "0.5", 0, 1, NULL,
              "method drop: fraction of intermediate columns redrawn"},
    [GRANULAR] = {"granular", SETTING_LONG, AT(granular), "2", 2, 64, NULL,
                  "method granular: experts that the dense FFN is cut into; divides --num-experts and "
                  "--moe-router-topk"},
    [GRANULAR_SCALE] = {"granular-scale", SETTING_CHOICE, AT(granular_scale), "exact", 0, 0, "exact|nvidia",
                        "method granular: w3 and w2 times its square root, which changes nothing; or all three times "
                        "its cube root"},
    {"dry-run", SETTING_SWITCH, AT(dry_run), NULL, 0, 0, NULL,
     "only tell what would be written, and whether --output has room"},
};
static const struct settings settings = {
    .command = "upcycle",
    .summary = "turns a dense model into a mixture of experts",
    .usage = "--model DIR --output DIR",
    .row = rows,
    .n = ROWS,
    .options = &options,
};

static enum status check_options(const bool *set)
{
    if (!options.model) return fail(ERR_CONFIG, "--model: is missing (name a dense model folder)");
    if (!options.output && !options.dry_run) return fail(ERR_CONFIG, "--output: is missing (name a folder to write)");
    if (options.K > options.E)
        return fail(ERR_CONFIG, "--moe-router-topk %ld: there are only %ld experts (--num-experts)", options.K,
                    options.E);
    if (set[NOISE] && strcmp(options.method, "noise") != 0)
        return fail(ERR_CONFIG, "--noise-scale: has no meaning with --method %s", options.method);
    if (set[DROP] && strcmp(options.method, "drop") != 0)
        return fail(ERR_CONFIG, "--drop-ratio: has no meaning with --method %s", options.method);
    bool granular = set[GRANULAR] || set[GRANULAR_SCALE];
    if (granular && strcmp(options.method, "granular") != 0)
        return fail(ERR_CONFIG, "--granular%s: has no meaning with --method %s", set[GRANULAR] ? "" : "-scale",
                    options.method);
    return OK;
}

static void print_people(const struct upcycle_result *r, long L)
{
    double total = (double)r->params_total / 1e6, active = (double)r->params_active / 1e6;
    printf("parameters %.3f M, of which %.3f M active\n", total, active);
    bool large = r->output_bytes >= 1000000000;
    printf("%s %.2f %s of weights\n", options.dry_run ? "would write" : "wrote",
           (double)r->output_bytes / (large ? 1e9 : 1e6), large ? "GB" : "MB");
    if (!r->similarity) return;
    double least = r->similarity[0], most = r->similarity[0];
    for (long l = 1; l < L; l++) {
        if (r->similarity[l] < least) least = r->similarity[l];
        if (r->similarity[l] > most) most = r->similarity[l];
    }
    printf("expert similarity %.4f to %.4f over %ld layers\n%s\n", least, most, L, options.output);
}

static enum status print_json(const struct upcycle_result *r, long L)
{
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_put_long(&o, "params_total", r->params_total);
    json_put_long(&o, "params_active", r->params_active);
    json_put_long(&o, "output_bytes", r->output_bytes);
    json_begin(&o, "expert_similarity", '[');
    for (long l = 0; l < L && r->similarity; l++) json_put_real(&o, NULL, r->similarity[l]);
    json_end(&o, ']');
    json_end(&o, '}');
    return command_print_json(&o);
}

static enum upcycle_method method_named(const char *name)
{
    static const char *const names[] = {"copy", "noise", "drop", "granular"};
    int m = 0;
    while (strcmp(name, names[m]) != 0) m++;
    return (enum upcycle_method)m;
}

static enum status upcycle_folder(const struct model_folder *from, const bool *set, const struct common_options *common)
{
    bool mixtral = strcmp(options.arch, "mixtral") == 0;
    struct upcycle_options o = {
        .method = method_named(options.method),
        .E = options.E,
        .K = options.K,
        .arch = mixtral ? ARCH_MIXTRAL : ARCH_SKYWORK,
        .gate_norm_std = mixtral && !set[GATE_NORM_STD] ? 0 : options.gate_norm_std,
        .router_std = options.router_std,
        .noise = options.noise,
        .drop = options.drop,
        .granular = options.granular,
        .granular_scale = strcmp(options.granular_scale, "nvidia") == 0 ? GRANULAR_NVIDIA : GRANULAR_EXACT,
        .seed = common->seed,
    };
    struct upcycle_result r;
    TRY(upcycle(&r, from, options.output, &o, options.dry_run));
    enum status status = OK;
    if (common->json) status = print_json(&r, from->config.L);
    else print_people(&r, from->config.L);
    if (status == OK && options.dry_run && options.output)
        status = folder_writer_room(options.output, r.output_bytes);
    free(r.similarity);
    return status;
}

// A dry run needs the shape alone.
static enum status open_model(struct model_folder *from)
{
    char named[PATH_LENGTH] = "";
    const char *shape = options.model;
    if (!path_exists(shape)) snprintf(named, sizeof named, "configs/%.200s.json", shape);
    if (*named && path_exists(named)) shape = named;
    if (!options.dry_run || !path_exists(shape) || path_is_folder(shape))
        return model_folder_open(from, options.model);
    TRY(config_read(&from->config, shape));
    snprintf(from->path, sizeof from->path, "%s", shape);
    return OK;
}

static enum status run(int argc, char **argv)
{
    static struct model_folder from;
    struct common_options common;
    bool done, set[ROWS];
    TRY(command_start(&settings, &common, set, &done, argc, argv));
    if (done) return OK;
    TRY(check_options(set));
    TRY(command_threads_beside_writing(&common));
    TRY(open_model(&from));
    enum status status = upcycle_folder(&from, set, &common);
    model_folder_close(&from);
    return status;
}

const struct command command_upcycle = {.name = "upcycle", .run = run, .settings = &settings};
