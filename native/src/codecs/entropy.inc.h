/* The entropy-coded codecs' passes over the vector: quantize, count, encode, decode. The format is in entropy.h.
 *
 * ec-dither (R. Zamir and M. Feder, IEEE Trans. Inf. Theory 38, 1992): q = round(x / step + u), decoded as (q - u) * step, where u is
 * uniform in (-1/2, 1/2) and known to both sides; so the error is uniform and independent of x, and the value is right on average.
 * What is coded is q with the sign of u taken off (given u > 0, q = 1 is likelier than q = -1), under tables that depend on |u|.
 *
 * ec-dz: q = sign(x) floor(|x| / step + rounding), decoded as the mean of what was quantized to it: biased, for error feedback.
 *
 * The encoder runs over the vector twice, quantizing anew, so that it keeps no copy of it: once to count, once to code.
 */
#include "entropy.h"

typedef struct { /* of up to 128 coordinates, two blocks */
  int32_t q[PHILOX_DITHER];   /* with the dither's sign taken off */
  uint16_t at[PHILOX_DITHER]; /* bin << 8 | symbol, where the class shifts nothing */
  uint32_t sum[2];            /* of |q| */
  uint32_t any[2];            /* 0: all inputs are exactly zero */
} Quantized;

typedef struct {
  int kind;
  uint64_t key;
  uint32_t stream;
  float inverse;  /* 1 / step */
  float rounding; /* ec-dz */
  uint32_t log_bins;
} Quantizer;

static inline int32_t zigzag(int32_t v) { return (int32_t)((uint32_t)v << 1) ^ (v >> 31); }
static inline int32_t unzigzag(int32_t z) { return (int32_t)((uint32_t)z >> 1) ^ -(z & 1); }
static inline int32_t symbol_of(int32_t v) { return v < -127 || v > 127 ? EC_ESCAPE : zigzag(v); }

/* Group `group` of 128 coordinates; x is padded with zeros behind the vector's end. */
static inline void quantize(const Quantizer *z, const float *restrict x, uint64_t group, Quantized *restrict out) {
  if (z->kind == EC_DITHER) {
    Random random;
    philox_group(z->key, group, z->stream, PURPOSE_DITHER, &random);
    for (int w = 0; w < 4; w++)
      for (int half = 0; half < 2; half++)
        for (int i = 0; i < PHILOX_LANES; i++) {
          int at = 32 * w + 16 * half + i;
          int32_t r = (int32_t)(random.word[w][i] >> 16 * half & 0xffffu) - 32768, below = r >> 31;
          float y = x[at] * z->inverse + (float)(2 * r + 1) * 0x1p-17f;
          int32_t q = (int32_t)bits(y + ROUND_FLOAT) - (int32_t)0x4b400000;
          q = (q ^ below) - below;
          int32_t bin = (r ^ below) >> (15 - (int)z->log_bins);
          out->q[at] = q;
          out->at[at] = (uint16_t)(bin << 8 | symbol_of(q));
        }
  } else {
    for (int i = 0; i < PHILOX_DITHER; i++) {
      int32_t magnitude = (int32_t)(from_bits(bits(x[i]) & MAGNITUDE_MASK) * z->inverse + z->rounding);
      int32_t below = (int32_t)bits(x[i]) >> 31, q = (magnitude ^ below) - below;
      out->q[i] = q;
      out->at[i] = (uint16_t)symbol_of(q);
    }
  }
  for (int block = 0; block < 2; block++) {
    uint32_t sum = 0, any = 0;
    for (int i = 0; i < EC_BLOCK; i++) {
      int32_t q = out->q[EC_BLOCK * block + i];
      sum += (uint32_t)(q < 0 ? -q : q);
      any |= bits(x[EC_BLOCK * block + i]) & MAGNITUDE_MASK;
    }
    out->sum[block] = sum;
    out->any[block] = z->kind == EC_DITHER ? any : sum;
  }
}

/* Class and symbols of one block of a quantized pair. */
static inline uint32_t block_class(Quantized *pair, int block, size_t count) {
  if (!pair->any[block]) return 0;
  uint32_t class_ = ec_class(pair->sum[block]);
  if (ec_shift(class_))
    for (size_t i = 0; i < count; i++) {
      size_t at = (size_t)(EC_BLOCK * block) + i;
      pair->at[at] = (uint16_t)((pair->at[at] & 0xff00) | symbol_of(pair->q[at] >> ec_shift(class_)));
    }
  return class_;
}

/* The pair at coordinate `start`, through `padded` where it crosses the end. */
static inline const float *pair_at(const float *x, size_t n, size_t start, float padded[PHILOX_DITHER]) {
  if (n - start >= PHILOX_DITHER) return x + start;
  memset(padded, 0, PHILOX_DITHER * sizeof *padded);
  memcpy(padded, x + start, (n - start) * sizeof *x);
  return padded;
}

typedef struct { /* in the caller's scratch */
  EcCounts counts, plain;
  EcModel model;
  RansSymbol encoder[EC_CLASSES * EC_BINS * RANS_SYMBOLS];
  RansSymbol numbers[RANS_SYMBOLS];
  uint16_t index[EC_CHUNK];
  uint16_t number[EC_CHUNK / EC_BLOCK];
  uint16_t words[EC_CHUNK + EC_CHUNK / EC_BLOCK + 2];
  uint8_t raw[3 * EC_CHUNK + 16];
} EcEncoder;

typedef struct {
  EcModel model;
  uint32_t slots[EC_CLASSES * EC_BINS * RANS_TOTAL];
  uint32_t numbers[RANS_TOTAL];
  uint8_t number[EC_CHUNK / EC_BLOCK];
} EcDecoder;

_Static_assert(sizeof(EcEncoder) <= FG_EC_SCRATCH && sizeof(EcDecoder) <= FG_EC_SCRATCH, "the header promises enough");

/* Whether all symbols of a group are 0: its tables code them in no bits, so both sides may leave its blocks out. */
static inline int is_silent(const EcModel *model, size_t group) {
  for (size_t bin = 0; bin < (size_t)1 << model->log_bins; bin++)
    if (model->frequencies[group - 1][bin][0] != RANS_TOTAL) return 0;
  return !model->shift[group];
}

typedef struct { /* sums for the points that ec-dz decodes to, in |x| / step, sixteen lanes so that every ISA adds in one order */
  double sum[3][16];
  uint64_t count[3];
} Centroids;

static inline void count_centroids(const Quantizer *z, const Quantized *pair, const float *x, Centroids *c) {
  for (size_t i = 0; i < PHILOX_DITHER; i++) {
    int32_t magnitude = pair->q[i] < 0 ? -pair->q[i] : pair->q[i];
    if (!magnitude) continue;
    size_t point = magnitude < 3 ? (size_t)magnitude - 1 : 2;
    double y = (double)from_bits(bits(x[i]) & MAGNITUDE_MASK) * (double)z->inverse;
    c->sum[point][i % 16] += point < 2 ? y : y - (double)magnitude;
    c->count[point]++;
  }
}

/* Counts every `every`-th pair. FG_OK, or FG_NONFINITE or FG_RANGE and where. */
static int ec_count(const Quantizer *z, const float *x, size_t n, size_t every, EcCounts *counts, Centroids *centroids,
                    size_t *where) {
  memset(counts, 0, sizeof *counts);
  float padded[PHILOX_DITHER];
  Quantized pair;
  uint32_t most = bits(EC_LARGEST / z->inverse < 0x1p120f ? EC_LARGEST / z->inverse : 0x1p120f);
  for (size_t period = 0; period * PHILOX_DITHER < n; period += every) {
    size_t group = period + (every > 1 ? period / every * 7 % every : 0); /* not in step with a matrix's rows */
    size_t start = group * PHILOX_DITHER;
    if (start >= n) break;
    const float *at = pair_at(x, n, start, padded);
    if (absmax(at, PHILOX_DITHER) > most) {
      for (*where = start;; ++*where) {
        uint32_t u = bits(x[*where]) & MAGNITUDE_MASK;
        if (u > most) return u >= EXPONENT_MASK ? FG_NONFINITE : FG_RANGE;
      }
    }
    quantize(z, at, group, &pair);
    for (int block = 0; block < 2 && start + (size_t)(EC_BLOCK * block) < n; block++) {
      size_t left = n - start - (size_t)(EC_BLOCK * block), count = left < EC_BLOCK ? left : EC_BLOCK;
      uint32_t class_ = block_class(&pair, block, count);
      counts->blocks[class_]++;
      if (!class_) continue;
      uint32_t *histogram = counts->symbol[class_][0];
      const uint16_t *symbols = pair.at + EC_BLOCK * block;
      for (size_t i = 0; i < count; i++) histogram[symbols[i]]++;
    }
    if (centroids) count_centroids(z, &pair, at, centroids);
  }
  return FG_OK;
}

int FG_ISA(fg_ec_bits)(const float *values, size_t n, int kind, uint64_t key, uint32_t stream, float step, float rounding,
                       uint32_t log_bins, size_t every, void *scratch, double *bits_, size_t *where) {
  EcEncoder *s = scratch;
  Quantizer z = {kind, key, stream, 1.0f / step, rounding, log_bins};
  int error = ec_count(&z, values, n, every, &s->counts, NULL, where);
  if (error) return error;
  double counted = 0;
  for (size_t class_ = 0; class_ < EC_CLASSES; class_++) counted += s->counts.blocks[class_];
  s->model.kind = kind;
  *bits_ = fg_ec_group(&s->counts, &s->plain, log_bins, (double)((n + EC_BLOCK - 1) / EC_BLOCK) / counted, n, &s->model);
  return FG_OK;
}

/* Raw bits, least significant first. */
typedef struct {
  uint8_t *at;
  uint64_t bits;
  uint32_t held;
} RawWriter;

static inline void raw_write(RawWriter *w, uint32_t value, uint32_t count) {
  w->bits |= (uint64_t)value << w->held;
  for (w->held += count; w->held >= 8; w->held -= 8, w->bits >>= 8) *w->at++ = (uint8_t)w->bits;
}

int FG_ISA(fg_ec_encode)(const float *values, size_t n, int kind, uint64_t key, uint32_t stream, float step, float rounding,
                         uint32_t log_bins, uint8_t *out, size_t *size, void *scratch, size_t *where) {
  EcEncoder *s = scratch;
  EcModel *model = &s->model;
  Centroids centroids = {0};
  uint8_t *at = out;
  memset(model, 0, sizeof *model);
  model->kind = kind;
  model->step = step;
  if (step == 0.0f) { /* the caller has seen that all is zero */
    *size = fg_ec_write(model, out);
    return FG_OK;
  }
  Quantizer z = {kind, key, stream, 1.0f / step, rounding, log_bins};
  int error = ec_count(&z, values, n, 1, &s->counts, kind == EC_DEADZONE ? &centroids : NULL, where);
  if (error) return error;
  double bits_ = fg_ec_group(&s->counts, &s->plain, log_bins, 1.0, n, model);
  fg_ec_normalise(&s->counts, model);
  for (size_t point = 0; point < 3; point++) {
    double sum = 0, mean = point < 2 ? (double)(point + 1) : 0.0;
    for (size_t i = 0; i < 16; i++) sum += centroids.sum[point][i];
    if (centroids.count[point]) mean = sum / (double)centroids.count[point];
    model->points[point] = (float)(mean * (double)step);
  }
  at += fg_ec_write(model, at);
  size_t bins = (size_t)1 << model->log_bins;
  for (size_t group = 0; group < model->groups; group++)
    for (size_t bin = 0; bin < bins; bin++)
      fg_rans_encoder(model->frequencies[group][bin], s->encoder + (group * bins + bin) * RANS_SYMBOLS);
  fg_rans_encoder(model->numbers, s->numbers);
  int silent[EC_CLASSES] = {1};
  for (size_t group = 1; group <= model->groups; group++) silent[group] = is_silent(model, group);

  z.log_bins = model->log_bins;
  float padded[PHILOX_DITHER];
  Quantized pair;
  for (size_t chunk = 0; chunk < n; chunk += EC_CHUNK) {
    size_t count = n - chunk < EC_CHUNK ? n - chunk : EC_CHUNK, coded = 0, blocks = 0;
    size_t lanes = lanes_for(bits_ / (double)n * (double)count);
    RawWriter raw = {s->raw, 0, 0};
    for (size_t start = chunk; start < chunk + count; start += PHILOX_DITHER) {
      quantize(&z, pair_at(values, n, start, padded), start / PHILOX_DITHER, &pair);
      for (int block = 0; block < 2 && start + (size_t)(EC_BLOCK * block) < n; block++) {
        size_t left = n - start - (size_t)(EC_BLOCK * block), length = left < EC_BLOCK ? left : EC_BLOCK;
        uint32_t class_ = block_class(&pair, block, length), group = model->group[class_];
        s->number[blocks++] = (uint16_t)group;
        if (silent[group]) continue;
        const uint16_t *symbols = pair.at + EC_BLOCK * block;
        uint16_t base = (uint16_t)((group - 1) * bins << 8);
        uint32_t escapes = 0;
        for (size_t i = 0; i < length; i++) {
          s->index[coded + i] = (uint16_t)(base + symbols[i]);
          escapes |= (symbols[i] & 255u) == EC_ESCAPE;
        }
        coded += length;
        uint32_t shift = model->shift[group];
        if (!shift && !escapes) continue;
        for (size_t i = 0; i < length; i++) {
          int32_t q = pair.q[EC_BLOCK * (size_t)block + i];
          if ((symbols[i] & 255u) == EC_ESCAPE)
            raw_write(&raw, (uint32_t)zigzag(q), EC_ESCAPE_BITS);
          else
            raw_write(&raw, (uint32_t)q & ((1u << shift) - 1u), shift);
        }
      }
    }
    if (raw.held) raw_write(&raw, 0, 8 - raw.held);
    uint32_t state[LANES];
    for (size_t i = 0; i < LANES; i++) state[i] = RANS_LEAST;
    uint16_t *end = s->words + sizeof s->words / sizeof *s->words;
    uint16_t *words = lanes_encode(s->index, coded, s->encoder, lanes, state, end);
    words = lanes_encode(s->number, blocks, s->numbers, lanes, state, words);
    size_t word_bytes = 2 * (size_t)(end - words), raw_bytes = (size_t)(raw.at - s->raw);
    size_t field = word_bytes | lanes_log(lanes) << 20;
    for (size_t byte = 0; byte < 3; byte++) *at++ = (uint8_t)(field >> 8 * byte);
    for (size_t byte = 0; byte < 3; byte++) *at++ = (uint8_t)(raw_bytes >> 8 * byte);
    at += states_write(state, lanes, at);
    for (size_t i = 0; i < word_bytes / 2; i++) {
      *at++ = (uint8_t)words[i];
      *at++ = (uint8_t)(words[i] >> 8);
    }
    memcpy(at, s->raw, raw_bytes);
    at += raw_bytes;
  }
  *size = (size_t)(at - out);
  return FG_OK;
}

typedef struct {
  const uint8_t *at, *end;
  uint64_t bits;
  uint32_t held;
} RawReader;

/* Zeros behind the end; whoever reads past it is told by raw_finished. */
static inline uint32_t raw_read(RawReader *r, uint32_t count) {
  for (; r->held < count; r->held += 8) r->bits |= (uint64_t)(r->at < r->end ? *r->at : 0u) << r->held, r->at++;
  uint32_t value = (uint32_t)r->bits & ((1u << count) - 1u);
  r->bits >>= count;
  r->held -= count;
  return value;
}

/* Decodes one pair of blocks, whose symbols are at hand, to floats. */
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
    for (int i = 0; i < PHILOX_DITHER; i++) {
      int32_t magnitude = q[i] < 0 ? -q[i] : q[i];
      float far = (float)magnitude * model->step + model->points[2];
      float value = magnitude == 0 ? 0.0f : magnitude == 1 ? model->points[0] : magnitude == 2 ? model->points[1] : far;
      out[i] = q[i] < 0 ? -value : value;
    }
  }
}

int FG_ISA(fg_ec_decode)(const uint8_t *payload, size_t size, int kind, uint64_t key, uint32_t stream, float *out, size_t n,
                         void *scratch, size_t *where) {
  EcDecoder *s = scratch;
  EcModel *model = &s->model;
  const uint8_t *at = payload, *end = payload + size;
  *where = 0;
  int error = fg_ec_read(&at, end, kind, model);
  if (error) return error;
  if (model->step == 0.0f) {
    memset(out, 0, n * sizeof *out);
    return at == end ? FG_OK : FG_TRAILING;
  }
  size_t bins = (size_t)1 << model->log_bins;
  for (size_t group = 0; group < model->groups; group++)
    for (size_t bin = 0; bin < bins; bin++)
      fg_rans_decoder(model->frequencies[group][bin], s->slots + (group * bins + bin) * RANS_TOTAL);
  fg_rans_decoder(model->numbers, s->numbers);
  int silent[EC_CLASSES] = {1};
  for (size_t group = 1; group <= model->groups; group++) silent[group] = is_silent(model, group);

  for (size_t chunk = 0; chunk < n; chunk += EC_CHUNK) {
    size_t count = n - chunk < EC_CHUNK ? n - chunk : EC_CHUNK, blocks = (count + EC_BLOCK - 1) / EC_BLOCK;
    *where = chunk / EC_CHUNK;
    if (end - at < 6) return FG_TRUNCATED;
    size_t field = (size_t)at[0] | (size_t)at[1] << 8 | (size_t)at[2] << 16, word_bytes = field & 0xfffff;
    size_t raw_bytes = (size_t)at[3] | (size_t)at[4] << 8 | (size_t)at[5] << 16;
    at += 6;
    LaneDecoder lanes;
    if ((error = states_read(&at, end, field >> 20, &lanes))) return error;
    if ((size_t)(end - at) < word_bytes + raw_bytes) return FG_TRUNCATED;
    lanes.at = at;
    lanes.end = at += word_bytes;
    RawReader raw = {at, at + raw_bytes, 0, 0};
    at += raw_bytes;
    if ((error = lanes_decode(&lanes, s->numbers, NULL, blocks, s->number))) return error;

    for (size_t start = 0; start < count; start += PHILOX_DITHER) {
      int32_t q[PHILOX_DITHER] = {0};
      uint8_t symbols[EC_BLOCK], context[EC_BLOCK];
      Random random = {{{0}}};
      size_t pair_blocks = count - start > EC_BLOCK ? 2 : 1;
      int coded = s->number[start / EC_BLOCK] != 0 || (pair_blocks == 2 && s->number[start / EC_BLOCK + 1] != 0);
      if (!coded) {
        size_t length = count - start < PHILOX_DITHER ? count - start : PHILOX_DITHER;
        memset(out + chunk + start, 0, length * sizeof *out);
        continue;
      }
      if (kind == EC_DITHER) philox_group(key, (chunk + start) / PHILOX_DITHER, stream, PURPOSE_DITHER, &random);
      for (size_t block = 0; block < pair_blocks; block++) {
        size_t left = count - start - EC_BLOCK * block, length = left < EC_BLOCK ? left : EC_BLOCK;
        size_t group = s->number[start / EC_BLOCK + block];
        if (silent[group]) continue;
        const uint32_t *slots = s->slots + (group - 1) * bins * RANS_TOTAL;
        if (bins > 1) {
          for (size_t w = 0; w < 2; w++)
            for (size_t half = 0; half < 2; half++)
              for (size_t i = 0; i < PHILOX_LANES; i++) {
                int32_t r = (int32_t)(random.word[2 * block + w][i] >> 16 * half & 0xffffu) - 32768;
                context[32 * w + 16 * half + i] = (uint8_t)((r ^ (r >> 31)) >> (15 - (int)model->log_bins));
              }
        }
        if ((error = lanes_decode(&lanes, slots, bins > 1 ? context : NULL, length, symbols))) return error;
        uint32_t shift = model->shift[group], escapes = 0;
        int32_t *block_q = q + EC_BLOCK * block;
        for (size_t i = 0; i < length; i++) {
          block_q[i] = unzigzag(symbols[i]);
          escapes |= symbols[i] == EC_ESCAPE;
        }
        if (!shift && !escapes) continue;
        for (size_t i = 0; i < length; i++) {
          if (symbols[i] == EC_ESCAPE)
            block_q[i] = unzigzag((int32_t)raw_read(&raw, EC_ESCAPE_BITS));
          else
            block_q[i] = (int32_t)((uint32_t)block_q[i] << shift | raw_read(&raw, shift));
        }
      }
      float decoded[PHILOX_DITHER];
      float *to = count - start < PHILOX_DITHER ? decoded : out + chunk + start;
      dequantize(model, &random, q, to);
      size_t length = count - start < PHILOX_DITHER ? count - start : PHILOX_DITHER;
      if (to == decoded) memcpy(out + chunk + start, decoded, length * sizeof *out);
      for (size_t block = 0; block < pair_blocks; block++) /* a block of zeros beside one that isn't */
        if (!s->number[start / EC_BLOCK + block]) {
          size_t first = start + EC_BLOCK * block, left = count - first;
          memset(out + chunk + first, 0, (left < EC_BLOCK ? left : EC_BLOCK) * sizeof *out);
        }
    }
    if (raw.at > raw.end) return FG_TRUNCATED;
    if (raw.at != raw.end || raw.bits) return FG_TRAILING;
    if ((error = lanes_finished(&lanes))) return error;
  }
  return at == end ? FG_OK : FG_TRAILING;
}
