/* NEON with the dot product of ARMv8.2 (Cortex-A76, A78: Raspberry Pi 5, Jetson Orin): int8 products by sdot. */
static void dot_panel(const signed char *a, size_t a_columns, const signed char *b, size_t columns, size_t quads,
                                  int *out) {
  for (size_t j = 0; j < columns; j += 8) {
    int32x4_t s[8][2];
    for (int i = 0; i < 8; i++) s[i][0] = s[i][1] = vdupq_n_s32(0);
    for (size_t q = 0; q < quads; q++) {
      const signed char *at = b + (q * columns + j) * 4, *u = a + q * a_columns * 4;
      int8x16_t v0 = vld1q_s8(at), v1 = vld1q_s8(at + 16), u0 = vld1q_s8(u), u1 = vld1q_s8(u + 16);
#define ROW(i, from, lane)                            \
  s[i][0] = vdotq_laneq_s32(s[i][0], v0, from, lane); \
  s[i][1] = vdotq_laneq_s32(s[i][1], v1, from, lane)
      ROW(0, u0, 0);
      ROW(1, u0, 1);
      ROW(2, u0, 2);
      ROW(3, u0, 3);
      ROW(4, u1, 0);
      ROW(5, u1, 1);
      ROW(6, u1, 2);
      ROW(7, u1, 3);
#undef ROW
    }
    for (size_t i = 0; i < 8; i++) {
      vst1q_s32(out + i * columns + j, s[i][0]);
      vst1q_s32(out + i * columns + j + 4, s[i][1]);
    }
  }
}
