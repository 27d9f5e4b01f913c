/* The kernels' bodies, compiled once per ISA: an ISA's file defines FG_ISA(name), its own FG_CRC and FG_DOT_PANEL where it
 * has instructions that a compiler doesn't find, and includes this. Loops are written so that gcc vectorises them; what they compute
 * doesn't depend on the vector's width, so every ISA gives the same bytes.
 *
 * Rounding to nearest even without libm: adding 1.5 * 2^23 (floats) or 1.5 * 2^52 (doubles) leaves the integer in the low bits.
 */
#include <string.h>

#include "fleetgrad.h"

#define ROUND_FLOAT 12582912.0f          /* 1.5 * 2^23 */
#define ROUND_DOUBLE 6755399441055744.0  /* 1.5 * 2^52 */
#define EXPONENT_MASK 0x7f800000u
#define MAGNITUDE_MASK 0x7fffffffu
#define LEAST_SCALE 0x1p-90f  /* below, ARMv7 NEON would meet subnormals */
#define FIXED_RANGE 0x42800000u /* bits of 64.0f */
#define GEMM_ROWS 65536 /* 127 * 127 * 65536 < 2^31 */
#define PANEL 8         /* rows of the output that one sweep over dy computes */
#define COLUMNS 16      /* packed columns are padded to this */

static inline uint32_t FG_ISA(bits)(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}

static inline float FG_ISA(from_bits)(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

/* Largest bit pattern of |x|: the absmax for finite values, at least EXPONENT_MASK if one isn't finite. */
static inline uint32_t FG_ISA(absmax)(const float *x, size_t n) {
  uint32_t most = 0;
  for (size_t i = 0; i < n; i++) {
    uint32_t u = FG_ISA(bits)(x[i]) & MAGNITUDE_MASK;
    most = u > most ? u : most;
  }
  return most;
}

size_t FG_ISA(fg_find_nonfinite)(const float *values, size_t n) {
  for (size_t start = 0; start < n; start += 1024) {
    size_t count = n - start < 1024 ? n - start : 1024;
    if (FG_ISA(absmax)(values + start, count) < EXPONENT_MASK) continue;
    for (size_t i = start;; i++)
      if ((FG_ISA(bits)(values[i]) & MAGNITUDE_MASK) >= EXPONENT_MASK) return i;
  }
  return n;
}

/* Uniform 24 bits for value i: two rounds of a 32-bit mixer (C. Wellons' lowbias32), keyed by the halves of the key. */
static inline uint32_t FG_ISA(mix)(uint32_t z) {
  z = (z ^ (z >> 16)) * 0x7feb352du;
  z = (z ^ (z >> 15)) * 0x846ca68bu;
  return z ^ (z >> 16);
}

int FG_ISA(fg_blk8_encode)(const float *values, size_t n, const uint64_t *key, uint8_t *out, size_t *where) {
  for (size_t start = 0; start < n; start += FG_BLOCK) {
    const float *x = values + start;
    size_t count = n - start < FG_BLOCK ? n - start : FG_BLOCK;
    uint32_t most = FG_ISA(absmax)(x, count);
    if (most >= EXPONENT_MASK) {
      *where = start + FG_ISA(fg_find_nonfinite)(x, count);
      return FG_NONFINITE;
    }
    float scale = FG_ISA(from_bits)(most) / 127.0f;
    float inverse = 0.0f;
    if (scale < LEAST_SCALE)
      scale = 0.0f;
    else
      inverse = 127.0f / FG_ISA(from_bits)(most);
    memcpy(out, &scale, 4);
    out += 4;
    if (key) {
      uint32_t low = (uint32_t)*key, high = (uint32_t)(*key >> 32);
      for (size_t i = 0; i < count; i++) {
        uint32_t h = FG_ISA(mix)(FG_ISA(mix)((uint32_t)(start + i) + low) ^ high);
        float y = x[i] * inverse + (float)(int32_t)(h >> 8) * 0x1p-24f;
        int32_t floor = (int32_t)y;
        floor -= y < (float)floor;
        floor = floor > 127 ? 127 : floor;
        floor = floor < -127 ? -127 : floor;
        out[i] = (uint8_t)(inverse > 0.0f ? floor : 0);
      }
    } else {
      for (size_t i = 0; i < count; i++) out[i] = (uint8_t)FG_ISA(bits)(x[i] * inverse + ROUND_FLOAT);
    }
    out += count;
  }
  return FG_OK;
}

int FG_ISA(fg_blk8_decode)(const uint8_t *payload, size_t n, float *out, size_t *where) {
  for (size_t start = 0; start < n; start += FG_BLOCK) {
    size_t count = n - start < FG_BLOCK ? n - start : FG_BLOCK;
    uint32_t raw;
    memcpy(&raw, payload, 4);
    float scale = FG_ISA(from_bits)(raw);
    *where = start / FG_BLOCK;
    if (raw != 0 && !(raw < EXPONENT_MASK && scale >= LEAST_SCALE)) return FG_SCALE;
    payload += 4;
    int bad = 0;
    int zero = raw == 0;
    for (size_t i = 0; i < count; i++) {
      int8_t code = (int8_t)payload[i];
      bad |= code == -128;
      bad |= zero & (code != 0);
      out[start + i] = scale * (float)code;
    }
    if (bad) return FG_CODE;
    payload += count;
  }
  return FG_OK;
}

int FG_ISA(fg_ring_add)(int64_t *sum, const float *values, size_t n, int64_t weight, size_t *where) {
  for (size_t start = 0; start < n; start += 1024) {
    size_t count = n - start < 1024 ? n - start : 1024;
    if (FG_ISA(absmax)(values + start, count) <= FIXED_RANGE) continue;
    for (size_t i = start;; i++) {
      uint32_t u = FG_ISA(bits)(values[i]) & MAGNITUDE_MASK;
      if (u > FIXED_RANGE) {
        *where = i;
        return u >= EXPONENT_MASK ? FG_NONFINITE : FG_RANGE;
      }
    }
  }
  for (size_t i = 0; i < n; i++) {
    double shifted = (double)values[i] * 0x1p32 + ROUND_DOUBLE;
    int64_t q;
    memcpy(&q, &shifted, 8);
    sum[i] += (q - 0x4338000000000000) * weight; /* the bits of ROUND_DOUBLE */
  }
  return FG_OK;
}

void FG_ISA(fg_sgd_momentum)(float *restrict parameters, const float *restrict gradients, float *restrict velocity, size_t n,
                             float rate, float momentum, float decay) {
  for (size_t i = 0; i < n; i++) {
    float v = momentum * velocity[i] + (gradients[i] + decay * parameters[i]);
    velocity[i] = v;
    parameters[i] -= rate * v;
  }
}

uint32_t FG_ISA(fg_crc32c)(uint32_t crc, const uint8_t *data, size_t n) { return FG_CRC(crc, data, n); }

/* --- int8 weight gradient ---------------------------------------------------------------------------------------------
 * Packed operand: rows in quads, element (k, j) at ((k / 4) * columns + j) * 4 + k % 4, so that four products of one output
 * element lie in one 32-bit lane.
 */
static inline size_t FG_ISA(padded)(size_t n, size_t to) { return (n + to - 1) / to * to; }

/* Scale and its inverse for each column; 0 and 0 for a column that is zero. Index of a column that isn't finite, or n. */
static size_t FG_ISA(column_scales)(const float *x, size_t k, size_t n, float *scale, float *inverse) {
  uint32_t *most = (uint32_t *)(void *)inverse;
  memset(most, 0, n * 4);
  for (size_t row = 0; row < k; row++)
    for (size_t j = 0; j < n; j++) {
      uint32_t u = FG_ISA(bits)(x[row * n + j]) & MAGNITUDE_MASK;
      most[j] = u > most[j] ? u : most[j];
    }
  size_t bad = n;
  for (size_t j = 0; j < n; j++) {
    uint32_t u = most[j];
    float absmax = FG_ISA(from_bits)(u);
    if (u >= EXPONENT_MASK && bad == n) bad = j;
    int used = absmax >= 0x1p-100f;
    scale[j] = used ? absmax / 127.0f : 0.0f;
    inverse[j] = used ? 127.0f / absmax : 0.0f;
  }
  return bad;
}

static void FG_ISA(pack)(const float *x, size_t k, size_t n, const float *inverse, int8_t *packed) {
  size_t columns = FG_ISA(padded)(n, COLUMNS);
  for (size_t row = 0; row < k; row += 4, packed += columns * 4) {
    uint32_t *quads = (uint32_t *)(void *)packed;
    const float *x0 = x + row * n, *x1 = x0 + n, *x2 = x1 + n, *x3 = x2 + n;
    if (row + 4 <= k) {
      for (size_t j = 0; j < n; j++) {
        uint32_t q0 = FG_ISA(bits)(x0[j] * inverse[j] + ROUND_FLOAT) & 255u;
        uint32_t q1 = FG_ISA(bits)(x1[j] * inverse[j] + ROUND_FLOAT) & 255u;
        uint32_t q2 = FG_ISA(bits)(x2[j] * inverse[j] + ROUND_FLOAT) & 255u;
        uint32_t q3 = FG_ISA(bits)(x3[j] * inverse[j] + ROUND_FLOAT) & 255u;
        quads[j] = q0 | q1 << 8 | q2 << 16 | q3 << 24;
      }
    } else {
      for (size_t j = 0; j < n; j++) {
        uint32_t quad = 0;
        for (size_t r = 0; row + r < k; r++)
          quad |= (FG_ISA(bits)(x0[r * n + j] * inverse[j] + ROUND_FLOAT) & 255u) << (8 * r);
        quads[j] = quad;
      }
    }
    memset(quads + n, 0, (columns - n) * 4);
  }
}

#ifndef FG_DOT_PANEL
#define FG_DOT_PANEL FG_ISA(dot_panel)
/* out[PANEL][columns] = a^T b over `quads` quads of rows; a points at the panel's first column. */
static void FG_ISA(dot_panel)(const int8_t *a, size_t a_columns, const int8_t *b, size_t columns, size_t quads, int32_t *out) {
  memset(out, 0, PANEL * columns * 4);
  for (size_t q = 0; q < quads; q++, a += a_columns * 4, b += columns * 4)
    for (size_t i = 0; i < PANEL; i++)
      for (size_t j = 0; j < columns; j++) {
        const int8_t *u = a + i * 4, *v = b + j * 4;
        out[i * columns + j] += u[0] * v[0] + u[1] * v[1] + u[2] * v[2] + u[3] * v[3];
      }
}
#endif

int FG_ISA(fg_weight_grad)(const float *x, const float *dy, size_t k, size_t m, size_t n, float *out, void *scratch,
                           size_t *where) {
  size_t mp = FG_ISA(padded)(m, COLUMNS), np = FG_ISA(padded)(n, COLUMNS);
  size_t rows = k < GEMM_ROWS ? FG_ISA(padded)(k, 4) : GEMM_ROWS;
  float *x_scale = scratch, *x_inverse = x_scale + mp, *dy_scale = x_inverse + mp, *dy_inverse = dy_scale + np;
  int32_t *sums = (int32_t *)(void *)(dy_inverse + np);
  int8_t *a = (int8_t *)(sums + PANEL * np), *b = a + rows * mp;

  if ((*where = FG_ISA(column_scales)(x, k, m, x_scale, x_inverse)) < m) return FG_NONFINITE;
  if ((*where = FG_ISA(column_scales)(dy, k, n, dy_scale, dy_inverse)) < n) {
    *where += m;
    return FG_NONFINITE;
  }
  for (size_t start = 0; start < k; start += GEMM_ROWS) {
    size_t count = k - start < GEMM_ROWS ? k - start : GEMM_ROWS;
    FG_ISA(pack)(x + start * m, count, m, x_inverse, a);
    FG_ISA(pack)(dy + start * n, count, n, dy_inverse, b);
    for (size_t i = 0; i < m; i += PANEL) {
      FG_DOT_PANEL(a + i * 4, mp, b, np, FG_ISA(padded)(count, 4) / 4, sums);
      for (size_t r = 0; r < PANEL && i + r < m; r++) {
        float *row = out + (i + r) * n;
        float scale = x_scale[i + r];
        const int32_t *sum = sums + r * np;
        if (start == 0)
          for (size_t j = 0; j < n; j++) row[j] = (float)sum[j] * (scale * dy_scale[j]);
        else
          for (size_t j = 0; j < n; j++) row[j] += (float)sum[j] * (scale * dy_scale[j]);
      }
    }
  }
  return FG_OK;
}
