// float: the reference dtype of training.
#define EL float
#define ACC float
#define EL_DTYPE F32
#define ACC_DTYPE F32
#define GET(x) (x)
#define PUT(x) (x)
#define EXP expf
#define LOG logf
#define SQRT sqrtf
#define LANES 8 // partial sums of a dot product
#define TINY FLT_MIN
#define REF_FILL ref_fill_f32
#include "kernels/ref/table.inc"
