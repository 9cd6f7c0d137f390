#include "data/corpus.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/json.h"

// ---- growing lists ----

// Room for one more of n items.
static enum status grow(void **list, long n, long *room, size_t size)
{
    if (n < *room) return OK;
    long larger = 2 * *room + 64;
    void *grown = realloc(*list, (size_t)larger * size);
    if (!grown) return fail(ERR_MEMORY, "input: no memory for %ld documents", larger);
    *list = grown;
    *room = larger;
    return OK;
}

static bool blank(const struct text *t)
{
    for (long i = 0; i < t->bytes; i++)
        if (!memchr(" \t\r\n\f\v", t->data[i], 6)) return false;
    return true;
}

static enum status add_document(struct corpus *c, struct text text)
{
    if (blank(&text)) {
        c->empty++;
        return OK;
    }
    TRY(grow((void **)&c->document, c->documents, &c->room, sizeof *c->document));
    c->document[c->documents++] = (struct document){.text = text, .hash = xxh3(text.data, text.bytes)};
    c->bytes += text.bytes;
    return OK;
}

static enum status check_text(const struct text *t, const char *name)
{
    if (t->bytes > 0 && memchr(t->data, 0, (size_t)t->bytes))
        return fail(ERR_FORMAT, "%s: has a NUL byte, so it is not text (leave it out)", name);
    if (!utf8_valid(t->data, t->bytes))
        return fail(ERR_FORMAT, "%s: is not UTF-8 text (convert it with iconv, or leave it out)", name);
    return OK;
}

// ---- files ----

static enum status add_line(struct corpus *c, const char *line, long bytes, const char *name)
{
    cJSON *json;
    const char *value = NULL;
    TRY(json_parse(&json, line, bytes, name));
    enum status status = cJSON_IsObject(json) ? json_text(&value, json, "text", NULL, name)
                                              : fail(ERR_FORMAT, "%s: is not an object {\"text\": ...}", name);
    if (status == OK && !value) status = fail(ERR_FORMAT, "%s: has no field `text`", name);
    if (status == OK) status = grow((void **)&c->line, c->lines, &c->lines_room, sizeof *c->line);
    char *copy = status == OK ? strdup(value) : NULL;
    if (status == OK && !copy) status = fail(ERR_MEMORY, "%s: no memory for its text", name);
    if (copy) {
        c->line[c->lines++] = copy;
        status = add_document(c, (struct text){copy, (long)strlen(copy)});
    }
    cJSON_Delete(json);
    return status;
}

static enum status add_lines(struct corpus *c, const struct text *t, const char *path)
{
    char name[PATH_LENGTH + 24];
    long number = 0;
    for (long from = 0, end; from < t->bytes; from = end + 1) {
        const char *newline = memchr(t->data + from, '\n', (size_t)(t->bytes - from));
        end = newline ? newline - t->data : t->bytes;
        struct text line = {t->data + from, end - from};
        snprintf(name, sizeof name, "%s:%ld", path, ++number);
        if (!blank(&line)) TRY(add_line(c, line.data, line.bytes, name));
    }
    return OK;
}

static bool ends_with(const char *name, const char *ending)
{
    size_t n = strlen(name), m = strlen(ending);
    return n > m && strcmp(name + n - m, ending) == 0;
}

static bool is_plain(const char *path)
{
    return ends_with(path, ".txt") || ends_with(path, ".md");
}

static enum status add_file(struct corpus *c, const char *path)
{
    struct file_map map;
    TRY(grow((void **)&c->map, c->maps, &c->maps_room, sizeof *c->map));
    TRY(file_map_open(&map, path));
    struct text text = {(const char *)map.data, map.bytes};
    if (!is_plain(path)) {
        enum status status = add_lines(c, &text, path);
        file_map_close(&map);
        return status;
    }
    c->map[c->maps++] = map; // closed by corpus_close
    TRY(check_text(&text, path));
    if (text.bytes >= 3 && memcmp(text.data, "\xEF\xBB\xBF", 3) == 0) { // a byte-order mark is no text
        text.data += 3;
        text.bytes -= 3;
    }
    return add_document(c, text);
}

// ---- folders ----

static bool is_link_to_folder(const char *path)
{
    struct stat info;
    return lstat(path, &info) == 0 && S_ISLNK(info.st_mode) && path_is_folder(path);
}

static enum status add_folder(struct corpus *c, const char *folder);

static enum status add_entries(struct corpus *c, const char *folder, const struct path_list *list)
{
    for (long i = 0; i < list->n; i++) {
        char *path = malloc(PATH_LENGTH); // not on the stack: folders nest deeply
        if (!path) return fail(ERR_MEMORY, "%s: no memory for a path", folder);
        enum status status = path_join(path, folder, list->name[i]);
        if (status == OK && path_is_folder(path)) {
            if (!is_link_to_folder(path)) status = add_folder(c, path);
        } else if (status == OK && (is_plain(path) || ends_with(path, ".jsonl"))) {
            status = add_file(c, path);
        } else if (status == OK) {
            c->ignored++;
        }
        free(path);
        if (status != OK) return status;
    }
    return OK;
}

static enum status add_folder(struct corpus *c, const char *folder)
{
    struct path_list list;
    TRY(folder_list(&list, folder));
    enum status status = add_entries(c, folder, &list);
    path_list_free(&list);
    return status;
}

enum status corpus_read(struct corpus *c, const char *const *input, long inputs)
{
    *c = (struct corpus){0};
    for (long i = 0; i < inputs; i++) {
        if (path_is_folder(input[i])) {
            TRY(add_folder(c, input[i]));
            continue;
        }
        if (path_exists(input[i]) && !is_plain(input[i]) && !ends_with(input[i], ".jsonl"))
            return fail(ERR_CONFIG, "--input %s: is not .txt, .md or .jsonl (rename or convert it)", input[i]);
        TRY(add_file(c, input[i]));
    }
    return OK;
}

void corpus_close(struct corpus *c)
{
    for (long i = 0; i < c->maps; i++) file_map_close(&c->map[i]);
    for (long i = 0; i < c->lines; i++) free(c->line[i]);
    free(c->map);
    free(c->line);
    free(c->document);
    *c = (struct corpus){0};
}
