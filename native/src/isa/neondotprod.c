/* NEON with the dot product of ARMv8.2 (Cortex-A76, A78: Raspberry Pi 5, Jetson Orin). */
#if defined(__aarch64__)
#include "target.h"
#include <arm_acle.h>
#include <arm_neon.h>

FG_TARGET_BEGIN("arch=armv8.2-a+dotprod+crc")

#define FG_FOR_NEONDOTPROD
#define FG_ISA(name) name##_neondotprod
#include "../kernels.inc.h"
FG_TARGET_END
#else
typedef int fg_no_neondotprod;
#endif
