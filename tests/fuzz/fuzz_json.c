// JSON from outside: whatever is taken must survive being read field by field, and text we write must parse.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void visit(const cJSON *parent, struct json_out *o)
{
    for (const cJSON *c = parent->child; c; c = c->next) {
        long n;
        double x;
        bool b;
        const char *t;
        if (c->string && json_long(&n, parent, c->string, 0, -5, 1000, "f") == OK) json_put_long(o, c->string, n);
        if (c->string && json_real(&x, parent, c->string, 0, -5, 1000, "f") == OK) json_put_real(o, "x", x);
        if (c->string && json_bool(&b, parent, c->string, false, "f") == OK) json_put_bool(o, "b", b);
        if (c->string && json_text(&t, parent, c->string, NULL, "f") == OK) json_put_text(o, c->string, t);
    }
    struct json_index index;
    if (json_index_make(&index, parent) != OK) abort();
    for (const cJSON *c = parent->child; c; c = c->next) {
        if (c->string && json_index_find(&index, c->string) != c) abort();
        if (c->child) visit(c, o);
    }
    json_index_free(&index);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cJSON *json;
    if (json_parse(&json, (const char *)data, (long)size, "input") != OK) return 0;
    struct json_out o = {0};
    json_begin(&o, NULL, '[');
    json_put_text(&o, NULL, cJSON_IsString(json) ? json->valuestring : "");
    json_begin(&o, NULL, '{');
    visit(json, &o);
    json_end(&o, '}');
    json_end(&o, ']');
    if (json_out_status(&o) != OK) abort();
    cJSON_Delete(json);
    // Names repeat in what was written, which is the one thing that may be refused.
    if (json_parse(&json, o.text, o.used, "output") == OK) cJSON_Delete(json);
    else if (!strstr(fail_message(), "twice in one object")) abort();
    json_out_free(&o);
    return 0;
}
