/* Switches the rest of a file to an instruction set, for gcc and for clang. Headers of intrinsics are included before. */
#ifndef FG_TARGET_H
#define FG_TARGET_H

#define FG_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define FG_TARGET_BEGIN(features) FG_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define FG_TARGET_END _Pragma("clang attribute pop")
#else
#define FG_TARGET_BEGIN(features) FG_PRAGMA(GCC push_options) FG_PRAGMA(GCC target(features))
#define FG_TARGET_END FG_PRAGMA(GCC pop_options)
#endif

#endif
