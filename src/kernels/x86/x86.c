// Kernels with AVX2 and AVX-512, each level in files of their own that are compiled with its flags (see the Makefile);
// this file is not, so it may run anywhere.
#include "kernels/kernels_fill.h"

void x86_fill(struct kernels *k, enum dtype el, enum kernel_level level)
{
    (void)k;
    (void)el;
    (void)level;
}
