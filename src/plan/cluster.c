#include "plan/cluster.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"

static const char *const source_names[] = {"absent", "measured", "datasheet"};

const char *source_name(enum origin s)
{
    return source_names[s];
}

// One row a constant: the object it stands in ("": the file's), its name, its place.
#define AT(field) offsetof(struct cluster, field)
static const struct row {
    const char *group, *name;
    size_t offset;
    bool needed; // `between` only where there are several hosts
    double min, max;
} rows[CLUSTER_CONSTANTS] = {
    {"", "memory_bytes", AT(memory_bytes), true, 1e6, 1e18},
    {"", "peak_flops", AT(peak_flops), true, 1e6, 1e21},
    {"kernels", "product_flops", AT(flops[RATE_PRODUCT]), false, 1e6, 1e21},
    {"kernels", "product_weight_flops", AT(flops[RATE_PRODUCT_WEIGHT]), false, 1e6, 1e21},
    {"kernels", "grouped_flops", AT(flops[RATE_GROUPED]), false, 1e6, 1e21},
    {"kernels", "grouped_weight_flops", AT(flops[RATE_GROUPED_WEIGHT]), false, 1e6, 1e21},
    {"kernels", "attention_flops", AT(flops[RATE_ATTENTION]), false, 1e6, 1e21},
    {"kernels", "attention_backward_flops", AT(flops[RATE_ATTENTION_BACKWARD]), false, 1e6, 1e21},
    {"kernels", "read_bytes_per_s", AT(read_bytes_per_s), true, 1e6, 1e18},
    {"kernels", "elements_bytes_per_s", AT(elements_bytes_per_s), false, 1e6, 1e18},
    {"inside", "bytes_per_s", AT(inside.bytes_per_s), true, 1e3, 1e18},
    {"inside", "latency_s", AT(inside.latency_s), false, 0, 10},
    {"inside", "overlap", AT(inside.overlap), false, 0, 1},
    {"between", "bytes_per_s", AT(between.bytes_per_s), true, 1e3, 1e18},
    {"between", "latency_s", AT(between.latency_s), false, 0, 10},
    {"between", "overlap", AT(between.overlap), false, 0, 1},
};

static struct constant *constant_at(struct cluster *c, const struct row *r)
{
    return (struct constant *)((char *)c + r->offset);
}

const char *cluster_constant(struct constant **constant, struct cluster *c, long index)
{
    static _Thread_local char name[64];
    const struct row *r = &rows[index];
    *constant = constant_at(c, r);
    snprintf(name, sizeof name, "%s%s%s", r->group, *r->group ? "." : "", r->name);
    return name;
}

double cluster_flops(const struct cluster *c, enum rate rate)
{
    const struct constant *own = &c->flops[rate];
    return own->source == SOURCE_ABSENT ? c->peak_flops.value : own->value;
}

double cluster_elements(const struct cluster *c)
{
    const struct constant *own = &c->elements_bytes_per_s;
    return own->source == SOURCE_ABSENT ? c->read_bytes_per_s.value : own->value;
}

double wire_overlap(const struct wire *w)
{
    return w->overlap.source == SOURCE_ABSENT ? 1 : w->overlap.value;
}

long cluster_devices(const struct cluster *c)
{
    return c->hosts * c->devices;
}

// ---- reading ----

static bool is_group(const char *field)
{
    return !strcmp(field, "kernels") || !strcmp(field, "inside") || !strcmp(field, "between");
}

static bool is_text(const char *field)
{
    return !strcmp(field, "name") || !strcmp(field, "device") || !strcmp(field, "note") || !strcmp(field, "hosts") ||
           !strcmp(field, "devices_per_host");
}

// Every field of the file's object, or of one of its groups, has to be known.
static enum status check_fields(const cJSON *object, const char *group, const char *name)
{
    for (const cJSON *f = object->child; f; f = f->next) {
        bool known = !*group && (is_group(f->string) || is_text(f->string));
        for (int i = 0; i < CLUSTER_CONSTANTS; i++)
            known |= !strcmp(rows[i].group, group) && !strcmp(rows[i].name, f->string);
        if (!known)
            return fail(ERR_FORMAT, "%s: %s%s%.60s: unknown field (docs/parallelism.md lists them)", name, group,
                        *group ? "." : "", f->string);
        if (!*group && is_group(f->string)) {
            if (!cJSON_IsObject(f))
                return fail(ERR_FORMAT, "%s: %s is %s, expected an object", name, f->string, json_shown(f));
            TRY(check_fields(f, f->string, name));
        }
    }
    return OK;
}

static enum status read_constant(struct constant *c, const cJSON *in, const struct row *r, bool needed,
                                 const char *name)
{
    char where[PATH_LENGTH + 64];
    const char *source;
    const cJSON *object = json_field(in, r->name);
    snprintf(where, sizeof where, "%s: %s%s%s", name, r->group, *r->group ? "." : "", r->name);
    *c = (struct constant){0};
    if (!object || cJSON_IsNull(object))
        return needed ? fail(ERR_FORMAT, "%s is missing (an object {\"value\", \"source\"})", where) : OK;
    if (!cJSON_IsObject(object))
        return fail(ERR_FORMAT, "%s is %s, expected an object {\"value\", \"source\"}", where, json_shown(object));
    for (const cJSON *f = object->child; f; f = f->next)
        if (strcmp(f->string, "value") && strcmp(f->string, "source") && strcmp(f->string, "note"))
            return fail(ERR_FORMAT, "%s: %.60s: unknown field (value, source and note are known)", where, f->string);
    if (!json_field(object, "value")) return fail(ERR_FORMAT, "%s: value is missing (give a number)", where);
    TRY(json_real(&c->value, object, "value", 0, r->min, r->max, where));
    TRY(json_text(&source, object, "source", "", where));
    for (int s = SOURCE_MEASURED; s <= SOURCE_DATASHEET; s++)
        if (!strcmp(source, source_names[s])) c->source = (enum origin)s;
    if (c->source == SOURCE_ABSENT)
        return fail(ERR_FORMAT, "%s: source is \"%.40s\", expected \"measured\" or \"datasheet\"", where, source);
    return OK;
}

static enum status read_name(char *to, size_t room, const cJSON *json, const char *field, const char *name)
{
    const char *text;
    TRY(json_text(&text, json, field, "", name));
    if (!*text) return fail(ERR_FORMAT, "%s: %s is missing (give a name)", name, field);
    if (strlen(text) >= room) return fail(ERR_FORMAT, "%s: %s is longer than %zu bytes", name, field, room - 1);
    memcpy(to, text, strlen(text) + 1);
    return OK;
}

static enum status read_fields(struct cluster *c, const cJSON *json, const char *name)
{
    const char *note;
    if (!cJSON_IsObject(json)) return fail(ERR_FORMAT, "%s: is not an object (docs/parallelism.md shows one)", name);
    TRY(check_fields(json, "", name));
    TRY(read_name(c->name, sizeof c->name, json, "name", name));
    TRY(read_name(c->device, sizeof c->device, json, "device", name));
    TRY(json_text(&note, json, "note", "", name));
    TRY(json_long(&c->hosts, json, "hosts", 0, 1, 1 << 20, name));
    TRY(json_long(&c->devices, json, "devices_per_host", 0, 1, 1 << 12, name));
    if (!c->hosts || !c->devices)
        return fail(ERR_FORMAT, "%s: %s is missing (give a count)", name, c->hosts ? "devices_per_host" : "hosts");
    for (int i = 0; i < CLUSTER_CONSTANTS; i++) {
        const struct row *r = &rows[i];
        bool needed = r->needed && (strcmp(r->group, "between") || c->hosts > 1) &&
                      (strcmp(r->group, "inside") || c->devices > 1);
        TRY(read_constant(constant_at(c, r), *r->group ? json_field(json, r->group) : json, r, needed, name));
    }
    return OK;
}

enum status cluster_parse(struct cluster *c, const char *text, long bytes, const char *name)
{
    cJSON *json;
    struct cluster read = {0};
    TRY(json_parse(&json, text, bytes, name));
    enum status status = read_fields(&read, json, name);
    cJSON_Delete(json);
    if (status == OK) *c = read;
    return status;
}

enum status cluster_read(struct cluster *c, const char *path)
{
    enum { MOST = 1 << 20 };
    char *text;
    long bytes;
    TRY(file_read(&text, &bytes, path, MOST));
    enum status status = cluster_parse(c, text, bytes, path);
    free(text);
    return status;
}

// ---- writing ----

void cluster_put(struct json_out *o, const struct cluster *c)
{
    struct cluster copy = *c;
    const char *group = "";
    json_begin(o, NULL, '{');
    json_put_text(o, "name", c->name);
    json_put_text(o, "device", c->device);
    json_put_long(o, "hosts", c->hosts);
    json_put_long(o, "devices_per_host", c->devices);
    for (const struct row *r = rows; r < rows + CLUSTER_CONSTANTS; r++) {
        const struct constant *k = constant_at(&copy, r);
        if (k->source == SOURCE_ABSENT) continue;
        if (strcmp(group, r->group)) {
            if (*group) json_end(o, '}');
            json_begin(o, group = r->group, '{');
        }
        json_begin(o, r->name, '{');
        json_put_real(o, "value", k->value);
        json_put_text(o, "source", source_name(k->source));
        json_end(o, '}');
    }
    if (*group) json_end(o, '}');
    json_end(o, '}');
}
