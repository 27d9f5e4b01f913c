/* What every family uses: bits of a float, rounding to nearest even without libm, the absmax and the scan for NaN and infinity.
 *
 * A family's body is compiled once per ISA (see isa/). Loops are written so that gcc vectorises them, or in vectors of a fixed width;
 * what they compute doesn't depend on the machine's width, so every ISA gives the same bytes. Static functions have plain names: each
 * ISA is a translation unit of its own.
 *
 * Rounding: adding 1.5 * 2^23 (floats) or 1.5 * 2^52 (doubles) leaves the integer in the low bits.
 */
#include <string.h>

#include "fleetgrad.h"

#define ROUND_FLOAT 12582912.0f         /* 1.5 * 2^23 */
#define ROUND_DOUBLE 6755399441055744.0 /* 1.5 * 2^52 */
#define EXPONENT_MASK 0x7f800000u
#define MAGNITUDE_MASK 0x7fffffffu
#define LEAST_SCALE 0x1p-90f /* below, ARMv7 NEON would meet subnormals */

static inline uint32_t bits(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}

static inline float from_bits(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

/* Largest bit pattern of |x|: the absmax for finite values, at least EXPONENT_MASK if one isn't finite. */
static inline uint32_t absmax(const float *x, size_t n) {
  uint32_t most = 0;
  for (size_t i = 0; i < n; i++) {
    uint32_t u = bits(x[i]) & MAGNITUDE_MASK;
    most = u > most ? u : most;
  }
  return most;
}

size_t FG_ISA(fg_find_nonfinite)(const float *values, size_t n) {
  for (size_t start = 0; start < n; start += 1024) {
    size_t count = n - start < 1024 ? n - start : 1024;
    if (absmax(values + start, count) < EXPONENT_MASK) continue;
    for (size_t i = start;; i++)
      if ((bits(values[i]) & MAGNITUDE_MASK) >= EXPONENT_MASK) return i;
  }
  return n;
}

/* Vectors as wide as the ISA's registers, for loops that the compiler doesn't vectorise by itself. */
#if defined(FG_FOR_AVX512VNNI)
#define NATIVE_LANES 16
#elif defined(FG_FOR_AVX2)
#define NATIVE_LANES 8
#else
#define NATIVE_LANES 4
#endif
typedef float NativeFloat __attribute__((vector_size(4 * NATIVE_LANES)));
typedef int32_t NativeInt __attribute__((vector_size(4 * NATIVE_LANES)));
