#include "data/chat_folder.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_BYTES = 64 << 20, TEMPLATE_BYTES = 1 << 20 };

// The JSON object in folder/name; NULL when there is no such file.
static enum status read_object(cJSON **json, char path[PATH_LENGTH], const char *folder, const char *name)
{
    TRY(path_join(path, folder, name));
    if (!path_exists(path)) return OK;
    TRY(json_read(json, path, FILE_BYTES));
    return cJSON_IsObject(*json) ? OK : fail(ERR_FORMAT, "%s: is not a JSON object", path);
}

// "<s>" or {"content": "<s>", ...}.
static enum status token_text(const char **text, const cJSON *object, const char *field, const char *path)
{
    const cJSON *item = json_field(object, field);
    if (cJSON_IsObject(item)) return json_text(text, item, "content", NULL, path);
    return json_text(text, object, field, NULL, path);
}

// ---- added tokens ----

static enum status add_token(struct chat_folder *f, const char *text, double id, bool special, const char *path)
{
    if (!(id >= 0 && id <= INT_MAX) || id != (double)(int)id)
        return fail(ERR_FORMAT, "%s: the id of \"%.60s\" is not a token id", path, text);
    f->added[f->added_n++] = (struct added_token){text, (int)id, special};
    return OK;
}

// {"32000": {"content": "<|im_end|>", "special": true, ...}, ...}
static enum status read_decoder(struct chat_folder *f, const cJSON *decoder, const char *path)
{
    for (const cJSON *item = decoder ? decoder->child : NULL; item; item = item->next) {
        const char *text = NULL;
        bool special = false;
        char *end = NULL;
        long id = item->string && *item->string >= '0' && *item->string <= '9' ? strtol(item->string, &end, 10) : -1;
        if (cJSON_IsObject(item)) {
            TRY(json_text(&text, item, "content", NULL, path));
            TRY(json_bool(&special, item, "special", false, path));
        }
        if (!text || id < 0 || *end)
            return fail(ERR_FORMAT, "%s: added_tokens_decoder is not a table of ids and {\"content\": text}", path);
        TRY(add_token(f, text, (double)id, special, path));
    }
    return OK;
}

// {"<|im_end|>": 32000, ...}
static enum status read_tokens(struct chat_folder *f, const char *path)
{
    for (const cJSON *item = f->tokens ? f->tokens->child : NULL; item; item = item->next)
        TRY(add_token(f, item->string, cJSON_IsNumber(item) ? item->valuedouble : -1, true, path));
    return OK;
}

// ---- chat template ----

// A text, or a list of {"name": "default", "template": text}.
static enum status read_template(struct chat_folder *f, const char *path)
{
    const cJSON *given = json_field(f->config, "chat_template"), *item;
    if (!cJSON_IsArray(given)) return json_text(&f->chat_template, f->config, "chat_template", NULL, path);
    cJSON_ArrayForEach(item, given)
    {
        const char *name, *text;
        TRY(json_text(&name, item, "name", "", path));
        TRY(json_text(&text, item, "template", NULL, path));
        if (!strcmp(name, "default")) f->chat_template = text;
    }
    return f->chat_template || !given->child ? OK : fail(ERR_FORMAT, "%s: no chat_template is named default", path);
}

static enum status read_config(struct chat_folder *f, const char *path)
{
    f->legacy = true;
    TRY(json_bool(&f->legacy, f->config, "legacy", true, path));
    TRY(token_text(&f->bos, f->config, "bos_token", path));
    TRY(token_text(&f->eos, f->config, "eos_token", path));
    TRY(read_template(f, path));
    memcpy(f->source, path, PATH_LENGTH);
    return read_decoder(f, json_field(f->config, "added_tokens_decoder"), path);
}

static enum status read_folder(struct chat_folder *f, const char *folder)
{
    char config[PATH_LENGTH], tokens[PATH_LENGTH], jinja[PATH_LENGTH];
    long bytes;
    TRY(read_object(&f->config, config, folder, "tokenizer_config.json"));
    TRY(read_object(&f->tokens, tokens, folder, "added_tokens.json"));
    const cJSON *decoder = json_field(f->config, "added_tokens_decoder");
    size_t most = (size_t)(cJSON_GetArraySize(decoder) + cJSON_GetArraySize(f->tokens));
    f->added = malloc((most + 1) * sizeof *f->added);
    if (!f->added) return fail(ERR_MEMORY, "%s: no memory for %zu added tokens", config, most);
    TRY(read_config(f, config));
    TRY(read_tokens(f, tokens));
    TRY(path_join(jinja, folder, "chat_template.jinja"));
    if (!path_exists(jinja)) return OK;
    TRY(file_read(&f->jinja, &bytes, jinja, TEMPLATE_BYTES));
    if ((long)strlen(f->jinja) != bytes) return fail(ERR_FORMAT, "%s: has a NUL in it", jinja);
    f->chat_template = f->jinja;
    memcpy(f->source, jinja, PATH_LENGTH);
    return OK;
}

enum status chat_folder_open(struct chat_folder *f, const char *folder)
{
    *f = (struct chat_folder){.legacy = true};
    enum status status = read_folder(f, folder);
    if (status != OK) chat_folder_close(f);
    return status;
}

void chat_folder_close(struct chat_folder *f)
{
    cJSON_Delete(f->config);
    cJSON_Delete(f->tokens);
    free(f->added);
    free(f->jinja);
    *f = (struct chat_folder){0};
}
