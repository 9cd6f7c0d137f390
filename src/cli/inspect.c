#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/command.h"
#include "checkpoint/checkpoint.h"

static struct options {
    struct text_list path;
    bool tensors, similarity, verify;
} options;

#define AT(field) offsetof(struct options, field)
static const struct setting rows[] = {
    {"path", SETTING_LIST, AT(path), NULL, 0, 0, NULL, "model folder, run folder or config.json"},
    {"tensors", SETTING_SWITCH, AT(tensors), NULL, 0, 0, NULL, "list every tensor with its checksum"},
    {"similarity", SETTING_SWITCH, AT(similarity), NULL, 0, 0, NULL, "mean cosine between the experts of each layer"},
    {"verify", SETTING_SWITCH, AT(verify), NULL, 0, 0, NULL, "compare every file with checksums.json"},
};
static const struct settings settings = {
    .command = "inspect",
    .summary = "tells what a model folder or config.json holds",
    .usage = "DIR|config.json",
    .row = rows,
    .n = sizeof rows / sizeof *rows,
    .options = &options,
};

// What is known of the model: the folder is open, or only the config was read.
struct subject {
    const char *name;
    struct config c;
    struct model_folder *folder; // NULL for a config.json alone
    struct param_list list;      // then the tensors it describes
    double *similarity;          // [L] or NULL
};

static long bytes_of(const struct subject *s)
{
    if (!s->folder) return s->list.elements * dtype_size(s->c.dtype);
    long bytes = 0;
    for (long i = 0; i < s->folder->shards; i++)
        for (long j = 0; j < s->folder->shard[i].n; j++) bytes += s->folder->shard[i].tensor[j].bytes;
    return bytes;
}

// ---- for people ----

static void human_count(char text[32], long n)
{
    double x = (double)n;
    if (x >= 1e9) snprintf(text, 32, "%.2f B", x / 1e9);
    else if (x >= 1e6) snprintf(text, 32, "%.2f M", x / 1e6);
    else snprintf(text, 32, "%ld", n);
}

static void human_bytes(char text[32], long n)
{
    double x = (double)n;
    if (x >= 1e9) snprintf(text, 32, "%.2f GB", x / 1e9);
    else snprintf(text, 32, "%.2f MB", x / 1e6);
}

static void print_shape(const struct config *c)
{
    printf("layers            %ld, hidden size %ld\n", c->L, c->D);
    printf("attention         %ld heads of %ld, %ld key/value heads", c->H, c->C, c->G);
    if (c->window) printf(", window %ld", c->window);
    printf("\nfeed-forward      ");
    if (c->E) printf("%ld experts of %ld, %ld per token", c->E, c->F, c->K);
    else printf("%ld", c->F);
    if (c->gate_norm_std != 0) printf(", gate norm %g", c->gate_norm_std);
    printf("\nvocabulary        %ld%s\n", c->V, c->tied ? ", head tied to the embedding" : "");
    printf("positions         %ld\n", c->max_positions);
    printf("dtype             %s", dtype_name(c->dtype));
    if (c->quant == QUANT_FP8) printf(", matrices F8_E4M3 with a scale per %s", scaling_name(c->scaling));
    printf("\n");
}

static void print_stored(const struct stored_tensor *t)
{
    printf("%016lx  %-8s  [", (unsigned long)xxh3(t->data, t->bytes), t->dtype);
    for (int d = 0; d < t->rank; d++) printf("%s%ld", d ? ", " : "", t->shape[d]);
    printf("]  %s\n", t->name);
}

static void print_tensors(const struct subject *s)
{
    printf("\n");
    if (!s->folder)
        for (long i = 0; i < s->list.n; i++) {
            const struct param *p = &s->list.item[i];
            if (p->kind->columns == DIM_NONE) printf("[%ld]  %s\n", p->rows, p->name);
            else printf("[%ld, %ld]  %s\n", p->rows, p->columns, p->name);
        }
    else
        for (long i = 0; i < s->folder->shards; i++)
            for (long j = 0; j < s->folder->shard[i].n; j++) print_stored(&s->folder->shard[i].tensor[j]);
}

static void print_people(const struct subject *s)
{
    char total[32], active[32], bytes[32];
    human_count(total, config_params_total(&s->c));
    human_count(active, config_params_active(&s->c));
    human_bytes(bytes, bytes_of(s));
    printf("%s\n", s->name);
    printf("architecture      %s\n", arch_name(s->c.arch));
    print_shape(&s->c);
    printf("parameters        %s (%ld)\n", total, config_params_total(&s->c));
    printf("active            %s (%ld), of one token\n", active, config_params_active(&s->c));
    printf("weights           %s", bytes);
    if (s->folder) printf(" in %ld file%s", s->folder->shards, s->folder->shards == 1 ? "" : "s");
    printf("\n");
    if (options.verify) printf("checksums         every file matches\n");
    if (s->similarity) {
        printf("expert similarity");
        for (long l = 0; l < s->c.L; l++) printf(" %.4f", s->similarity[l]);
        printf("\n");
    }
    if (options.tensors) print_tensors(s);
}

// ---- JSON ----

static void put_stored(struct json_out *o, const struct stored_tensor *t)
{
    char hex[17];
    snprintf(hex, sizeof hex, "%016lx", (unsigned long)xxh3(t->data, t->bytes));
    json_begin(o, NULL, '{');
    json_put_text(o, "name", t->name);
    json_put_text(o, "dtype", t->dtype);
    json_begin(o, "shape", '[');
    for (int d = 0; d < t->rank; d++) json_put_long(o, NULL, t->shape[d]);
    json_end(o, ']');
    json_put_text(o, "xxh3", hex);
    json_end(o, '}');
}

static void put_param(struct json_out *o, const struct param *p, enum dtype dtype)
{
    json_begin(o, NULL, '{');
    json_put_text(o, "name", p->name);
    json_put_text(o, "dtype", dtype_name(dtype));
    json_begin(o, "shape", '[');
    json_put_long(o, NULL, p->rows);
    if (p->kind->columns != DIM_NONE) json_put_long(o, NULL, p->columns);
    json_end(o, ']');
    json_put_null(o, "xxh3");
    json_end(o, '}');
}

static void put_tensors(struct json_out *o, const struct subject *s)
{
    json_begin(o, "tensors", '[');
    for (long i = 0; i < s->list.n && !s->folder; i++) put_param(o, &s->list.item[i], s->c.dtype);
    for (long i = 0; s->folder && i < s->folder->shards; i++)
        for (long j = 0; j < s->folder->shard[i].n; j++) put_stored(o, &s->folder->shard[i].tensor[j]);
    json_end(o, ']');
}

static enum status print_json(const struct subject *s)
{
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_put_text(&o, "architecture", arch_name(s->c.arch));
    json_put_long(&o, "params_total", config_params_total(&s->c));
    json_put_long(&o, "params_active", config_params_active(&s->c));
    json_put_long(&o, "bytes", bytes_of(s));
    if (options.tensors) put_tensors(&o, s);
    if (options.similarity) {
        json_begin(&o, "expert_similarity", '[');
        for (long l = 0; s->similarity && l < s->c.L; l++) json_put_real(&o, NULL, s->similarity[l]);
        json_end(&o, ']');
    }
    if (options.verify) json_put_bool(&o, "verified", true);
    json_end(&o, '}');
    return command_print_json(&o);
}

// ---- the command ----

static enum status inspect_folder(struct subject *s, struct model_folder *f, bool json)
{
    s->c = f->config;
    s->folder = f;
    s->name = f->path;
    if (options.verify) TRY(folder_verify(f->path));
    if (options.similarity && s->c.E == 0 && !json)
        return fail(ERR_CONFIG, "--similarity: %s has no experts (leave it out)", f->path);
    if (options.similarity && s->c.E > 0) {
        s->similarity = malloc((size_t)s->c.L * sizeof *s->similarity);
        if (!s->similarity) return fail(ERR_MEMORY, "memory: refused for %ld layers", s->c.L);
        TRY(folder_similarity(s->similarity, f));
    }
    if (json) return print_json(s);
    print_people(s);
    return OK;
}

static enum status inspect_config(struct subject *s, bool json)
{
    if (options.verify || options.similarity)
        return fail(ERR_CONFIG, "--%s: needs a model folder, %s is a file",
                    options.verify ? "verify" : "similarity", s->name);
    TRY(config_read(&s->c, s->name));
    TRY(param_list_of(&s->list, &s->c, NULL));
    if (json) return print_json(s);
    print_people(s);
    return OK;
}

static enum status inspect(struct subject *s, bool json)
{
    static struct model_folder folder;
    if (!path_exists(s->name)) return fail(ERR_IO, "%s: no such file or folder", s->name);
    if (!path_is_folder(s->name)) return inspect_config(s, json);
    TRY(model_folder_open(&folder, s->name));
    enum status status = inspect_folder(s, &folder, json);
    model_folder_close(&folder);
    return status;
}

static enum status run(int argc, char **argv)
{
    struct common_options common;
    bool done;
    TRY(command_start(&settings, &common, NULL, &done, argc, argv));
    if (done) return OK;
    if (options.path.n != 1)
        return fail(ERR_CONFIG, "path: %s (name one model folder or config.json)",
                    options.path.n ? "more than one is given" : "is missing");
    struct subject subject = {.name = options.path.item[0]};
    enum status status = inspect(&subject, common.json);
    param_list_free(&subject.list);
    free(subject.similarity);
    return status;
}

const struct command command_inspect = {.name = "inspect", .run = run, .settings = &settings};
