/* Bytes of any kind by order-0 rANS, for the codecs that have a plane of small symbols to pack (gaps, exponents).
 *
 *   plane = u8 mode | body       mode 0: the n bytes as they are;   1: one byte that all n are;
 *                                mode 2: table | chunks of 64 Ki bytes: u24 bytes of words + (log2 of lanes << 20) | states | words
 */
#define PLANE_CHUNK 65536

typedef struct { /* in the caller's scratch */
  RansSymbol encoder[RANS_SYMBOLS];
  uint32_t slots[RANS_TOTAL];
  uint16_t index[PLANE_CHUNK];
  uint16_t words[PLANE_CHUNK + WORDS_SLACK];
} PlaneScratch;

/* Encodes a plane, n >= 1; returns its size, at most n + 1. */
static size_t plane_encode(const uint8_t *symbols, size_t n, uint8_t *out, PlaneScratch *scratch) {
  uint32_t counts[4][RANS_SYMBOLS] = {{0}};
  uint16_t frequencies[RANS_SYMBOLS];
  for (size_t i = 0; i < n; i++) counts[i % 4][symbols[i]]++;
  for (size_t s = 0; s < RANS_SYMBOLS; s++) counts[0][s] += counts[1][s] + counts[2][s] + counts[3][s];
  if (counts[0][symbols[0]] == n) {
    out[0] = 1;
    out[1] = symbols[0];
    return 2;
  }
  size_t size = 1;
  double table_bits, bits = fg_rans_cost(counts[0], &table_bits);
  size_t chunks = (n + PLANE_CHUNK - 1) / PLANE_CHUNK, states = 3 + 4 * lanes_for(bits / (double)chunks);
  if ((bits + table_bits) / 8 + (double)(chunks * states) < (double)n) {
    out[0] = 2;
    fg_rans_normalise(counts[0], frequencies);
    fg_rans_encoder(frequencies, scratch->encoder);
    uint8_t table[RANS_TABLE_BYTES];
    size_t table_size = fg_rans_write(frequencies, table);
    if (size + table_size < n) {
      memcpy(out + size, table, table_size);
      size += table_size;
      for (size_t start = 0; start < n; start += PLANE_CHUNK) {
        size_t count = n - start < PLANE_CHUNK ? n - start : PLANE_CHUNK;
        size_t lanes = lanes_for(bits / (double)n * (double)count);
        uint32_t state[LANES];
        for (size_t i = 0; i < LANES; i++) state[i] = RANS_LEAST;
        for (size_t i = 0; i < count; i++) scratch->index[i] = symbols[start + i];
        uint16_t *end = scratch->words + PLANE_CHUNK + WORDS_SLACK;
        uint16_t *words = lanes_encode(scratch->index, count, scratch->encoder, lanes, state, end);
        size_t bytes = 2 * (size_t)(end - words);
        if (size + 3 + 4 * lanes + bytes > n) goto raw;
        uint8_t *at = put_u24(bytes | lanes_log(lanes) << 20, out + size);
        at += states_write(state, lanes, at);
        size = (size_t)(put_words(words, end, at) - out);
      }
      return size;
    }
  }
raw:
  out[0] = 0;
  memcpy(out + 1, symbols, n);
  return n + 1;
}

/* Decodes a plane of n >= 1 bytes at *in and moves *in behind it; FG_OK or what is wrong. */
static int plane_decode(const uint8_t **in, const uint8_t *end, size_t n, uint8_t *symbols, PlaneScratch *scratch) {
  const uint8_t *at = *in;
  if (end - at < 2) return FG_TRUNCATED;
  int mode = *at++;
  if (mode == 0) {
    if ((size_t)(end - at) < n) return FG_TRUNCATED;
    memcpy(symbols, at, n);
    *in = at + n;
    return FG_OK;
  }
  if (mode == 1) {
    memset(symbols, *at, n);
    *in = at + 1;
    return FG_OK;
  }
  if (mode != 2) return FG_FIELD;
  uint16_t frequencies[RANS_SYMBOLS];
  int error = fg_rans_read(&at, end, frequencies);
  if (error) return error;
  fg_rans_decoder(frequencies, scratch->slots);
  for (size_t start = 0; start < n; start += PLANE_CHUNK) {
    size_t count = n - start < PLANE_CHUNK ? n - start : PLANE_CHUNK;
    if (end - at < 3) return FG_TRUNCATED;
    size_t field = get_u24(at), bytes = field & 0xfffff;
    at += 3;
    LaneDecoder decoder;
    if ((error = states_read(&at, end, field >> 20, &decoder))) return error;
    if ((size_t)(end - at) < bytes) return FG_TRUNCATED;
    decoder.at = at;
    decoder.end = at += bytes;
    if ((error = lanes_decode(&decoder, scratch->slots, NULL, count, symbols + start))) return error;
    if ((error = lanes_finished(&decoder))) return error;
  }
  *in = at;
  return FG_OK;
}
