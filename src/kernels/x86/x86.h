// What each instruction set adds to a kernel table.
#ifndef SKYMOE_KERNELS_X86_X86_H
#define SKYMOE_KERNELS_X86_X86_H

#include "kernels/kernels_fill.h"

typedef void x86_part(struct kernels *k, enum dtype type);
x86_part fill_products_avx2, fill_products_avx512, fill_products_avx512bf16;
x86_part fill_rows_avx2, fill_rows_avx512;
x86_part fill_attention_avx2, fill_attention_avx512, fill_attention_avx512bf16;
x86_part fill_paged_avx512bf16;

#endif
