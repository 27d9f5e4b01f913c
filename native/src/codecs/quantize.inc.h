/* The quantizers of ec-dither and ec-dz, a pair of blocks (128 coordinates) at a time, and the columns' offsets.
 *
 * ec-dither (R. Zamir and M. Feder, IEEE Trans. Inf. Theory 38, 1992): q = round(x / step + u), decoded as (q - u) * step, where u is
 * uniform in (-1/2, 1/2) and known to both sides; so the error is uniform and independent of x, and the value is right on average.
 * What is coded is q with the sign of u taken off (given u > 0, q = 1 is likelier than q = -1), under tables that depend on |u|.
 *
 * ec-dz: q = sign(x) floor(|x| / step + rounding), decoded as the mean of what was quantized to it: biased, for error feedback.
 */
#include "entropy.h"

#define PAIR PHILOX_DITHER

typedef struct {
  int32_t q[PAIR];        /* with the dither's sign taken off */
  uint16_t at[PAIR];      /* bin << 8 | symbol, where the level shifts nothing */
  uint8_t offset[PAIR];   /* of the coordinates' columns */
  uint32_t class_[2];     /* of the blocks */
} Quantized;

typedef struct { /* where a walk over the vector stands among its matrices */
  const fg_ec *request;
  size_t matrix, first; /* its first coordinate */
  const uint8_t *offsets;
} Walk;

static inline int32_t zigzag(int32_t v) { return (int32_t)((uint32_t)v << 1) ^ (v >> 31); }
static inline int32_t unzigzag(int32_t z) { return (int32_t)((uint32_t)z >> 1) ^ -(z & 1); }
static inline int32_t symbol_of(int32_t v) { return v < -127 || v > 127 ? EC_ESCAPE : zigzag(v); }

/* Offsets of the columns of `count` coordinates from `start` on, which must not go back. */
static void walk_offsets(Walk *walk, size_t start, size_t count, uint8_t *out) {
  const fg_ec *request = walk->request;
  while (count > 0) {
    while (walk->matrix < request->matrices && start >= walk->first + request->sizes[walk->matrix]) {
      if (fg_ec_has_offsets(request, walk->matrix)) walk->offsets += request->columns[walk->matrix];
      walk->first += request->sizes[walk->matrix++];
    }
    if (walk->matrix == request->matrices) {
      memset(out, EC_NEUTRAL, count);
      return;
    }
    size_t inside = start - walk->first, left = request->sizes[walk->matrix] - inside, length = left < count ? left : count;
    if (fg_ec_has_offsets(request, walk->matrix)) {
      size_t columns = request->columns[walk->matrix], column = inside % columns;
      if (columns - column < length) length = columns - column;
      memcpy(out, walk->offsets + column, length);
    } else {
      memset(out, EC_NEUTRAL, length);
    }
    start += length, out += length, count -= length;
  }
}

/* The offsets of all columns, by their mean magnitudes. work: a float for each. */
void FG_ISA(fg_ec_columns)(const float *values, const fg_ec *request, float *work) {
  uint8_t *offsets = request->offsets;
  for (size_t m = 0; m < request->matrices; values += request->sizes[m++]) {
    if (!fg_ec_has_offsets(request, m)) continue;
    size_t columns = request->columns[m], rows = request->sizes[m] / columns;
    memset(work, 0, columns * sizeof *work);
    for (size_t row = 0; row < rows; row++)
      for (size_t j = 0; j < columns; j++) work[j] += from_bits(bits(values[row * columns + j]) & MAGNITUDE_MASK);
    double sum = 0;
    for (size_t j = 0; j < columns; j++) sum += (double)work[j];
    float mean = (float)(sum / (double)columns);
    for (size_t j = 0; j < columns; j++) { /* rounded in the logarithm: thresholds at 2^(i - 1/2) times the mean */
      uint8_t offset = 0;
      for (float at = mean * 0.17677670f; offset < EC_OFFSETS - 1 && work[j] >= at; at *= 2.0f) offset++;
      offsets[j] = offset;
    }
    offsets += columns;
  }
}

/* Quantizes the pair number `group` of the vector, `count` values of it (the others of x are zeros); offsets are set. */
static inline void quantize(const fg_ec *request, float inverse, uint32_t log_bins, const float *restrict x, uint64_t group,
                            size_t count, Quantized *restrict out) {
  if (request->kind == EC_DITHER) {
    Random random;
    philox_group(request->key, group, request->stream, PURPOSE_DITHER, &random);
    for (int w = 0; w < 4; w++)
      for (int half = 0; half < 2; half++)
        for (int i = 0; i < PHILOX_LANES; i++) {
          int at = 32 * w + 16 * half + i;
          int32_t r = (int32_t)(random.word[w][i] >> 16 * half & 0xffffu) - 32768, below = r >> 31;
          float y = x[at] * inverse + (float)(2 * r + 1) * 0x1p-17f;
          int32_t q = (int32_t)bits(y + ROUND_FLOAT) - (int32_t)0x4b400000;
          q = (q ^ below) - below;
          int32_t bin = (r ^ below) >> (15 - (int)log_bins);
          out->q[at] = q;
          out->at[at] = (uint16_t)(bin << 8 | symbol_of(q));
        }
  } else {
    for (int i = 0; i < PAIR; i++) {
      int32_t magnitude = (int32_t)(from_bits(bits(x[i]) & MAGNITUDE_MASK) * inverse + request->rounding);
      int32_t below = (int32_t)bits(x[i]) >> 31, q = (magnitude ^ below) - below;
      out->q[i] = q;
      out->at[i] = (uint16_t)symbol_of(q);
    }
  }
  for (size_t block = 0; block < 2; block++) {
    const int32_t *q = out->q + EC_BLOCK * block;
    const uint8_t *offset = out->offset + EC_BLOCK * block;
    uint32_t sum = 0, any = 0, weight = 0;
    for (size_t i = 0; i < EC_BLOCK; i++) {
      sum += (uint32_t)(q[i] < 0 ? -q[i] : q[i]);
      any |= bits(x[EC_BLOCK * block + i]) & MAGNITUDE_MASK;
      weight += 1u << offset[i];
    }
    out->class_[block] = sum ? ec_class(sum, weight) : request->kind == EC_DITHER && any;
    if (sum && out->class_[block] - 2 + EC_OFFSETS - 1 > 12) /* some level shifts */
      for (size_t i = 0; i < EC_BLOCK && EC_BLOCK * block + i < count; i++) {
        uint16_t *at = out->at + EC_BLOCK * block + i;
        *at = (uint16_t)((*at & 0xff00) | symbol_of(q[i] >> ec_shift(ec_level(out->class_[block], offset[i]))));
      }
  }
}

/* What the pair's symbols decode to. */
static inline void dequantize(const EcModel *model, const Random *random, const int32_t *restrict q, float *restrict out) {
  if (model->kind == EC_DITHER) {
    for (int w = 0; w < 4; w++)
      for (int half = 0; half < 2; half++)
        for (int i = 0; i < PHILOX_LANES; i++) {
          int at = 32 * w + 16 * half + i;
          int32_t r = (int32_t)(random->word[w][i] >> 16 * half & 0xffffu) - 32768, below = r >> 31;
          out[at] = ((float)((q[at] ^ below) - below) - (float)(2 * r + 1) * 0x1p-17f) * model->step;
        }
  } else {
    float one = model->points[0], two = model->points[1], rest = model->points[2], step = model->step;
    for (int i = 0; i < PAIR; i++) {
      int32_t magnitude = q[i] < 0 ? -q[i] : q[i];
      float far = (float)magnitude * step + rest;
      uint32_t chosen = magnitude > 2 ? bits(far) : magnitude > 1 ? bits(two) : magnitude > 0 ? bits(one) : 0;
      out[i] = from_bits(chosen ^ ((uint32_t)q[i] & 0x80000000u));
    }
  }
}
