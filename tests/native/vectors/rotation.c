/* Philox, the rotation, and the codecs behind it: rot-k and ring. */
#include "vectors.h"

#define N 10007 /* no multiple of a window or of any vector; two windows and a leftover */

void rotation(void) {
  static float values[N], decoded[N];
  static uint8_t coded[4 * N];
  static uint32_t lattice[N], unpacked[N], random[64];
  size_t where = 0;
  const uint64_t key = 0x0123456789abcdef;
  for (size_t i = 0; i < N; i++) values[i] = next_float() * (i % 100 < 20 ? 4.0f : 0.5f);

  fg_philox(0xa4093822u | (uint64_t)0x299f31d0u << 32, 0, 0, 0, random); /* key of a published test vector, another counter */
  emit(random, sizeof random);
  fg_philox(0, 0, 0, 0, random); /* Random123's known answer for counter 0 and key 0 */
  expect(random[0] == 0x6627e8d5u && random[16] == 0xe169c58du && random[32] == 0xbc57ac4cu && random[48] == 0x9b00dbd8u, "philox");

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
  values[4001] = 0.0f / (values[4001] - values[4001]);
  expect(fg_rot_encode(values, N, 4, key, 5, coded, &where) == FG_NONFINITE && where == 4001, "rot_encode of a NaN");
}
