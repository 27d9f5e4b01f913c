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
#define RANGE_BITS 0x6c800000u /* bits of 2^90, the most that a value or a scale may be */

static inline uint32_t mix(uint32_t z) {
  z = (z ^ (z >> 16)) * 0x7feb352du;
  z = (z ^ (z >> 15)) * 0x846ca68bu;
  return z ^ (z >> 16);
}

static inline uint32_t block_base(uint64_t key, size_t block) { return mix(mix((uint32_t)block + (uint32_t)key) ^ (uint32_t)(key >> 32)); }

/* v for 16 bits that stand in the upper part of a float's 23-bit fraction: [1, 2) less 3/2, on the middle of its step. Exact. */
static inline float centred(uint32_t fraction) { return from_bits(0x3f800000u | fraction) - (1.5f - 0x1p-17f); }

static inline void block_noise(uint32_t base, float *noise) {
  for (uint32_t j = 0; j < FG_BLOCK / 2; j++) {
    uint32_t h = mix(base + j * 0x9e3779b9u);
    noise[j] = centred(h << 7 & 0x7fff80u);
    noise[j + FG_BLOCK / 2] = centred(h >> 9 & 0x7fff80u);
  }
}

/* scale and 1 / scale from the absmax's bits, or zeros where the scale would be under 2^-90. */
static inline void block_scale(uint32_t most, float levels, float *scale, float *inverse) {
  *scale = from_bits(most) / levels;
  *inverse = levels / from_bits(most);
  if (!(*scale >= LEAST_SCALE)) *scale = *inverse = 0.0f;
}

/* Codes of up to 64 values; the low byte of each sum is the integer that it was rounded to. */
static inline void block_codes(const float *x, size_t count, float inverse, float levels, const float *noise, uint8_t *codes) {
  if (noise) {
    for (size_t i = 0; i < count; i++) {
      float y = x[i] * inverse + noise[i];
      y = y < levels ? y : levels;
      y = y > -levels ? y : -levels;
      codes[i] = (uint8_t)bits(y + ROUND_FLOAT);
    }
  } else {
    for (size_t i = 0; i < count; i++) codes[i] = (uint8_t)bits(x[i] * inverse + ROUND_FLOAT);
  }
}

static inline int blocks_encode(const float *values, size_t n, int narrow, const uint64_t *key, uint8_t *out, size_t *where) {
  const float levels = narrow ? 7.0f : 127.0f;
  for (size_t start = 0; start < n; start += FG_BLOCK) {
    const float *x = values + start;
    size_t count = n - start < FG_BLOCK ? n - start : FG_BLOCK, half = (count + 1) / 2;
    uint32_t most = absmax(x, count);
    if (most > RANGE_BITS) return refuse(values, RANGE_BITS, start, where);
    float scale, inverse, noise[FG_BLOCK];
    block_scale(most, levels, &scale, &inverse);
    memcpy(out, &scale, 4);
    out += 4;
    if (key) block_noise(block_base(*key, start / FG_BLOCK), noise);
    uint8_t codes[FG_BLOCK] = {0};
    block_codes(x, count, inverse, levels, key ? noise : NULL, codes);
    if (narrow) {
      for (size_t j = 0; j < half; j++) out[j] = (uint8_t)((codes[j] & 15u) | (j + half < count ? codes[j + half] & 15u : 0u) << 4);
      out += half;
    } else {
      memcpy(out, codes, count);
      out += count;
    }
  }
  return FG_OK;
}

static inline int blocks_decode(const uint8_t *payload, size_t n, int narrow, float *out, size_t *where) {
  for (size_t start = 0; start < n; start += FG_BLOCK) {
    size_t count = n - start < FG_BLOCK ? n - start : FG_BLOCK, half = (count + 1) / 2;
    uint32_t raw;
    memcpy(&raw, payload, 4);
    payload += 4;
    float scale = from_bits(raw);
    *where = start / FG_BLOCK;
    if (raw != 0 && !(raw <= RANGE_BITS && scale >= LEAST_SCALE)) return FG_SCALE;
    int8_t codes[FG_BLOCK + 1];
    int bad = 0, zero = raw == 0;
    if (narrow) {
      for (size_t j = 0; j < half; j++) {
        codes[j] = (int8_t)(((payload[j] & 15) ^ 8) - 8);
        codes[j + half] = (int8_t)((payload[j] >> 4 ^ 8) - 8);
      }
      if (count % 2) bad = codes[count] != 0;
      payload += half;
    } else {
      memcpy(codes, payload, count);
      payload += count;
    }
    for (size_t i = 0; i < count; i++) {
      bad |= codes[i] == (narrow ? -8 : -128);
      bad |= zero & (codes[i] != 0);
      out[start + i] = scale * (float)codes[i];
    }
    if (bad) return FG_CODE;
  }
  return FG_OK;
}

int FG_ISA(fg_blk8_encode)(const float *values, size_t n, const uint64_t *key, uint8_t *out, size_t *where) {
  return blocks_encode(values, n, 0, key, out, where);
}

int FG_ISA(fg_blk8_decode)(const uint8_t *payload, size_t n, float *out, size_t *where) { return blocks_decode(payload, n, 0, out, where); }

int FG_ISA(fg_blk4_encode)(const float *values, size_t n, const uint64_t *key, uint8_t *out, size_t *where) {
  return blocks_encode(values, n, 1, key, out, where);
}

int FG_ISA(fg_blk4_decode)(const uint8_t *payload, size_t n, float *out, size_t *where) { return blocks_decode(payload, n, 1, out, where); }
