// Everything that writes to a disk, so that one place knows how writes fail (see files.h).
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/decimal.h"
#include "base/files.h"

enum { BUFFER_BYTES = 1 << 20 };

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

static void output_release(struct output *o)
{
    if (o->fd >= 0) close(o->fd);
    free(o->buffer);
    if (o->hash) XXH3_freeState(o->hash);
    o->fd = -1;
    o->buffer = NULL;
    o->hash = NULL;
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
    o->hash = XXH3_createState();
    if (!o->buffer || !o->hash) {
        output_abort(o);
        return fail(ERR_MEMORY, "%s: no memory to write it", path);
    }
    XXH3_64bits_reset(o->hash);
    return OK;
}

static enum status output_flush(struct output *o)
{
    if (o->used == 0) return OK;
    long bytes = o->used;
    o->used = 0;
    return write_all(o->fd, o->buffer, bytes) ? OK : write_failed(o->path);
}

enum status output_write(struct output *o, const void *data, long bytes)
{
    CHECK(o->fd >= 0 && bytes >= 0);
    if (bytes == 0) return OK;
    XXH3_64bits_update(o->hash, data, (size_t)bytes);
    o->written += bytes;
    if (bytes > BUFFER_BYTES - o->used) TRY(output_flush(o));
    if (bytes >= BUFFER_BYTES) return write_all(o->fd, data, bytes) ? OK : write_failed(o->path);
    memcpy(o->buffer + o->used, data, (size_t)bytes);
    o->used += bytes;
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
    TRY(output_flush(o));
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
    if (xxh3) *xxh3 = XXH3_64bits_digest(o->hash);
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
