/* The C core's only public header: contracts, the error list and the kernel list.
 *
 * A kernel owns no memory, takes sizes as size_t and touches nothing but the buffers it is given. What a kernel can refuse
 * (a NaN, a hostile byte) comes back as a negative error of the list below, with the place in `where`; what a caller can get wrong
 * (sizes, aliasing) the typed face in kernels.py refuses before.
 *
 * Every kernel gives the same bytes on every ISA: no fused multiply-add, no reassociated sum, round to nearest even.
 */
#ifndef FLEETGRAD_H
#define FLEETGRAD_H

#include <stddef.h>
#include <stdint.h>

#define FG_ERRORS(X)                                                                     \
  X(FG_OK, 0, "fine")                                                                    \
  X(FG_NONFINITE, -1, "value is NaN or infinite")                                        \
  X(FG_RANGE, -2, "value is beyond the fixed-point range of 64")                         \
  X(FG_SCALE, -3, "scale is negative, not finite or under 2^-90")                        \
  X(FG_CODE, -4, "code is -128, or not zero under a zero scale")                         \
  X(FG_CAPABILITY, -5, "this machine has no such instruction set")

enum {
#define FG_ENUM(name, value, text) name = value,
  FG_ERRORS(FG_ENUM)
#undef FG_ENUM
};

/* ISAs, best last for each architecture. A kernel without a version of its own for an ISA uses the next lower one. */
enum { FG_SERIAL, FG_AVX2, FG_AVX512VNNI, FG_NEON, FG_NEONDOTPROD, FG_CAPABILITIES };

#define FG_BLOCK 64 /* values under one blk8 scale */

/* The kernel list: one row per family. `where` receives the index of the offending value, block or column. */
#define FG_KERNELS(X)                                                                                               \
  /* Encodes n finite floats as blocks (float scale | up to 64 int8 codes). key = NULL: to nearest even; otherwise    \
     stochastic with the generator keyed by *key. Writes 4 * ceil(n / 64) + n bytes to out, which overlaps nothing. */ \
  X(int, blk8_encode, (const float *values, size_t n, const uint64_t *key, uint8_t *out, size_t *where),              \
    (values, n, key, out, where))                                                                                     \
  /* Decodes exactly 4 * ceil(n / 64) + n bytes to n floats; hostile bytes are refused, where = block. */             \
  X(int, blk8_decode, (const uint8_t *payload, size_t n, float *out, size_t *where), (payload, n, out, where))        \
  /* sum[i] += weight * rint_even((double)values[i] * 2^32); all values are checked before the first is added. */     \
  X(int, ring_add, (int64_t *sum, const float *values, size_t n, int64_t weight, size_t *where),                      \
    (sum, values, n, weight, where))                                                                                  \
  /* velocity = momentum * velocity + (gradient + decay * parameter); parameter -= rate * velocity. */                \
  X(void, sgd_momentum,                                                                                               \
    (float *parameters, const float *gradients, float *velocity, size_t n, float rate, float momentum, float decay),  \
    (parameters, gradients, velocity, n, rate, momentum, decay))                                                      \
  /* CRC-32C (Castagnoli, RFC 3720 appendix B.4) of n bytes, continuing from crc (0 to begin). */                     \
  X(uint32_t, crc32c, (uint32_t crc, const uint8_t *data, size_t n), (crc, data, n))                                  \
  /* Index of the first NaN or infinity, or n. */                                                                     \
  X(size_t, find_nonfinite, (const float *values, size_t n), (values, n))                                             \
  /* out[m][n] = x[k][m]^T dy[k][n] with int8 operands: a scale per column (absmax / 127), to nearest even, int32 sums over \
     at most 65536 rows. scratch: fg_weight_grad_scratch(k, m, n) bytes, 64-byte aligned. where = column of x, or m +    \
     column of dy, that holds a NaN or infinity. */                                                                     \
  X(int, weight_grad,                                                                                                 \
    (const float *x, const float *dy, size_t k, size_t m, size_t n, float *out, void *scratch, size_t *where),        \
    (x, dy, k, m, n, out, scratch, where))

#define FG_DECLARE(type, name, parameters, arguments) type fg_##name parameters;
FG_KERNELS(FG_DECLARE)
#undef FG_DECLARE

/* mean = (double)sum / (double)total * 2^-32; out = (float)((double)base + mean). One version: it runs once a round. */
void fg_ring_mean(const int64_t *sum, size_t n, int64_t total, const float *base, float *out);

size_t fg_weight_grad_scratch(size_t k, size_t m, size_t n); /* bytes */

int fg_has_capability(int capability); /* 1 if this machine can run it */
int fg_use_capability(int capability); /* FG_OK, or FG_CAPABILITY */
int fg_capability(void);
const char *fg_error_text(int error);

#endif
