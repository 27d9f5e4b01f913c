/* Entropy-coded codecs: dithered, dead-zone, top-k and lossless vectors behind interleaved rANS. */
#ifndef FLEETGRAD_ENTROPY_H
#define FLEETGRAD_ENTROPY_H

#include <stddef.h>
#include <stdint.h>

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

#define FG_ENTROPY_KERNELS(X)                                                                                             \
  /* The offsets of the request's columns, from the values. work: a float for each of the widest matrix's columns. */ \
  X(void, ec_columns, (const float *values, const fg_ec *request, float *work), (values, request, work))              \
  /* One pair of blocks (128 values) in `every` of those of like magnitude, in order: at most n / 128 + 1 numbers. Also the largest and the \
     sum of all magnitudes. FG_OK, or FG_NONFINITE and where. */                                                      \
  X(int, ec_sample, (const float *values, size_t n, size_t every, uint32_t *groups, size_t *count, float *peak, double *sum, \
    size_t *where), (values, n, every, groups, count, peak, sum, where))                                              \
  /* The bits that ec_encode will take, foreseen from the chosen pairs (groups = NULL: counted in all). scratch: FG_EC_SCRATCH bytes, \
     aligned to 64. where = value that isn't finite, or more than 2^21 steps away from zero. */                       \
  X(int, ec_bits, (const float *values, size_t n, const fg_ec *request, const uint32_t *groups, size_t count, void *scratch, \
    double *bits, size_t *where), (values, n, request, groups, count, scratch, bits, where))                         \
  /* out: FG_EC_BOUND(n) bytes. FG_RATE where the bits will be out of the request's bounds: *size is how many then. */ \
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
    (payload, size, out, n, scratch, where))

#define FG_EC_SCRATCH 3200000 /* bytes of scratch for an entropy-coded vector */
#define FG_EC_BOUND(n) (100000 + 6 * (n)) /* most bytes of one; what is written is far less */
#define FG_TOPK_SCRATCH 1500000
#define FG_TOPK_BOUND(k) (2000 + 9 * (k))
#define FG_LOSSLESS_SCRATCH 600000
#define FG_LOSSLESS_BOUND(n) (8 + 4 * (n) + (n) / 4096)

#endif
