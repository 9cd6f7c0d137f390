#define _GNU_SOURCE
#include "faults.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static struct faults *faults;
static _Thread_local int inside; // this file's own requests, and those made by a request that was counted already

// ---- who asks ----

// Code of libraries that end the process when memory is refused cannot be helped: their requests are granted. So are
// SentencePiece's in threads of its own, which its exceptions would leave.
enum owner { OWNER_LIBRARY, OWNER_PROGRAM, OWNER_THROWS, OWNER_GRANTED, OWNER_ENDS };
static struct {
    uintptr_t from, to;
    enum owner owner;
} segments[256];
static int segments_n;

static int add_segments(struct dl_phdr_info *info, size_t size, void *context)
{
    (void)size;
    (void)context;
    static const char *const granted[] = {"libgomp", "ld-linux", "libOpenCL", "libasan", "libubsan"};
    enum owner owner = *info->dlpi_name ? OWNER_LIBRARY : OWNER_PROGRAM;
    for (size_t i = 0; i < sizeof granted / sizeof *granted; i++)
        if (strstr(info->dlpi_name, granted[i])) owner = OWNER_GRANTED;
    if (strstr(info->dlpi_name, "libdnnl")) owner = OWNER_ENDS;
    if (strstr(info->dlpi_name, "libcjson")) owner = OWNER_PROGRAM;
    if (strstr(info->dlpi_name, "libsentencepiece")) owner = OWNER_THROWS;
    for (int i = 0; i < info->dlpi_phnum && segments_n < 256; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type != PT_LOAD || !(p->p_flags & PF_X)) continue;
        segments[segments_n].from = info->dlpi_addr + p->p_vaddr;
        segments[segments_n].to = info->dlpi_addr + p->p_vaddr + p->p_memsz;
        segments[segments_n++].owner = owner;
    }
    return 0;
}

static enum owner owner_of(const void *address)
{
    for (int i = 0; i < segments_n; i++)
        if ((uintptr_t)address >= segments[i].from && (uintptr_t)address < segments[i].to) return segments[i].owner;
    return OWNER_LIBRARY;
}

// The messages that SentencePiece is made of destroy, when an exception passes, what they had not made yet.
static bool unprepared(const void *address)
{
    Dl_info info;
    return dladdr(address, &info) && info.dli_sname && strstr(info.dli_sname, "protobuf");
}

// The C library and C++'s ask for whoever called them; the code of a C++ template may lie in any library that uses it.
static enum owner owner_of_stack(void *const *frame, int n)
{
    enum owner first = OWNER_LIBRARY;
    bool first_thread = gettid() == getpid();
    for (int i = 0; i < n; i++) {
        enum owner owner = owner_of(frame[i]);
        if (owner == OWNER_THROWS) owner = first_thread ? OWNER_PROGRAM : OWNER_ENDS;
        if (owner == OWNER_ENDS || unprepared(frame[i])) return OWNER_GRANTED;
        if (first == OWNER_LIBRARY) first = owner;
    }
    return first == OWNER_PROGRAM ? OWNER_PROGRAM : OWNER_GRANTED;
}

enum { OWN_FRAMES = 6 }; // room for what lies between backtrace and the caller

static void record(struct faults *f, long number, void *const *frame, int n)
{
    static uint64_t seen[2 * FAULT_PLACES];
    static long places_seen;
    uint64_t hash = 1;
    for (int i = 0; i < n && i < 10; i++) hash = (hash ^ (uintptr_t)frame[i]) * 0x9E3779B97F4A7C15u;
    for (uint64_t i = hash >> 32;; i++) {
        uint64_t *slot = &seen[i % (2 * FAULT_PLACES)];
        if (*slot == hash) return;
        if (*slot) continue;
        if (places_seen++ == FAULT_PLACES || f->places == FAULT_PLACES) return;
        *slot = hash;
        if (owner_of_stack(frame, n) != OWNER_GRANTED) f->place[f->places++] = number;
        return;
    }
}

static bool consider(struct faults *f, long number, const char *name, const void *caller)
{
    void *room[FAULT_FRAMES + OWN_FRAMES], **frame = room;
    int n = backtrace(room, FAULT_FRAMES + OWN_FRAMES);
    for (; n > 0 && *frame != caller; n--) frame++;
    if (n > FAULT_FRAMES) n = FAULT_FRAMES;
    if (n < 1) return false;
    if (f->mode == FAULTS_RECORD) record(f, number, frame, n);
    if (f->mode == FAULTS_RECORD || owner_of_stack(frame, n) == OWNER_GRANTED) return false;
    if (!f->refused) {
        f->refused = true;
        f->name = name;
        f->frames = n;
        memcpy(f->frame, frame, (size_t)n * sizeof *frame);
    }
    return true;
}

static bool refused_to(const char *name, const void *caller)
{
    struct faults *f = faults;
    if (!f || inside || f->mode == FAULTS_OFF) return false;
    long number = __atomic_add_fetch(&f->requests, 1, __ATOMIC_RELAXED);
    // What is full or short of memory can still remove things.
    bool once = f->mode == FAULTS_ONCE || strstr(name, "unlink") || strcmp(name, "rmdir") == 0;
    if (f->mode != FAULTS_RECORD && (once ? number != f->refuse : number < f->refuse)) return false;
    inside++;
    bool answer = consider(f, number, name, caller);
    inside--;
    return answer;
}

#define refused(name) refused_to(name, __builtin_return_address(0)) // in a function that stands for a call

void faults_use(struct faults *f)
{
    void *frame[4];
    inside++;
    if (segments_n == 0) {
        backtrace(frame, 4); // loads the unwinder now
        dl_iterate_phdr(add_segments, NULL);
    }
    inside--;
    faults = f;
}

void faults_print(const struct faults *f)
{
    dprintf(STDERR_FILENO, "request %ld, %s, was refused to:\n", f->refuse, f->name);
    backtrace_symbols_fd(f->frame, f->frames < 12 ? f->frames : 12, STDERR_FILENO);
}

// ---- memory ----

// Whose functions stand behind: AddressSanitizer's where it is linked in, the C library's elsewhere.
#define WEAK __attribute__((weak))
extern void *__interceptor_malloc(size_t n) WEAK, *__libc_malloc(size_t n);
extern void *__interceptor_calloc(size_t n, size_t size) WEAK, *__libc_calloc(size_t n, size_t size);
extern void *__interceptor_realloc(void *old, size_t n) WEAK, *__libc_realloc(void *old, size_t n);
extern void *__interceptor_memalign(size_t align, size_t n) WEAK, *__libc_memalign(size_t align, size_t n);

static void *no_memory(void)
{
    errno = ENOMEM;
    return NULL;
}

void *malloc(size_t n)
{
    if (refused("malloc")) return no_memory();
    return __interceptor_malloc ? __interceptor_malloc(n) : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    if (refused("calloc")) return no_memory();
    return __interceptor_calloc ? __interceptor_calloc(n, size) : __libc_calloc(n, size);
}

void *realloc(void *old, size_t n)
{
    if (refused("realloc")) return no_memory();
    return __interceptor_realloc ? __interceptor_realloc(old, n) : __libc_realloc(old, n);
}

void *aligned_alloc(size_t align, size_t n)
{
    if (refused("aligned_alloc")) return no_memory();
    return __interceptor_memalign ? __interceptor_memalign(align, n) : __libc_memalign(align, n);
}

char *strdup(const char *text)
{
    size_t n = strlen(text) + 1;
    if (refused("strdup")) return no_memory();
    inside++;
    char *copy = malloc(n);
    inside--;
    return copy ? memcpy(copy, text, n) : NULL;
}

// operator new in its four forms, under their names in object files.
typedef void *new_function(size_t n);
typedef void *new_nothrow_function(size_t n, const void *tag);
extern void throw_bad_alloc(void) __asm__("_ZSt17__throw_bad_allocv") __attribute__((noreturn));
new_function new_one __asm__("_Znwm"), new_array __asm__("_Znam");
new_nothrow_function new_one_nothrow __asm__("_ZnwmRKSt9nothrow_t"), new_array_nothrow __asm__("_ZnamRKSt9nothrow_t");

static void *allocate(size_t n, const char *symbol, void **next)
{
    inside++;
    if (!*next) *next = dlsym(RTLD_NEXT, symbol);
    void *p = ((new_function *)(uintptr_t)*next)(n);
    inside--;
    return p;
}

void *new_one(size_t n)
{
    static void *next;
    if (refused("operator new")) throw_bad_alloc();
    return allocate(n, "_Znwm", &next);
}

void *new_array(size_t n)
{
    static void *next;
    if (refused("operator new[]")) throw_bad_alloc();
    return allocate(n, "_Znam", &next);
}

void *new_one_nothrow(size_t n, const void *tag)
{
    static void *next;
    (void)tag;
    return refused("operator new, nothrow") ? NULL : allocate(n, "_Znwm", &next);
}

void *new_array_nothrow(size_t n, const void *tag)
{
    static void *next;
    (void)tag;
    return refused("operator new[], nothrow") ? NULL : allocate(n, "_Znam", &next);
}

// ---- files: --wrap=CALL sends the program's calls to __wrap_CALL ----

#define REFUSE(call, code, result)                                                                                     \
    if (refused(call)) {                                                                                               \
        errno = code;                                                                                                  \
        return result;                                                                                                 \
    }

int __real_open(const char *path, int flags, ...), __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    REFUSE("open", EMFILE, -1)
    return __real_open(path, flags, mode);
}

int __real_openat(int at, const char *path, int flags, ...), __wrap_openat(int at, const char *path, int flags, ...);
int __wrap_openat(int at, const char *path, int flags, ...)
{
    REFUSE("openat", EMFILE, -1)
    return __real_openat(at, path, flags);
}

int __real_fstat(int fd, struct stat *info), __wrap_fstat(int fd, struct stat *info);
int __wrap_fstat(int fd, struct stat *info)
{
    REFUSE("fstat", EIO, -1)
    return __real_fstat(fd, info);
}

ssize_t __real_read(int fd, void *to, size_t n), __wrap_read(int fd, void *to, size_t n);
ssize_t __wrap_read(int fd, void *to, size_t n)
{
    REFUSE("read", EIO, -1)
    return __real_read(fd, to, n);
}

ssize_t __real_write(int fd, const void *from, size_t n), __wrap_write(int fd, const void *from, size_t n);
ssize_t __wrap_write(int fd, const void *from, size_t n)
{
    REFUSE("write", ENOSPC, -1)
    return __real_write(fd, from, n > 1 ? n / 2 + 1 : n); // a write may always do less than it was asked
}

void *__real_mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset)
{
    REFUSE("mmap", ENOMEM, MAP_FAILED)
    return __real_mmap(at, n, protection, flags, fd, offset);
}

int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    (void)fd; // nothing has to outlive the machine here, and waiting for a disk takes long
    REFUSE("fsync", EIO, -1)
    return 0;
}

int __real_close(int fd), __wrap_close(int fd);
int __wrap_close(int fd)
{
    int result = __real_close(fd); // a close that fails closes all the same
    REFUSE("close", EIO, -1)
    return result;
}

int __real_rename(const char *from, const char *to), __wrap_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to)
{
    REFUSE("rename", EIO, -1)
    return __real_rename(from, to);
}

int __real_mkdir(const char *path, mode_t mode), __wrap_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode)
{
    REFUSE("mkdir", EROFS, -1)
    return __real_mkdir(path, mode);
}

int __real_rmdir(const char *path), __wrap_rmdir(const char *path);
int __wrap_rmdir(const char *path)
{
    REFUSE("rmdir", EIO, -1)
    return __real_rmdir(path);
}

int __real_unlink(const char *path), __wrap_unlink(const char *path);
int __wrap_unlink(const char *path)
{
    REFUSE("unlink", EIO, -1)
    return __real_unlink(path);
}

int __real_unlinkat(int at, const char *path, int flags), __wrap_unlinkat(int at, const char *path, int flags);
int __wrap_unlinkat(int at, const char *path, int flags)
{
    REFUSE("unlinkat", EIO, -1)
    return __real_unlinkat(at, path, flags);
}

DIR *__real_opendir(const char *path), *__wrap_opendir(const char *path);
DIR *__wrap_opendir(const char *path)
{
    REFUSE("opendir", EMFILE, NULL)
    return __real_opendir(path);
}

DIR *__real_fdopendir(int fd), *__wrap_fdopendir(int fd);
DIR *__wrap_fdopendir(int fd)
{
    REFUSE("fdopendir", ENOMEM, NULL)
    return __real_fdopendir(fd);
}

struct dirent *__real_readdir(DIR *folder), *__wrap_readdir(DIR *folder);
struct dirent *__wrap_readdir(DIR *folder)
{
    REFUSE("readdir", EIO, NULL)
    return __real_readdir(folder);
}

FILE *__real_fopen(const char *path, const char *mode), *__wrap_fopen(const char *path, const char *mode);
FILE *__wrap_fopen(const char *path, const char *mode)
{
    REFUSE("fopen", EMFILE, NULL)
    return __real_fopen(path, mode);
}

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*start)(void *), void *context);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*start)(void *), void *context);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*start)(void *), void *context)
{
    if (refused("pthread_create")) return EAGAIN;
    return __real_pthread_create(thread, how, start, context);
}
