/* rANS and the entropy-coded streams. */
#include "vectors.h"

#define LONG 70001 /* two chunks, the first of 32 lanes */
#define N 10007 /* no multiple of a block, a window or any vector; two windows and a leftover */

void entropy(void) {
  static float values[N], decoded[N];
  static uint8_t coded[FG_EC_BOUND(N)], offsets[100];
  static _Alignas(64) uint8_t scratch[FG_EC_SCRATCH];
  size_t where = 0, size = 0;
  const uint64_t key = 0x0123456789abcdef;
  for (size_t i = 0; i < N; i++) /* columns and blocks of different scale, some exactly zero */
    values[i] = next_float() * (i / 64 % 9 == 3 ? 0.0f : i / 64 % 5 == 2 ? 0.01f : 1.0f) * (i % 100 < 20 ? 4.0f : 0.5f);
  values[77] = 3000.0f; /* escapes */

  size_t sizes[2] = {9900, N - 9900}, columns[2] = {100, 0};
  for (int kind = 0; kind < 2; kind++)
    for (uint32_t log_bins = 0; log_bins <= (kind ? 0u : 2u); log_bins++)
      for (int step = 0; step < 3; step++) {
        fg_ec request = {kind, 5, key, step == 0 ? 0.002f : step == 1 ? 0.3f : 3.0f, 0.25f, log_bins, 0, 0, 2, sizes, columns, offsets};
        float work[100];
        fg_ec_columns(values, &request, work);
        emit(offsets, sizeof offsets);
        expect(!fg_ec_encode(values, N, &request, coded, &size, scratch, &where), "ec_encode");
        emit(coded, size);
        expect(!fg_ec_decode(coded, size, &request, decoded, N, scratch, &where), "ec_decode");
        emit(decoded, sizeof decoded);
        expect(fg_ec_decode(coded, size - 1, &request, decoded, N, scratch, &where) != FG_OK, "ec_decode of a cut stream");
        coded[size] = 0;
        expect(fg_ec_decode(coded, size + 1, &request, decoded, N, scratch, &where) == FG_TRAILING, "ec_decode of a longer stream");
      }
  static float many[LONG], back[LONG];
  static uint8_t stream[FG_EC_BOUND(LONG)];
  static uint32_t groups[LONG / 128 + 1];
  for (size_t i = 0; i < LONG; i++) many[i] = next_float();
  for (int kind = 0; kind < 2; kind++) {
    size_t all[1] = {LONG}, none[1] = {0}, count;
    float peak;
    double sum, bits;
    fg_ec request = {kind, 5, key, 0.01f, 0.25f, kind ? 0 : 2, 0, 0, 1, all, none, offsets};
    expect(!fg_ec_sample(many, LONG, 7, groups, &count, &peak, &sum, &where), "ec_sample");
    emit(groups, count * sizeof *groups);
    emit(&peak, sizeof peak);
    emit(&sum, sizeof sum);
    expect(!fg_ec_bits(many, LONG, &request, groups, count, scratch, &bits, &where), "ec_bits");
    emit(&bits, sizeof bits);
    expect(!fg_ec_encode(many, LONG, &request, stream, &size, scratch, &where), "ec_encode");
    emit(stream, size);
    expect(!fg_ec_decode(stream, size, &request, back, LONG, scratch, &where), "ec_decode");
    emit(back, sizeof back);
  }
  for (size_t k = 1; k <= N; k += 1429) {
    expect(!fg_topk_encode(values, N, k, coded, &size, scratch, &where), "topk_encode");
    emit(coded, size);
    expect(!fg_topk_decode(coded, size, decoded, N, scratch, &where), "topk_decode");
    emit(decoded, sizeof decoded);
  }
  expect(!fg_lossless_encode(values, N, coded, &size, scratch, &where), "lossless_encode");
  emit(coded, size);
  expect(!fg_lossless_decode(coded, size, decoded, N, scratch, &where) && !memcmp(decoded, values, sizeof values), "lossless_decode");
  values[4001] = 0.0f / (values[64 * 3] - values[64 * 3]);
  fg_ec request = {0, 5, key, 1.0f, 0.25f, 0, 0, 0, 2, sizes, columns, offsets};
  expect(fg_ec_encode(values, N, &request, coded, &size, scratch, &where) == FG_NONFINITE && where == 4001, "ec_encode of a NaN");
  expect(fg_topk_encode(values, N, 9, coded, &size, scratch, &where) == FG_NONFINITE && where == 4001, "topk_encode of a NaN");
  expect(fg_lossless_encode(values, N, coded, &size, scratch, &where) == FG_NONFINITE && where == 4001, "lossless_encode of a NaN");
}
