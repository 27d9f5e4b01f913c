/* NEON on ARMv8.0 with CRC (Cortex-A53, A72: Raspberry Pi 3 and 4). */
#if defined(__aarch64__)
#include "target.h"
#include <arm_acle.h>
#include <arm_neon.h>

FG_TARGET_BEGIN("+crc")

#define FG_FOR_NEON
#define FG_ISA(name) name##_neon
#include "../kernels.inc.h"
FG_TARGET_END
#else
typedef int fg_no_neon;
#endif
