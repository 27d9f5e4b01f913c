/* NEON with the int8 matrix products of ARMv8.6 (Neoverse V1 and N2, Cortex-A510, A710 and later): smmla multiplies two rows of eight
 * positions by two columns of eight into a 2 x 2 block. */
typedef int8_t Code;
#define TILE_RUN 8
#define TILE_PAD 8
#define TILE_GROUP 8
#define TILE_ROWS 4
#define TILE_WIDTH 16
#define TILE_BIAS 0
#include "dots_sdot.inc.h"

static void product_tile(size_t rows, const Code *const *a, size_t step, const Segment *segments, size_t count, const Code *b, size_t width,
                 int32_t *sums) {
  (void)width;
  const Code *a0 = a[0], *a1 = a[rows > 1 ? 1 : 0], *a2 = a[rows > 2 ? 2 : 0], *a3 = a[rows > 3 ? 3 : 0];
  int32x4_t s[2][8]; /* rows 0 and 1, 2 and 3, by pairs of columns */
#pragma GCC unroll 8
  for (size_t j = 0; j < 8; j++) s[0][j] = s[1][j] = vdupq_n_s32(0);
  for (const Segment *g = segments; g < segments + count; g++)
    for (size_t p = 0, at = g->start; p < g->length; p += 8, at += step, b += 128) {
      int8x16_t low = vcombine_s8(vld1_s8(a0 + at), vld1_s8(a1 + at)), high = vcombine_s8(vld1_s8(a2 + at), vld1_s8(a3 + at));
#pragma GCC unroll 8
      for (size_t j = 0; j < 8; j++) {
        int8x16_t v = vld1q_s8(b + j * 16);
        s[0][j] = vmmlaq_s32(s[0][j], low, v);
        s[1][j] = vmmlaq_s32(s[1][j], high, v);
      }
    }
  for (size_t i = 0; i < rows; i++)
    for (size_t j = 0; j < 8; j++) vst1_s32(sums + i * 16 + j * 2, i % 2 ? vget_high_s32(s[i / 2][j]) : vget_low_s32(s[i / 2][j]));
}
