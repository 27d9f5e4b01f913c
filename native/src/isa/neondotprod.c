/* NEON with the dot product of ARMv8.2 (Cortex-A76, A78: Raspberry Pi 5, Jetson Orin). */
#if defined(__aarch64__)
#include "target.h"
#if defined(__clang__)
FG_TARGET_BEGIN("v8.2a,dotprod,crc")
#define __ARM_FEATURE_CRC32 1
#define __ARM_FEATURE_DOTPROD 1
#else
FG_TARGET_BEGIN("arch=armv8.2-a+dotprod+crc")
#endif
#include <arm_acle.h>
#include <arm_neon.h>

#define FG_FOR_NEONDOTPROD
#define FG_ISA(name) name##_neondotprod
#include "../kernels.inc.h"
FG_TARGET_END
#else
typedef int fg_no_neondotprod;
#endif
