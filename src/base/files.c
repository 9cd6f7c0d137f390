#include "base/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

// ---- reading ----

// Reads to the end, so pipes work too. *text is freed by the caller whatever the status.
static enum status read_descriptor(char **text, long *bytes, const char *path, long limit, int fd)
{
    struct stat info;
    if (fstat(fd, &info) != 0) return fail(ERR_IO, "%s: cannot be read: %s", path, strerror(errno));
    if (S_ISDIR(info.st_mode)) return fail(ERR_IO, "%s: is a folder, expected a file", path);
    if (S_ISREG(info.st_mode) && info.st_size > limit)
        return fail(ERR_FORMAT, "%s: has %ld bytes, more than the %ld allowed here", path, (long)info.st_size, limit);
    long room = S_ISREG(info.st_mode) ? info.st_size : 0;
    if (room < 4096) room = 4096;
    long used = 0;
    for (;;) {
        char *grown = realloc(*text, (size_t)room + 1);
        if (!grown) return fail(ERR_MEMORY, "%s: no memory to read it", path);
        *text = grown;
        ssize_t got = 1;
        while (used < room) {
            got = read(fd, *text + used, (size_t)(room - used));
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) break;
            used += got;
        }
        if (got < 0) return fail(ERR_IO, "%s: cannot be read: %s", path, strerror(errno));
        if (used > limit) return fail(ERR_FORMAT, "%s: has more than the %ld bytes allowed here", path, limit);
        if (got == 0) break;
        room += room / 2;
    }
    (*text)[used] = '\0';
    *bytes = used;
    return OK;
}

enum status file_read(char **text, long *bytes, const char *path, long limit)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail(ERR_IO, "%s: cannot be opened: %s", path, strerror(errno));
    char *data = NULL;
    enum status status = read_descriptor(&data, bytes, path, limit, fd);
    close(fd);
    if (status == OK) *text = data;
    else free(data);
    return status;
}

bool path_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

bool path_is_folder(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

enum status path_join(char dst[PATH_LENGTH], const char *folder, const char *name)
{
    long length = (long)strlen(folder);
    const char *slash = length > 0 && folder[length - 1] != '/' ? "/" : "";
    if (snprintf(dst, PATH_LENGTH, "%s%s%s", folder, slash, name) >= PATH_LENGTH)
        return fail(ERR_IO, "%.200s...: the path is longer than %d bytes (use a shorter one)", folder, PATH_LENGTH - 1);
    return OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static enum status list_entries(struct path_list *list, const char *folder, DIR *entries)
{
    long room = 0;
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(entries);
        if (!entry && errno) return fail(ERR_IO, "%s: cannot be listed: %s", folder, strerror(errno));
        if (!entry) break;
        if (entry->d_name[0] == '.') continue;
        if (list->n == room) {
            room = room ? 2 * room : 64;
            char **grown = realloc(list->name, (size_t)room * sizeof *grown);
            if (!grown) return fail(ERR_MEMORY, "%s: no memory to list it", folder);
            list->name = grown;
        }
        list->name[list->n] = strdup(entry->d_name);
        if (!list->name[list->n]) return fail(ERR_MEMORY, "%s: no memory to list it", folder);
        list->n++;
    }
    if (list->n) qsort(list->name, (size_t)list->n, sizeof *list->name, compare_names);
    return OK;
}

enum status folder_list(struct path_list *list, const char *folder)
{
    DIR *entries = opendir(folder);
    if (!entries) return fail(ERR_IO, "%s: cannot be listed: %s", folder, strerror(errno));
    struct path_list result = {0};
    enum status status = list_entries(&result, folder, entries);
    closedir(entries);
    if (status == OK) *list = result;
    else path_list_free(&result);
    return status;
}

void path_list_free(struct path_list *list)
{
    for (long i = 0; i < list->n; i++) free(list->name[i]);
    free(list->name);
    *list = (struct path_list){0};
}

// ---- folders ----

enum status folder_make(const char *path)
{
    char part[PATH_LENGTH];
    long length = (long)strlen(path);
    if (length == 0) return fail(ERR_IO, "folder name: is empty (name a folder)");
    if (length >= PATH_LENGTH)
        return fail(ERR_IO, "%.200s...: the path is longer than %d bytes (use a shorter one)", path, PATH_LENGTH - 1);
    for (long end = 1; end <= length; end++) {
        if (end < length && path[end] != '/') continue;
        if (path[end - 1] == '/') continue;
        memcpy(part, path, (size_t)end);
        part[end] = '\0';
        if (mkdir(part, 0777) == 0 || path_is_folder(part)) continue;
        if (errno == EEXIST) return fail(ERR_IO, "%s: exists and is not a folder (choose another name)", part);
        return fail(ERR_IO, "%s: the folder cannot be made: %s", part, strerror(errno));
    }
    return OK;
}

// Takes ownership of fd. `path` is only for messages.
static enum status remove_entries(int fd, const char *path, int depth)
{
    DIR *entries = fdopendir(fd);
    if (!entries) {
        close(fd);
        return fail(ERR_IO, "%s: cannot be removed: %s", path, strerror(errno));
    }
    enum status status = OK;
    struct dirent *entry;
    while (status == OK && (errno = 0, entry = readdir(entries))) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
        if (unlinkat(fd, name, 0) == 0 || errno == ENOENT) continue;
        int inner = errno == EISDIR && depth > 0
                        ? openat(fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
        if (inner >= 0) status = remove_entries(inner, path, depth - 1);
        if (status == OK && (inner < 0 || unlinkat(fd, name, AT_REMOVEDIR) != 0))
            status = fail(ERR_IO, "%s: %s in it cannot be removed: %s", path, name, strerror(errno));
    }
    if (status == OK && errno) status = fail(ERR_IO, "%s: cannot be listed: %s", path, strerror(errno));
    closedir(entries);
    return status;
}

enum status folder_remove(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) return OK;
    if (fd < 0) return fail(ERR_IO, "%s: cannot be removed as a folder: %s", path, strerror(errno));
    TRY(remove_entries(fd, path, 100));
    if (rmdir(path) != 0) return fail(ERR_IO, "%s: cannot be removed: %s", path, strerror(errno));
    return OK;
}

long disk_free_bytes(const char *path)
{
    struct statvfs info;
    long bytes;
    if (statvfs(path, &info) != 0) return -1;
    if (__builtin_mul_overflow(info.f_bavail, info.f_frsize, &bytes)) return -1;
    return bytes;
}

// ---- checksum ----

uint32_t crc32c(const void *data, long bytes)
{
    static const uint32_t nibble[16] = { // reflected polynomial 0x82F63B78, four bits at a time
        0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
        0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
    };
    const uint8_t *byte = data;
    uint32_t crc = 0xFFFFFFFFu;
    for (long i = 0; i < bytes; i++) {
        crc = crc >> 4 ^ nibble[(crc ^ byte[i]) & 15];
        crc = crc >> 4 ^ nibble[(crc ^ byte[i] >> 4) & 15];
    }
    return ~crc;
}
