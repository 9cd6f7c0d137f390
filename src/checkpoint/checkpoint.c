#include "checkpoint/checkpoint.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "comm/alive.h"

enum { CHUNK = 1 << 18, STATE_LIMIT = 256 << 20, SETTINGS_LIMIT = 1 << 20, STEP_NAME = 32 };
static const long COUNT_MAX = 1L << 53; // what a JSON number holds exactly

long checkpoint_shard_bytes;

// ---- names ----

static void step_name(char name[STEP_NAME], long step)
{
    snprintf(name, STEP_NAME, "step-%06ld", step);
}

// -1 for names that are not a step folder's.
static long step_of(const char *name)
{
    if (strncmp(name, "step-", 5) != 0) return -1;
    long digits = 0, step = 0;
    for (const char *c = name + 5; *c; c++, digits++) {
        if (!isdigit((unsigned char)*c) || digits == 15) return -1;
        step = 10 * step + (*c - '0');
    }
    return digits >= 6 ? step : -1;
}

// ---- saving ----

static void put_numbers(struct json_out *o, const char *key, const double *values, long n)
{
    json_begin(o, key, '[');
    for (long i = 0; i < n; i++) json_put_real(o, NULL, values[i]);
    json_end(o, ']');
}

static enum status write_state(const struct folder_writer *folder, const struct config *c,
                               const struct training_state *s)
{
    char path[PATH_LENGTH];
    TRY(folder_writer_path(path, folder, "training/state.json"));
    struct json_out o = {0};
    json_begin(&o, NULL, '{');
    json_put_long(&o, "step", s->step);
    json_put_long(&o, "samples", s->samples);
    json_put_long(&o, "tokens", s->tokens);
    json_put_long(&o, "updates", s->updates);
    json_put_long(&o, "skipped_in_row", s->skipped_in_row);
    json_put_real(&o, "seconds", s->seconds);
    if (s->alpha && c->E) put_numbers(&o, "alpha", s->alpha, c->L);
    if (s->has_global && c->E) {
        put_numbers(&o, "global_p", s->global_p, c->L * c->E);
        put_numbers(&o, "global_f", s->global_f, c->L * c->E);
    }
    if (s->bias && c->gate_bias) put_numbers(&o, "bias", s->bias, c->L * c->E);
    json_end(&o, '}');
    return json_out_write(&o, path);
}

// What rank 0 writes beside the tensors.
static enum status write_rest(struct folder_writer *w, const struct config *c, const struct training_state *s,
                              const char *settings, const char *tokenizer_folder)
{
    char path[PATH_LENGTH];
    TRY(folder_writer_copy(w, tokenizer_folder));
    alive_beat();
    TRY(write_state(w, c, s));
    alive_beat();
    TRY(folder_writer_path(path, w, "training/settings.conf"));
    return file_write(path, settings ? settings : "", settings ? (long)strlen(settings) : 0);
}

static enum status make_training_folder(const struct folder_writer *w)
{
    char path[PATH_LENGTH];
    TRY(folder_writer_path(path, w, "training"));
    return folder_make(path);
}

static enum status fill_folder(struct folder_writer *w, const struct zero *z, const struct training_state *s,
                               const char *settings, const char *tokenizer_folder)
{
    bool first = transport_rank() == 0;
    TRY(transport_ranks() == 1 ? folder_writer_model(w, z->m) : values_write(w, z));
    TRY(agree(first ? make_training_folder(w) : OK));
    TRY(optimizer_write(w, z));
    return agree(first ? write_rest(w, &z->m->c, s, settings, tokenizer_folder) : OK);
}

static enum status write_folder(const char *path, const struct zero *z, const struct training_state *s,
                                const char *settings, const char *tokenizer_folder)
{
    struct tensor_plan *plan;
    struct folder_writer *w = NULL;
    const struct config *c = &z->m->c;
    long n;
    TRY(agree(tensor_plan_of(&plan, &n, c, c->dtype)));
    long bytes = checkpoint_shard_bytes;
    enum status status = agree(transport_rank() == 0 ? folder_writer_open(&w, path, c, plan, n, bytes, true)
                                                     : folder_writer_join(&w, path, c, plan, n, bytes));
    free(plan);
    if (status == OK) status = fill_folder(w, z, s, settings, tokenizer_folder);
    alive_beat();
    if (status == OK) return agree(folder_writer_commit(w));
    if (w) folder_writer_abort(w);
    return status;
}

// ---- keeping the newest ----

// Under another name first, so that a half-deleted folder never looks like a checkpoint.
static enum status remove_step(const char *run, const char *name)
{
    char path[PATH_LENGTH], doomed[PATH_LENGTH], other[STEP_NAME + 8];
    snprintf(other, sizeof other, "%s.tmp", name);
    TRY(path_join(path, run, name));
    TRY(path_join(doomed, run, other));
    TRY(folder_remove(doomed));
    TRY(path_rename(doomed, path));
    return folder_remove(doomed);
}

static enum status remove_listed(const char *run, const struct path_list *list, long step, long keep)
{
    long older = 0;
    for (long i = 0; i < list->n; i++) older += step_of(list->name[i]) >= 0 && step_of(list->name[i]) < step;
    // Names of equal length sort by number; longer ones (beyond step 999999) are looked for by their value.
    while (keep > 0 && older > keep - 1) {
        long oldest = -1;
        for (long i = 0; i < list->n; i++) {
            long s = step_of(list->name[i]);
            if (s >= 0 && s < step && (oldest < 0 || s < step_of(list->name[oldest]))) oldest = i;
        }
        TRY(remove_step(run, list->name[oldest]));
        list->name[oldest][0] = '\0';
        older--;
    }
    for (long i = 0; i < list->n; i++) { // what a crash in the middle of saving or removing left
        char path[PATH_LENGTH];
        const char *name = list->name[i], *end = name + strlen(name);
        if (strncmp(name, "step-", 5) != 0 || (strcmp(end - 4, ".tmp") != 0 && strcmp(end - 4, ".old") != 0)) continue;
        TRY(path_join(path, run, list->name[i]));
        TRY(folder_remove(path));
    }
    return OK;
}

static enum status remove_old(const char *run, long step, long keep)
{
    struct path_list list;
    TRY(folder_list(&list, run));
    enum status status = remove_listed(run, &list, step, keep);
    path_list_free(&list);
    return status;
}

enum status checkpoint_save(const char *run, const struct zero *z, const struct training_state *s,
                            const char *settings, const char *tokenizer_folder, long keep)
{
    char name[STEP_NAME], path[PATH_LENGTH], latest[PATH_LENGTH], text[STEP_NAME + 1];
    bool first = transport_rank() == 0;
    step_name(name, s->step);
    TRY(agree(path_join(path, run, name)));
    TRY(agree(path_join(latest, run, "latest")));
    TRY(write_folder(path, z, s, settings, tokenizer_folder));
    snprintf(text, sizeof text, "%s\n", name);
    alive_beat();
    TRY(agree(first ? file_write(latest, text, (long)strlen(text)) : OK)); // durable when it returns
    alive_beat();
    if (!first) return OK;
    // From here on the checkpoint is safe: a folder that cannot be removed must not end a training run.
    if (remove_old(run, s->step, keep) != OK) log_warning("%s", fail_message());
    return OK;
}

// ---- finding ----

static enum status latest_named(char path[PATH_LENGTH], const char *run, const char *file, char *text)
{
    text[strcspn(text, "\r\n")] = '\0';
    if (step_of(text) < 0)
        return fail(ERR_FORMAT, "%s: \"%.40s\" is not the name of a step folder", file, text);
    TRY(path_join(path, run, text));
    if (path_exists(path)) return OK;
    // A crash between the two renames that replace a folder by a new one of the same step.
    char old[PATH_LENGTH];
    if (snprintf(old, sizeof old, "%s.old", path) < PATH_LENGTH && path_exists(old)) memcpy(path, old, sizeof old);
    if (!path_exists(path)) return fail(ERR_IO, "%s: no such folder, but %s names it", path, file);
    return OK;
}

enum status checkpoint_latest(char path[PATH_LENGTH], const char *run)
{
    char latest[PATH_LENGTH], state[PATH_LENGTH], *text;
    long bytes;
    TRY(path_join(latest, run, "latest"));
    TRY(path_join(state, run, "training/state.json"));
    if (!path_exists(latest)) {
        if (!path_exists(state)) return fail(ERR_IO, "%s: no checkpoint in this folder (it has no file latest)", run);
        if (snprintf(path, PATH_LENGTH, "%s", run) < PATH_LENGTH) return OK;
        return fail(ERR_IO, "%.200s...: the path is longer than %d bytes (use a shorter one)", run, PATH_LENGTH - 1);
    }
    TRY(file_read(&text, &bytes, latest, 256));
    enum status status = latest_named(path, run, latest, text);
    free(text);
    return status;
}

// ---- loading ----

static enum status read_numbers(double *values, long n, const cJSON *json, const char *field, const char *file)
{
    const cJSON *list = json_field(json, field);
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != n)
        return fail(ERR_FORMAT, "%s: %s is not a list of %ld numbers", file, field, n);
    for (const cJSON *item = list->child; item; item = item->next) {
        if (!cJSON_IsNumber(item)) return fail(ERR_FORMAT, "%s: %s holds something that is not a number", file, field);
        *values++ = item->valuedouble;
    }
    return OK;
}

static enum status read_state(struct training_state *s, const struct config *c, const cJSON *json, const char *file)
{
    if (!cJSON_IsObject(json)) return fail(ERR_FORMAT, "%s: not a JSON object", file);
    TRY(json_long(&s->step, json, "step", 0, 0, COUNT_MAX, file));
    TRY(json_long(&s->samples, json, "samples", 0, 0, COUNT_MAX, file));
    TRY(json_long(&s->tokens, json, "tokens", 0, 0, COUNT_MAX, file));
    TRY(json_long(&s->updates, json, "updates", 0, 0, COUNT_MAX, file));
    TRY(json_long(&s->skipped_in_row, json, "skipped_in_row", 0, 0, COUNT_MAX, file));
    TRY(json_real(&s->seconds, json, "seconds", 0, 0, 1e15, file));
    if (c->E && s->alpha) TRY(read_numbers(s->alpha, c->L, json, "alpha", file));
    s->has_global = c->E && s->global_p && s->global_f && json_field(json, "global_p");
    if (s->has_global) TRY(read_numbers(s->global_p, c->L * c->E, json, "global_p", file));
    if (s->has_global) TRY(read_numbers(s->global_f, c->L * c->E, json, "global_f", file));
    if (c->gate_bias && s->bias) TRY(read_numbers(s->bias, c->L * c->E, json, "bias", file));
    return OK;
}

enum status training_state_parse(struct training_state *s, const struct config *c, const char *text, long bytes,
                                 const char *name)
{
    cJSON *json;
    TRY(json_parse(&json, text, bytes, name));
    enum status status = read_state(s, c, json, name);
    cJSON_Delete(json);
    return status;
}

static enum status load_state(struct training_state *s, const struct config *c, const char *path)
{
    char file[PATH_LENGTH], *text;
    long bytes;
    TRY(path_join(file, path, "training/state.json"));
    TRY(file_read(&text, &bytes, file, STATE_LIMIT));
    enum status status = training_state_parse(s, c, text, bytes, file);
    free(text);
    return status;
}

static enum status check_same_model(const struct model *m, const struct model_folder *f)
{
    bool same = m->params.all == f->params.n && m->c.dtype == f->config.dtype;
    for (long i = 0; i < m->params.n && same; i++) {
        const struct param *a = &m->params.item[i], *b = &f->params.item[a->index];
        same = strcmp(a->name, b->name) == 0 && a->all_rows == b->rows && a->all_columns == b->columns;
    }
    if (!same) return fail(ERR_FORMAT, "%s: its config.json describes another model than this run's", f->path);
    return OK;
}

static enum status load_own(struct zero *z, struct training_state *s, const char *path)
{
    struct model_folder f;
    TRY(load_state(s, &z->m->c, path));
    TRY(model_folder_open(&f, path));
    enum status status = check_same_model(z->m, &f);
    if (status == OK) status = model_folder_load(z->m, &f);
    model_folder_close(&f);
    TRY(status);
    return optimizer_read(z, path);
}

enum status checkpoint_load(struct zero *z, struct training_state *s, const char *path)
{
    TRY(agree(folder_verify_share(path, transport_rank(), transport_ranks())));
    return agree(load_own(z, s, path));
}

enum status checkpoint_settings(char **text, const char *path)
{
    char file[PATH_LENGTH];
    long bytes;
    TRY(path_join(file, path, "training/settings.conf"));
    return file_read(text, &bytes, file, SETTINGS_LIMIT);
}
