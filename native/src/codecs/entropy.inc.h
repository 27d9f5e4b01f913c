/* The entropy-coded codecs' passes over the vector: count, encode, decode. The format is in entropy.h, the quantizers in quantize.inc.h.
 *
 * The encoder runs over the vector twice, quantizing anew, so that it keeps no copy of it: once to count, once to code.
 */
typedef struct { /* in the caller's scratch */
  EcCounts counts, plain;
  EcModel model;
  PlaneScratch plane;
  RansSymbol encoder[EC_LEVELS * EC_BINS * RANS_SYMBOLS];
  RansSymbol classes[RANS_SYMBOLS];
  uint16_t index[EC_CHUNK];
  uint16_t class_[EC_CHUNK / EC_BLOCK];
  uint16_t words[EC_CHUNK + EC_CHUNK / EC_BLOCK + 2];
  uint8_t raw[3 * EC_CHUNK + 16];
} EcEncoder;

typedef struct {
  EcModel model;
  PlaneScratch plane;
  uint32_t slots[EC_LEVELS * EC_BINS * RANS_TOTAL];
  uint32_t classes[RANS_TOTAL];
  uint8_t class_[EC_CHUNK / EC_BLOCK];
} EcDecoder;

_Static_assert(sizeof(EcEncoder) <= FG_EC_SCRATCH && sizeof(EcDecoder) <= FG_EC_SCRATCH, "the header promises enough");

typedef struct { /* sums for the points that ec-dz decodes to, in |x| / step, sixteen lanes so that every ISA adds in one order */
  double sum[3][16];
  uint64_t count[3];
} Centroids;

static inline void count_centroids(float inverse, const Quantized *pair, const float *x, Centroids *c) {
  for (size_t i = 0; i < PAIR; i++) {
    int32_t magnitude = pair->q[i] < 0 ? -pair->q[i] : pair->q[i];
    if (!magnitude) continue;
    size_t point = magnitude < 3 ? (size_t)magnitude - 1 : 2;
    double y = (double)from_bits(bits(x[i]) & MAGNITUDE_MASK) * (double)inverse;
    c->sum[point][i % 16] += point < 2 ? y : y - (double)magnitude;
    c->count[point]++;
  }
}

/* The pair at coordinate `start`, through `padded` where it crosses the end. */
static inline const float *pair_at(const float *x, size_t n, size_t start, float padded[PAIR]) {
  if (n - start >= PAIR) return x + start;
  memset(padded, 0, PAIR * sizeof *padded);
  memcpy(padded, x + start, (n - start) * sizeof *x);
  return padded;
}

/* Counts every `every`-th pair. FG_OK, or FG_NONFINITE or FG_RANGE and where. Odd symbols go to `odd` first: one counter hit twice in a
 * row would wait for its own store. */
static int ec_count(const fg_ec *request, const float *x, size_t n, size_t every, EcCounts *counts, EcCounts *odd,
                    Centroids *centroids, size_t *where) {
  memset(counts, 0, sizeof *counts);
  memset(odd, 0, sizeof *odd);
  float padded[PAIR], inverse = 1.0f / request->step, largest = EC_LARGEST * request->step;
  uint32_t most = bits(largest < 0x1p90f ? largest : 0x1p90f);
  Quantized pair;
  Walk walk = {request, 0, 0, request->offsets};
  for (size_t period = 0; period * PAIR < n; period += every) {
    size_t group = period + (every > 1 ? period / every * 7 % every : 0); /* not in step with a matrix's rows */
    size_t start = group * PAIR;
    if (start >= n) break;
    size_t count = n - start < PAIR ? n - start : PAIR;
    const float *at = pair_at(x, n, start, padded);
    if (absmax(at, PAIR) > most) {
      for (*where = start;; ++*where) {
        uint32_t u = bits(x[*where]) & MAGNITUDE_MASK;
        if (u > most) return u >= EXPONENT_MASK ? FG_NONFINITE : FG_RANGE;
      }
    }
    walk_offsets(&walk, start, count, pair.offset);
    memset(pair.offset + count, EC_NEUTRAL, PAIR - count);
    quantize(request, inverse, request->log_bins, at, group, count, &pair);
    for (size_t block = 0; block < 2 && EC_BLOCK * block < count; block++) {
      size_t left = count - EC_BLOCK * block, length = left < EC_BLOCK ? left : EC_BLOCK;
      uint32_t class_ = pair.class_[block];
      counts->class_[class_]++;
      if (class_ < 2) continue;
      const uint16_t *symbols = pair.at + EC_BLOCK * block;
      const uint8_t *offset = pair.offset + EC_BLOCK * block;
      uint32_t *even_counts[EC_OFFSETS], *odd_counts[EC_OFFSETS];
      for (uint32_t o = 0; o < EC_OFFSETS; o++) {
        even_counts[o] = &counts->symbol[ec_level(class_, o)][0][0];
        odd_counts[o] = &odd->symbol[ec_level(class_, o)][0][0];
      }
      size_t i = 0;
      for (; i + 2 <= length; i += 2) {
        even_counts[offset[i]][symbols[i]]++;
        odd_counts[offset[i + 1]][symbols[i + 1]]++;
      }
      if (i < length) even_counts[offset[i]][symbols[i]]++;
    }
    if (centroids) count_centroids(inverse, &pair, at, centroids);
  }
  for (size_t level = 0; level < EC_LEVELS; level++)
    for (size_t bin = 0; bin < EC_BINS; bin++)
      for (size_t i = 0; i < RANS_SYMBOLS; i++)
        counts->level[level] += counts->symbol[level][bin][i] += odd->symbol[level][bin][i];
  return FG_OK;
}

static double offsets_bits(const fg_ec *request, EcEncoder *s) {
  size_t offsets = fg_ec_offsets(request);
  return offsets ? 8.0 * (double)plane_encode(request->offsets, offsets, s->raw, &s->plane) : 0.0;
}

int FG_ISA(fg_ec_bits)(const float *values, size_t n, const fg_ec *request, size_t every, void *scratch, double *bits_, size_t *where) {
  EcEncoder *s = scratch;
  int error = ec_count(request, values, n, every, &s->counts, &s->plain, NULL, where);
  if (error) return error;
  double counted = 0;
  for (size_t class_ = 0; class_ < EC_CLASSES; class_++) counted += s->counts.class_[class_];
  s->model.kind = request->kind;
  double scale = (double)((n + EC_BLOCK - 1) / EC_BLOCK) / counted;
  *bits_ = fg_ec_group(&s->counts, &s->plain, request->log_bins, scale, n, &s->model) + offsets_bits(request, s);
  return FG_OK;
}

/* Indices of a block's symbols among all tables, and its raw bits. */
static inline void index_block(const EcModel *model, const Quantized *pair, size_t block, size_t length, uint16_t *index,
                               RawWriter *raw) {
  const uint16_t *symbols = pair->at + EC_BLOCK * block;
  const uint8_t *offset = pair->offset + EC_BLOCK * block;
  const int32_t *q = pair->q + EC_BLOCK * block;
  uint16_t base[EC_OFFSETS];
  for (uint32_t o = 0; o < EC_OFFSETS; o++)
    base[o] = (uint16_t)((uint32_t)model->table_of[ec_level(pair->class_[block], o)] << (8 + model->log_bins));
  uint32_t escapes = 0;
  for (size_t i = 0; i < length; i++) {
    index[i] = (uint16_t)(base[offset[i]] + symbols[i]);
    escapes |= (symbols[i] & 255u) == EC_ESCAPE;
  }
  if (!escapes && pair->class_[block] - 2 + EC_OFFSETS - 1 <= 12) return;
  for (size_t i = 0; i < length; i++) {
    uint32_t shift = ec_shift(ec_level(pair->class_[block], offset[i]));
    if ((symbols[i] & 255u) == EC_ESCAPE)
      raw_write(raw, (uint32_t)zigzag(q[i]), EC_ESCAPE_BITS);
    else
      raw_write(raw, (uint32_t)q[i] & ((1u << shift) - 1u), shift);
  }
}

int FG_ISA(fg_ec_encode)(const float *values, size_t n, const fg_ec *request, uint8_t *out, size_t *size, void *scratch, size_t *where) {
  EcEncoder *s = scratch;
  EcModel *model = &s->model;
  Centroids centroids = {0};
  memset(model, 0, sizeof *model);
  model->kind = request->kind;
  model->step = request->step;
  model->offsets = fg_ec_offsets(request) > 0;
  if (request->step == 0.0f) { /* the caller has seen that all is zero */
    *size = fg_ec_write(model, out);
    return FG_OK;
  }
  int error = ec_count(request, values, n, 1, &s->counts, &s->plain, request->kind == EC_DEADZONE ? &centroids : NULL, where);
  if (error) return error;
  double bits_ = fg_ec_group(&s->counts, &s->plain, request->log_bins, 1.0, n, model) + offsets_bits(request, s);
  if (request->most > 0 && !(bits_ >= request->least && bits_ <= request->most)) {
    *size = (size_t)bits_;
    return FG_RATE;
  }
  fg_ec_normalise(&s->counts, model);
  for (size_t point = 0; point < 3; point++) {
    double sum = 0, mean = point < 2 ? (double)(point + 1) : 0.0;
    for (size_t i = 0; i < 16; i++) sum += centroids.sum[point][i];
    if (centroids.count[point]) mean = sum / (double)centroids.count[point];
    model->points[point] = (float)(mean * (double)request->step);
  }
  uint8_t *at = out + fg_ec_write(model, out);
  if (model->offsets) at += plane_encode(request->offsets, fg_ec_offsets(request), at, &s->plane);
  for (size_t table = 0; table < model->tables; table++)
    for (size_t bin = 0; bin < (size_t)1 << model->log_bins; bin++)
      fg_rans_encoder(model->frequencies[table][bin], s->encoder + ((table << model->log_bins) + bin) * RANS_SYMBOLS);
  fg_rans_encoder(model->classes, s->classes);

  float padded[PAIR], inverse = 1.0f / request->step;
  Quantized pair;
  Walk walk = {request, 0, 0, request->offsets};
  for (size_t chunk = 0; chunk < n; chunk += EC_CHUNK) {
    size_t count = n - chunk < EC_CHUNK ? n - chunk : EC_CHUNK, coded = 0, blocks = 0;
    RawWriter raw = {s->raw, 0, 0};
    for (size_t start = chunk; start < chunk + count; start += PAIR) {
      size_t present = n - start < PAIR ? n - start : PAIR;
      walk_offsets(&walk, start, present, pair.offset);
      memset(pair.offset + present, EC_NEUTRAL, PAIR - present);
      quantize(request, inverse, model->log_bins, pair_at(values, n, start, padded), start / PAIR, present, &pair);
      for (size_t block = 0; block < 2 && EC_BLOCK * block < present; block++) {
        size_t left = present - EC_BLOCK * block, length = left < EC_BLOCK ? left : EC_BLOCK;
        s->class_[blocks++] = (uint16_t)pair.class_[block];
        if (pair.class_[block] < 2) continue;
        index_block(model, &pair, block, length, s->index + coded, &raw);
        coded += length;
      }
    }
    size_t lanes = lanes_for(bits_ / (double)n * (double)count);
    uint32_t state[LANES];
    for (size_t i = 0; i < LANES; i++) state[i] = RANS_LEAST;
    uint16_t *end = s->words + sizeof s->words / sizeof *s->words;
    uint16_t *words = lanes_encode(s->index, coded, s->encoder, lanes, state, end);
    words = lanes_encode(s->class_, blocks, s->classes, lanes, state, words);
    at = chunk_put(state, lanes, words, end, s->raw, &raw, at);
  }
  *size = (size_t)(at - out);
  return FG_OK;
}

/* Decodes the values q of one block of class >= 2. */
static inline int block_decode(const EcDecoder *s, ChunkReader *reader, uint32_t class_, const uint8_t *offset, const Random *random,
                               size_t block, size_t length, int flat, int32_t *q) {
  const EcModel *model = &s->model;
  uint8_t symbols[EC_BLOCK], context[EC_BLOCK], base[EC_OFFSETS];
  for (uint32_t o = 0; o < EC_OFFSETS; o++) base[o] = (uint8_t)(model->table_of[ec_level(class_, o)] << model->log_bins);
  int error;
  if (flat && !model->log_bins) {
    error = lanes_decode(&reader->lanes, s->slots + (size_t)base[EC_NEUTRAL] * RANS_TOTAL, NULL, length, symbols);
  } else {
    for (size_t i = 0; i < EC_BLOCK; i++) context[i] = base[offset[i]];
    if (model->log_bins)
      for (size_t w = 0; w < 2; w++)
        for (size_t half = 0; half < 2; half++)
          for (size_t i = 0; i < PHILOX_LANES; i++) {
            int32_t r = (int32_t)(random->word[2 * block + w][i] >> 16 * half & 0xffffu) - 32768;
            size_t at = 32 * w + 16 * half + i;
            context[at] = (uint8_t)(context[at] + ((r ^ (r >> 31)) >> (15 - (int)model->log_bins)));
          }
    error = lanes_decode(&reader->lanes, s->slots, context, length, symbols);
  }
  if (error) return error;
  uint32_t escapes = 0;
  for (size_t i = 0; i < length; i++) {
    q[i] = unzigzag(symbols[i]);
    escapes |= symbols[i] == EC_ESCAPE;
  }
  if (!escapes && class_ - 2 + EC_OFFSETS - 1 <= 12) return FG_OK;
  for (size_t i = 0; i < length; i++) {
    uint32_t shift = ec_shift(ec_level(class_, offset[i]));
    if (symbols[i] == EC_ESCAPE)
      q[i] = unzigzag((int32_t)raw_read(&reader->raw, EC_ESCAPE_BITS));
    else
      q[i] = (int32_t)((uint32_t)q[i] << shift | raw_read(&reader->raw, shift));
  }
  return FG_OK;
}

int FG_ISA(fg_ec_decode)(const uint8_t *payload, size_t size, const fg_ec *request, float *out, size_t n, void *scratch, size_t *where) {
  EcDecoder *s = scratch;
  EcModel *model = &s->model;
  const uint8_t *at = payload, *end = payload + size;
  *where = 0;
  int error = fg_ec_read(&at, end, request->kind, model);
  if (error) return error;
  if (model->step == 0.0f) {
    memset(out, 0, n * sizeof *out);
    return at == end ? FG_OK : FG_TRAILING;
  }
  size_t offsets = model->offsets ? fg_ec_offsets(request) : 0;
  if (model->offsets && !offsets) return FG_FIELD;
  if (offsets) {
    if ((error = plane_decode(&at, end, offsets, request->offsets, &s->plane))) return error;
    for (size_t i = 0; i < offsets; i++)
      if (request->offsets[i] >= EC_OFFSETS) return FG_FIELD;
  }
  for (size_t table = 0; table < model->tables; table++)
    for (size_t bin = 0; bin < (size_t)1 << model->log_bins; bin++)
      fg_rans_decoder(model->frequencies[table][bin], s->slots + ((table << model->log_bins) + bin) * RANS_TOTAL);
  fg_rans_decoder(model->classes, s->classes);

  Walk walk = {request, 0, 0, request->offsets};
  uint8_t offset[PAIR];
  memset(offset, EC_NEUTRAL, sizeof offset);
  for (size_t chunk = 0; chunk < n; chunk += EC_CHUNK) {
    size_t count = n - chunk < EC_CHUNK ? n - chunk : EC_CHUNK, blocks = (count + EC_BLOCK - 1) / EC_BLOCK;
    ChunkReader reader;
    *where = chunk / EC_CHUNK;
    if ((error = chunk_open(&at, end, &reader))) return error;
    if ((error = lanes_decode(&reader.lanes, s->classes, NULL, blocks, s->class_))) return error;
    for (size_t start = 0; start < count; start += PAIR) {
      int32_t q[PAIR] = {0};
      size_t present = count - start < PAIR ? count - start : PAIR;
      const uint8_t *class_ = s->class_ + start / EC_BLOCK;
      float *to = out + chunk + start, decoded[PAIR];
      if (!class_[0] && (present <= EC_BLOCK || !class_[1])) {
        memset(to, 0, present * sizeof *to);
        continue;
      }
      Random random = {{{0}}};
      if (request->kind == EC_DITHER) philox_group(request->key, (chunk + start) / PAIR, request->stream, PURPOSE_DITHER, &random);
      if (offsets) walk_offsets(&walk, chunk + start, present, offset);
      for (size_t block = 0; block < 2 && EC_BLOCK * block < present; block++) {
        size_t left = present - EC_BLOCK * block, length = left < EC_BLOCK ? left : EC_BLOCK;
        if (class_[block] < 2) continue;
        error = block_decode(s, &reader, class_[block], offset + EC_BLOCK * block, &random, block, length, !offsets, q + EC_BLOCK * block);
        if (error) return error;
      }
      dequantize(model, &random, q, present == PAIR ? to : decoded);
      if (present < PAIR) memcpy(to, decoded, present * sizeof *to);
      for (size_t block = 0; block < 2 && EC_BLOCK * block < present; block++) /* a block of zeros beside one that isn't */
        if (!class_[block])
          memset(to + EC_BLOCK * block, 0, (present - EC_BLOCK * block < EC_BLOCK ? present - EC_BLOCK * block : EC_BLOCK) * sizeof *to);
    }
    if ((error = chunk_finished(&reader))) return error;
  }
  return at == end ? FG_OK : FG_TRAILING;
}
