/* Floats <-> bytes, the checks on both, and the integer ring that updates are summed in. */
#ifndef FLEETGRAD_CODECS_H
#define FLEETGRAD_CODECS_H

#include <stddef.h>
#include <stdint.h>

#define FG_BLOCK 64 /* values under one blk8 scale, and under one class of the entropy coder */

/* How to code a vector with entropy coding (ec-dither, ec-dz), and what both sides know of it. */
typedef struct {
  int kind;             /* 0: dither of (key, stream); 1: dead zone */
  uint32_t stream;      /* tells vectors of one key apart */
  uint64_t key;
  float step;           /* in [2^-90, 2^90], or 0 for a vector of zeros */
  float rounding;       /* dead zone: what is added to |value / step| before it is cut, in [0, 1/2] */
  uint32_t log_bins;    /* at most 2; dither: log2 of the bins of its magnitude, used where they save bits */
  double least, most;   /* bits that ec_encode may take; most = 0: any */
  size_t matrices;      /* that the vector consists of, in order */
  const size_t *sizes;  /* values of each */
  const size_t *columns; /* of each; 0 or 1: it has no columns */
  uint8_t *offsets;     /* fg_ec_offsets(request) bytes */
} fg_ec;

size_t fg_ec_offsets(const fg_ec *request); /* columns of the matrices whose columns have offsets: those of at least 16 rows */

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
  /* The offsets of the request's columns, from the values. work: a float for each of the widest matrix's columns. */ \
  X(void, ec_columns, (const float *values, const fg_ec *request, float *work), (values, request, work))              \
  /* The bits that ec_encode will take, from every `every`-th pair of blocks. scratch: FG_EC_SCRATCH bytes, aligned to 64. \
     where = value that isn't finite, or more than 2^21 steps away from zero. */                                      \
  X(int, ec_bits, (const float *values, size_t n, const fg_ec *request, size_t every, void *scratch, double *bits,    \
    size_t *where), (values, n, request, every, scratch, bits, where))                                                \
  /* out: FG_EC_BOUND(n) bytes. FG_RATE where the bits will be out of the request's bounds: *size is how many then. */                                                                                 \
  X(int, ec_encode, (const float *values, size_t n, const fg_ec *request, uint8_t *out, size_t *size, void *scratch,  \
    size_t *where), (values, n, request, out, size, scratch, where))                                                  \
  /* The n values of exactly one stream; the request's step, rounding and log_bins are not read, its offsets are written. \
     where = chunk of 64 Ki values. */                                                                                \
  X(int, ec_decode, (const uint8_t *payload, size_t size, const fg_ec *request, float *out, size_t n, void *scratch,  \
    size_t *where), (payload, size, request, out, n, scratch, where))                                                 \
  /* The k largest magnitudes of n < 2^32 values up to 2^90, fewer where others are zero or nearly so. out: FG_TOPK_BOUND(k) bytes,  \
     scratch: FG_TOPK_SCRATCH, aligned to 64; where = value. */                                                       \
  X(int, topk_encode, (const float *values, size_t n, size_t k, uint8_t *out, size_t *size, void *scratch, size_t *where), \
    (values, n, k, out, size, scratch, where))                                                                        \
  /* The n values of exactly one stream; where = chunk of 64 Ki values kept. */                                       \
  X(int, topk_decode, (const uint8_t *payload, size_t size, float *out, size_t n, void *scratch, size_t *where),      \
    (payload, size, out, n, scratch, where))                                                                          \
  /* Any n finite values. out: FG_LOSSLESS_BOUND(n) bytes; scratch: FG_LOSSLESS_SCRATCH, aligned to 64; where = value. */ \
  X(int, lossless_encode, (const float *values, size_t n, uint8_t *out, size_t *size, void *scratch, size_t *where),  \
    (values, n, out, size, scratch, where))                                                                           \
  /* The n values of exactly one stream; where = chunk of 64 Ki values. */                                            \
  X(int, lossless_decode, (const uint8_t *payload, size_t size, float *out, size_t n, void *scratch, size_t *where),  \
    (payload, size, out, n, scratch, where))                                                                          \
  /* Bytes of n values in rot-k, k = 1..8. */                                                                         \
  X(size_t, rot_size, (size_t n, uint32_t k), (n, k))                                                                 \
  /* rot-k with the rotation of (key, stream); values up to 2^90. where = value. */                                   \
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

#define FG_EC_SCRATCH 3200000 /* bytes of scratch for an entropy-coded vector */
#define FG_EC_BOUND(n) (100000 + 6 * (n)) /* most bytes of one; what is written is far less */
#define FG_TOPK_SCRATCH 1500000
#define FG_TOPK_BOUND(k) (2000 + 9 * (k))
#define FG_LOSSLESS_SCRATCH 600000
#define FG_LOSSLESS_BOUND(n) (8 + 4 * (n) + (n) / 4096)

#endif
