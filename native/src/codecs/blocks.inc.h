/* blk8 and blk4: blocks of 64 values under one absmax scale, rounded to nearest even or stochastically.
 *
 *   block    f32 scale | codes         value = scale * code; scale = largest magnitude / L, L = 127 or 7
 *   blk8     one int8 a value, -127..127
 *   blk4     4 bits a value, two's complement, -7..7: byte j of S = ceil(count / 2) has value j in its low half, value j + S in its
 *            high half, which is 0 where there is no such value
 *   scale    +0 (all codes are 0 then), or from 2^-90 to 2^90; the last block has the values that are left over
 *
 *   blk4 of 0.7, -0.2, 0.35, 0.05, 0.0 (nearest):   scale 0.1 = cd cc cc 3d    codes 7, -2, 4, 0, 0    S = 3:  07 0e 04
 *
 * Stochastic rounding adds v in (-1/2, 1/2) to value / scale before it rounds: 16 bits of a counter-based generator (two rounds of
 * C. Wellons' 32-bit mixer "lowbias32" give each block a base, one more each pair of values their bits), so that any block can be coded alone:
 *
 *   base = mix(mix(block + low key) ^ high key)    h = mix(base + j * 0x9e3779b9)    j = 0..31
 *   v    = (s + 1/2) / 65536, s the low (value j) or high (value j + 32) half of h, less 32768
 */
#define ALWAYS_INLINE __attribute__((always_inline)) /* so that each codec gets its loop, without the others' branches */
#define RANGE_BITS 0x6c800000u /* bits of 2^90, the most that a value or a scale may be */

static inline uint32_t mix(uint32_t z) {
  z = (z ^ (z >> 16)) * 0x7feb352du;
  z = (z ^ (z >> 15)) * 0x846ca68bu;
  return z ^ (z >> 16);
}

static inline uint32_t block_base(uint64_t key, size_t block) { return mix(mix((uint32_t)block + (uint32_t)key) ^ (uint32_t)(key >> 32)); }

#if defined(FG_FOR_AVX512VNNI)
#include "blocks_avx512.inc.h"
#include "blocks_bytes.inc.h"
#elif defined(FG_FOR_AVX2)
#include "blocks_avx2.inc.h"
#include "blocks_bytes.inc.h"
#else
#include "blocks_portable.inc.h"
#endif

/* scale and 1 / scale from the absmax's bits, or zeros where the scale would be under 2^-90. */
static inline void block_scale(uint32_t most, float levels, float *scale, float *inverse) {
  *scale = from_bits(most) / levels;
  *inverse = levels / from_bits(most);
  if (!(*scale >= LEAST_SCALE)) *scale = *inverse = 0.0f;
}

/* One block: its scale to out, its codes to `codes`. Returns the error, if any. */
static inline ALWAYS_INLINE int block_encode(const float *x, int levels, const uint64_t *key, size_t block, uint8_t *out, uint8_t *codes) {
  uint32_t most = block_absmax(x);
  if (most > RANGE_BITS) return FG_RANGE;
  float scale, inverse;
  block_scale(most, (float)levels, &scale, &inverse);
  memcpy(out, &scale, 4);
  if (key)
    block_stochastic(x, inverse, levels, block_base(*key, block), codes);
  else
    block_nearest(x, inverse, codes);
  return FG_OK;
}

static inline ALWAYS_INLINE int blocks_encode(const float *values, size_t n, int levels, const uint64_t *key, uint8_t *out, size_t *where) {
  size_t start = 0, left = n % FG_BLOCK, half = (left + 1) / 2;
  uint8_t codes[FG_BLOCK];
  for (; start + FG_BLOCK <= n; start += FG_BLOCK) {
    if (block_encode(values + start, levels, key, start / FG_BLOCK, out, levels == 127 ? out + 4 : codes))
      return refuse(values, RANGE_BITS, start, where);
    if (levels == 7) block_narrow(codes, out + 4);
    out += 4 + (levels == 127 ? FG_BLOCK : FG_BLOCK / 2);
  }
  if (left == 0) return FG_OK;
  float padded[FG_BLOCK] = {0};
  memcpy(padded, values + start, left * sizeof *padded);
  if (block_encode(padded, levels, key, start / FG_BLOCK, out, codes)) return refuse(values, RANGE_BITS, start, where);
  out += 4;
  if (levels == 127)
    memcpy(out, codes, left);
  else
    for (size_t j = 0; j < half; j++) out[j] = (uint8_t)((codes[j] & 15u) | (j + half < left ? codes[j + half] & 15u : 0u) << 4);
  return FG_OK;
}

/* Reads a block's scale: 1 where it is one that an encoder writes. */
static inline int block_scale_read(const uint8_t *in, float *scale) {
  uint32_t raw;
  memcpy(&raw, in, 4);
  *scale = from_bits(raw);
  return raw == 0 || (raw <= RANGE_BITS && *scale >= LEAST_SCALE);
}

static inline ALWAYS_INLINE int blocks_decode(const uint8_t *in, size_t n, int levels, float *out, size_t *where) {
  size_t start = 0, left = n % FG_BLOCK, half = (left + 1) / 2;
  uint8_t codes[FG_BLOCK];
  float scale;
  for (; start + FG_BLOCK <= n; start += FG_BLOCK) {
    *where = start / FG_BLOCK;
    if (!block_scale_read(in, &scale)) return FG_SCALE;
    if (levels == 7) block_widen(in + 4, codes);
    if (block_floats(levels == 127 ? in + 4 : codes, -levels - 1, scale, out + start)) return FG_CODE;
    in += 4 + (levels == 127 ? FG_BLOCK : FG_BLOCK / 2);
  }
  if (left == 0) return FG_OK;
  *where = start / FG_BLOCK;
  if (!block_scale_read(in, &scale)) return FG_SCALE;
  in += 4;
  float some[FG_BLOCK];
  memset(codes, 0, sizeof codes);
  if (levels == 127)
    memcpy(codes, in, left);
  else
    for (size_t j = 0; j < half; j++) {
      codes[j] = (uint8_t)(((in[j] & 15u) ^ 8u) - 8u);
      codes[j + half] = (uint8_t)((in[j] >> 4 ^ 8u) - 8u);
    }
  if ((left < FG_BLOCK && codes[left] != 0) || block_floats(codes, -levels - 1, scale, some)) return FG_CODE;
  memcpy(out + start, some, left * sizeof *out);
  return FG_OK;
}

int FG_ISA(fg_blk8_encode)(const float *values, size_t n, const uint64_t *key, uint8_t *out, size_t *where) {
  return key ? blocks_encode(values, n, 127, key, out, where) : blocks_encode(values, n, 127, NULL, out, where);
}

int FG_ISA(fg_blk8_decode)(const uint8_t *payload, size_t n, float *out, size_t *where) { return blocks_decode(payload, n, 127, out, where); }

int FG_ISA(fg_blk4_encode)(const float *values, size_t n, const uint64_t *key, uint8_t *out, size_t *where) {
  return key ? blocks_encode(values, n, 7, key, out, where) : blocks_encode(values, n, 7, NULL, out, where);
}

int FG_ISA(fg_blk4_decode)(const uint8_t *payload, size_t n, float *out, size_t *where) { return blocks_decode(payload, n, 7, out, where); }
