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
  int32_t q[PAIR];      /* with the dither's sign taken off */
  uint16_t at[PAIR];    /* bin << 8 | symbol; the level goes in front, where it is known */
  uint8_t offset[PAIR]; /* of the coordinates' columns */
  uint32_t class_[2];   /* of the blocks */
} Quantized;

typedef struct { /* where a walk over the vector stands among its matrices */
  const fg_ec *request;
  const uint8_t *offsets;       /* of the matrix's columns */
  size_t matrix, first, behind; /* number of the matrix, its first coordinate and the one behind its last */
  size_t columns;               /* 0: it has no offsets */
} Walk;

static inline int32_t zigzag(int32_t v) { return (int32_t)((uint32_t)v << 1) ^ (v >> 31); }
static inline int32_t unzigzag(int32_t z) { return (int32_t)((uint32_t)z >> 1) ^ -(z & 1); }
static inline int32_t symbol_of(int32_t v) { return v < -127 || v > 127 ? EC_ESCAPE : zigzag(v); }

static void walk_enter(Walk *walk, size_t matrix) {
  const fg_ec *request = walk->request;
  walk->matrix = matrix;
  walk->first = walk->behind;
  walk->behind = matrix < request->matrices ? walk->first + request->sizes[matrix] : SIZE_MAX;
  walk->columns = matrix < request->matrices && fg_ec_has_offsets(request, matrix) ? request->columns[matrix] : 0;
}

static Walk walk_begin(const fg_ec *request) {
  Walk walk = {request, request->offsets, 0, 0, 0, 0};
  walk_enter(&walk, 0);
  return walk;
}

/* Offsets of the columns of `count` coordinates from `start` on, which must not go back; neutral behind them, up to a pair. */
static void walk_offsets(Walk *walk, size_t start, size_t count, uint8_t out[PAIR]) {
  memset(out, EC_NEUTRAL, PAIR);
  while (count > 0) {
    while (start >= walk->behind) {
      walk->offsets += walk->columns;
      walk_enter(walk, walk->matrix + 1);
    }
    size_t left = walk->behind - start, length = left < count ? left : count;
    if (walk->columns) {
      size_t column = (start - walk->first) % walk->columns, to_end = walk->columns - column;
      if (to_end < length) length = to_end;
      memcpy(out, walk->offsets + column, length);
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

/* The pair at coordinate `start`, through `padded` where it crosses the end. */
static inline const float *pair_at(const float *x, size_t n, size_t start, float padded[PAIR]) {
  if (n - start >= PAIR) return x + start;
  memset(padded, 0, PAIR * sizeof *padded);
  memcpy(padded, x + start, (n - start) * sizeof *x);
  return padded;
}

/* Sum of a pair's magnitudes, in sixteen lanes so that every ISA adds in one order. */
static inline float sum_magnitudes(const float *x) {
  float sum[16] = {0}, all = 0;
  for (size_t i = 0; i < PAIR; i += 16)
    for (size_t lane = 0; lane < 16; lane++) sum[lane] += from_bits(bits(x[i + lane]) & MAGNITUDE_MASK);
  for (size_t lane = 0; lane < 16; lane++) all += sum[lane];
  return all;
}

/* Chooses pairs by which the others can be foreseen: of all in the order of their mean magnitude (to an eighth of an octave), every so
 * many-th. */
int FG_ISA(fg_ec_sample)(const float *values, size_t n, size_t every, uint32_t *groups, size_t *count, float *peak, double *sum, size_t *where) {
  uint32_t rank[2049] = {0}, most = 0; /* by magnitude, of the next pair */
  size_t pairs = 0;
  float padded[PAIR];
  *sum = 0;
  for (size_t start = 0; start < n; start += PAIR, pairs++) {
    const float *x = pair_at(values, n, start, padded);
    uint32_t largest = absmax(x, PAIR);
    if (largest >= EXPONENT_MASK)
      for (*where = start;; ++*where)
        if ((bits(values[*where]) & MAGNITUDE_MASK) >= EXPONENT_MASK) return FG_NONFINITE;
    most = largest > most ? largest : most;
    float all = sum_magnitudes(x);
    *sum += (double)all;
    rank[(groups[pairs] = bits(all) >> 20) + 1]++;
  }
  for (size_t i = 1; i < 2049; i++) rank[i] += rank[i - 1];
  *count = 0;
  for (size_t pair = 0; pair < pairs; pair++)
    if (rank[groups[pair]]++ % every == every / 2) groups[(*count)++] = (uint32_t)pair;
  if (*count == 0) groups[(*count)++] = 0;
  *peak = from_bits(most);
  return FG_OK;
}

/* Whether some coordinate of the block has raw bits below its symbol. */
static inline int shifts(uint32_t class_, const uint8_t offset[EC_BLOCK]) {
  uint8_t most = 0;
  if (class_ <= EC_UNSHIFTED) return 0;
  for (size_t i = 0; i < EC_BLOCK; i++) most = offset[i] > most ? offset[i] : most;
  return ec_shift(ec_level(class_, most)) > 0;
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
    if (sum && shifts(out->class_[block], offset))
      for (size_t i = 0; i < EC_BLOCK && EC_BLOCK * block + i < count; i++) {
        uint16_t *at = out->at + EC_BLOCK * block + i;
        *at = (uint16_t)((*at & 0xff00) | symbol_of(q[i] >> ec_shift(ec_level(out->class_[block], offset[i]))));
      }
  }
}

/* Level << 10 | bin << 8 | symbol of a block's coordinates. */
static inline void index_block(const Quantized *pair, size_t block, uint16_t *restrict index) {
  const uint16_t *at = pair->at + EC_BLOCK * block;
  const uint8_t *offset = pair->offset + EC_BLOCK * block;
  uint32_t base = pair->class_[block] - 2;
  for (size_t i = 0; i < EC_BLOCK; i++) {
    uint32_t level = base + offset[i];
    level = level < EC_LEVELS ? level : EC_LEVELS - 1;
    index[i] = (uint16_t)(level << 10 | at[i]);
  }
}

/* What the pair's symbols decode to. */
static inline void dequantize(const EcModel *model, const Random *random, const int32_t *restrict q, float *restrict out) {
  float step = model->step;
  if (model->kind == EC_DITHER) {
    for (int w = 0; w < 4; w++)
      for (int half = 0; half < 2; half++)
        for (int i = 0; i < PHILOX_LANES; i++) {
          int at = 32 * w + 16 * half + i;
          int32_t r = (int32_t)(random->word[w][i] >> 16 * half & 0xffffu) - 32768, below = r >> 31;
          out[at] = ((float)((q[at] ^ below) - below) - (float)(2 * r + 1) * 0x1p-17f) * step;
        }
  } else {
    uint32_t one = bits(model->points[0]), two = bits(model->points[1]);
    float rest = model->points[2];
    for (int i = 0; i < PAIR; i++) {
      int32_t magnitude = q[i] < 0 ? -q[i] : q[i];
      uint32_t is_one = 0u - (magnitude == 1), is_two = 0u - (magnitude == 2), is_far = 0u - (magnitude > 2);
      uint32_t chosen = (one & is_one) | (two & is_two) | (bits((float)magnitude * step + rest) & is_far);
      out[i] = from_bits(chosen ^ ((uint32_t)q[i] & 0x80000000u));
    }
  }
}
