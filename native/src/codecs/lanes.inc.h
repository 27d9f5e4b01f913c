/* The range coder's hot loops: 32 states side by side, symbol i of a section in lane i % 32, one stream of 16-bit words.
 *
 * The decoder takes words in the order of symbols; so the encoder runs from the last symbol to the first and writes from the end
 * of its buffer downwards. A block of 64 symbols is two steps of all lanes, which lets whole blocks be left out.
 */
#include "rans.h"

#define LANES 32

/* Encodes `count` symbols, indices of `table`, backwards; words end at `words`. Returns where they begin now. */
static inline uint16_t *lanes_encode(const uint16_t *index, size_t count, const RansSymbol *table, uint32_t state[LANES],
                                     uint16_t *words) {
  for (size_t i = count; i-- > 0;) {
    const RansSymbol *e = table + index[i];
    uint32_t x = state[i % LANES];
    words[-1] = (uint16_t)x;
    uint32_t full = x > e->limit;
    words -= full;
    x >>= 16 * full;
    uint32_t quotient = (uint32_t)((uint64_t)x * e->reciprocal >> 32) >> e->shift;
    state[i % LANES] = x + e->bias + quotient * e->complement;
  }
  return words;
}

typedef struct {
  const uint8_t *at, *end; /* of the words */
  uint32_t state[LANES];
} LaneDecoder;

/* One symbol of one lane, checked: for the ends of streams. Returns the slot's entry; *short_ is set when the words have run out. */
static inline uint32_t lane_decode(LaneDecoder *d, size_t lane, const uint32_t *slots, int *short_) {
  uint32_t x = d->state[lane], e = slots[x & (RANS_TOTAL - 1u)];
  x = ((e & 4095u) + 1u) * (x >> RANS_BITS) + (e >> 12 & 4095u);
  if (x < RANS_LEAST) {
    if (d->end - d->at < 2) {
      *short_ = 1;
    } else {
      x = x << 16 | (uint32_t)d->at[0] | (uint32_t)d->at[1] << 8;
      d->at += 2;
    }
  }
  d->state[lane] = x;
  return e;
}

#if defined(FG_FOR_AVX512VNNI)
#include "lanes_avx512.inc.h"
#else
/* `LANES` symbols by one table; at least 2 * LANES bytes of words are left. */
static inline void lanes_step(LaneDecoder *d, const uint32_t *slots, uint8_t *symbols) {
  const uint8_t *at = d->at;
  for (size_t i = 0; i < LANES; i++) {
    uint32_t x = d->state[i], e = slots[x & (RANS_TOTAL - 1u)];
    symbols[i] = (uint8_t)(e >> 24);
    x = ((e & 4095u) + 1u) * (x >> RANS_BITS) + (e >> 12 & 4095u);
    uint32_t empty = x < RANS_LEAST, word = (uint32_t)at[0] | (uint32_t)at[1] << 8;
    x = x << 16 * empty | (word & (0u - empty)); /* a branch here would be mispredicted every few symbols */
    at += 2 * empty;
    d->state[i] = x;
  }
  d->at = at;
}

/* The same with a table for each symbol: context[i] is its number. */
static inline void lanes_step_contexts(LaneDecoder *d, const uint32_t *slots, const uint8_t *context, uint8_t *symbols) {
  const uint8_t *at = d->at;
  for (size_t i = 0; i < LANES; i++) {
    uint32_t x = d->state[i], e = slots[(size_t)context[i] * RANS_TOTAL + (x & (RANS_TOTAL - 1u))];
    symbols[i] = (uint8_t)(e >> 24);
    x = ((e & 4095u) + 1u) * (x >> RANS_BITS) + (e >> 12 & 4095u);
    uint32_t empty = x < RANS_LEAST, word = (uint32_t)at[0] | (uint32_t)at[1] << 8;
    x = x << 16 * empty | (word & (0u - empty));
    at += 2 * empty;
    d->state[i] = x;
  }
  d->at = at;
}
#endif

/* `count` symbols by one table (context NULL) or by a table each; FG_OK or FG_TRUNCATED. */
static inline int lanes_decode(LaneDecoder *d, const uint32_t *slots, const uint8_t *context, size_t count, uint8_t *symbols) {
  size_t i = 0;
  for (; i + LANES <= count && d->end - d->at >= 2 * LANES; i += LANES) {
    if (context)
      lanes_step_contexts(d, slots, context + i, symbols + i);
    else
      lanes_step(d, slots, symbols + i);
  }
  int short_ = 0;
  for (; i < count; i++) {
    size_t table = context ? (size_t)context[i] * RANS_TOTAL : 0;
    symbols[i] = (uint8_t)(lane_decode(d, i % LANES, slots + table, &short_) >> 24);
  }
  return short_ ? FG_TRUNCATED : FG_OK;
}

/* A state block: the states of the lanes in use (count symbols use min(count, 32)), little-endian; the others are RANS_LEAST. */
static inline size_t states_write(const uint32_t state[LANES], size_t count, uint8_t *out) {
  size_t used = count < LANES ? count : LANES;
  for (size_t i = 0; i < used; i++)
    for (size_t byte = 0; byte < 4; byte++) out[4 * i + byte] = (uint8_t)(state[i] >> 8 * byte);
  return 4 * used;
}

static inline int states_read(const uint8_t **in, const uint8_t *end, size_t count, uint32_t state[LANES]) {
  size_t used = count < LANES ? count : LANES;
  if ((size_t)(end - *in) < 4 * used) return FG_TRUNCATED;
  for (size_t i = 0; i < LANES; i++) {
    const uint8_t *b = *in + 4 * i;
    state[i] = i < used ? (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24 : RANS_LEAST;
    if (state[i] < RANS_LEAST) return FG_STATE;
  }
  *in += 4 * used;
  return FG_OK;
}

/* All words are used up and every lane is back where its encoder began. */
static inline int lanes_finished(const LaneDecoder *d) {
  if (d->at != d->end) return FG_TRAILING;
  for (size_t i = 0; i < LANES; i++)
    if (d->state[i] != RANS_LEAST) return FG_STATE;
  return FG_OK;
}
