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

#define LEVEL_BUCKETS 1024 /* of 1 / 128: no two thresholds of any k fall into one */

typedef struct {
  const float *level;
  float threshold[129]; /* threshold[i] between levels i - 1 and i; the last is never reached */
  uint8_t base[LEVEL_BUCKETS];
} Levels;

static void levels_for(uint32_t k, Levels *levels) {
  size_t count = (size_t)1 << (k - 1);
  levels->level = LLOYD_MAX + count - 1;
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

/* Packs n codes of k bits; returns the bytes. */
static size_t codes_pack(const uint8_t *codes, size_t n, uint32_t k, uint8_t *out) {
  size_t size = 0;
  uint32_t low = 0;
  for (uint32_t width = 8; width > 0; width /= 2) {
    if (!(k & width)) continue;
    size_t bytes = (n * width + 7) / 8;
    uint8_t mask = (uint8_t)((1u << width) - 1u), *plane = out + size;
    for (size_t j = 0; j < bytes; j++) plane[j] = (uint8_t)(codes[j] >> low & mask);
    for (uint32_t part = 1; part < 8 / width; part++) {
      const uint8_t *from = codes + part * bytes;
      size_t count = part * bytes >= n ? 0 : n - part * bytes < bytes ? n - part * bytes : bytes;
      for (size_t j = 0; j < count; j++) plane[j] = (uint8_t)(plane[j] | (from[j] >> low & mask) << part * width);
    }
    size += bytes;
    low += width;
  }
  return size;
}

/* The reverse; 0, or FG_CODE where bits behind the last value are set. */
static int codes_unpack(const uint8_t *in, size_t n, uint32_t k, uint8_t *codes) {
  uint32_t low = 0;
  memset(codes, 0, n);
  for (uint32_t width = 8; width > 0; width /= 2) {
    if (!(k & width)) continue;
    size_t bytes = (n * width + 7) / 8;
    uint8_t mask = (uint8_t)((1u << width) - 1u), beyond = 0;
    for (uint32_t part = 0; part < 8 / width; part++) {
      uint8_t *to = codes + part * bytes;
      size_t count = part * bytes >= n ? 0 : n - part * bytes < bytes ? n - part * bytes : bytes;
      for (size_t j = 0; j < count; j++) to[j] = (uint8_t)(to[j] | (in[j] >> part * width & mask) << low);
      for (size_t j = count; j < bytes; j++) beyond |= (uint8_t)(in[j] >> part * width & mask);
    }
    if (beyond) return FG_CODE;
    in += bytes;
    low += width;
  }
  return FG_OK;
}

/* Codes of n values and the sum of |y| times their levels, in sixteen lanes. Up to four bits: by comparing with all thresholds. */
static inline double codes_few(const float *y, size_t n, float inverse, uint32_t k, const Levels *levels, uint8_t *codes) {
  double product[16] = {0}, products = 0;
  size_t count = (size_t)1 << (k - 1);
  NativeInt sign;
  for (size_t i = 0; i < NATIVE_LANES; i++) sign[i] = 1 << (k - 1);
  for (size_t start = 0; start < n; start += 16) {
    float padded[16] = {0};
    const float *at = y + start;
    size_t length = n - start < 16 ? n - start : 16;
    if (length < 16) at = memcpy(padded, at, length * sizeof *at);
    int32_t code[16];
    float magnitude[16], level[16];
#pragma GCC unroll 4
    for (size_t part = 0; part < 16; part += NATIVE_LANES) {
      NativeFloat x, value = (NativeFloat){0} + levels->level[0];
      memcpy(&x, at + part, sizeof x);
      NativeInt largest = (NativeInt){0} + INT32_MAX, index = ((NativeInt)x < 0) & sign;
      NativeFloat absolute = (NativeFloat)((NativeInt)x & largest), a = absolute * inverse;
#pragma GCC unroll 8
      for (size_t t = 1; t < count; t++) {
        NativeInt above = a > levels->threshold[t];
        index -= above;
        value = (NativeFloat)(((NativeInt)value & ~above) | ((NativeInt)((NativeFloat){0} + levels->level[t]) & above));
      }
      memcpy(code + part, &index, sizeof index);
      memcpy(magnitude + part, &absolute, sizeof absolute);
      memcpy(level + part, &value, sizeof value);
    }
    for (size_t i = 0; i < 16; i++) product[i] += (double)magnitude[i] * (double)level[i];
    for (size_t i = 0; i < length; i++) codes[start + i] = (uint8_t)code[i];
  }
  for (size_t i = 0; i < 16; i++) products += product[i];
  return products;
}

static double codes_many(const float *y, size_t n, float inverse, uint32_t k, const Levels *levels, uint8_t *codes) {
  double product[16] = {0}, products = 0;
  for (size_t i = 0; i < n; i++) {
    float a = from_bits(bits(y[i]) & MAGNITUDE_MASK) * inverse;
    float clipped = a < 7.99f ? a : 7.99f;
    uint32_t at = levels->base[(size_t)(int32_t)(clipped * 128.0f)];
    at += a > levels->threshold[at + 1];
    codes[i] = (uint8_t)(at | bits(y[i]) >> 31 << (k - 1));
    product[i % 16] += (double)from_bits(bits(y[i]) & MAGNITUDE_MASK) * (double)levels->level[at];
  }
  for (size_t i = 0; i < 16; i++) products += product[i];
  return products;
}

static double codes_for(const float *y, size_t n, float inverse, uint32_t k, const Levels *levels, uint8_t *codes) {
  switch (k) { /* a constant k lets the comparisons be unrolled */
    case 1: return codes_few(y, n, inverse, 1, levels, codes);
    case 2: return codes_few(y, n, inverse, 2, levels, codes);
    case 3: return codes_few(y, n, inverse, 3, levels, codes);
    case 4: return codes_few(y, n, inverse, 4, levels, codes);
    default: return codes_many(y, n, inverse, k, levels, codes);
  }
}

static double sum_of_squares(const float *y, size_t n) {
  double square[16] = {0}, squares = 0;
  size_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (size_t lane = 0; lane < 16; lane++) square[lane] += (double)y[i + lane] * (double)y[i + lane];
  for (; i < n; i++) square[i % 16] += (double)y[i] * (double)y[i];
  for (size_t lane = 0; lane < 16; lane++) squares += square[lane];
  return squares;
}

/* n <= 4096 rotated values, as one scale and n codes. */
static uint8_t *window_encode(const float *y, size_t n, uint32_t k, const Levels *levels, uint8_t *out) {
  double squares = sum_of_squares(y, n);
  uint8_t codes[WINDOW];
  float scale = 0.0f;
  if (squares >= 0x1p-180) {
    float inverse = (float)(1.0 / __builtin_sqrt(squares / (double)n));
    scale = (float)(squares / codes_for(y, n, inverse, k, levels, codes));
  }
  if (scale < LEAST_SCALE) {
    scale = 0.0f;
    memset(codes, 0, n);
  }
  memcpy(out, &scale, 4);
  return out + 4 + codes_pack(codes, n, k, out + 4);
}

static int window_decode(const uint8_t **in, size_t n, uint32_t k, const Levels *levels, float *y) {
  uint8_t codes[WINDOW];
  float signed_level[256], scale;
  uint32_t raw;
  memcpy(&raw, *in, 4);
  scale = from_bits(raw);
  if (raw != 0 && !(raw < EXPONENT_MASK && scale >= LEAST_SCALE && scale <= 0x1p90f)) return FG_SCALE;
  int error = codes_unpack(*in + 4, n, k, codes);
  if (error) return error;
  *in += 4 + codes_size(n, k);
  size_t half = (size_t)1 << (k - 1);
  for (size_t i = 0; i < half; i++) {
    signed_level[i] = levels->level[i] * scale;
    signed_level[half + i] = -signed_level[i];
  }
  uint32_t any = 0;
  for (size_t i = 0; i < n; i++) any |= codes[i];
  if (raw == 0 && any) return FG_CODE;
  for (size_t i = 0; i < n; i++) y[i] = signed_level[codes[i]];
  return FG_OK;
}

int FG_ISA(fg_rot_encode)(const float *values, size_t n, uint32_t k, uint64_t key, uint32_t stream, uint8_t *out, size_t *where) {
  if (n == 0) return FG_OK;
  size_t window = window_for(n), windows = n / window, left = n % window;
  Levels levels;
  levels_for(k, &levels);
  const float *at = values;
  float y[2 * WINDOW];
  for (size_t i = 0; i < windows; i++, at += window) {
    int last = i + 1 == windows;
    size_t count = last ? window + left : window;
    if (absmax(at, count) > 0x6c800000u) { /* bits of 2^90 */
      for (*where = i * window;; ++*where) {
        uint32_t u = bits(values[*where]) & MAGNITUDE_MASK;
        if (u > 0x6c800000u) return u >= EXPONENT_MASK ? FG_NONFINITE : FG_RANGE;
      }
    }
    memcpy(y, at, count * sizeof *y);
    rotate(y, window, key, stream, i);
    if (last && left) {
      out = window_encode(y, left, k, &levels, out);
      rotate(y + left, window, key, stream, windows);
      out = window_encode(y + left, window, k, &levels, out);
    } else {
      out = window_encode(y, window, k, &levels, out);
    }
  }
  return FG_OK;
}

int FG_ISA(fg_rot_decode)(const uint8_t *payload, size_t n, uint32_t k, uint64_t key, uint32_t stream, float *out, size_t *where) {
  if (n == 0) return FG_OK;
  size_t window = window_for(n), windows = n / window, left = n % window;
  Levels levels;
  levels_for(k, &levels);
  for (size_t i = 0; i < windows; i++, out += window) {
    *where = i;
    int error;
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

size_t FG_ISA(fg_rot_size)(size_t n, uint32_t k) {
  if (n == 0) return 0;
  size_t window = window_for(n), windows = n / window, left = n % window;
  return windows * (4 + codes_size(window, k)) + (left ? 4 + codes_size(left, k) : 0);
}
