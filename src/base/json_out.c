// Writing JSON, and UTF-8.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/decimal.h"
#include "base/files.h"
#include "base/json.h"

// Bytes of the well-formed code point at text (RFC 3629: no surrogates, nothing overlong, at most U+10FFFF); 0 if none.
static long utf8_length(const char *text, long bytes)
{
    const unsigned char *c = (const unsigned char *)text;
    if (c[0] < 0x80) return 1;
    long length = c[0] >= 0xF0 ? 4 : c[0] >= 0xE0 ? 3 : 2;
    if (c[0] < 0xC2 || c[0] > 0xF4 || bytes < length) return 0;
    unsigned char low = c[0] == 0xE0 ? 0xA0 : c[0] == 0xF0 ? 0x90 : 0x80;
    unsigned char high = c[0] == 0xED ? 0x9F : c[0] == 0xF4 ? 0x8F : 0xBF;
    if (c[1] < low || c[1] > high) return 0;
    for (long i = 2; i < length; i++)
        if (c[i] < 0x80 || c[i] > 0xBF) return 0;
    return length;
}

bool utf8_valid(const char *text, long bytes)
{
    for (long i = 0; i < bytes;) {
        long length = utf8_length(text + i, bytes - i);
        if (length == 0) return false;
        i += length;
    }
    return true;
}

static void put(struct json_out *o, const char *text, long bytes)
{
    if (o->failed) return;
    if (bytes >= o->room - o->used) {
        long room = 2 * (o->used + bytes) + 256;
        char *grown = realloc(o->text, (size_t)room);
        if (!grown) {
            o->failed = true;
            return;
        }
        o->text = grown;
        o->room = room;
    }
    memcpy(o->text + o->used, text, (size_t)bytes);
    o->used += bytes;
    o->text[o->used] = '\0';
}

static void put_quoted(struct json_out *o, const char *text)
{
    long bytes = (long)strlen(text);
    put(o, "\"", 1);
    for (long i = 0; i < bytes;) {
        long length = utf8_length(text + i, bytes - i);
        unsigned char c = (unsigned char)text[i];
        char escape[8];
        if (length == 0) {
            put(o, "\xEF\xBF\xBD", 3);
            i++;
            continue;
        }
        if (c == '"' || c == '\\') put(o, escape, snprintf(escape, sizeof escape, "\\%c", c));
        else if (c == '\n') put(o, "\\n", 2);
        else if (c == '\t') put(o, "\\t", 2);
        else if (c < 0x20) put(o, escape, snprintf(escape, sizeof escape, "\\u%04x", c));
        else put(o, text + i, length);
        i += length;
    }
    put(o, "\"", 1);
}

static void put_key(struct json_out *o, const char *key)
{
    if (o->comma[o->depth]) put(o, ",", 1);
    o->comma[o->depth] = true;
    if (!key) return;
    put_quoted(o, key);
    put(o, ":", 1);
}

void json_begin(struct json_out *o, const char *key, char bracket)
{
    put_key(o, key);
    CHECK(o->depth < 63);
    o->comma[++o->depth] = false;
    put(o, &bracket, 1);
}

void json_end(struct json_out *o, char bracket)
{
    CHECK(o->depth > 0);
    o->depth--;
    put(o, &bracket, 1);
}

void json_put_text(struct json_out *o, const char *key, const char *value)
{
    put_key(o, key);
    if (value) put_quoted(o, value);
    else put(o, "null", 4);
}

void json_put_long(struct json_out *o, const char *key, long value)
{
    char text[32];
    put_key(o, key);
    put(o, text, snprintf(text, sizeof text, "%ld", value));
}

void json_put_real(struct json_out *o, const char *key, double value)
{
    char text[NUMBER_TEXT] = "null";
    put_key(o, key);
    if (isfinite(value)) real_text(text, value);
    put(o, text, (long)strlen(text));
}

void json_put_bool(struct json_out *o, const char *key, bool value)
{
    put_key(o, key);
    put(o, value ? "true" : "false", value ? 4 : 5);
}

void json_put_null(struct json_out *o, const char *key)
{
    put_key(o, key);
    put(o, "null", 4);
}

enum status json_out_status(const struct json_out *o)
{
    CHECK(o->depth == 0);
    return o->failed ? fail(ERR_MEMORY, "JSON: no memory to write it") : OK;
}

void json_out_free(struct json_out *o)
{
    free(o->text);
    *o = (struct json_out){0};
}

enum status json_out_write(struct json_out *o, const char *path)
{
    enum status status = json_out_status(o);
    if (status == OK) status = file_write(path, o->text, o->used);
    json_out_free(o);
    return status;
}
