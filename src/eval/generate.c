#include "eval/generate.h"

#include <stdlib.h>

#include "base/files.h"
#include "base/json.h"

const char *finish_name(enum finish f)
{
    static const char *const name[] = {"stop", "length", "interrupted"};
    return name[f];
}

enum status end_ids_add(struct end_ids *ends, int id, const char *source)
{
    if (ends->n == END_IDS) return fail(ERR_FORMAT, "%s: more than %d ids end a text", source, END_IDS);
    ends->id[ends->n++] = id;
    return OK;
}

static enum status add_end(struct end_ids *ends, const cJSON *id, const char *path)
{
    if (!cJSON_IsNumber(id) || id->valuedouble != (double)id->valueint || id->valueint < 0)
        return fail(ERR_FORMAT, "%s: eos_token_id is not a token id or a list of them", path);
    return end_ids_add(ends, id->valueint, path);
}

static enum status read_ends(struct end_ids *ends, const cJSON *json, const char *path)
{
    const cJSON *eos = cJSON_GetObjectItemCaseSensitive(json, "eos_token_id"), *id;
    if (!eos || cJSON_IsNull(eos)) return OK;
    if (!cJSON_IsArray(eos)) return add_end(ends, eos, path);
    cJSON_ArrayForEach(id, eos) TRY(add_end(ends, id, path));
    return OK;
}

enum status end_ids_read(struct end_ids *ends, const struct config *c, const char *folder)
{
    char path[PATH_LENGTH];
    ends->n = 0;
    TRY(path_join(path, folder, "generation_config.json"));
    if (path_exists(path)) {
        cJSON *json;
        TRY(json_read(&json, path, 1 << 20));
        enum status status = read_ends(ends, json, path);
        cJSON_Delete(json);
        TRY(status);
    }
    if (ends->n == 0 && c->eos >= 0) ends->id[ends->n++] = (int)c->eos;
    return OK;
}

static bool is_end(const struct end_ids *ends, int token)
{
    for (long i = 0; i < ends->n; i++)
        if (ends->id[i] == token) return true;
    return false;
}

static enum status extend(enum finish *finish, struct kv_cache *kv, long sequence, struct sampler *s,
                          const struct generation *g, float *logits)
{
    *finish = FINISH_LENGTH;
    if (g->max_tokens < 1) return OK;
    TRY(kv_append(kv, sequence, g->prompt, g->prompt_n, logits, NULL));
    for (long i = 0; i < g->max_tokens; i++) {
        struct sampled next;
        bool stop = false;
        TRY(sampler_draw(&next, s, logits, g->choice, kv->length[sequence]));
        if (is_end(g->ends, next.token)) stop = true;
        else TRY(g->on_token(g->user, next, &stop));
        if (stop) {
            *finish = FINISH_STOP;
            return OK;
        }
        if (i + 1 < g->max_tokens) TRY(kv_append(kv, sequence, &next.token, 1, logits, NULL));
    }
    return OK;
}

enum status generate(enum finish *finish, struct kv_cache *kv, long sequence, struct sampler *s,
                     const struct generation *g)
{
    CHECK(g->prompt_n >= 1 && s->V == kv->m->c.V);
    float *logits = malloc((size_t)s->V * sizeof *logits);
    if (!logits) return fail(ERR_MEMORY, "memory: %ld logits were refused (free some memory)", s->V);
    enum status status = extend(finish, kv, sequence, s, g, logits);
    free(logits);
    return status;
}
