/* AVX2 and SSE4.2: x86 machines since about 2013. */
#if defined(__x86_64__)
#include "target.h"
#include <immintrin.h>

FG_TARGET_BEGIN("avx2,sse4.2")

#define FG_FOR_AVX2
#define FG_ISA(name) name##_avx2
#include "../kernels.inc.h"
FG_TARGET_END
#else
typedef int fg_no_avx2;
#endif
