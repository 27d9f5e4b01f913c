/* Floats <-> bytes, the checks on both, and the integer ring that updates are summed in. */
#ifndef FLEETGRAD_CODECS_H
#define FLEETGRAD_CODECS_H

#define FG_BLOCK 64 /* values under one blk8 scale, and under one class of the entropy coder */

#define FG_CODEC_KERNELS(X)                                                                                               \
  /* Encodes n finite floats as blocks (float scale | up to 64 int8 codes). key = NULL: to nearest even; otherwise    \
     stochastic with the generator keyed by *key. Writes 4 * ceil(n / 64) + n bytes to out, which overlaps nothing. */ \
  X(int, blk8_encode, (const float *values, size_t n, const uint64_t *key, uint8_t *out, size_t *where),              \
    (values, n, key, out, where))                                                                                     \
  /* Decodes exactly 4 * ceil(n / 64) + n bytes to n floats; hostile bytes are refused, where = block. */             \
  X(int, blk8_decode, (const uint8_t *payload, size_t n, float *out, size_t *where), (payload, n, out, where))        \
  /* sum[i] += weight * rint_even((double)values[i] * 2^32); all values are checked before the first is added. */     \
  X(int, ring_add, (int64_t *sum, const float *values, size_t n, int64_t weight, size_t *where),                      \
    (sum, values, n, weight, where))                                                                                  \
  /* CRC-32C (Castagnoli, RFC 3720 appendix B.4) of n bytes, continuing from crc (0 to begin). */                     \
  X(uint32_t, crc32c, (uint32_t crc, const uint8_t *data, size_t n), (crc, data, n))                                  \
  /* 64 words of Philox4x32-10: word w of counter (16 group + c, stream, purpose) at out[16 w + c]. */                 \
  X(void, philox, (uint64_t key, uint64_t group, uint32_t stream, uint32_t purpose, uint32_t *out),                   \
    (key, group, stream, purpose, out))                                                                               \
  /* n >= 1 bytes by order-0 rANS; returns the size, at most n + 1. scratch: FG_PLANE_SCRATCH bytes, aligned to 64. */ \
  X(size_t, plane_encode, (const uint8_t *symbols, size_t n, uint8_t *out, void *scratch), (symbols, n, out, scratch)) \
  /* The n bytes of exactly one plane. */                                                                             \
  X(int, plane_decode, (const uint8_t *payload, size_t size, size_t n, uint8_t *symbols, void *scratch),              \
    (payload, size, n, symbols, scratch))                                                                             \
  /* The bits that ec_encode will take, from every `every`-th pair of blocks. kind 0: dither with the key and stream;      \
     1: dead zone with the rounding. log_bins at most 3. step in [2^-90, 2^90]; |value / step| up to 2^21. where = value. */ \
  X(int, ec_bits, (const float *values, size_t n, int kind, uint64_t key, uint32_t stream, float step, float rounding, \
    uint32_t log_bins, size_t every, void *scratch, double *bits, size_t *where),                                     \
    (values, n, kind, key, stream, step, rounding, log_bins, every, scratch, bits, where))                            \
  /* Entropy-coded values; step 0 for a vector of zeros. out: FG_EC_BOUND(n) bytes; scratch: FG_EC_SCRATCH, aligned to 64. */ \
  X(int, ec_encode, (const float *values, size_t n, int kind, uint64_t key, uint32_t stream, float step, float rounding, \
    uint32_t log_bins, uint8_t *out, size_t *size, void *scratch, size_t *where),                                     \
    (values, n, kind, key, stream, step, rounding, log_bins, out, size, scratch, where))                              \
  /* The n values of exactly one stream; where = chunk of 64 Ki values. */                                            \
  X(int, ec_decode, (const uint8_t *payload, size_t size, int kind, uint64_t key, uint32_t stream, float *out, size_t n, \
    void *scratch, size_t *where), (payload, size, kind, key, stream, out, n, scratch, where))                        \
  /* Index of the first NaN or infinity, or n. */                                                                     \
  X(size_t, find_nonfinite, (const float *values, size_t n), (values, n))

/* mean = (double)sum / (double)total * 2^-32; out = (float)((double)base + mean). One version: it runs once a round. */
void fg_ring_mean(const int64_t *sum, size_t n, int64_t total, const float *base, float *out);

#define FG_EC_SCRATCH 4500000 /* bytes of scratch for an entropy-coded vector */
#define FG_EC_BOUND(n) (160000 + 6 * (n)) /* most bytes of one; what is written is far less */
#define FG_PLANE_SCRATCH 288000 /* bytes of scratch for a plane */

#endif
