#include "kernels/x86/simd16.h"

#include "kernels/x86/attention.inc"
