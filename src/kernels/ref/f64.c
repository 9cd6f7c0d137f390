// double: for gradients checked by differences.
#define EL double
#define ACC double
#define EL_DTYPE F64
#define ACC_DTYPE F64
#define GET(x) (x)
#define PUT(x) (x)
#define EXP exp
#define LOG log
#define SQRT sqrt
#define LANES 4 // partial sums of a dot product
#define TINY DBL_MIN
#define REF_FILL ref_fill_f64
#include "kernels/ref/table.inc"
