/* Depthwise products by sdot, for every ISA that has it. */
#define DOT_STEP 16

static inline __attribute__((always_inline)) void dots_of(size_t taps, const Code *const *a, const Code *b, size_t positions, int32_t *sums) {
  int32x4_t s[DOT_TAPS];
#pragma GCC unroll 8
  for (size_t t = 0; t < taps; t++) s[t] = vld1q_s32(sums + t * DOT_LANES);
  for (size_t p = 0; p < positions; p += 16) {
    int8x16_t y = vld1q_s8(b + p);
#pragma GCC unroll 8
    for (size_t t = 0; t < taps; t++) s[t] = vdotq_s32(s[t], vld1q_s8(a[t] + p), y);
  }
#pragma GCC unroll 8
  for (size_t t = 0; t < taps; t++) vst1q_s32(sums + t * DOT_LANES, s[t]);
}
#define DOTS_BY_TAPS
