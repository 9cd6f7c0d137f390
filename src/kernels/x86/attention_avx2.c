#include "kernels/x86/simd8.h"

#include "kernels/x86/attention.inc"
