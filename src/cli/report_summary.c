// The demo's summary.json: results of several models, and text they wrote.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "cli/report_data.h"

static const double far = 1e300;

static enum status read_result(struct report_summary *s, const cJSON *item, const char *path)
{
    char name[PATH_LENGTH + 80];
    struct report_result *r = &s->result[s->results];
    snprintf(name, sizeof name, "%s %.64s", path, item->string);
    snprintf(r->name, sizeof r->name, "%s", item->string);
    TRY(json_real(&r->eval_loss, item, "eval_loss", NAN, -far, far, name));
    TRY(json_real(&r->bits_per_byte, item, "bits_per_byte", NAN, -far, far, name));
    TRY(json_real(&r->tokens, item, "tokens", NAN, -far, far, name));
    TRY(json_real(&r->flops, item, "flops", NAN, -far, far, name));
    TRY(json_real(&r->seconds, item, "seconds", NAN, -far, far, name));
    s->results++;
    return OK;
}

static enum status read_sample(struct report_summary *s, const cJSON *item, const char *path)
{
    const char *prompt, *text, *model;
    if (!cJSON_IsObject(item))
        return fail(ERR_FORMAT, "%s: samples holds something that is no object (expected prompt, text, model)", path);
    TRY(json_text(&prompt, item, "prompt", "", path));
    TRY(json_text(&text, item, "text", "", path));
    TRY(json_text(&model, item, "model", "", path));
    struct report_sample *to = &s->sample[s->samples++];
    *to = (struct report_sample){strdup(prompt), strdup(text), strdup(model)};
    if (!to->prompt || !to->text || !to->model)
        return fail(ERR_MEMORY, "memory: a text sample was refused (free some memory)");
    return OK;
}

static enum status read_summary(struct report_summary *s, const cJSON *json, const char *path)
{
    if (!cJSON_IsObject(json)) return fail(ERR_FORMAT, "%s: it is no JSON object (pass a summary.json)", path);
    TRY(json_real(&s->kl_fp8, json, "kl_fp8", NAN, -far, far, path));
    TRY(json_real(&s->seed, json, "seed", NAN, -far, far, path));
    TRY(json_real(&s->xz_bits_per_byte, json, "xz_bits_per_byte", NAN, -far, far, path));
    const cJSON *samples = cJSON_GetObjectItemCaseSensitive(json, "samples");
    if (samples && !cJSON_IsNull(samples) && !cJSON_IsArray(samples))
        return fail(ERR_FORMAT, "%s: samples is no array (pass a summary.json)", path);
    s->result = calloc((size_t)cJSON_GetArraySize(json) + 1, sizeof *s->result);
    s->sample = calloc(samples ? (size_t)cJSON_GetArraySize(samples) + 1 : 1, sizeof *s->sample);
    if (!s->result || !s->sample) return fail(ERR_MEMORY, "memory: %s was refused (free some memory)", path);
    for (const cJSON *item = json->child; item; item = item->next)
        if (cJSON_IsObject(item) && cJSON_GetObjectItemCaseSensitive(item, "eval_loss"))
            TRY(read_result(s, item, path));
    if (cJSON_IsArray(samples))
        for (const cJSON *item = samples->child; item; item = item->next) TRY(read_sample(s, item, path));
    return OK;
}

enum status report_summary_read(struct report_summary *s, const char *path)
{
    cJSON *json;
    *s = (struct report_summary){.kl_fp8 = NAN, .seed = NAN, .xz_bits_per_byte = NAN};
    TRY(json_read(&json, path, 16 << 20));
    enum status status = read_summary(s, json, path);
    cJSON_Delete(json);
    if (status != OK) report_summary_free(s);
    return status;
}

void report_summary_free(struct report_summary *s)
{
    for (long i = 0; i < s->samples; i++) {
        free(s->sample[i].prompt);
        free(s->sample[i].text);
        free(s->sample[i].model);
    }
    free(s->sample);
    free(s->result);
    *s = (struct report_summary){0};
}
