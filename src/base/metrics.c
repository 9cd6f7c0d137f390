#include "base/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { ROW_BYTES_MAX = 64 << 20, TAG_MAX = 160, RECORD_MAX = 256 };

// ---- TensorBoard records: u64 length, its masked CRC-32C, the Event message, its masked CRC-32C ----

// Protobuf's bytes, little-endian whatever the machine.
struct message {
    unsigned char *bytes;
    long used;
};

static void put_fixed(struct message *m, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) m->bytes[m->used++] = (unsigned char)(value >> (8 * i));
}

static void put_varint(struct message *m, uint64_t value)
{
    for (; value >= 0x80; value >>= 7) m->bytes[m->used++] = (unsigned char)(value | 0x80);
    m->bytes[m->used++] = (unsigned char)value;
}

static void put_text(struct message *m, int field, const char *text)
{
    size_t bytes = strlen(text);
    put_varint(m, (uint64_t)field << 3 | 2);
    put_varint(m, bytes);
    memcpy(m->bytes + m->used, text, bytes);
    m->used += (long)bytes;
}

static void put_double(struct message *m, int field, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_varint(m, (uint64_t)field << 3 | 1);
    put_fixed(m, bits, 8);
}

static uint32_t masked_crc(const void *data, long bytes)
{
    uint32_t crc = crc32c(data, bytes);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static long record(unsigned char *buffer, const struct message *event)
{
    struct message m = {.bytes = buffer};
    put_fixed(&m, (uint64_t)event->used, 8);
    put_fixed(&m, masked_crc(buffer, 8), 4);
    memcpy(buffer + m.used, event->bytes, (size_t)event->used);
    m.used += event->used;
    put_fixed(&m, masked_crc(event->bytes, event->used), 4);
    return m.used;
}

long event_version(unsigned char *buffer, double wall_time)
{
    unsigned char bytes[64];
    struct message event = {.bytes = bytes};
    put_double(&event, 1, wall_time);
    put_text(&event, 3, "brain.Event:2");
    return record(buffer, &event);
}

long event_scalar(unsigned char *buffer, double wall_time, long step, const char *tag, float value)
{
    unsigned char value_bytes[RECORD_MAX], event_bytes[RECORD_MAX];
    struct message scalar = {.bytes = value_bytes}, event = {.bytes = event_bytes};
    uint32_t bits;
    CHECK(strlen(tag) <= TAG_MAX);
    put_text(&scalar, 1, tag);
    memcpy(&bits, &value, sizeof bits);
    put_varint(&scalar, 2 << 3 | 5);
    put_fixed(&scalar, bits, 4);
    long value_length = scalar.used + 1 + (scalar.used >= 0x80 ? 2 : 1);
    put_double(&event, 1, wall_time);
    put_varint(&event, 2 << 3 | 0);
    put_varint(&event, (uint64_t)step);
    put_varint(&event, 5 << 3 | 2); // Summary
    put_varint(&event, (uint64_t)value_length);
    put_varint(&event, 1 << 3 | 2); // its Value
    put_varint(&event, (uint64_t)scalar.used);
    memcpy(event.bytes + event.used, scalar.bytes, (size_t)scalar.used);
    event.used += scalar.used;
    return record(buffer, &event);
}

// ---- a row's numbers as records ----

struct records {
    unsigned char *bytes;
    long used, room;
    long step;
    double wall_time;
    char tag[TAG_MAX + 1];
};

static enum status add_scalar(struct records *r, double value)
{
    if (r->used + RECORD_MAX > r->room) {
        long room = 2 * r->room + 64 * RECORD_MAX;
        unsigned char *grown = realloc(r->bytes, (size_t)room);
        if (!grown) return fail(ERR_MEMORY, "metrics: no memory for the event file");
        r->bytes = grown;
        r->room = room;
    }
    r->used += event_scalar(r->bytes + r->used, r->wall_time, r->step, r->tag, (float)value);
    return OK;
}

// Walks the tree; tag[0..length) is the name of `parent`.
static enum status add_scalars(struct records *r, const cJSON *parent, int length)
{
    long i = 0;
    for (const cJSON *c = parent->child; c; c = c->next, i++) {
        size_t room = sizeof r->tag - (size_t)length;
        const char *slash = length ? "/" : "";
        int more = c->string ? snprintf(r->tag + length, room, "%s%s", slash, c->string)
                             : snprintf(r->tag + length, room, "%s%ld", slash, i);
        if (length + more > TAG_MAX)
            return fail(ERR_FORMAT, "metrics: the name %s... is longer than %d bytes", r->tag, TAG_MAX);
        if (cJSON_IsNumber(c)) TRY(add_scalar(r, c->valuedouble));
        if (cJSON_IsBool(c)) TRY(add_scalar(r, cJSON_IsTrue(c) ? 1 : 0));
        if (c->child) TRY(add_scalars(r, c, length + more));
    }
    return OK;
}

static enum status write_events(struct metrics *m, const cJSON *row, struct records *r)
{
    TRY(add_scalars(r, row, 0));
    return r->used ? file_append(m->events, m->events_path, r->bytes, r->used) : OK;
}

static enum status write_row(struct metrics *m, const char *json, const cJSON *row, struct records *r)
{
    long bytes = (long)strlen(json);
    char *line = malloc((size_t)bytes + 1);
    if (!line) return fail(ERR_MEMORY, "%s: no memory for a row", m->jsonl_path);
    memcpy(line, json, (size_t)bytes);
    line[bytes] = '\n';
    enum status status = file_append(m->jsonl, m->jsonl_path, line, bytes + 1);
    free(line);
    return status == OK ? write_events(m, row, r) : status;
}

enum status metrics_write(struct metrics *m, long step, const char *json, double wall_time)
{
    cJSON *row;
    struct records r = {.step = step, .wall_time = wall_time};
    TRY(json_parse(&row, json, (long)strlen(json), m->jsonl_path));
    CHECK(!strchr(json, '\n') && cJSON_IsObject(row));
    enum status status = write_row(m, json, row, &r);
    cJSON_Delete(row);
    free(r.bytes);
    return status;
}

// ---- opening; what a crash left ----

// The step of the row line[0..bytes).
static enum status row_step(long *step, const char *line, long bytes, const char *name)
{
    cJSON *row;
    TRY(json_parse(&row, line, bytes, name));
    enum status status = cJSON_IsObject(row) ? json_long(step, row, "step", -1, 0, 1L << 52, name)
                                             : fail(ERR_FORMAT, "%s: is not an object", name);
    cJSON_Delete(row);
    if (status == OK && *step < 0) return fail(ERR_FORMAT, "%s: has no step", name);
    return status;
}

// Visits the rows; writes those to keep to `o` unless it is NULL. *cut: some row is to go.
static enum status keep_rows(const struct file_map *map, long step, const char *path, struct output *o, bool *cut)
{
    const char *text = (const char *)map->data;
    long number = 0;
    *cut = false;
    for (long at = 0; at < map->bytes;) {
        const char *end = memchr(text + at, '\n', (size_t)(map->bytes - at));
        long bytes = end ? end - (text + at) : map->bytes - at, row = 0;
        char name[PATH_LENGTH + 32];
        snprintf(name, sizeof name, "%s:%ld", path, ++number);
        if (bytes > ROW_BYTES_MAX) return fail(ERR_FORMAT, "%s: the row is too long", name);
        if (end) TRY(row_step(&row, text + at, bytes, name)); // a last line without its end was cut by a crash
        bool kept = end && row <= step;
        if (!kept) *cut = true;
        if (kept && o) TRY(output_write(o, text + at, bytes + 1));
        at += bytes + 1;
    }
    return OK;
}

static enum status rewrite_rows(const struct file_map *map, long step, const char *path)
{
    struct output o;
    bool cut;
    TRY(keep_rows(map, step, path, NULL, &cut));
    if (!cut) return OK;
    TRY(output_open(&o, path));
    enum status status = keep_rows(map, step, path, &o, &cut);
    if (status == OK) return output_commit(&o, NULL);
    output_abort(&o);
    return status;
}

static enum status cut_rows(const char *path, long step)
{
    struct file_map map;
    if (!path_exists(path)) return OK;
    TRY(file_map_open(&map, path));
    enum status status = rewrite_rows(&map, step, path);
    file_map_close(&map);
    return status;
}

// events.out.tfevents.<seconds>.<host>.<process>.<number>, a name not taken yet.
static enum status events_name(char path[PATH_LENGTH], const char *run)
{
    char host[128], name[256];
    if (gethostname(host, sizeof host) != 0) memcpy(host, "localhost", sizeof "localhost");
    host[sizeof host - 1] = '\0';
    for (char *c = host; *c; c++)
        if (*c == '/') *c = '-';
    for (int number = 0;; number++) {
        snprintf(name, sizeof name, "events.out.tfevents.%ld.%s.%ld.%d", (long)time(NULL), host, (long)getpid(),
                 number);
        TRY(path_join(path, run, name));
        if (!path_exists(path)) return OK;
    }
}

static enum status open_files(struct metrics *m)
{
    struct timespec now;
    unsigned char version[RECORD_MAX];
    TRY(file_append_open(&m->jsonl, m->jsonl_path));
    TRY(file_append_open(&m->events, m->events_path));
    clock_gettime(CLOCK_REALTIME, &now);
    long bytes = event_version(version, (double)now.tv_sec + 1e-9 * (double)now.tv_nsec);
    return file_append(m->events, m->events_path, version, bytes);
}

enum status metrics_open(struct metrics *m, const char *run, long step)
{
    struct metrics opened = {.jsonl = -1, .events = -1};
    TRY(path_join(opened.jsonl_path, run, "metrics.jsonl"));
    TRY(events_name(opened.events_path, run));
    TRY(cut_rows(opened.jsonl_path, step));
    enum status status = open_files(&opened);
    if (status == OK) *m = opened;
    else metrics_close(&opened);
    return status;
}

void metrics_close(struct metrics *m)
{
    if (m->jsonl >= 0) close(m->jsonl);
    if (m->events >= 0) close(m->events);
    m->jsonl = m->events = -1;
}
