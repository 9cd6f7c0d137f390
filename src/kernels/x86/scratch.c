#include <pthread.h>
#include <stdlib.h>

#include "kernels/x86/gemm.h"

static long held; // by all threads together
static pthread_key_t kept; // frees a thread's memory when it ends: OpenMP's do when fewer are wanted

static void make_key(void)
{
    CHECK(pthread_key_create(&kept, free) == 0);
}

// Kept between calls: fresh pages cost more than many a product.
void *x86_scratch(long bytes)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static __thread struct {
        void *data;
        long bytes;
    } own;
    if (own.bytes < bytes) {
        long rounded = (bytes + 4095) / 4096 * 4096;
        pthread_once(&once, make_key);
        free(own.data);
        own.data = aligned_alloc(64, (size_t)rounded);
        if (!own.data) memory_refused("a kernel", rounded);
        pthread_setspecific(kept, own.data);
        __atomic_add_fetch(&held, rounded - own.bytes, __ATOMIC_RELAXED);
        own.bytes = rounded;
    }
    return own.data;
}

long x86_scratch_bytes(void)
{
    return __atomic_load_n(&held, __ATOMIC_RELAXED);
}
