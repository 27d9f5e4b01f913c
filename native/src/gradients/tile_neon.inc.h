/* NEON without a dot product (Cortex-A53, A72, and ARMv7): two widening multiplies into 16 bits, then neighbours added into 32.
 * A code is within +-127 (rows' given from outside: -128), so two products fit: 2 * 128 * 127 = 32512. */
typedef int8_t Code;
#define TILE_RUN 8
#define TILE_PAD 8
#define TILE_GROUP 4
#define TILE_ROWS 4
#define TILE_WIDTH 16
#define TILE_BIAS 0
#define DOT_STEP 16

static inline int8x8_t twice(const Code *quad) { return vreinterpret_s8_s32(vdup_n_s32(load4(quad))); }

static void product_tile(size_t rows, const Code *const *a, size_t step, const Segment *segments, size_t count, const Code *b, size_t width,
                 int32_t *sums) {
  (void)width;
  const Code *row[4];
  for (size_t i = 0; i < 4; i++) row[i] = a[i < rows ? i : rows - 1];
  for (size_t half = 0; half < 16; half += 8) { /* eight columns a sweep */
    const Code *at_b = b + half * 4;
    int32x4_t s[4][4]; /* two columns each, two pairs of positions a column */
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) s[i][0] = s[i][1] = s[i][2] = s[i][3] = vdupq_n_s32(0);
    for (const Segment *g = segments; g < segments + count; g++)
      for (size_t p = 0, at = g->start; p < g->length; p += 8, at += step, at_b += 128) {
        int8x16_t v0 = vld1q_s8(at_b), v1 = vld1q_s8(at_b + 16), w0 = vld1q_s8(at_b + 64), w1 = vld1q_s8(at_b + 80);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
          int8x8_t u = twice(row[i] + at), t = twice(row[i] + at + 4);
          s[i][0] = vpadalq_s16(s[i][0], vmlal_s8(vmull_s8(vget_low_s8(v0), u), vget_low_s8(w0), t));
          s[i][1] = vpadalq_s16(s[i][1], vmlal_s8(vmull_s8(vget_high_s8(v0), u), vget_high_s8(w0), t));
          s[i][2] = vpadalq_s16(s[i][2], vmlal_s8(vmull_s8(vget_low_s8(v1), u), vget_low_s8(w1), t));
          s[i][3] = vpadalq_s16(s[i][3], vmlal_s8(vmull_s8(vget_high_s8(v1), u), vget_high_s8(w1), t));
        }
      }
    for (size_t i = 0; i < rows; i++) {
      vst1q_s32(sums + i * 16 + half, vpaddq_s32(s[i][0], s[i][1]));
      vst1q_s32(sums + i * 16 + half + 4, vpaddq_s32(s[i][2], s[i][3]));
    }
  }
}

static inline __attribute__((always_inline)) void dots_of(size_t taps, const Code *const *a, const Code *b, size_t positions, int32_t *sums) {
  int32x4_t s[DOT_TAPS];
#pragma GCC unroll 8
  for (size_t t = 0; t < taps; t++) s[t] = vld1q_s32(sums + t * DOT_LANES);
  for (size_t p = 0; p < positions; p += 16) {
    int8x16_t y = vld1q_s8(b + p);
#pragma GCC unroll 8
    for (size_t t = 0; t < taps; t++) {
      int8x16_t x = vld1q_s8(a[t] + p);
      int16x8_t pairs = vmull_s8(vget_low_s8(x), vget_low_s8(y));
      s[t] = vpadalq_s16(s[t], vmlal_s8(pairs, vget_high_s8(x), vget_high_s8(y)));
    }
  }
#pragma GCC unroll 8
  for (size_t t = 0; t < taps; t++) vst1q_s32(sums + t * DOT_LANES, s[t]);
}
#define DOTS_BY_TAPS
