// bfloat16 weights and activations; sums in float, one rounding each.
#define EL uint16_t
#define ACC float
#define EL_DTYPE BF16
#define ACC_DTYPE F32
#define GET(x) bf16_to_float(x)
#define PUT(x) bf16_from_float(x)
#define EXP expf
#define LOG logf
#define SQRT sqrtf
#define LANES 8 // partial sums of a dot product
#define TINY FLT_MIN
#define REF_FILL ref_fill_bf16
#include "kernels/ref/table.inc"
