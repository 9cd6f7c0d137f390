// Files in memory: maps, views put together from pieces of them, and what happens when such memory cannot be read.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"

// Memory that is a file's. All of them are listed, so that a failed access can be told from a bug.
struct file_range {
    const char *start, *end;
    struct mapped_file *file;
    struct file_range *next;
};

// An open file. Its map and its views share it; the last of them closes it.
struct mapped_file {
    int fd;
    long users;
    struct file_range whole; // of its map
    char path[];
};

// ---- memory that cannot be read ----

static struct file_range *ranges; // the handler walks it; it is whole after each step of a change
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; // of changes to it and to the files' users

static void on_sigbus(int signal_number, siginfo_t *info, void *context)
{
    (void)context;
    const char *at = info->si_addr;
    for (struct file_range *r = __atomic_load_n(&ranges, __ATOMIC_ACQUIRE); r; r = r->next)
        if (at >= r->start && at < r->end)
            log_last_words(r->file->path, "cannot be read any more: it was cut short or its disk failed (files in use "
                                          "have to stay as they are)");
    signal(signal_number, SIG_DFL); // a bug or another's signal: it ends the process as if this handler were not there
    raise(signal_number);
}

// Each time, for others (test frameworks) may have put theirs in its place.
static void install_handler(void)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
}

static void range_add(struct file_range *r, struct mapped_file *file, const void *start, long bytes)
{
    install_handler();
    pthread_mutex_lock(&lock);
    file->users++;
    *r = (struct file_range){.start = start, .end = (const char *)start + bytes, .file = file, .next = ranges};
    __atomic_store_n(&ranges, r, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&lock);
}

static void range_remove(struct file_range *r)
{
    struct mapped_file *file = r->file;
    pthread_mutex_lock(&lock);
    struct file_range **at = &ranges;
    while (*at != r) at = &(*at)->next;
    __atomic_store_n(at, r->next, __ATOMIC_RELEASE);
    bool last = --file->users == 0;
    pthread_mutex_unlock(&lock);
    if (!last) return;
    close(file->fd);
    free(file);
}

// ---- whole files ----

static enum status map_descriptor(struct file_map *map, const char *path, int fd)
{
    struct stat info;
    if (fstat(fd, &info) != 0) return fail(ERR_IO, "%s: cannot be read: %s", path, strerror(errno));
    if (S_ISDIR(info.st_mode)) return fail(ERR_IO, "%s: is a folder, expected a file", path);
    if (!S_ISREG(info.st_mode)) return fail(ERR_IO, "%s: is not a regular file (copy it into one first)", path);
    struct file_map result = {.bytes = info.st_size};
    if (info.st_size > 0) {
        result.file = calloc(1, sizeof *result.file + strlen(path) + 1);
        if (!result.file) return fail(ERR_MEMORY, "%s: no memory to map it", path);
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            free(result.file);
            return fail(ERR_IO, "%s: cannot be mapped: %s", path, strerror(errno));
        }
        result.data = data;
        result.file->fd = fd;
        memcpy(result.file->path, path, strlen(path) + 1);
        range_add(&result.file->whole, result.file, data, info.st_size);
    }
    *map = result;
    return OK;
}

enum status file_map_open(struct file_map *map, const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // O_NONBLOCK: a FIFO must not hang us
    if (fd < 0) return fail(ERR_IO, "%s: cannot be opened: %s", path, strerror(errno));
    enum status status = map_descriptor(map, path, fd);
    if (status != OK || !map->file) close(fd);
    return status;
}

void file_map_close(struct file_map *map)
{
    if (map->file) {
        munmap((void *)(uintptr_t)map->data, (size_t)map->bytes);
        range_remove(&map->file->whole);
    }
    *map = (struct file_map){0};
}

static long page_size(void)
{
    return sysconf(_SC_PAGESIZE);
}

static void advise(const struct file_map *map, long from, long to, int advice)
{
    if (from < to) madvise((void *)(uintptr_t)(map->data + from), (size_t)(to - from), advice); // only a hint
}

void file_map_expect(const struct file_map *map, long at, long bytes)
{
    advise(map, at / page_size() * page_size(), at + bytes, MADV_WILLNEED);
}

void file_map_forget(const struct file_map *map, long at, long bytes)
{
    long page = page_size();
    advise(map, (at + page - 1) / page * page, (at + bytes) / page * page, MADV_DONTNEED);
}

// ---- views ----

// The pieces from `first` on that follow each other in one file too: returns their number and their bytes.
static long run_of(long *bytes, const struct file_piece *piece, long n, long first)
{
    long i = first + 1;
    *bytes = piece[first].bytes;
    while (i < n && piece[i].map->file == piece[first].map->file && piece[i].at == piece[first].at + *bytes)
        *bytes += piece[i++].bytes;
    return i - first;
}

bool file_view_fits(const struct file_piece *piece, long n)
{
    long page = page_size(), at = n ? piece[0].at : 0;
    for (long i = 0; i < n; i++) {
        if ((piece[i].at - at) % page != 0) return false;
        at += piece[i].bytes;
    }
    return true;
}

static enum status map_refused(const struct file_piece *p)
{
    if (errno == ENOMEM)
        return fail(ERR_MEMORY, "%s: the system allows no more maps (see vm.max_map_count)", p->map->file->path);
    return fail(ERR_IO, "%s: cannot be mapped: %s", p->map->file->path, strerror(errno));
}

// One run of pieces to bytes [from, from + bytes) of the view's pages; `from` lies in its page as the piece does in its
// file's. Pages that hold bytes of other runs too are copies.
static enum status place_run(struct file_view *v, const struct file_piece *p, long from, long bytes, bool first,
                             bool last)
{
    long page = page_size(), to = from + bytes, low = from / page * page, high = (to + page - 1) / page * page;
    const uint8_t *source = p->map->data + p->at;
    char *base = v->base;
    if (!first && low < from) low += page;
    if (!last && high > to) high -= page;
    if (low < high) {
        void *data = mmap(base + low, (size_t)(high - low), PROT_READ, MAP_PRIVATE | MAP_FIXED, p->map->file->fd,
                          p->at - (from - low));
        if (data == MAP_FAILED) return map_refused(p);
        range_add(&v->range[v->ranges++], p->map->file, data, high - low);
    }
    long seam[2][2] = {{from, to < low ? to : low}, {from > high ? from : high, to}};
    if (low >= high) seam[1][0] = to; // no page of its own: all of it is copied at once
    if (low >= high) seam[0][1] = to;
    for (int i = 0; i < 2; i++) {
        long a = seam[i][0], b = seam[i][1], start = a / page * page;
        if (a >= b) continue;
        if (mprotect(base + start, (size_t)((b + page - 1) / page * page - start), PROT_READ | PROT_WRITE) != 0)
            return map_refused(p);
        memcpy(base + a, source + (a - from), (size_t)(b - a));
    }
    return OK;
}

static enum status place_all(struct file_view *v, const struct file_piece *piece, long n)
{
    long from = piece[0].at % page_size(), bytes;
    for (long i = 0, many; i < n; i += many, from += bytes) {
        many = run_of(&bytes, piece, n, i);
        TRY(place_run(v, &piece[i], from, bytes, i == 0, i + many == n));
    }
    return OK;
}

enum status file_view_open(struct file_view *view, const struct file_piece *piece, long n)
{
    long page = page_size();
    CHECK(n > 0 && file_view_fits(piece, n));
    struct file_view v = {.length = piece[0].at % page};
    for (long i = 0; i < n; i++) v.bytes += piece[i].bytes;
    CHECK(v.bytes > 0);
    v.length = (v.length + v.bytes + page - 1) / page * page;
    v.range = calloc((size_t)n, sizeof *v.range);
    if (!v.range) return fail(ERR_MEMORY, "%s: no memory to map it", piece[0].map->file->path);
    v.base = mmap(NULL, (size_t)v.length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (v.base == MAP_FAILED) {
        free(v.range);
        return map_refused(&piece[0]);
    }
    v.data = (uint8_t *)v.base + piece[0].at % page;
    enum status status = place_all(&v, piece, n);
    if (status == OK) *view = v;
    else file_view_close(&v);
    return status;
}

void file_view_close(struct file_view *view)
{
    if (view->base) munmap(view->base, (size_t)view->length);
    for (long i = 0; i < view->ranges; i++) range_remove(&view->range[i]);
    free(view->range);
    *view = (struct file_view){0};
}
