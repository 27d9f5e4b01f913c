/* NEON on ARMv8.0 with CRC (Cortex-A53, A72: Raspberry Pi 3 and 4): the shared bodies in 128-bit vectors, int8 products by
 * widening multiplies; 127 * 127 fits their 16-bit lanes, and pairs are added into 32 bits. */
static void dot_panel(const signed char *a, size_t a_columns, const signed char *b, size_t columns, size_t quads, int *out) {
  for (size_t j = 0; j < columns; j += 4) {
    int32x4_t low[8], high[8]; /* two columns each, two pairs a column */
    for (int i = 0; i < 8; i++) low[i] = high[i] = vdupq_n_s32(0);
    for (size_t q = 0; q < quads; q++) {
      int8x16_t v = vld1q_s8(b + (q * columns + j) * 4);
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) {
        int quad;
        __builtin_memcpy(&quad, a + (q * a_columns + (size_t)i) * 4, 4);
        int8x8_t u = vreinterpret_s8_s32(vdup_n_s32(quad));
        low[i] = vpadalq_s16(low[i], vmull_s8(vget_low_s8(v), u));
        high[i] = vpadalq_s16(high[i], vmull_s8(vget_high_s8(v), u));
      }
    }
    for (size_t i = 0; i < 8; i++) vst1q_s32(out + i * columns + j, vpaddq_s32(low[i], high[i]));
  }
}
