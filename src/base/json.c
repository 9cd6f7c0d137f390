// Reading. cJSON is lenient (leading zeros, control characters, +1, 1e999, numbers cut at 63 characters), so scan()
// first decides alone whether the bytes are JSON; cJSON then only builds the tree.
#include "base/json.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/decimal.h"
#include "base/files.h"

enum { DEPTH_MAX = 64, NUMBER_MAX = 60 };
static const long VALUES_MAX = 20 << 20; // a tree node has about 100 bytes

// ---- is it JSON? ----

struct scan {
    const char *begin, *at, *end;
    const char *name;
    long values;
};

static enum status scan_fail(const struct scan *s, const char *problem)
{
    long line = 1, column = 1;
    for (const char *c = s->begin; c < s->at; c++) {
        column = *c == '\n' ? 1 : column + 1;
        line += *c == '\n';
    }
    return fail(ERR_FORMAT, "%s: is not JSON: line %ld, column %ld: %s", s->name, line, column, problem);
}

static void scan_space(struct scan *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\t' || *s->at == '\n' || *s->at == '\r')) s->at++;
}

static bool scan_take(struct scan *s, char c)
{
    if (s->at == s->end || *s->at != c) return false;
    s->at++;
    return true;
}

static bool scan_hex4(struct scan *s, unsigned *value)
{
    *value = 0;
    for (int i = 0; i < 4; i++, s->at++) {
        if (s->at == s->end) return false;
        char c = *s->at;
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return false;
        *value = *value * 16 + (unsigned)digit;
    }
    return true;
}

static enum status scan_escape(struct scan *s)
{
    unsigned unit, low;
    if (s->at == s->end) return scan_fail(s, "the text is not closed");
    char c = *s->at++;
    if (strchr("\"\\/bfnrt", c) && c) return OK;
    if (c != 'u') return scan_fail(s, "an unknown escape");
    if (!scan_hex4(s, &unit)) return scan_fail(s, "\\u needs four hexadecimal digits");
    if (unit == 0) return scan_fail(s, "\\u0000 is not supported");
    if (unit >= 0xDC00 && unit <= 0xDFFF) return scan_fail(s, "half a surrogate pair");
    if (unit < 0xD800 || unit > 0xDFFF) return OK;
    bool pair = scan_take(s, '\\') && scan_take(s, 'u') && scan_hex4(s, &low) && low >= 0xDC00 && low <= 0xDFFF;
    return pair ? OK : scan_fail(s, "half a surrogate pair");
}

static enum status scan_text(struct scan *s)
{
    if (!scan_take(s, '"')) return scan_fail(s, "expected a text in quotes");
    while (s->at < s->end) {
        unsigned char c = (unsigned char)*s->at;
        if (c < 0x20) return scan_fail(s, "a control character in a text");
        s->at++;
        if (c == '"') return OK;
        if (c == '\\') TRY(scan_escape(s));
    }
    return scan_fail(s, "the text is not closed");
}

static long scan_digits(struct scan *s)
{
    const char *start = s->at;
    while (s->at < s->end && *s->at >= '0' && *s->at <= '9') s->at++;
    return s->at - start;
}

static enum status scan_number(struct scan *s)
{
    const char *start = s->at;
    scan_take(s, '-');
    if (!scan_take(s, '0') && scan_digits(s) == 0) return scan_fail(s, "expected a value");
    if (scan_take(s, '.') && scan_digits(s) == 0) return scan_fail(s, "expected a digit");
    if (scan_take(s, 'e') || scan_take(s, 'E')) {
        if (!scan_take(s, '+')) scan_take(s, '-');
        if (scan_digits(s) == 0) return scan_fail(s, "expected a digit");
    }
    char copy[NUMBER_MAX + 1];
    long length = s->at - start;
    if (length > NUMBER_MAX) return scan_fail(s, "a number of more than 60 characters");
    memcpy(copy, start, (size_t)length);
    copy[length] = '\0';
    return isfinite(strtod(copy, NULL)) ? OK : scan_fail(s, "a number too large for double");
}

static enum status scan_scalar(struct scan *s)
{
    static const char *const word[] = {"true", "false", "null"};
    if (s->at == s->end) return scan_fail(s, "the end comes too early");
    if (*s->at == '"') return scan_text(s);
    for (int i = 0; i < 3; i++) {
        size_t length = strlen(word[i]);
        if ((size_t)(s->end - s->at) < length || memcmp(s->at, word[i], length) != 0) continue;
        s->at += length;
        return OK;
    }
    return scan_number(s);
}

static enum status scan_key(struct scan *s)
{
    scan_space(s);
    TRY(scan_text(s));
    scan_space(s);
    return scan_take(s, ':') ? OK : scan_fail(s, "expected ':'");
}

static enum status scan(struct scan *s)
{
    char closing[DEPTH_MAX];
    int depth = 0;
    for (;;) { // one value each
        scan_space(s);
        if (++s->values > VALUES_MAX) return scan_fail(s, "more than 20 million values");
        bool object = scan_take(s, '{');
        bool opened = object || scan_take(s, '[');
        if (opened) {
            if (depth == DEPTH_MAX) return scan_fail(s, "nested deeper than 64 levels");
            closing[depth++] = object ? '}' : ']';
            scan_space(s);
            bool empty = scan_take(s, closing[depth - 1]);
            if (empty) depth--;
            else if (object) TRY(scan_key(s));
            if (!empty) continue;
        } else {
            TRY(scan_scalar(s));
        }
        for (;;) { // what may follow a value
            scan_space(s);
            if (depth == 0) return s->at == s->end ? OK : scan_fail(s, "text follows the value");
            if (scan_take(s, ',')) break;
            if (!scan_take(s, closing[depth - 1]))
                return scan_fail(s, closing[depth - 1] == '}' ? "expected ',' or '}'" : "expected ',' or ']'");
            depth--;
        }
        if (closing[depth - 1] == '}') TRY(scan_key(s));
    }
}

// ---- duplicate keys ----

static int compare_fields(const void *a, const void *b)
{
    return strcmp((*(const cJSON *const *)a)->string, (*(const cJSON *const *)b)->string);
}

static enum status duplicate(const cJSON *item, const char *name)
{
    return fail(ERR_FORMAT, "%s: has the field %.100s twice in one object", name, item->string);
}

static enum status check_fields(const cJSON *object, const char *name)
{
    long n = 0;
    for (const cJSON *a = object->child; a; a = a->next) n++;
    if (n <= 8) {
        for (const cJSON *a = object->child; a; a = a->next)
            for (const cJSON *b = a->next; b; b = b->next)
                if (strcmp(a->string, b->string) == 0) return duplicate(a, name);
        return OK;
    }
    struct json_index index;
    TRY(json_index_make(&index, object));
    const cJSON *twice = NULL;
    for (long i = 1; i < index.n && !twice; i++)
        if (strcmp(index.item[i - 1]->string, index.item[i]->string) == 0) twice = index.item[i];
    json_index_free(&index);
    return twice ? duplicate(twice, name) : OK;
}

static enum status check_tree(const cJSON *parent, const char *name) // recursion is at most DEPTH_MAX deep
{
    if (cJSON_IsObject(parent)) TRY(check_fields(parent, name));
    for (const cJSON *c = parent->child; c; c = c->next)
        if (c->child) TRY(check_tree(c, name));
    return OK;
}

// ---- parse ----

enum status json_parse(cJSON **json, const char *text, long bytes, const char *name)
{
    if (bytes >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0)
        return fail(ERR_FORMAT, "%s: begins with a byte-order mark (save it without)", name);
    if (!utf8_valid(text, bytes)) return fail(ERR_FORMAT, "%s: is not UTF-8 text", name);
    struct scan s = {.begin = text, .at = text, .end = text + bytes, .name = name};
    TRY(scan(&s));
    cJSON *tree = cJSON_ParseWithLength(text, (size_t)bytes);
    if (!tree) return fail(ERR_MEMORY, "%s: no memory for its %ld values", name, s.values);
    enum status status = check_tree(tree, name);
    if (status == OK) *json = tree;
    else cJSON_Delete(tree);
    return status;
}

enum status json_read(cJSON **json, const char *path, long limit)
{
    char *text;
    long bytes;
    TRY(file_read(&text, &bytes, path, limit));
    enum status status = json_parse(json, text, bytes, path);
    free(text);
    return status;
}

enum status json_index_make(struct json_index *index, const cJSON *parent)
{
    long n = 0;
    for (const cJSON *c = parent->child; c; c = c->next) n++;
    const cJSON **item = malloc((size_t)(n + 1) * sizeof *item);
    if (!item) return fail(ERR_MEMORY, "JSON: no memory to index %ld fields", n);
    n = 0;
    for (const cJSON *c = parent->child; c; c = c->next) item[n++] = c;
    if (cJSON_IsObject(parent) && n) qsort(item, (size_t)n, sizeof *item, compare_fields);
    *index = (struct json_index){item, n};
    return OK;
}

const cJSON *json_index_find(const struct json_index *index, const char *field)
{
    cJSON key = {.string = (char *)(uintptr_t)field};
    const cJSON *wanted = &key;
    if (index->n == 0) return NULL;
    const cJSON **found = bsearch(&wanted, index->item, (size_t)index->n, sizeof wanted, compare_fields);
    return found ? *found : NULL;
}

void json_index_free(struct json_index *index)
{
    free(index->item);
    *index = (struct json_index){0};
}

// ---- fields ----

const cJSON *json_field(const cJSON *object, const char *field)
{
    return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, field) : NULL;
}

static const cJSON *present(const cJSON *object, const char *field)
{
    const cJSON *item = json_field(object, field);
    return cJSON_IsNull(item) ? NULL : item;
}

static enum status wrong(const cJSON *item, const char *field, const char *name, const char *expected)
{
    char number[NUMBER_TEXT];
    if (cJSON_IsNumber(item)) real_text(number, item->valuedouble);
    if (cJSON_IsString(item))
        return fail(ERR_FORMAT, "%s: %s is \"%.100s\", expected %s", name, field, item->valuestring, expected);
    return fail(ERR_FORMAT, "%s: %s is %s, expected %s", name, field,
                cJSON_IsNumber(item)  ? number
                : cJSON_IsBool(item)  ? (cJSON_IsTrue(item) ? "true" : "false")
                : cJSON_IsArray(item) ? "a list" : "an object",
                expected);
}

enum status json_long(long *value, const cJSON *object, const char *field, long fallback, long min, long max,
                      const char *name)
{
    const cJSON *item = present(object, field);
    char expected[96];
    snprintf(expected, sizeof expected, "a whole number from %ld to %ld", min, max);
    if (!item) {
        *value = fallback;
        return OK;
    }
    double x = item->valuedouble;
    if (!cJSON_IsNumber(item) || x != floor(x) || fabs(x) > 0x1p53) return wrong(item, field, name, expected);
    if ((long)x < min || (long)x > max) return wrong(item, field, name, expected);
    *value = (long)x;
    return OK;
}

enum status json_real(double *value, const cJSON *object, const char *field, double fallback, double min, double max,
                      const char *name)
{
    const cJSON *item = present(object, field);
    char expected[96];
    snprintf(expected, sizeof expected, "a number from %g to %g", min, max);
    if (!item) *value = fallback;
    else if (!cJSON_IsNumber(item) || !(item->valuedouble >= min && item->valuedouble <= max))
        return wrong(item, field, name, expected);
    else *value = item->valuedouble;
    return OK;
}

enum status json_bool(bool *value, const cJSON *object, const char *field, bool fallback, const char *name)
{
    const cJSON *item = present(object, field);
    if (item && !cJSON_IsBool(item)) return wrong(item, field, name, "true or false");
    *value = item ? cJSON_IsTrue(item) : fallback;
    return OK;
}

enum status json_text(const char **value, const cJSON *object, const char *field, const char *fallback,
                      const char *name)
{
    const cJSON *item = present(object, field);
    if (item && !cJSON_IsString(item)) return wrong(item, field, name, "a text");
    *value = item ? item->valuestring : fallback;
    return OK;
}

const char *json_shown(const cJSON *value)
{
    static _Thread_local char text[64];
    char *printed = cJSON_PrintUnformatted(value);
    snprintf(text, sizeof text, "%s", printed ? printed : "?");
    if (printed && strlen(printed) >= sizeof text) memcpy(text + sizeof text - 4, "...", 4);
    cJSON_free(printed);
    return text;
}

bool json_is_off(const cJSON *value)
{
    if (cJSON_IsNull(value) || cJSON_IsFalse(value)) return true;
    if (cJSON_IsNumber(value)) return value->valuedouble == 0;
    if (cJSON_IsString(value)) return value->valuestring[0] == '\0';
    return (cJSON_IsArray(value) || cJSON_IsObject(value)) && !value->child;
}
