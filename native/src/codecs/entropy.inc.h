/* The entropy-coded codecs' passes over the vector: count, encode, decode. The format is in entropy.h, the quantizers in quantize.inc.h.
 *
 * The encoder runs over the vector twice, quantizing anew, so that it keeps no copy of it: once to count, once to code.
 */
#define EC_TABLES (EC_BINS * RANS_SYMBOLS) /* counters of a level */

typedef struct { /* in the caller's scratch */
  EcCounts counts, plain;
  uint32_t others[3][EC_LEVELS * EC_TABLES + 272]; /* counters beside counts.symbol; not a multiple of a page apart */
  EcModel model;
  PlaneScratch plane;
  RansSymbol encoder[EC_LEVELS][EC_BINS][RANS_SYMBOLS]; /* a level's own copy of its table */
  RansSymbol classes[RANS_SYMBOLS];
  uint16_t index[EC_CHUNK + EC_BLOCK];
  uint16_t class_[EC_CHUNK / EC_BLOCK];
  uint16_t words[EC_CHUNK + EC_CHUNK / EC_BLOCK + WORDS_SLACK];
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
  uint32_t count[3][16];
} Centroids;

static inline void count_centroids(float inverse, const Quantized *pair, const float *x, Centroids *c) {
  float sum[3][16] = {{0}};
  for (size_t i = 0; i < PAIR; i += 16)
    for (size_t lane = 0; lane < 16; lane++) {
      int32_t q = pair->q[i + lane], magnitude = q < 0 ? -q : q;
      float y = from_bits(bits(x[i + lane]) & MAGNITUDE_MASK) * inverse;
      uint32_t one = 0u - (magnitude == 1), two = 0u - (magnitude == 2), far = 0u - (magnitude > 2);
      sum[0][lane] += from_bits(bits(y) & one);
      sum[1][lane] += from_bits(bits(y) & two);
      sum[2][lane] += from_bits(bits(y - (float)magnitude) & far);
      c->count[0][lane] -= one;
      c->count[1][lane] -= two;
      c->count[2][lane] -= far;
    }
  for (size_t point = 0; point < 3; point++)
    for (size_t lane = 0; lane < 16; lane++) c->sum[point][lane] += (double)sum[point][lane];
}

/* Clears the counters of the levels that a block of this class may meet for the first time. */
static inline void meet_levels(EcEncoder *s, uint32_t class_, uint32_t log_bins, uint32_t *met) {
  uint32_t levels = (uint32_t)((uint64_t)((1u << EC_OFFSETS) - 1u) << (class_ - 2)) | (class_ + EC_OFFSETS > EC_LEVELS ? 1u << (EC_LEVELS - 1) : 0);
  levels &= ~*met;
  *met |= levels;
  for (; levels; levels &= levels - 1) {
    size_t level = (size_t)__builtin_ctz(levels);
    size_t bytes = sizeof s->counts.symbol[level][0] << log_bins;
    memset(s->counts.symbol[level], 0, bytes);
    for (size_t i = 0; i < 3; i++) memset(s->others[i] + level * EC_TABLES, 0, bytes);
  }
}

/* Counts all pairs, or `chosen` ones of those of `groups`. FG_OK, or FG_NONFINITE or FG_RANGE and where. Neighbours have counters of
 * their own: one hit twice in a row would wait for its own store. */
static int ec_count(const fg_ec *request, const float *x, size_t n, const uint32_t *groups, size_t chosen, EcEncoder *s,
                    Centroids *centroids, size_t *where) {
  EcCounts *counts = &s->counts;
  memset(counts->level, 0, sizeof counts->level);
  memset(counts->class_, 0, sizeof counts->class_);
  float padded[PAIR], inverse = 1.0f / request->step, largest = EC_LARGEST * request->step;
  uint32_t met = 0, most = bits(largest < 0x1p90f ? largest : 0x1p90f);
  uint32_t *counter[4] = {&counts->symbol[0][0][0], s->others[0], s->others[1], s->others[2]};
  Quantized pair;
  Walk walk = walk_begin(request);
  if (!groups) chosen = n / PAIR + (n % PAIR != 0);
  for (size_t g = 0; g < chosen; g++) {
    size_t group = groups ? groups[g] : g, start = group * PAIR, count = n - start < PAIR ? n - start : PAIR;
    const float *at = pair_at(x, n, start, padded);
    if (absmax(at, PAIR) > most) {
      for (*where = start;; ++*where) {
        uint32_t u = bits(x[*where]) & MAGNITUDE_MASK;
        if (u > most) return u >= EXPONENT_MASK ? FG_NONFINITE : FG_RANGE;
      }
    }
    walk_offsets(&walk, start, count, pair.offset);
    quantize(request, inverse, request->log_bins, at, group, count, &pair);
    for (size_t block = 0; block < 2 && EC_BLOCK * block < count; block++) {
      size_t left = count - EC_BLOCK * block, length = left < EC_BLOCK ? left : EC_BLOCK, i = 0;
      uint32_t class_ = pair.class_[block];
      uint16_t index[EC_BLOCK];
      counts->class_[class_]++;
      if (class_ < 2) continue;
      meet_levels(s, class_, request->log_bins, &met);
      index_block(&pair, block, index);
      for (; i + 4 <= length; i += 4) {
        counter[0][index[i]]++;
        counter[1][index[i + 1]]++;
        counter[2][index[i + 2]]++;
        counter[3][index[i + 3]]++;
      }
      for (; i < length; i++) counter[0][index[i]]++;
    }
    if (centroids) count_centroids(inverse, &pair, at, centroids);
  }
  for (; met; met &= met - 1) {
    size_t level = (size_t)__builtin_ctz(met), first = level * EC_TABLES, tables = (size_t)RANS_SYMBOLS << request->log_bins;
    uint32_t sum = 0;
    for (size_t i = first; i < first + tables; i++) sum += counter[0][i] += counter[1][i] + counter[2][i] + counter[3][i];
    counts->level[level] = sum;
  }
  return FG_OK;
}

static double offsets_bits(const fg_ec *request, EcEncoder *s) {
  size_t offsets = fg_ec_offsets(request);
  return offsets ? 8.0 * (double)plane_encode(request->offsets, offsets, s->raw, &s->plane) : 0.0;
}

int FG_ISA(fg_ec_bits)(const float *values, size_t n, const fg_ec *request, const uint32_t *groups, size_t count, void *scratch,
                       double *bits_, size_t *where) {
  EcEncoder *s = scratch;
  int error = ec_count(request, values, n, groups, count, s, NULL, where);
  if (error) return error;
  double counted = 0;
  for (size_t class_ = 0; class_ < EC_CLASSES; class_++) counted += s->counts.class_[class_];
  s->model.kind = request->kind;
  double scale = (double)(n / EC_BLOCK + (n % EC_BLOCK != 0)) / counted;
  *bits_ = fg_ec_group(&s->counts, &s->plain, request->log_bins, scale, n, &s->model) + offsets_bits(request, s);
  return FG_OK;
}

/* Raw bits of a block's coordinates: those below the symbols, and what escapes. */
static inline void raw_block(const Quantized *pair, size_t block, size_t length, const uint16_t *index, RawWriter *raw) {
  const int32_t *q = pair->q + EC_BLOCK * block;
  uint32_t escapes = 0;
  for (size_t i = 0; i < EC_BLOCK; i++) escapes |= (index[i] & 255u) == EC_ESCAPE;
  if (!escapes && !shifts(pair->class_[block], pair->offset + EC_BLOCK * block)) return;
  for (size_t i = 0; i < length; i++) {
    uint32_t shift = ec_shift(index[i] >> 10);
    if ((index[i] & 255u) == EC_ESCAPE)
      raw_write(raw, (uint32_t)zigzag(q[i]), EC_ESCAPE_BITS);
    else
      raw_write(raw, (uint32_t)q[i] & ((1u << shift) - 1u), shift);
  }
}

/* Each level's encoder, of the table that it shares. */
static void expand_levels(EcEncoder *s) {
  const EcModel *model = &s->model;
  for (size_t table = 0, level = 0; table < model->tables; table++) {
    size_t first = level++;
    for (size_t bin = 0; bin < (size_t)1 << model->log_bins; bin++) fg_rans_encoder(model->frequencies[table][bin], s->encoder[first][bin]);
    for (; level <= model->last[table]; level++) memcpy(s->encoder[level], s->encoder[first], sizeof s->encoder[first] >> (EC_LOG_BINS - model->log_bins));
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
  int error = ec_count(request, values, n, NULL, 0, s, request->kind == EC_DEADZONE ? &centroids : NULL, where);
  if (error) return error;
  double bits_ = fg_ec_group(&s->counts, &s->plain, request->log_bins, 1.0, n, model) + offsets_bits(request, s);
  bits_ += fg_ec_normalise(&s->counts, model);
  if (request->most > 0 && !(bits_ >= request->least && bits_ <= request->most)) {
    *size = (size_t)bits_;
    return FG_RATE;
  }
  for (size_t point = 0; point < 3; point++) {
    double sum = 0, mean = point < 2 ? (double)(point + 1) : 0.0;
    uint64_t count = 0;
    for (size_t i = 0; i < 16; i++) sum += centroids.sum[point][i], count += centroids.count[point][i];
    if (count) mean = sum / (double)count;
    model->points[point] = (float)(mean * (double)request->step);
  }
  uint8_t *at = out + fg_ec_write(model, out);
  if (model->offsets) at += plane_encode(request->offsets, fg_ec_offsets(request), at, &s->plane);
  expand_levels(s);
  fg_rans_encoder(model->classes, s->classes);

  float padded[PAIR], inverse = 1.0f / request->step;
  Quantized pair;
  Walk walk = walk_begin(request);
  for (size_t chunk = 0; chunk < n; chunk += EC_CHUNK) {
    size_t count = n - chunk < EC_CHUNK ? n - chunk : EC_CHUNK, coded = 0, blocks = 0;
    RawWriter raw = {s->raw, 0, 0};
    for (size_t start = chunk; start < chunk + count; start += PAIR) {
      size_t present = n - start < PAIR ? n - start : PAIR;
      walk_offsets(&walk, start, present, pair.offset);
      quantize(request, inverse, model->log_bins, pair_at(values, n, start, padded), start / PAIR, present, &pair);
      for (size_t block = 0; block < 2 && EC_BLOCK * block < present; block++) {
        size_t left = present - EC_BLOCK * block, length = left < EC_BLOCK ? left : EC_BLOCK;
        s->class_[blocks++] = (uint16_t)pair.class_[block];
        if (pair.class_[block] < 2) continue;
        index_block(&pair, block, s->index + coded);
        raw_block(&pair, block, length, s->index + coded, &raw);
        coded += length;
      }
    }
    size_t lanes = lanes_for(bits_ / (double)n * (double)count);
    uint32_t state[LANES];
    for (size_t i = 0; i < LANES; i++) state[i] = RANS_LEAST;
    uint16_t *end = s->words + sizeof s->words / sizeof *s->words;
    uint16_t *words = lanes_encode(s->index, coded, &s->encoder[0][0][0], lanes, state, end);
    words = lanes_encode(s->class_, blocks, s->classes, lanes, state, words);
    at = chunk_put(state, lanes, words, end, s->raw, &raw, at);
  }
  *size = (size_t)(at - out);
  return FG_OK;
}

/* out[i] = table[index[i]] for a block; indices are below 16. */
static inline void look_up(const uint8_t table[16], const uint8_t index[EC_BLOCK], uint8_t out[EC_BLOCK]) {
#if defined(FG_FOR_AVX2) || defined(FG_FOR_AVX512VNNI)
  __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)table));
  for (size_t i = 0; i < EC_BLOCK; i += 32) {
    __m256i at = _mm256_loadu_si256((const __m256i *)(const void *)(index + i));
    _mm256_storeu_si256((__m256i *)(void *)(out + i), _mm256_shuffle_epi8(entries, at));
  }
#elif defined(__aarch64__) && !defined(FG_FOR_SERIAL)
  uint8x16_t entries = vld1q_u8(table);
  for (size_t i = 0; i < EC_BLOCK; i += 16) vst1q_u8(out + i, vqtbl1q_u8(entries, vld1q_u8(index + i)));
#else
  for (size_t i = 0; i < EC_BLOCK; i++) out[i] = table[index[i]];
#endif
}

/* Adds the bins of the dither's magnitude to a block's contexts. */
static inline void add_bins(const Random *random, size_t block, uint32_t log_bins, uint8_t context[EC_BLOCK]) {
  for (size_t w = 0; w < 2; w++)
    for (size_t half = 0; half < 2; half++)
      for (size_t i = 0; i < PHILOX_LANES; i++) {
        int32_t r = (int32_t)(random->word[2 * block + w][i] >> 16 * half & 0xffffu) - 32768;
        size_t at = 32 * w + 16 * half + i;
        context[at] = (uint8_t)(context[at] + ((r ^ (r >> 31)) >> (15 - (int)log_bins)));
      }
}

/* Decodes the values q of one block of class >= 2. */
static int block_decode(const EcDecoder *s, ChunkReader *reader, uint32_t class_, const uint8_t *offset, const Random *random,
                        size_t block, size_t length, int flat, int32_t q[EC_BLOCK]) {
  const EcModel *model = &s->model;
  uint8_t symbols[EC_BLOCK] = {0}, context[EC_BLOCK], base[16] = {0};
  for (uint32_t o = 0; o < EC_OFFSETS; o++) base[o] = (uint8_t)(model->table_of[ec_level(class_, o)] << model->log_bins);
  int error;
  if (flat && !model->log_bins) {
    error = lanes_decode(&reader->lanes, s->slots + (size_t)base[EC_NEUTRAL] * RANS_TOTAL, NULL, length, symbols);
  } else {
    look_up(base, offset, context);
    if (model->log_bins) add_bins(random, block, model->log_bins, context);
    error = lanes_decode(&reader->lanes, s->slots, context, length, symbols);
  }
  if (error) return error;
  uint32_t escapes = 0;
  for (size_t i = 0; i < EC_BLOCK; i++) {
    q[i] = unzigzag(symbols[i]);
    escapes |= symbols[i] == EC_ESCAPE;
  }
  if (!escapes && !shifts(class_, offset)) return FG_OK;
  for (size_t i = 0; i < length; i++) {
    uint32_t shift = ec_shift(ec_level(class_, offset[i]));
    if (symbols[i] == EC_ESCAPE) {
      q[i] = unzigzag((int32_t)raw_read(&reader->raw, EC_ESCAPE_BITS));
      if (symbol_of(q[i] >> shift) != EC_ESCAPE) return FG_CODE;
    } else {
      q[i] = (int32_t)((uint32_t)q[i] << shift | raw_read(&reader->raw, shift));
    }
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

  Walk walk = walk_begin(request);
  uint8_t offset[PAIR];
  memset(offset, EC_NEUTRAL, sizeof offset);
  for (size_t chunk = 0; chunk < n; chunk += EC_CHUNK) {
    size_t count = n - chunk < EC_CHUNK ? n - chunk : EC_CHUNK, blocks = (count + EC_BLOCK - 1) / EC_BLOCK;
    ChunkReader reader;
    *where = chunk / EC_CHUNK;
    if ((error = chunk_open(&at, end, &reader))) return error;
    if ((error = lanes_decode(&reader.lanes, s->classes, NULL, blocks, s->class_))) return error;
    for (size_t start = 0; start < count; start += PAIR) {
      int32_t q[PAIR];
      size_t present = count - start < PAIR ? count - start : PAIR;
      const uint8_t *class_ = s->class_ + start / EC_BLOCK;
      float *to = out + chunk + start, decoded[PAIR];
      if (!class_[0] && (present <= EC_BLOCK || !class_[1])) {
        memset(to, 0, present * sizeof *to);
        continue;
      }
      Random random;
      if (request->kind == EC_DITHER) philox_group(request->key, (chunk + start) / PAIR, request->stream, PURPOSE_DITHER, &random);
      if (offsets) walk_offsets(&walk, chunk + start, present, offset);
      if (present <= EC_BLOCK) memset(q + EC_BLOCK, 0, EC_BLOCK * sizeof *q);
      for (size_t block = 0; block < 2 && EC_BLOCK * block < present; block++) {
        size_t left = present - EC_BLOCK * block, length = left < EC_BLOCK ? left : EC_BLOCK;
        if (class_[block] < 2) {
          memset(q + EC_BLOCK * block, 0, EC_BLOCK * sizeof *q);
          continue;
        }
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
