/* rot-k: EDEN (S. Vargaftik et al., ICML 2022) window by window: rotate, quantize to the k-bit Lloyd-Max levels of a normal distribution, and
 * scale by |y|^2 / <y, levels>, which makes the result right on average.
 *
 *   window   = f32 scale | codes         value = +-level * scale, in rotated coordinates
 *   codes    k bits a value, the top one the sign: planes of 8, 4, 2 or 1 bits that add up to k, the widest (the lowest bits) first;
 *            byte j of a plane of w bits and S bytes has the values j, j + S, j + 2 S, ..., the first in its lowest bits
 *
 * Where the last window overlaps the one before by all but t values, that one codes only its first t, which nobody rotates again.
 */
#include "lloyd_max.h"

#define ROTATED_RANGE 0x67800000u /* bits of 2^80: a scale, at most 81 times the largest value, stays under 2^90 */
#define LEVEL_BUCKETS 1024 /* of 1 / 128: no two thresholds of any k fall into one */

typedef struct {
  float level[128]; /* the non-negative ones; at least 8, the rest zeros */
  float threshold[129]; /* threshold[i] between levels i - 1 and i; the last is never reached */
  uint8_t base[LEVEL_BUCKETS];
} Levels;

static void levels_for(uint32_t k, Levels *levels) {
  size_t count = (size_t)1 << (k - 1);
  memset(levels->level, 0, 8 * sizeof *levels->level);
  memcpy(levels->level, LLOYD_MAX + count - 1, count * sizeof *levels->level);
  for (size_t i = 1; i < count; i++) levels->threshold[i] = 0.5f * (levels->level[i - 1] + levels->level[i]);
  levels->threshold[0] = 0.0f;
  levels->threshold[count] = 0x1p127f;
  size_t i = 0;
  for (size_t bucket = 0; bucket < LEVEL_BUCKETS; bucket++) {
    while (i + 1 < count && levels->threshold[i + 1] <= (float)bucket * 0x1p-7f) i++;
    levels->base[bucket] = (uint8_t)i;
  }
}

static size_t codes_size(size_t n, uint32_t k) {
  size_t size = 0;
  for (uint32_t width = 8; width > 0; width /= 2)
    if (k & width) size += (n * width + 7) / 8;
  return size;
}

typedef uint8_t Bytes __attribute__((vector_size(16)));

static inline Bytes load_codes(const uint8_t *from) {
  Bytes codes;
  memcpy(&codes, from, sizeof codes);
  return codes;
}

/* One plane: `width` bits of each code, from bit `low` on. Sixteen bytes at a time while all their values exist, then one by one. */
static inline ALWAYS_INLINE size_t plane_pack(const uint8_t *codes, size_t n, uint32_t width, uint32_t low, uint8_t *out) {
  const size_t bytes = (n * width + 7) / 8;
  const uint8_t mask = (uint8_t)((1u << width) - 1u);
  size_t j = 0;
  for (; n % (8 / width) == 0 && j + 16 <= bytes; j += 16) {
    Bytes packed = {0};
#pragma GCC unroll 8
    for (uint32_t part = 0; part < 8 / width; part++) packed |= (load_codes(codes + part * bytes + j) >> low & mask) << part * width;
    memcpy(out + j, &packed, sizeof packed);
  }
  for (; j < bytes; j++) {
    uint32_t packed = 0;
    for (uint32_t part = 0; part < 8 / width && part * bytes + j < n; part++)
      packed |= (uint32_t)(codes[part * bytes + j] >> low & mask) << part * width;
    out[j] = (uint8_t)packed;
  }
  return bytes;
}

/* Packs n codes of k bits; returns the bytes. */
static inline ALWAYS_INLINE size_t planes_pack(const uint8_t *codes, size_t n, uint32_t k, uint8_t *out) {
  size_t size = 0;
  if (k & 8u) size += plane_pack(codes, n, 8, 0, out + size);
  if (k & 4u) size += plane_pack(codes, n, 4, k & 8u, out + size);
  if (k & 2u) size += plane_pack(codes, n, 2, k & 12u, out + size);
  if (k & 1u) size += plane_pack(codes, n, 1, k & 14u, out + size);
  return size;
}

static size_t codes_pack(const uint8_t *codes, size_t n, uint32_t k, uint8_t *out) {
  switch (k) { /* a constant k makes constant shifts */
    case 1: return planes_pack(codes, n, 1, out);
    case 2: return planes_pack(codes, n, 2, out);
    case 3: return planes_pack(codes, n, 3, out);
    case 4: return planes_pack(codes, n, 4, out);
    case 5: return planes_pack(codes, n, 5, out);
    case 6: return planes_pack(codes, n, 6, out);
    case 7: return planes_pack(codes, n, 7, out);
    default: return planes_pack(codes, n, 8, out);
  }
}

/* The reverse of plane_pack, OR-ed to what `codes` has; 1 where bits behind the last value are set. */
static inline ALWAYS_INLINE int plane_unpack(const uint8_t *in, size_t n, uint32_t width, uint32_t low, uint8_t *codes) {
  const size_t bytes = (n * width + 7) / 8;
  const uint8_t mask = (uint8_t)((1u << width) - 1u);
  uint32_t beyond = 0;
  size_t j = 0;
  for (; n % (8 / width) == 0 && j + 16 <= bytes; j += 16) {
    Bytes packed = load_codes(in + j);
#pragma GCC unroll 8
    for (uint32_t part = 0; part < 8 / width; part++) {
      uint8_t *to = codes + part * bytes + j;
      Bytes code = load_codes(to) | (packed >> part * width & mask) << low;
      memcpy(to, &code, sizeof code);
    }
  }
  for (; j < bytes; j++)
    for (uint32_t part = 0; part < 8 / width; part++) {
      uint32_t code = in[j] >> part * width & mask;
      if (part * bytes + j < n)
        codes[part * bytes + j] = (uint8_t)(codes[part * bytes + j] | code << low);
      else
        beyond |= code;
    }
  return beyond != 0;
}

/* The reverse of planes_pack, with zeros behind up to a multiple of sixteen; FG_CODE where bits behind the last value are set. */
static inline ALWAYS_INLINE int planes_unpack(const uint8_t *in, size_t n, uint32_t k, uint8_t *codes) {
  int bad = 0;
  memset(codes, 0, (n + 15) / 16 * 16);
  if (k & 8u) bad |= plane_unpack(in, n, 8, 0, codes), in += n;
  if (k & 4u) bad |= plane_unpack(in, n, 4, k & 8u, codes), in += (n * 4 + 7) / 8;
  if (k & 2u) bad |= plane_unpack(in, n, 2, k & 12u, codes), in += (n * 2 + 7) / 8;
  if (k & 1u) bad |= plane_unpack(in, n, 1, k & 14u, codes);
  return bad ? FG_CODE : FG_OK;
}

static int codes_unpack(const uint8_t *in, size_t n, uint32_t k, uint8_t *codes) {
  switch (k) { /* a constant k makes constant shifts */
    case 1: return planes_unpack(in, n, 1, codes);
    case 2: return planes_unpack(in, n, 2, codes);
    case 3: return planes_unpack(in, n, 3, codes);
    case 4: return planes_unpack(in, n, 4, codes);
    case 5: return planes_unpack(in, n, 5, codes);
    case 6: return planes_unpack(in, n, 6, codes);
    case 7: return planes_unpack(in, n, 7, codes);
    default: return planes_unpack(in, n, 8, codes);
  }
}

/* The sum of sixteen lanes, which is the same on every ISA. */
static double lanes_sum(const NativeFloat lanes[PARTS]) {
  float lane[16];
  double sum = 0;
  memcpy(lane, lanes, sizeof lane);
  for (size_t i = 0; i < 16; i++) sum += (double)lane[i];
  return sum;
}

/* Codes of n values and the sum of |y| times their levels, in sixteen lanes; up to five bits: by comparing with all thresholds. Reads and writes
 * up to a multiple of sixteen. */
static inline double codes_few(const float *y, size_t n, float inverse, uint32_t k, const Levels *levels, uint8_t *codes) {
  size_t count = (size_t)1 << (k - 1);
  NativeFloat product[PARTS] = {0};
  NativeInt sign;
  for (size_t i = 0; i < NATIVE_LANES; i++) sign[i] = 1 << (k - 1);
  for (size_t start = 0; start < n; start += 16) {
    NativeInt code[PARTS];
#pragma GCC unroll 4
    for (size_t part = 0; part < PARTS; part++) {
      NativeFloat x = load(y + start + part * NATIVE_LANES);
      NativeFloat magnitude = (NativeFloat)((NativeInt)x & INT32_MAX), a = magnitude * inverse;
      NativeInt index = {0};
#pragma GCC unroll 16
      for (size_t t = 1; t < count; t++) index -= a > levels->threshold[t];
      product[part] += magnitude * lookup(levels->level, count, index);
      code[part] = index | (((NativeInt)x < 0) & sign);
    }
    store_bytes(code, codes + start);
  }
  return lanes_sum(product);
}

/* Six bits and more: by a table of buckets that hold one threshold at most. In groups of 256, so that what one loop stores has arrived when the next
 * loads it. */
static double codes_many(const float *y, size_t n, float inverse, uint32_t k, const Levels *levels, uint8_t *codes) {
  NativeFloat product[PARTS] = {0};
  for (size_t start = 0; start < n; start += 256) {
    float a[256], level[256];
    uint16_t bucket[256];
    size_t count = n - start < 256 ? (n - start + 15) / 16 * 16 : 256;
    for (size_t i = 0; i < count; i++) {
      a[i] = from_bits(bits(y[start + i]) & MAGNITUDE_MASK) * inverse;
      int32_t place = (int32_t)(a[i] * 128.0f); /* a is at most 64 */
      bucket[i] = (uint16_t)(place < LEVEL_BUCKETS ? place : LEVEL_BUCKETS - 1);
    }
    for (size_t i = 0; i < count; i++) {
      uint32_t at = levels->base[bucket[i]];
      at += (bits(levels->threshold[at + 1]) - bits(a[i])) >> 31; /* 1 where a is more: no branch */
      codes[start + i] = (uint8_t)(at | bits(y[start + i]) >> 31 << (k - 1));
      level[i] = levels->level[at];
    }
    for (size_t i = 0; i < count; i += 16)
      for (size_t part = 0; part < PARTS; part++) {
        NativeFloat x = load(y + start + i + part * NATIVE_LANES), magnitude = (NativeFloat)((NativeInt)x & INT32_MAX);
        product[part] += magnitude * load(level + i + part * NATIVE_LANES);
      }
  }
  return lanes_sum(product);
}

static double codes_for(const float *y, size_t n, float inverse, uint32_t k, const Levels *levels, uint8_t *codes) {
  switch (k) { /* a constant k lets the comparisons be unrolled */
    case 1: return codes_few(y, n, inverse, 1, levels, codes);
    case 2: return codes_few(y, n, inverse, 2, levels, codes);
    case 3: return codes_few(y, n, inverse, 3, levels, codes);
    case 4: return codes_few(y, n, inverse, 4, levels, codes);
    case 5: return codes_few(y, n, inverse, 5, levels, codes);
    default: return codes_many(y, n, inverse, k, levels, codes);
  }
}

static double sum_of_squares(const float *y, size_t n) {
  NativeFloat square[PARTS] = {0};
  for (size_t start = 0; start < n; start += 16)
    for (size_t part = 0; part < PARTS; part++) {
      NativeFloat x = load(y + start + part * NATIVE_LANES);
      square[part] += x * x;
    }
  return lanes_sum(square);
}

/* n <= 4096 rotated values, which stand for `unit` times as much, as one scale and n codes. What follows the values up to a multiple of
 * sixteen is overwritten with zeros, which add nothing, and put back. */
static uint8_t *window_encode(float *y, size_t n, uint32_t k, const Levels *levels, double unit, uint8_t *out) {
  uint8_t codes[WINDOW];
  float scale = 0.0f, behind[16];
  size_t pad = (16 - n % 16) % 16;
  memcpy(behind, y + n, pad * sizeof *y);
  memset(y + n, 0, pad * sizeof *y);
  double squares = sum_of_squares(y, n);
  if (squares >= 0x1p-100) {
    float inverse = (float)(1.0 / __builtin_sqrt(squares / (double)n));
    scale = (float)(squares / codes_for(y, n, inverse, k, levels, codes) * unit);
  }
  memcpy(y + n, behind, pad * sizeof *y);
  if (!(scale >= LEAST_SCALE)) {
    scale = 0.0f;
    memset(codes, 0, n);
  }
  memcpy(out, &scale, 4);
  return out + 4 + codes_pack(codes, n, k, out + 4);
}

/* Values of up to five bits a code; writes up to a multiple of sixteen. */
static inline void levels_few(const uint8_t *codes, size_t n, uint32_t k, const float *level, float *y) {
  size_t count = (size_t)1 << (k - 1);
  for (size_t start = 0; start < n; start += 16) {
    NativeInt code[PARTS];
    load_bytes(codes + start, code);
#pragma GCC unroll 4
    for (size_t part = 0; part < PARTS; part++) {
      NativeInt sign = code[part] << (32 - k) & INT32_MIN;
      store(y + start + part * NATIVE_LANES, (NativeFloat)((NativeInt)lookup(level, count, code[part] & (int32_t)(count - 1)) ^ sign));
    }
  }
}

/* The reverse of window_encode; writes up to a multiple of sixteen values. */
static int window_decode(const uint8_t **in, size_t n, uint32_t k, const Levels *levels, float *y) {
  uint8_t codes[WINDOW];
  float level[256] = {0}, scale;
  uint32_t raw;
  memcpy(&raw, *in, 4);
  scale = from_bits(raw);
  if (raw != 0 && !(raw <= RANGE_BITS && scale >= LEAST_SCALE)) return FG_SCALE;
  int error = codes_unpack(*in + 4, n, k, codes);
  if (error) return error;
  *in += 4 + codes_size(n, k);
  if (raw == 0) {
    uint32_t any = 0;
    for (size_t i = 0; i < n; i++) any |= codes[i];
    if (any) return FG_CODE;
  }
  size_t half = (size_t)1 << (k - 1);
  for (size_t i = 0; i < half; i++) level[i] = levels->level[i] * scale;
  switch (k) {
    case 1: levels_few(codes, n, 1, level, y); return FG_OK;
    case 2: levels_few(codes, n, 2, level, y); return FG_OK;
    case 3: levels_few(codes, n, 3, level, y); return FG_OK;
    case 4: levels_few(codes, n, 4, level, y); return FG_OK;
    case 5: levels_few(codes, n, 5, level, y); return FG_OK;
    default: break;
  }
  for (size_t i = 0; i < half; i++) level[half + i] = -level[i];
  for (size_t i = 0; i < n; i++) y[i] = level[codes[i]];
  return FG_OK;
}

/* The power of two just over a window's largest magnitude, whose bits are `most`, and so that sums of squares are floats whatever the values. */
static inline float unit_of(uint32_t most) { return most < 0x0e800000u ? 0x1p-97f : from_bits((most & EXPONENT_MASK) + 0x00800000u); }

int FG_ISA(fg_rot_encode)(const float *values, size_t n, uint32_t k, uint64_t key, uint32_t stream, uint8_t *out, size_t *where) {
  if (n == 0) return FG_OK;
  size_t window = window_for(n), windows = n / window, left = n % window;
  Levels levels;
  levels_for(k, &levels);
  float y[2 * WINDOW + 16];
  for (size_t i = 0; i < windows; i++) {
    const float *x = values + i * window;
    size_t count = i + 1 == windows ? window + left : window;
    uint32_t most = absmax(x, count);
    if (most > ROTATED_RANGE) return refuse(values, ROTATED_RANGE, i * window, where);
    float unit = unit_of(most), inverse = 1.0f / unit;
    rotate(x, y, window, key, stream, i, inverse);
    memset(y + count, 0, 16 * sizeof *y);
    if (count == window) {
      out = window_encode(y, window, k, &levels, (double)unit, out);
    } else {
      for (size_t j = window; j < count; j++) y[j] = x[j] * inverse;
      out = window_encode(y, left, k, &levels, (double)unit, out);
      rotate(y + left, y + left, window, key, stream, windows, 1.0f);
      out = window_encode(y + left, window, k, &levels, (double)unit, out);
    }
  }
  return FG_OK;
}

static int windows_decode(const uint8_t *payload, size_t n, uint32_t k, uint64_t key, uint32_t stream, float *out, size_t *where) {
  size_t window = window_for(n), windows = n / window, left = n % window;
  Levels levels;
  levels_for(k, &levels);
  for (size_t i = 0; i < windows; i++, out += window) {
    int error;
    *where = i;
    if (i + 1 == windows && left) {
      if ((error = window_decode(&payload, left, k, &levels, out))) return error;
      *where = windows;
      if ((error = window_decode(&payload, window, k, &levels, out + left))) return error;
      rotate_back(out + left, window, key, stream, windows);
    } else if ((error = window_decode(&payload, window, k, &levels, out))) {
      return error;
    }
    rotate_back(out, window, key, stream, i);
  }
  return FG_OK;
}

int FG_ISA(fg_rot_decode)(const uint8_t *payload, size_t n, uint32_t k, uint64_t key, uint32_t stream, float *out, size_t *where) {
  if (n >= 16) return windows_decode(payload, n, k, key, stream, out, where);
  float y[48]; /* room for the multiples of sixteen that windows are decoded in */
  int error = n == 0 ? FG_OK : windows_decode(payload, n, k, key, stream, y, where);
  if (n > 0 && !error) memcpy(out, y, n * sizeof *out);
  return error;
}

size_t FG_ISA(fg_rot_size)(size_t n, uint32_t k) {
  if (n == 0) return 0;
  size_t window = window_for(n), windows = n / window, left = n % window;
  return windows * (4 + codes_size(window, k)) + (left ? 4 + codes_size(left, k) : 0);
}
