#include <stdlib.h>

#include "kernels/x86/gemm.h"

// Kept between calls: fresh pages cost more than many a product.
void *x86_scratch(long bytes)
{
    static __thread struct {
        void *data;
        long bytes;
    } own;
    if (own.bytes < bytes) {
        long rounded = (bytes + 4095) / 4096 * 4096;
        free(own.data);
        own.data = aligned_alloc(64, (size_t)rounded);
        if (!own.data) memory_refused("a kernel", rounded);
        own.bytes = rounded;
    }
    return own.data;
}
