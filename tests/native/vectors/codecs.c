/* Codecs without a rotation, checksums and the integer ring. */
#include "vectors.h"

#define N 5003 /* no multiple of a block or of any vector */
#define BLOCKS (4 * ((N + FG_BLOCK - 1) / FG_BLOCK)) /* bytes of scales */
#define HALVES 63488u /* 2 * 31 * 1024 of them are finite */

void codecs(void) {
  static float values[N], other[N], decoded[N], mean[N];
  static uint8_t coded[4 * N];
  static uint8_t halves[2 * HALVES], again[2 * HALVES];
  static float every[HALVES];
  static int64_t sum[N];
  size_t where = 0;
  uint64_t key = 0x0123456789abcdef;
  for (size_t i = 0; i < N; i++)
    values[i] = next_float() * (i / FG_BLOCK % 7 == 3 ? 0.0f : i / FG_BLOCK % 5 == 2 ? 0x1p-95f : 1.5f);
  for (size_t i = 0; i < N; i++) other[i] = next_float();

  expect(fg_crc32c(0, (const uint8_t *)"123456789", 9) == 0xe3069283u, "crc32c check value");
  for (int stochastic = 0; stochastic < 2; stochastic++) {
    expect(!fg_blk8_encode(values, N, stochastic ? &key : NULL, coded, &where), "blk8_encode");
    emit(coded, BLOCKS + N);
    expect(!fg_blk8_decode(coded, N, decoded, &where), "blk8_decode");
    emit(decoded, sizeof decoded);
    expect(!fg_blk4_encode(values, N, stochastic ? &key : NULL, coded, &where), "blk4_encode");
    emit(coded, BLOCKS + (N + 1) / 2);
    expect(!fg_blk4_decode(coded, N, decoded, &where), "blk4_decode");
    emit(decoded, sizeof decoded);
  }
  expect(!fg_raw32_encode(values, N, coded, &where) && !fg_raw32_decode(coded, N, decoded, &where), "raw32");
  expect(!memcmp(coded, values, sizeof values) && !memcmp(decoded, values, sizeof values), "raw32 copies");
  expect(!fg_fp16_encode(values, N, coded, &where), "fp16_encode");
  emit(coded, 2 * N);
  expect(!fg_fp16_decode(coded, N, decoded, &where), "fp16_decode");
  emit(decoded, sizeof decoded);
  for (uint32_t half = 0; half < HALVES; half++) { /* every finite half there is, and back */
    uint16_t both = (uint16_t)(half < HALVES / 2 ? half : half - HALVES / 2 + 0x8000u);
    memcpy(halves + 2 * half, &both, 2);
  }
  expect(!fg_fp16_decode(halves, HALVES, every, &where), "fp16_decode of every half");
  emit(every, sizeof every);
  expect(!fg_fp16_encode(every, HALVES, again, &where) && !memcmp(again, halves, sizeof halves), "fp16 of every half");
  memset(sum, 0, sizeof sum);
  expect(!fg_ring_add(sum, values, N, 1000, &where) && !fg_ring_add(sum, other, N, 16776216, &where), "ring_add");
  emit(sum, sizeof sum);
  fg_ring_mean(sum, N, 16777216, other, mean);
  emit(mean, sizeof mean);

  /* What a kernel refuses, and where. */
  float saved = values[4001];
  values[4001] = 0.0f / (values[4001] - values[4001]);
  expect(fg_find_nonfinite(values, N) == 4001, "find_nonfinite");
  expect(fg_blk8_encode(values, N, NULL, coded, &where) == FG_NONFINITE && where == 4001, "blk8_encode of a NaN");
  expect(fg_blk4_encode(values, N, NULL, coded, &where) == FG_NONFINITE && where == 4001, "blk4_encode of a NaN");
  expect(fg_raw32_encode(values, N, coded, &where) == FG_NONFINITE && where == 4001, "raw32_encode of a NaN");
  expect(fg_fp16_encode(values, N, coded, &where) == FG_NONFINITE && where == 4001, "fp16_encode of a NaN");
  values[4001] = -65520.0f;
  expect(fg_fp16_encode(values, N, coded, &where) == FG_RANGE && where == 4001, "fp16_encode of what overflows");
  values[4001] = 0x1.01p90f;
  expect(fg_blk8_encode(values, N, NULL, coded, &where) == FG_RANGE && where == 4001, "blk8_encode beyond 2^90");
  values[4001] = 0.0f / (values[3 * 64] - values[3 * 64]);
  expect(fg_ring_add(sum, values, N, 1, &where) == FG_NONFINITE && where == 4001, "ring_add of a NaN");
  values[4001] = -64.5f;
  expect(fg_ring_add(sum, values, N, 1, &where) == FG_RANGE && where == 4001, "ring_add beyond 64");
  values[4001] = saved;
  expect(fg_find_nonfinite(values, N) == N, "find_nonfinite of finite values");
  expect(!fg_blk8_encode(values, N, NULL, coded, &where), "blk8_encode");
  coded[68 + 4 + 3] = 0x80;
  expect(fg_blk8_decode(coded, N, decoded, &where) == FG_CODE && where == 1, "blk8_decode of code -128");
  coded[68 + 3] = 0xc0;
  expect(fg_blk8_decode(coded, N, decoded, &where) == FG_SCALE && where == 1, "blk8_decode of a negative scale");
}
