// Everything that writes to a disk, so that one place knows how writes fail (see files.h).
#define _GNU_SOURCE // sync_file_range
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/decimal.h"
#include "base/files.h"

enum { BUFFER_BYTES = 4 << 20 };

// ---- writes that tests can make fail ----

static long write_count, first_failing;

void files_fail_write(long n)
{
    write_count = 0;
    first_failing = n;
}

long files_write_count(void)
{
    return write_count;
}

static bool write_allowed(void)
{
    long count = __atomic_add_fetch(&write_count, 1, __ATOMIC_RELAXED);
    long failing = first_failing;
#ifdef SKYMOE_TEST_FAULTS
    const char *text = getenv("SKYMOE_FAIL_WRITE");
    if (failing == 0 && text && !long_parse(&failing, text)) failing = 0;
#endif
    if (failing > 0 && count >= failing) errno = ENOSPC;
    return !(failing > 0 && count >= failing);
}

static bool write_all(int fd, const char *data, long bytes)
{
    if (!write_allowed()) return false;
    while (bytes > 0) {
        ssize_t done = write(fd, data, (size_t)bytes);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return false;
        if (done == 0) errno = EIO;
        if (done == 0) return false;
        data += done;
        bytes -= done;
    }
    return true;
}

static enum status write_failed(const char *path)
{
    const char *advice = errno == ENOSPC || errno == EDQUOT ? " (free some room)" : "";
    return fail(ERR_IO, "%s: cannot be written: %s%s", path, strerror(errno), advice);
}

// ---- whole files ----

static void temporary_name(char name[PATH_LENGTH + 8], const char *path)
{
    size_t length = strlen(path); // output_open checked it
    memcpy(name, path, length);
    memcpy(name + length, ".tmp", sizeof ".tmp");
}

// Behind an output: what hashes and writes one buffer while the caller fills the next. A file of less than a buffer
// needs no thread; a larger one gets its own, which also has the disk begin at once: the flush at the end finds little
// left to do.
struct output_writer {
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    XXH3_state_t *hash;
    int fd;
    char *buffer;    // the one that the caller does not fill
    long bytes;      // to be written from it; 0: the thread waits
    long at;         // where they go
    int error;       // errno of the first write that failed; nothing is written after it
    bool end;
};

static void write_buffer(struct output_writer *w, const char *data, long bytes)
{
    XXH3_64bits_update(w->hash, data, (size_t)bytes);
    if (w->error == 0 && !write_all(w->fd, data, bytes)) w->error = errno;
    if (w->started && w->error == 0) sync_file_range(w->fd, w->at, bytes, SYNC_FILE_RANGE_WRITE); // only a hint
    w->at += bytes;
}

static void *writer_run(void *writer)
{
    struct output_writer *w = writer;
    pthread_mutex_lock(&w->lock);
    for (;;) {
        while (w->bytes == 0 && !w->end) pthread_cond_wait(&w->changed, &w->lock);
        if (w->bytes == 0) break;
        pthread_mutex_unlock(&w->lock); // the caller leaves buffer and bytes alone until they are 0
        write_buffer(w, w->buffer, w->bytes);
        pthread_mutex_lock(&w->lock);
        w->bytes = 0;
        pthread_cond_signal(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

static void writer_wait(struct output_writer *w)
{
    pthread_mutex_lock(&w->lock);
    while (w->bytes > 0) pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

static void writer_stop(struct output_writer *w)
{
    if (!w->started) return;
    pthread_mutex_lock(&w->lock);
    w->end = true;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    w->started = false;
}

static void writer_free(struct output_writer *w)
{
    if (!w) return;
    writer_stop(w);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->changed);
    if (w->hash) XXH3_freeState(w->hash);
    free(w->buffer);
    free(w);
}

static struct output_writer *writer_make(int fd)
{
    struct output_writer *w = calloc(1, sizeof *w);
    if (!w) return NULL;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    w->fd = fd;
    w->hash = XXH3_createState();
    if (w->hash) XXH3_64bits_reset(w->hash);
    return w;
}

static void output_release(struct output *o)
{
    writer_free(o->writer);
    if (o->fd >= 0) close(o->fd);
    free(o->buffer);
    o->fd = -1;
    o->buffer = NULL;
    o->writer = NULL;
}

enum status output_open(struct output *o, const char *path)
{
    char temporary[PATH_LENGTH + 8];
    struct stat info;
    if (strlen(path) + 4 >= PATH_LENGTH)
        return fail(ERR_IO, "%.200s...: the path is longer than %d bytes (use a shorter one)", path, PATH_LENGTH - 5);
    if (path[0] == '\0') return fail(ERR_IO, "file name: is empty (name a file)");
    // A rename would replace a device like /dev/null by a file.
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode))
        return fail(ERR_IO, "%s: exists and is not a regular file (choose another name)", path);
    temporary_name(temporary, path);
    *o = (struct output){.fd = -1};
    memcpy(o->path, path, strlen(path) + 1);
    unlink(temporary); // left by a crash; then O_EXCL, so that a link planted there is never followed
    o->fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (o->fd < 0) return fail(ERR_IO, "%s: cannot be made: %s", temporary, strerror(errno));
    o->buffer = malloc(BUFFER_BYTES);
    o->writer = writer_make(o->fd);
    if (!o->buffer || !o->writer || !o->writer->hash) {
        output_abort(o);
        return fail(ERR_MEMORY, "%s: no memory to write it", path);
    }
    return OK;
}

static enum status writer_status(struct output *o)
{
    if (o->writer->error == 0) return OK;
    errno = o->writer->error;
    return write_failed(o->path);
}

// The full buffer goes to the thread, its other one comes back.
static enum status hand_over(struct output *o)
{
    struct output_writer *w = o->writer;
    if (!w->started) {
        if (!w->buffer) w->buffer = malloc(BUFFER_BYTES);
        w->started = w->buffer && pthread_create(&w->thread, NULL, writer_run, w) == 0;
        if (!w->started) return fail(ERR_MEMORY, "%s: no memory to write it", o->path);
    }
    writer_wait(w);
    TRY(writer_status(o));
    char *full = o->buffer;
    o->buffer = w->buffer;
    w->buffer = full;
    pthread_mutex_lock(&w->lock);
    w->bytes = o->used;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    o->used = 0;
    return OK;
}

enum status output_write(struct output *o, const void *data, long bytes)
{
    const char *from = data;
    CHECK(o->fd >= 0 && bytes >= 0);
    o->written += bytes;
    for (long n; bytes > 0; from += n, bytes -= n) {
        if (o->used == BUFFER_BYTES) TRY(hand_over(o));
        n = bytes < BUFFER_BYTES - o->used ? bytes : BUFFER_BYTES - o->used;
        memcpy(o->buffer + o->used, from, (size_t)n);
        o->used += n;
    }
    return OK;
}

enum status output_print(struct output *o, const char *format, ...)
{
    char small[512];
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int bytes = vsnprintf(small, sizeof small, format, args);
    va_end(args);
    char *text = bytes < (int)sizeof small ? small : malloc((size_t)bytes + 1);
    if (text && text != small) vsnprintf(text, (size_t)bytes + 1, format, again);
    va_end(again);
    if (!text) return fail(ERR_MEMORY, "%s: no memory to write it", o->path);
    enum status status = bytes < 0 ? fail(ERR_IO, "%s: cannot be formatted", o->path) : output_write(o, text, bytes);
    if (text != small) free(text);
    return status;
}

static enum status output_finish(struct output *o)
{
    char temporary[PATH_LENGTH + 8];
    temporary_name(temporary, o->path);
    writer_stop(o->writer);
    if (o->used > 0) write_buffer(o->writer, o->buffer, o->used);
    o->used = 0;
    TRY(writer_status(o));
    if (!write_allowed() || fsync(o->fd) != 0) return write_failed(o->path);
    int fd = o->fd;
    o->fd = -1;
    if (close(fd) != 0) return write_failed(o->path);
    return path_rename(o->path, temporary);
}

static enum status parent_sync(const char *path)
{
    char parent[PATH_LENGTH];
    const char *slash = strrchr(path, '/');
    long length = slash ? slash - path : 0;
    if (length >= PATH_LENGTH) return fail(ERR_IO, "%.200s...: the path is too long", path);
    memcpy(parent, path, (size_t)length);
    parent[length] = '\0';
    return folder_sync(slash ? (length ? parent : "/") : ".");
}

enum status output_commit(struct output *o, uint64_t *xxh3)
{
    CHECK(o->fd >= 0);
    enum status status = output_finish(o);
    if (status != OK) {
        output_abort(o);
        return status;
    }
    if (xxh3) *xxh3 = XXH3_64bits_digest(o->writer->hash);
    output_release(o);
    return parent_sync(o->path);
}

void output_abort(struct output *o)
{
    char temporary[PATH_LENGTH + 8];
    temporary_name(temporary, o->path);
    unlink(temporary);
    output_release(o);
}

static enum status write_and_commit(struct output *o, const void *data, long bytes)
{
    enum status status = output_write(o, data, bytes);
    if (status == OK) return output_commit(o, NULL);
    output_abort(o);
    return status;
}

enum status file_write(const char *path, const void *data, long bytes)
{
    struct output o;
    TRY(output_open(&o, path));
    return write_and_commit(&o, data, bytes);
}

enum status file_copy(const char *to, const char *from)
{
    struct file_map map;
    TRY(file_map_open(&map, from));
    enum status status = file_write(to, map.data, map.bytes);
    file_map_close(&map);
    return status;
}

// ---- appending ----

enum status file_append_open(int *fd, const char *path)
{
    int opened = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (opened < 0) return fail(ERR_IO, "%s: cannot be opened for writing: %s", path, strerror(errno));
    *fd = opened;
    return OK;
}

enum status file_append(int fd, const char *path, const void *data, long bytes)
{
    return write_all(fd, data, bytes) ? OK : write_failed(path);
}

// ---- placing ----

enum status file_extend(const char *path, long bytes)
{
    if (write_allowed() && truncate(path, bytes) == 0) return OK;
    return write_failed(path);
}

enum status file_place_open(int *fd, const char *path)
{
    *fd = open(path, O_RDWR | O_CLOEXEC);
    return *fd >= 0 ? OK : fail(ERR_IO, "%s: cannot be opened for writing: %s", path, strerror(errno));
}

enum status file_place(int fd, const char *path, const void *data, long bytes, long at)
{
    const char *from = data;
    if (!write_allowed()) return write_failed(path);
    while (bytes > 0) {
        ssize_t done = pwrite(fd, from, (size_t)bytes, at);
        if (done < 0 && errno == EINTR) continue;
        if (done == 0) errno = EIO;
        if (done <= 0) return write_failed(path);
        from += done;
        at += done;
        bytes -= done;
    }
    return OK;
}

enum status file_place_close(int fd, const char *path)
{
    bool durable = write_allowed() && fsync(fd) == 0;
    enum status status = durable ? OK : write_failed(path);
    if (close(fd) != 0 && durable) return write_failed(path);
    return status;
}

// ---- names ----

enum status folder_sync(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return fail(ERR_IO, "%s: cannot be opened: %s", path, strerror(errno));
    // EINVAL: some file systems cannot sync folders, and then there is nothing to do.
    bool done = write_allowed() && (fsync(fd) == 0 || errno == EINVAL);
    enum status status = done ? OK : write_failed(path);
    close(fd);
    return status;
}

enum status path_rename(const char *to, const char *from)
{
    if (write_allowed() && rename(from, to) == 0) return OK;
    return fail(ERR_IO, "%s: cannot be renamed to %s: %s", from, to, strerror(errno));
}

// ---- checksum ----

uint64_t xxh3(const void *data, long bytes)
{
    return XXH3_64bits(data, (size_t)bytes);
}

uint64_t file_map_xxh3(const struct file_map *map, void (*moved)(void))
{
    enum { PIECE = 16 << 20 };
    XXH3_state_t *state = XXH3_createState();
    if (!state) return xxh3(map->data, map->bytes);
    XXH3_64bits_reset(state);
    for (long at = 0, n; at < map->bytes; at += n) {
        n = map->bytes - at < PIECE ? map->bytes - at : PIECE;
        XXH3_64bits_update(state, map->data + at, (size_t)n);
        file_map_forget(map, at, n);
        moved();
    }
    uint64_t hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return hash;
}
