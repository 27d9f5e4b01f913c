/* topk: the k largest magnitudes, ties by the lower index, as gaps between their places and floats of 8 bits (D. Alistarh et al.,
 * "The convergence of sparsified gradient methods", NeurIPS 2018). Biased: for error feedback, which keeps what is left out.
 *
 *   stream = u32 k | u16 top | (k > 0) table of gaps | table of magnitudes | chunks of 64 Ki values kept
 *   chunk  = that of chunks.inc.h; words hold the gaps' symbols, then the magnitudes'; raw bits each value's gap bits, then its sign
 *
 *   gap        coordinates skipped since the value before. Under 8: the symbol. Else, with e = floor(log2(gap)): symbol
 *              8 + 4 (e - 3) + the 2 bits below the first, and e - 2 raw bits
 *   magnitude  m = bits of |x|, rounded to exponent and 2 bits of mantissa (m + 2^20 >> 21); symbol: top less that. `top` is the largest
 *
 * What the mantissa's further bits cost is better spent on more values: with 2, the kept values' error is 1/400 of their square.
 * Values under 2^-90, or 2^-64 of the largest, aren't kept; so a stream may have fewer than k.
 */
#define TOPK_DROPPED 21 /* bits of the mantissa that don't travel */
#define TOPK_LEAST (37u << 2) /* 2^-90 and 2^90 in exponent and 2 bits of mantissa */
#define TOPK_MOST (217u << 2)
#define TOPK_HEADER 6

typedef struct { /* in the caller's scratch */
  RansSymbol encoder[2][RANS_SYMBOLS];
  uint32_t counts[2][RANS_SYMBOLS];
  uint32_t histogram[4][2048];
  uint32_t gap[CHUNK], magnitude[CHUNK]; /* magnitude: bits of x, sign included */
  uint16_t index[2][CHUNK];
  uint16_t words[2 * CHUNK + WORDS_SLACK];
  uint8_t raw[4 * CHUNK + 16];
} TopkEncoder;

typedef struct {
  uint32_t slots[2][RANS_TOTAL];
  uint8_t symbols[2][CHUNK];
} TopkDecoder;

_Static_assert(sizeof(TopkEncoder) <= FG_TOPK_SCRATCH && sizeof(TopkDecoder) <= FG_TOPK_SCRATCH, "the header promises enough");

typedef struct { /* where the walk over the values stands, and what it keeps */
  const float *x;
  size_t n, at, next; /* next: behind the value kept last */
  size_t ties;        /* how many of magnitude `least` are still to be kept */
  uint32_t least;     /* bits of the smallest magnitude kept */
} TopkWalk;

static inline uint32_t topk_code(uint32_t magnitude) { return (magnitude + (1u << (TOPK_DROPPED - 1))) >> TOPK_DROPPED; }

/* Adds the magnitudes whose bits above `shift` + `width` equal `prefix` to bins of the `width` bits below those. */
static void topk_count(const float *x, size_t n, uint32_t shift, uint32_t width, uint32_t prefix, uint32_t histogram[4][2048]) {
  uint32_t low = prefix << (shift + width), span = 1u << (shift + width);
  memset(histogram, 0, sizeof(uint32_t[4][2048]));
  for (size_t i = 0; i < n; i++) {
    uint32_t in = (bits(x[i]) & MAGNITUDE_MASK) - low;
    if (in < span) histogram[i % 4][in >> shift]++;
  }
  for (size_t bin = 0; bin < 2048; bin++) histogram[0][bin] += histogram[1][bin] + histogram[2][bin] + histogram[3][bin];
}

/* The k-th largest magnitude, 1 <= k <= n, digit by digit; *ties: how many of that magnitude belong to the k. */
static uint32_t topk_select(const float *x, size_t n, size_t k, uint32_t histogram[4][2048], size_t *ties) {
  static const uint32_t SHIFTS[3] = {20, 10, 0}, WIDTHS[3] = {11, 10, 10};
  uint32_t found = 0;
  for (size_t digit = 0; digit < 3; digit++) {
    topk_count(x, n, SHIFTS[digit], WIDTHS[digit], found, histogram);
    size_t bin = ((size_t)1 << WIDTHS[digit]) - 1;
    for (; histogram[0][bin] < k; bin--) k -= histogram[0][bin];
    found = found << WIDTHS[digit] | (uint32_t)bin;
  }
  *ties = k;
  return found;
}

/* Collects up to a chunk of values kept; returns how many. */
static size_t topk_collect(TopkWalk *walk, TopkEncoder *s) {
  size_t count = 0, n = walk->n;
  while (walk->at < n) {
    size_t end = n - walk->at < FG_BLOCK ? n : walk->at + FG_BLOCK;
    if (absmax(walk->x + walk->at, end - walk->at) < walk->least) {
      walk->at = end;
      continue;
    }
    for (; walk->at < end; walk->at++) {
      uint32_t u = bits(walk->x[walk->at]), magnitude = u & MAGNITUDE_MASK;
      if (magnitude < walk->least) continue;
      if (magnitude == walk->least) {
        if (!walk->ties) continue;
        walk->ties--;
      }
      if (count == CHUNK) { /* it begins the next chunk */
        walk->ties += magnitude == walk->least;
        return count;
      }
      s->gap[count] = (uint32_t)(walk->at - walk->next);
      s->magnitude[count++] = u;
      walk->next = walk->at + 1;
    }
  }
  return count;
}

static inline uint32_t gap_symbol(uint32_t gap, uint32_t *raw_bits) {
  *raw_bits = 0;
  if (gap < 8) return gap;
  uint32_t e = 31 - (uint32_t)__builtin_clz(gap);
  *raw_bits = e - 2;
  return 8 + 4 * (e - 3) + (gap >> (e - 2) & 3u);
}

/* Symbols and raw bits of `count` values collected. */
static void topk_index(TopkEncoder *s, size_t count, uint32_t top, RawWriter *raw) {
  for (size_t i = 0; i < count; i++) {
    uint32_t raw_bits, u = s->magnitude[i];
    s->index[0][i] = (uint16_t)gap_symbol(s->gap[i], &raw_bits);
    s->index[1][i] = (uint16_t)(top - topk_code(u & MAGNITUDE_MASK));
    raw_write(raw, s->gap[i] & ((1u << raw_bits) - 1u), raw_bits);
    raw_write(raw, u >> 31, 1);
  }
}

int FG_ISA(fg_topk_encode)(const float *values, size_t n, size_t k, uint8_t *out, size_t *size, void *scratch, size_t *where) {
  TopkEncoder *s = scratch;
  uint32_t most = absmax(values, n);
  if (most > bits(0x1p90f))
    for (*where = 0;; ++*where) {
      uint32_t u = bits(values[*where]) & MAGNITUDE_MASK;
      if (u > bits(0x1p90f) && (u >= EXPONENT_MASK || most < EXPONENT_MASK)) return u >= EXPONENT_MASK ? FG_NONFINITE : FG_RANGE;
    }
  uint32_t top = topk_code(most), kept = 0;
  memset(out, 0, TOPK_HEADER);
  *size = TOPK_HEADER;
  if (k == 0 || top < TOPK_LEAST) return FG_OK;
  uint32_t least = top - TOPK_LEAST < RANS_SYMBOLS ? TOPK_LEAST : top - (RANS_SYMBOLS - 1);
  TopkWalk walk = {values, n, 0, 0, n, (least << TOPK_DROPPED) - (1u << (TOPK_DROPPED - 1))};
  if (k < n) {
    size_t ties;
    uint32_t selected = topk_select(values, n, k, s->histogram, &ties);
    if (selected >= walk.least) walk.least = selected, walk.ties = ties;
  }
  TopkWalk again = walk;
  memset(s->counts, 0, sizeof s->counts);
  size_t count = 0;
  for (size_t more; (more = topk_collect(&walk, s)) > 0; count = more) {
    RawWriter unused = {s->raw, 0, 0};
    topk_index(s, more, top, &unused);
    for (size_t i = 0; i < more; i++) s->counts[0][s->index[0][i]]++, s->counts[1][s->index[1][i]]++;
    kept += (uint32_t)more;
  }
  uint16_t frequencies[RANS_SYMBOLS], top16 = (uint16_t)top;
  memcpy(out, &kept, 4);
  memcpy(out + 4, &top16, 2);
  uint8_t *at = out + TOPK_HEADER;
  double cost = 0, table;
  for (size_t part = 0; part < 2; part++) {
    cost += fg_rans_cost(s->counts[part], &table);
    fg_rans_normalise(s->counts[part], frequencies);
    at += fg_rans_write(frequencies, at);
    fg_rans_encoder(frequencies, s->encoder[part]);
  }
  for (size_t left = kept; left > 0; left -= count) {
    if (kept > CHUNK) count = topk_collect(&again, s); /* else it is all still there */
    RawWriter raw = {s->raw, 0, 0};
    topk_index(s, count, top, &raw);
    size_t lanes = lanes_for(cost / (double)kept * (double)count);
    uint32_t state[LANES];
    for (size_t i = 0; i < LANES; i++) state[i] = RANS_LEAST;
    uint16_t *end = s->words + sizeof s->words / sizeof *s->words;
    uint16_t *words = lanes_encode(s->index[1], count, s->encoder[1], lanes, state, end);
    words = lanes_encode(s->index[0], count, s->encoder[0], lanes, state, words);
    at = chunk_put(state, lanes, words, end, s->raw, &raw, at);
  }
  *size = (size_t)(at - out);
  return FG_OK;
}

/* Puts a chunk's `count` values into `out`; *next is the coordinate behind the one before. */
static int topk_place(TopkDecoder *s, size_t count, RawReader *raw, uint32_t top, float *out, size_t n, size_t *next) {
  for (size_t i = 0; i < count; i++) {
    uint32_t symbol = s->symbols[0][i], gap = symbol, code = s->symbols[1][i];
    if (symbol >= 8) {
      uint32_t raw_bits = (symbol - 8) / 4 + 1;
      if (raw_bits > 29) return FG_CODE;
      gap = (4u | ((symbol - 8) & 3u)) << raw_bits | raw_read(raw, raw_bits);
    }
    if (gap >= n - *next) return FG_RANGE;
    if (code > top - TOPK_LEAST) return FG_CODE;
    *next += gap;
    out[(*next)++] = from_bits((top - code) << TOPK_DROPPED | raw_read(raw, 1) << 31);
  }
  return FG_OK;
}

int FG_ISA(fg_topk_decode)(const uint8_t *payload, size_t size, float *out, size_t n, void *scratch, size_t *where) {
  TopkDecoder *s = scratch;
  const uint8_t *at = payload, *end = payload + size;
  uint16_t top, frequencies[RANS_SYMBOLS];
  uint32_t kept;
  *where = 0;
  if (size < TOPK_HEADER) return FG_TRUNCATED;
  memcpy(&kept, at, 4);
  memcpy(&top, at + 4, 2);
  at += TOPK_HEADER;
  if (kept > n || (kept ? top < TOPK_LEAST || top > TOPK_MOST : top != 0)) return FG_FIELD;
  memset(out, 0, n * sizeof *out);
  int error, greatest = kept == 0;
  for (size_t part = 0; part < 2 && kept; part++) {
    if ((error = fg_rans_read(&at, end, frequencies))) return error;
    greatest |= part && frequencies[0]; /* some value is the largest */
    fg_rans_decoder(frequencies, s->slots[part]);
  }
  if (!greatest) return FG_FIELD;
  size_t next = 0;
  for (size_t done = 0, count; done < kept; done += count, ++*where) {
    count = kept - done < CHUNK ? kept - done : CHUNK;
    ChunkReader reader;
    if ((error = chunk_open(&at, end, &reader))) return error;
    for (size_t part = 0; part < 2; part++)
      if ((error = lanes_decode(&reader.lanes, s->slots[part], NULL, count, s->symbols[part]))) return error;
    if ((error = topk_place(s, count, &reader.raw, top, out, n, &next))) return error;
    if ((error = chunk_finished(&reader))) return error;
  }
  return at == end ? FG_OK : FG_TRAILING;
}
