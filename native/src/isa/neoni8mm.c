/* NEON with the int8 matrix products of ARMv8.6 (Neoverse V1 and N2, Cortex-A510, A710 and later: Jetson Thor, servers). */
#if defined(__aarch64__)
#include "target.h"
#if defined(__clang__)
FG_TARGET_BEGIN("v8.2a,dotprod,i8mm,crc")
#define __ARM_FEATURE_CRC32 1
#define __ARM_FEATURE_DOTPROD 1
#define __ARM_FEATURE_MATMUL_INT8 1
#else
FG_TARGET_BEGIN("arch=armv8.2-a+dotprod+i8mm+crc")
#endif
#include <arm_acle.h>
#include <arm_neon.h>

#define FG_FOR_NEONI8MM
#define FG_ISA(name) name##_neoni8mm
#include "../kernels.inc.h"
FG_TARGET_END
#else
typedef int fg_no_neoni8mm;
#endif
