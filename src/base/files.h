// Files: read-only maps, atomic writes, folders, checksums. Every write of the program goes through struct output, so
// that one place knows how writes fail and tests can make the n-th one fail.
#ifndef SKYMOE_BASE_FILES_H
#define SKYMOE_BASE_FILES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

enum { PATH_LENGTH = 4096 };

// ---- reading ----

// A map has no moment at which a read could return a status. Where its file is cut short or its disk fails later, the
// process ends with one sentence that names the file, and exit code 1 (a SIGBUS handler, src/base/maps.c).
struct file_map {
    const uint8_t *data; // NULL when the file is empty
    long bytes;
    struct mapped_file *file; // what views of it share
};
MUST_USE enum status file_map_open(struct file_map *map, const char *path); // ERR_IO; a folder or device is ERR_IO too
void file_map_close(struct file_map *map);
// For whoever walks through a file larger than memory: bytes that are wanted soon (the disk begins to read them), and
// those that were used (this process' memory lets go of them; the page cache keeps what it likes).
void file_map_expect(const struct file_map *map, long at, long bytes);
void file_map_forget(const struct file_map *map, long at, long bytes);

// Pieces of mapped files as one run of bytes in memory. Whole pages are the files' own, and where two pieces meet
// inside a page that page is a copy: so nothing is read that is not used, and memory is what the page cache has anyway.
// That takes pieces which lie alike within their pages; file_view_fits says whether they do.
struct file_piece {
    const struct file_map *map;
    long at, bytes; // within it
};
struct file_view {
    uint8_t *data; // as far from a page's start as the first piece is in its file
    long bytes;
    struct file_range *range; // behind the pieces
    long ranges;
    void *base;
    long length; // of the whole pages
};
bool file_view_fits(const struct file_piece *piece, long n);
// Outlives the maps. ERR_MEMORY when the system has no room for more maps; ERR_IO.
MUST_USE enum status file_view_open(struct file_view *view, const struct file_piece *piece, long n);
void file_view_close(struct file_view *view);

// Whole file as a NUL-terminated string that the caller frees. ERR_FORMAT when larger than `limit` bytes.
MUST_USE enum status file_read(char **text, long *bytes, const char *path, long limit);

bool path_exists(const char *path);
bool path_is_folder(const char *path);

// dst = folder/name; a result that does not fit in PATH_LENGTH is ERR_IO. dst may be neither argument.
MUST_USE enum status path_join(char dst[PATH_LENGTH], const char *folder, const char *name);

// Entries of a folder except those beginning with '.', sorted by bytes. The caller releases with path_list_free.
struct path_list {
    char **name;
    long n;
};
MUST_USE enum status folder_list(struct path_list *list, const char *folder);
void path_list_free(struct path_list *list);

// ---- writing ----
//
// A file appears under its name whole or not at all: output_open writes to `path.tmp`, output_commit flushes it to the
// disk and renames. After a successful output_open the caller ends with exactly one of output_commit and output_abort
// (which removes the .tmp), also after a failed output_write. One writer per path: a left-over .tmp is replaced.
// Writing goes on behind the caller's back: a failure may show in a later output_write, and shows in output_commit.

struct output {
    int fd;
    char path[PATH_LENGTH];
    char *buffer;
    long used;
    long written; // bytes so far
    struct output_writer *writer; // a thread that hashes and writes what came before
};
MUST_USE enum status output_open(struct output *o, const char *path);
MUST_USE enum status output_write(struct output *o, const void *data, long bytes);
MUST_USE enum status output_print(struct output *o, const char *format, ...) __attribute__((format(printf, 2, 3)));
MUST_USE enum status output_commit(struct output *o, uint64_t *xxh3); // xxh3 may be NULL; aborts by itself on failure
void output_abort(struct output *o);

MUST_USE enum status file_write(const char *path, const void *data, long bytes); // open, write, commit
MUST_USE enum status file_copy(const char *to, const char *from);

// Appends one whole record and flushes it to the kernel (metrics.jsonl, event files): not atomic, but a reader never
// sees a record cut in two except after a crash.
MUST_USE enum status file_append(int fd, const char *path, const void *data, long bytes);
MUST_USE enum status file_append_open(int *fd, const char *path);

// A file that several processes write into, each at its own places. It must exist with its full length (file_extend).
MUST_USE enum status file_extend(const char *path, long bytes);
MUST_USE enum status file_place_open(int *fd, const char *path);
MUST_USE enum status file_place(int fd, const char *path, const void *data, long bytes, long at);
MUST_USE enum status file_place_close(int fd, const char *path); // durable

MUST_USE enum status folder_make(const char *path);   // with parents; an existing folder is fine
MUST_USE enum status folder_sync(const char *path);   // makes renames inside it durable
MUST_USE enum status path_rename(const char *to, const char *from);
MUST_USE enum status folder_remove(const char *path); // recursively; missing is fine; never follows links

long disk_free_bytes(const char *path); // -1 when unknown

// ---- checksums ----

uint64_t xxh3(const void *data, long bytes);
// The same of a whole file, however large: piece by piece, calling `moved` after each, letting go of what was read.
uint64_t file_map_xxh3(const struct file_map *map, void (*moved)(void));
uint32_t crc32c(const void *data, long bytes); // TensorBoard's

// For tests: the n-th write (1-based, counted over all outputs, appends, syncs and renames) and all later ones fail
// with ENOSPC. 0: off.
// Also set by the environment variable SKYMOE_FAIL_WRITE in test builds (-DSKYMOE_TEST_FAULTS).
void files_fail_write(long n);
long files_write_count(void);

#endif
