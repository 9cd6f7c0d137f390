#include "base/arena.h"

#include <stddef.h>
#include <sys/mman.h>

struct arena arena_measure(const char *name, enum device device)
{
    return (struct arena){.name = name, .device = device};
}

enum status arena_reserve(struct arena *a)
{
    CHECK(!a->base);
    long bytes = a->peak > a->used ? a->peak : a->used;
    a->used = a->peak = 0;
    a->capacity = bytes;
    if (bytes == 0) return OK;
    void *block = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) {
        a->used = a->peak = bytes;
        a->capacity = 0;
        return fail(ERR_MEMORY, "memory: %.2f GiB for %s were refused (use a smaller model, batch or sequence)",
                    (double)bytes / (1L << 30), a->name);
    }
    madvise(block, (size_t)bytes, MADV_HUGEPAGE); // advice only
    a->base = block;
    return OK;
}

void *arena_take(struct arena *a, long count, long size)
{
    long bytes = 0;
    CHECK(count >= 0 && size >= 0 && !__builtin_mul_overflow(count, size, &bytes));
    CHECK(bytes <= __LONG_MAX__ - ARENA_ALIGN - a->used);
    long start = a->used;
    a->used += (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    if (a->used > a->peak) a->peak = a->used;
    if (!a->base) return NULL;
    CHECK(a->used <= a->capacity);
    return bytes ? a->base + start : NULL;
}

void arena_rewind(struct arena *a, long mark)
{
    CHECK(mark >= 0 && mark <= a->used);
    a->used = mark;
}

void arena_release(struct arena *a)
{
    if (a->base) munmap(a->base, (size_t)a->capacity);
    *a = (struct arena){.name = a->name, .device = a->device};
}
