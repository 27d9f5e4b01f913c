/* NEON with the dot product of ARMv8.2 (Cortex-A76, A78): int8 products by sdot, a row's four quads taken from one register by lane. */
typedef int8_t Code;
#define TILE_RUN 16
#define TILE_PAD 4
#define TILE_GROUP 4
#define TILE_ROWS 4
#define TILE_WIDTH 16
#define TILE_BIAS 0
#include "dots_sdot.inc.h"

static void product_tile(size_t rows, const Code *const *a, size_t step, const Segment *segments, size_t count, const Code *b, size_t width,
                 int32_t *sums) {
  (void)width;
  const Code *a0 = a[0], *a1 = a[rows > 1 ? 1 : 0], *a2 = a[rows > 2 ? 2 : 0], *a3 = a[rows > 3 ? 3 : 0];
  int32x4_t s[4][4];
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; i++) s[i][0] = s[i][1] = s[i][2] = s[i][3] = vdupq_n_s32(0);
#define EACH_COLUMN(i, dot, ...)                  \
  s[i][0] = dot(s[i][0], v0, __VA_ARGS__);        \
  s[i][1] = dot(s[i][1], v1, __VA_ARGS__);        \
  s[i][2] = dot(s[i][2], v2, __VA_ARGS__);        \
  s[i][3] = dot(s[i][3], v3, __VA_ARGS__)
#define QUAD(lane)                                                                                                       \
  {                                                                                                                      \
    int8x16_t v0 = vld1q_s8(b), v1 = vld1q_s8(b + 16), v2 = vld1q_s8(b + 32), v3 = vld1q_s8(b + 48);                     \
    EACH_COLUMN(0, vdotq_laneq_s32, u0, lane);                                                                           \
    EACH_COLUMN(1, vdotq_laneq_s32, u1, lane);                                                                           \
    EACH_COLUMN(2, vdotq_laneq_s32, u2, lane);                                                                           \
    EACH_COLUMN(3, vdotq_laneq_s32, u3, lane);                                                                           \
    b += 64;                                                                                                             \
  }
  for (const Segment *g = segments; g < segments + count; g++) {
    size_t p = 0, at = g->start;
    for (; p + 16 <= g->length; p += 16, at += step) {
      int8x16_t u0 = vld1q_s8(a0 + at), u1 = vld1q_s8(a1 + at), u2 = vld1q_s8(a2 + at), u3 = vld1q_s8(a3 + at);
      QUAD(0)
      QUAD(1)
      QUAD(2)
      QUAD(3)
    }
    for (; p < g->length; p += 4, at += 4) { /* what is left of a row of an image */
      int8x16_t v0 = vld1q_s8(b), v1 = vld1q_s8(b + 16), v2 = vld1q_s8(b + 32), v3 = vld1q_s8(b + 48);
      EACH_COLUMN(0, vdotq_s32, vreinterpretq_s8_s32(vdupq_n_s32(load4(a0 + at))));
      EACH_COLUMN(1, vdotq_s32, vreinterpretq_s8_s32(vdupq_n_s32(load4(a1 + at))));
      EACH_COLUMN(2, vdotq_s32, vreinterpretq_s8_s32(vdupq_n_s32(load4(a2 + at))));
      EACH_COLUMN(3, vdotq_s32, vreinterpretq_s8_s32(vdupq_n_s32(load4(a3 + at))));
      b += 64;
    }
  }
#undef QUAD
#undef EACH_COLUMN
  for (size_t i = 0; i < rows; i++)
    for (size_t j = 0; j < 4; j++) vst1q_s32(sums + i * 16 + j * 4, s[i][j]);
}
