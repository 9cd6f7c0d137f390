// JSON through cJSON, with what a reader of outside bytes needs beside it: a size and depth limit, duplicate keys
// refused, and accessors that say which field is wrong. This header is the only one that includes cJSON's.
#ifndef SKYMOE_BASE_JSON_H
#define SKYMOE_BASE_JSON_H

#include <cjson/cJSON.h>
#include <stdbool.h>

#include "base/status.h"

// Parses `bytes` bytes, strictly (RFC 8259). `name` (a path) begins every message. ERR_FORMAT: not UTF-8, too deep
// (64), duplicate keys in an object, text after the value, a number beyond double, \u0000, malformed.
// The caller frees with cJSON_Delete.
MUST_USE enum status json_parse(cJSON **json, const char *text, long bytes, const char *name);
MUST_USE enum status json_read(cJSON **json, const char *path, long limit);

// cJSON finds a field by walking the list of all: right for small objects only. An index sorts the fields of an object
// once; the elements of an array are in order. It points into the tree.
struct json_index {
    const cJSON **item;
    long n;
};
MUST_USE enum status json_index_make(struct json_index *index, const cJSON *parent); // ERR_MEMORY
const cJSON *json_index_find(const struct json_index *index, const char *field);     // of an object; NULL if missing
void json_index_free(struct json_index *index);

// A field of a small object by its exact name (cJSON_GetObjectItem ignores case); NULL if missing or not an object.
const cJSON *json_field(const cJSON *object, const char *field);

// Fields of an object. A missing one gives `fallback`; a null counts as missing; the wrong type or a number that is not
// whole or not within [min, max] is ERR_FORMAT "NAME: field is ..., expected ...".
MUST_USE enum status json_long(long *value, const cJSON *object, const char *field, long fallback, long min, long max,
                               const char *name);
MUST_USE enum status json_real(double *value, const cJSON *object, const char *field, double fallback, double min,
                               double max, const char *name);
MUST_USE enum status json_bool(bool *value, const cJSON *object, const char *field, bool fallback, const char *name);
// *value points into the tree.
MUST_USE enum status json_text(const char **value, const cJSON *object, const char *field, const char *fallback,
                               const char *name);

// A value as it stands in the file, cut short, for messages. Valid until the next call in this thread.
const char *json_shown(const cJSON *value);
// Null, false, 0, or empty.
bool json_is_off(const cJSON *value);

// A growing text with JSON writers: comma placement is automatic inside json_begin/json_end pairs.
struct json_out {
    char *text; // NUL-terminated; freed by json_out_free
    long used, room;
    int depth;
    bool comma[64];
    bool failed; // an allocation was refused: checked once at the end by json_out_status
};
void json_begin(struct json_out *o, const char *key, char bracket); // '{' or '['; key NULL at top level and in arrays
void json_end(struct json_out *o, char bracket);                    // '}' or ']'
void json_put_text(struct json_out *o, const char *key, const char *value); // NULL -> null; not UTF-8 -> U+FFFD
void json_put_long(struct json_out *o, const char *key, long value);
void json_put_real(struct json_out *o, const char *key, double value); // shortest that reads back; NaN, Inf -> null
void json_put_bool(struct json_out *o, const char *key, bool value);
void json_put_null(struct json_out *o, const char *key);
MUST_USE enum status json_out_status(const struct json_out *o);
void json_out_free(struct json_out *o);
// The finished object becomes the file (file_write) and is freed, whatever comes of it.
MUST_USE enum status json_out_write(struct json_out *o, const char *path);

bool utf8_valid(const char *text, long bytes);

#endif
