/* NEON: on ARMv8.0 with CRC (Cortex-A53, A72: Raspberry Pi 3 and 4), and on ARMv7 (Cortex-A7, A9, A15: Raspberry Pi 2, 32-bit systems).
 *
 * ARMv7's NEON flushes subnormals and has no division; compilers leave float arithmetic there to VFP, so what it speeds up is integers.
 */
#include "target.h"

#if defined(__aarch64__)
#if defined(__clang__)
FG_TARGET_BEGIN("crc")
#define __ARM_FEATURE_CRC32 1
#else
FG_TARGET_BEGIN("+crc")
#endif
#include <arm_acle.h>
#elif defined(FG_ARMV7_NEON)
#if defined(__clang__)
FG_TARGET_BEGIN("neon")
#else
FG_TARGET_BEGIN("fpu=neon")
#endif
#endif

#if defined(__aarch64__) || defined(FG_ARMV7_NEON)
#include <arm_neon.h>

#if defined(FG_ARMV7_NEON) /* it adds neighbours in half registers only */
static inline int32x4_t vpaddq_s32(int32x4_t a, int32x4_t b) {
  return vcombine_s32(vpadd_s32(vget_low_s32(a), vget_high_s32(a)), vpadd_s32(vget_low_s32(b), vget_high_s32(b)));
}
#endif

#define FG_FOR_NEON
#define FG_ISA(name) name##_neon
#include "../kernels.inc.h"
FG_TARGET_END
#else
typedef int fg_no_neon;
#endif
