/* Runs every kernel on fixed inputs under every capability of this machine and prints one line per capability: its name and a
 * CRC of each kernel's output bytes. Inputs come from an integer generator, so any machine makes the same ones; the lines of
 * all capabilities, of x86 and of ARM, must be equal from the second word on. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fleetgrad.h"

#define N 5003 /* no multiple of a block or of any vector */
#define K 1030
#define M 37
#define COLUMNS 21

static const char *const NAMES[] = {"serial", "avx2", "avx512vnni", "neon", "neondotprod"};
static uint32_t state = 12345;

static float next(void) { /* about normal, some blocks tiny, some zero */
  state = state * 1664525u + 1013904223u;
  float x = (float)(int32_t)(state >> 8) * 0x1p-23f - 1.0f;
  return x * x * x;
}

static uint32_t crc(const void *data, size_t n) { return fg_crc32c(0, data, n); }

static void fail(const char *what) {
  printf("FAILED: %s\n", what);
  exit(1);
}

int main(void) {
  static float values[N], other[N], decoded[N], velocity[N], parameters[N], mean[N];
  static float x[K * M], dy[K * COLUMNS], dw[M * COLUMNS];
  static uint8_t coded[N + 4 * (N / FG_BLOCK + 1)];
  static int64_t sum[N];
  for (size_t i = 0; i < N; i++) values[i] = next() * (i / FG_BLOCK % 7 == 3 ? 0.0f : i / FG_BLOCK % 5 == 2 ? 0x1p-95f : 1.5f);
  for (size_t i = 0; i < N; i++) other[i] = next();
  for (size_t i = 0; i < K * M; i++) x[i] = i % M == 5 ? 0.0f : next();
  for (size_t i = 0; i < K * COLUMNS; i++) dy[i] = next() * 0.01f;
  void *scratch = NULL;
  if (posix_memalign(&scratch, 64, fg_weight_grad_scratch(K, M, COLUMNS))) fail("memory");

  for (int capability = 0; capability < FG_CAPABILITIES; capability++) {
    if (fg_use_capability(capability) != FG_OK) continue;
    size_t where = 0;
    uint64_t key = 0x0123456789abcdef;
    printf("%s", NAMES[capability]);
    if (fg_crc32c(0, (const uint8_t *)"123456789", 9) != 0xe3069283u) fail("crc32c check value");
    for (int stochastic = 0; stochastic < 2; stochastic++) {
      if (fg_blk8_encode(values, N, stochastic ? &key : NULL, coded, &where)) fail("blk8_encode");
      printf(" %08x", crc(coded, sizeof coded));
      if (fg_blk8_decode(coded, N, decoded, &where)) fail("blk8_decode");
      printf(" %08x", crc(decoded, sizeof decoded));
    }
    memset(sum, 0, sizeof sum);
    if (fg_ring_add(sum, values, N, 1000, &where) || fg_ring_add(sum, other, N, 16776216, &where)) fail("ring_add");
    printf(" %08x", crc(sum, sizeof sum));
    fg_ring_mean(sum, N, 16777216, other, mean);
    printf(" %08x", crc(mean, sizeof mean));
    memcpy(parameters, values, sizeof parameters);
    memset(velocity, 0, sizeof velocity);
    for (int step = 0; step < 3; step++) fg_sgd_momentum(parameters, other, velocity, N, 0.05f, 0.9f, 0.001f);
    printf(" %08x %08x", crc(parameters, sizeof parameters), crc(velocity, sizeof velocity));
    if (fg_weight_grad(x, dy, K, M, COLUMNS, dw, scratch, &where)) fail("weight_grad");
    printf(" %08x\n", crc(dw, sizeof dw));

    /* What a kernel refuses, and where. */
    float saved = values[4001];
    values[4001] = 0.0f / (values[4001] - values[4001]);
    if (fg_find_nonfinite(values, N) != 4001) fail("find_nonfinite");
    if (fg_blk8_encode(values, N, NULL, coded, &where) != FG_NONFINITE || where != 4001) fail("blk8_encode of a NaN");
    if (fg_ring_add(sum, values, N, 1, &where) != FG_NONFINITE || where != 4001) fail("ring_add of a NaN");
    values[4001] = -64.5f;
    if (fg_ring_add(sum, values, N, 1, &where) != FG_RANGE || where != 4001) fail("ring_add beyond 64");
    values[4001] = saved;
    if (fg_find_nonfinite(values, N) != N) fail("find_nonfinite of finite values");
    if (fg_blk8_encode(values, N, NULL, coded, &where)) fail("blk8_encode");
    coded[68 + 4 + 3] = 0x80;
    if (fg_blk8_decode(coded, N, decoded, &where) != FG_CODE || where != 1) fail("blk8_decode of code -128");
    coded[68 + 3] = 0xc0;
    if (fg_blk8_decode(coded, N, decoded, &where) != FG_SCALE || where != 1) fail("blk8_decode of a negative scale");
  }
  free(scratch);
  return 0;
}
