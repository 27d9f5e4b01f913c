/* Philox, rANS, the entropy-coded streams, the rotation and what stands behind it. */
#include "vectors.h"

#define N 10007 /* no multiple of a block, a window or any vector; two windows and a leftover */

void entropy(void) {
  static float values[N], decoded[N];
  static uint8_t coded[FG_EC_BOUND(N)], offsets[100];
  static uint32_t lattice[N], unpacked[N], random[64];
  static _Alignas(64) uint8_t scratch[FG_EC_SCRATCH];
  size_t where = 0, size = 0;
  const uint64_t key = 0x0123456789abcdef;
  for (size_t i = 0; i < N; i++) /* columns and blocks of different scale, some exactly zero */
    values[i] = next_float() * (i / 64 % 9 == 3 ? 0.0f : i / 64 % 5 == 2 ? 0.01f : 1.0f) * (i % 100 < 20 ? 4.0f : 0.5f);
  values[77] = 3000.0f; /* escapes */

  fg_philox(0xa4093822u | (uint64_t)0x299f31d0u << 32, 0, 0, 0, random); /* key of a published test vector, another counter */
  emit(random, sizeof random);
  fg_philox(0, 0, 0, 0, random); /* Random123's known answer for counter 0 and key 0 */
  expect(random[0] == 0x6627e8d5u && random[16] == 0xe169c58du && random[32] == 0xbc57ac4cu && random[48] == 0x9b00dbd8u, "philox");

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
  for (size_t k = 1; k <= N; k += 1429) {
    expect(!fg_topk_encode(values, N, k, coded, &size, scratch, &where), "topk_encode");
    emit(coded, size);
    expect(!fg_topk_decode(coded, size, decoded, N, scratch, &where), "topk_decode");
    emit(decoded, sizeof decoded);
  }
  expect(!fg_lossless_encode(values, N, coded, &size, scratch, &where), "lossless_encode");
  emit(coded, size);
  expect(!fg_lossless_decode(coded, size, decoded, N, scratch, &where) && !memcmp(decoded, values, sizeof values), "lossless_decode");
  for (uint32_t k = 1; k <= 8; k++) {
    expect(!fg_rot_encode(values, N, k, key, 5, coded, &where), "rot_encode");
    emit(coded, fg_rot_size(N, k));
    expect(!fg_rot_decode(coded, N, k, key, 5, decoded, &where), "rot_decode");
    emit(decoded, sizeof decoded);
  }
  for (uint32_t r = 16; r <= 32; r += r == 16 ? 4 : 12) {
    expect(!fg_lattice_encode(values, N, 0.01f, 1u << 22, key, key + 1, 5, lattice, &where), "lattice_encode");
    fg_lattice_pack(lattice, N, r, coded);
    emit(coded, (N * r + 7) / 8);
    expect(!fg_lattice_unpack(coded, N, r, unpacked), "lattice_unpack");
    fg_lattice_decode(unpacked, N, r, 0.01f, key, 5, decoded);
    emit(decoded, sizeof decoded);
  }
  values[4001] = 0.0f / (values[64 * 3] - values[64 * 3]);
  fg_ec request = {0, 5, key, 1.0f, 0.25f, 0, 0, 0, 2, sizes, columns, offsets};
  expect(fg_ec_encode(values, N, &request, coded, &size, scratch, &where) == FG_NONFINITE && where == 4001, "ec_encode of a NaN");
  expect(fg_topk_encode(values, N, 9, coded, &size, scratch, &where) == FG_NONFINITE && where == 4001, "topk_encode of a NaN");
  expect(fg_lossless_encode(values, N, coded, &size, scratch, &where) == FG_NONFINITE && where == 4001, "lossless_encode of a NaN");
  expect(fg_rot_encode(values, N, 4, key, 5, coded, &where) == FG_NONFINITE && where == 4001, "rot_encode of a NaN");
}
