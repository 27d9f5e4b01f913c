/* A chunk of an entropy-coded stream, which decodes by itself: the range coder's words and, beside them, raw bits.
 *
 *   chunk = u24 bytes of words + (log2 of lanes << 20) | u24 bytes of raw bits | states | words | raw bits, least significant first
 */
#define CHUNK 65536 /* most coordinates (or values kept) of one */

typedef struct {
  uint8_t *at;
  uint64_t bits;
  uint32_t held;
} RawWriter;

static inline void raw_write(RawWriter *w, uint32_t value, uint32_t count) {
  w->bits |= (uint64_t)value << w->held;
  for (w->held += count; w->held >= 8; w->held -= 8, w->bits >>= 8) *w->at++ = (uint8_t)w->bits;
}

typedef struct {
  const uint8_t *at, *end;
  uint64_t bits;
  uint32_t held;
  int short_; /* more was read than there is */
} RawReader;

static inline uint32_t raw_read(RawReader *r, uint32_t count) {
  for (; r->held < count; r->held += 8) {
    if (r->at == r->end)
      r->short_ = 1;
    else
      r->bits |= (uint64_t)*r->at++ << r->held;
  }
  uint32_t value = (uint32_t)r->bits & ((1u << count) - 1u);
  r->bits >>= count;
  r->held -= count;
  return value;
}

typedef struct {
  LaneDecoder lanes;
  RawReader raw;
} ChunkReader;

static inline uint8_t *put_u24(size_t value, uint8_t *out) {
  for (size_t byte = 0; byte < 3; byte++) out[byte] = (uint8_t)(value >> 8 * byte);
  return out + 3;
}

static inline size_t get_u24(const uint8_t *in) { return (size_t)in[0] | (size_t)in[1] << 8 | (size_t)in[2] << 16; }

static inline uint8_t *put_words(const uint16_t *words, const uint16_t *end, uint8_t *out) {
  size_t bytes = 2 * (size_t)(end - words);
  memcpy(out, words, bytes);
  return out + bytes;
}

/* Writes words and the raw bits that begin at raw_start; returns the end. */
static uint8_t *chunk_put(const uint32_t state[LANES], size_t lanes, const uint16_t *words, const uint16_t *end,
                          const uint8_t *raw_start, RawWriter *raw, uint8_t *out) {
  if (raw->held) raw_write(raw, 0, 8 - raw->held);
  size_t raw_bytes = (size_t)(raw->at - raw_start);
  out = put_u24(2 * (size_t)(end - words) | lanes_log(lanes) << 20, out);
  out = put_u24(raw_bytes, out);
  out += states_write(state, lanes, out);
  out = put_words(words, end, out);
  memcpy(out, raw_start, raw_bytes);
  return out + raw_bytes;
}

/* Opens the chunk at *in and moves *in behind it. */
static int chunk_open(const uint8_t **in, const uint8_t *end, ChunkReader *reader) {
  const uint8_t *at = *in;
  if (end - at < 6) return FG_TRUNCATED;
  size_t field = get_u24(at), words = field & 0xfffff, raw = get_u24(at + 3);
  at += 6;
  int error = states_read(&at, end, field >> 20, &reader->lanes);
  if (error) return error;
  if ((size_t)(end - at) < words + raw) return FG_TRUNCATED;
  reader->lanes.at = at;
  reader->lanes.end = at += words;
  reader->raw = (RawReader){at, at + raw, 0, 0, 0};
  *in = at + raw;
  return FG_OK;
}

/* FG_OK where exactly what the encoder wrote has been read. */
static int chunk_finished(const ChunkReader *reader) {
  if (reader->raw.short_) return FG_TRUNCATED;
  if (reader->raw.at != reader->raw.end || reader->raw.bits) return FG_TRAILING;
  return lanes_finished(&reader->lanes);
}
