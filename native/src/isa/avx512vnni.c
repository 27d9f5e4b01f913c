/* AVX-512 with VNNI: x86 servers since 2019, some desktops. */
#if defined(__x86_64__)
#include "target.h"
#include <immintrin.h>

FG_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,sse4.2")
#if !defined(__clang__)
#pragma GCC target("prefer-vector-width=512")
#endif

#define FG_FOR_AVX512VNNI
#define FG_ISA(name) name##_avx512vnni
#include "../kernels.inc.h"
FG_TARGET_END
#else
typedef int fg_no_avx512vnni;
#endif
