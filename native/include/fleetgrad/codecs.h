/* Fixed-rate codecs (floats <-> bytes), the checks on both, random bits, and the integer ring that updates are summed in. */
#ifndef FLEETGRAD_CODECS_H
#define FLEETGRAD_CODECS_H

#include <stddef.h>
#include <stdint.h>

#define FG_BLOCK 64 /* values under one scale of blk8 and blk4, and under one class of the entropy coder */

#define FG_CODEC_KERNELS(X)                                                                                               \
  /* Copies n finite floats; both ways, as little-endian bytes. where = value. */                                    \
  X(int, raw32_encode, (const float *values, size_t n, uint8_t *out, size_t *where), (values, n, out, where))         \
  X(int, raw32_decode, (const uint8_t *payload, size_t n, float *out, size_t *where), (payload, n, out, where))       \
  /* n floats as IEEE halves, to nearest even, subnormal ones kept; FG_RANGE from 65520 on, which would be infinity. where = value. */ \
  X(int, fp16_encode, (const float *values, size_t n, uint8_t *out, size_t *where), (values, n, out, where))          \
  X(int, fp16_decode, (const uint8_t *payload, size_t n, float *out, size_t *where), (payload, n, out, where))        \
  /* Encodes n floats up to 2^90 as blocks (float scale | up to 64 int8 codes). key = NULL: to nearest even; otherwise \
     stochastic with the generator keyed by *key. Writes 4 * ceil(n / 64) + n bytes to out, which overlaps nothing. */ \
  X(int, blk8_encode, (const float *values, size_t n, const uint64_t *key, uint8_t *out, size_t *where),              \
    (values, n, key, out, where))                                                                                     \
  /* Decodes exactly 4 * ceil(n / 64) + n bytes to n floats; hostile bytes are refused, where = block. */             \
  X(int, blk8_decode, (const uint8_t *payload, size_t n, float *out, size_t *where), (payload, n, out, where))        \
  /* The same with codes of 4 bits, two a byte: 4 * ceil(n / 64) + ceil(n / 2) bytes. */                              \
  X(int, blk4_encode, (const float *values, size_t n, const uint64_t *key, uint8_t *out, size_t *where),              \
    (values, n, key, out, where))                                                                                     \
  X(int, blk4_decode, (const uint8_t *payload, size_t n, float *out, size_t *where), (payload, n, out, where))        \
  /* sum[i] += weight * rint_even((double)values[i] * 2^32); all values are checked before the first is added. */     \
  X(int, ring_add, (int64_t *sum, const float *values, size_t n, int64_t weight, size_t *where),                      \
    (sum, values, n, weight, where))                                                                                  \
  /* CRC-32C (Castagnoli, RFC 3720 appendix B.4) of n bytes, continuing from crc (0 to begin). */                     \
  X(uint32_t, crc32c, (uint32_t crc, const uint8_t *data, size_t n), (crc, data, n))                                  \
  /* 64 words of Philox4x32-10: word w of counter (16 group + c, stream, purpose) at out[16 w + c]. */                 \
  X(void, philox, (uint64_t key, uint64_t group, uint32_t stream, uint32_t purpose, uint32_t *out),                   \
    (key, group, stream, purpose, out))                                                                               \
  /* Bytes of n values in rot-k, k = 1..8. */                                                                         \
  X(size_t, rot_size, (size_t n, uint32_t k), (n, k))                                                                 \
  /* rot-k with the rotation of (key, stream); values up to 2^80. where = value. */                                   \
  X(int, rot_encode, (const float *values, size_t n, uint32_t k, uint64_t key, uint32_t stream, uint8_t *out, size_t *where), \
    (values, n, k, key, stream, out, where))                                                                          \
  /* Decodes exactly fg_rot_size(n, k) bytes; where = window. */                                                      \
  X(int, rot_decode, (const uint8_t *payload, size_t n, uint32_t k, uint64_t key, uint32_t stream, float *out, size_t *where), \
    (payload, n, k, key, stream, out, where))                                                                         \
  /* Integers of the ring codec, |rotated value / step| below most <= 2^23: rotation of (shared, stream), rounding of (own, stream). \
     where = value (FG_NONFINITE) or rotated coordinate (FG_RANGE). */                                                \
  X(int, lattice_encode, (const float *values, size_t n, float step, uint32_t most, uint64_t shared, uint64_t own,    \
    uint32_t stream, uint32_t *out, size_t *where), (values, n, step, most, shared, own, stream, out, where))         \
  /* Floats from a sum of such integers mod 2^r. */                                                                   \
  X(void, lattice_decode, (const uint32_t *sum, size_t n, uint32_t r, float step, uint64_t shared, uint32_t stream, float *out), \
    (sum, n, r, step, shared, stream, out))                                                                           \
  /* n integers mod 2^r, r = 16, 20 or 32, as n * r / 8 bytes (rounded up), and back. */                              \
  X(void, lattice_pack, (const uint32_t *values, size_t n, uint32_t r, uint8_t *out), (values, n, r, out))            \
  X(int, lattice_unpack, (const uint8_t *payload, size_t n, uint32_t r, uint32_t *out), (payload, n, r, out))         \
  /* Index of the first NaN or infinity, or n. */                                                                     \
  X(size_t, find_nonfinite, (const float *values, size_t n), (values, n))

/* mean = (double)sum / (double)total * 2^-32; out = (float)((double)base + mean). One version: it runs once a round. */
void fg_ring_mean(const int64_t *sum, size_t n, int64_t total, const float *base, float *out);

#endif
