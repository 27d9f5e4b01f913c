/* Switches the rest of a file to an instruction set, for gcc and for clang.
 *
 * gcc's headers of intrinsics may be included anywhere. clang's declare only what the whole file's target has; so on ARM they are included
 * after FG_TARGET_BEGIN with the macros defined that they ask for, and what they declare gets the target as well.
 */
#ifndef FG_TARGET_H
#define FG_TARGET_H

/* ARMv7 that may get NEON at run time. clang has no target attribute for it: the whole file has it, or none. */
#if defined(__arm__) && defined(__ARM_PCS_VFP) && (defined(__ARM_NEON) || (!defined(__clang__) && __ARM_ARCH >= 7))
#define FG_ARMV7_NEON
#endif

#define FG_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define FG_TARGET_BEGIN(features) FG_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define FG_TARGET_END _Pragma("clang attribute pop")
#else
#define FG_TARGET_BEGIN(features) FG_PRAGMA(GCC push_options) FG_PRAGMA(GCC target(features))
#define FG_TARGET_END FG_PRAGMA(GCC pop_options)
#endif

#endif
