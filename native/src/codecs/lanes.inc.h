/* The range coder's hot loops: 32 states side by side, symbol i of a section in lane i % 32, one stream of 16-bit words.
 *
 * The decoder takes words in the order of symbols; so the encoder runs from the last symbol to the first and writes from the end
 * of its buffer downwards. A block of 64 symbols is two steps of all lanes, which lets whole blocks be left out. Short chunks
 * use fewer lanes, a power of two, since each costs its state.
 */
#include "rans.h"

#define LANES 32

typedef struct {
  const uint8_t *at, *end; /* of the words */
  size_t lanes;
  uint32_t state[LANES];
} LaneDecoder;

/* Lanes for a chunk of about `bits`. */
static inline size_t lanes_for(double bits_) {
  size_t lanes = 1;
  while (lanes < LANES && (double)(2 * lanes) * RANS_LANE_BITS <= bits_) lanes *= 2;
  return lanes;
}

static inline size_t lanes_log(size_t lanes) { return (size_t)__builtin_ctzll(lanes); }

static inline uint32_t rans_put(uint32_t x, RansSymbol e, uint16_t **words) {
  uint32_t f = e.rest & 0x1fffu;
  (*words)[-1] = (uint16_t)x;
  uint32_t full = x >= f << 19;
  *words -= full;
  x = full ? x >> 16 : x;
  uint32_t quotient = (uint32_t)((uint64_t)x * e.reciprocal >> 32) >> (e.rest >> 26);
  return x + (e.rest >> 13 & 0x1fffu) + quotient * (RANS_TOTAL - f);
}

#if defined(FG_FOR_AVX512VNNI)
#include "lanes_avx512.inc.h"
#define LANES_WIDE 16 /* lanes of a LanesWide, which one call of lanes_step_wide moves */
#elif defined(FG_FOR_AVX2)
#include "lanes_avx2.inc.h"
#define LANES_WIDE 8
#endif
#define WORDS_SLACK 8 /* words below the last that an encoder may write on */

/* Encodes `count` symbols, indices of `table`, backwards; words end at `words`. Returns where they begin now. */
static inline uint16_t *lanes_encode(const uint16_t *restrict index, size_t count, const RansSymbol *restrict table, size_t lanes,
                                     uint32_t state[restrict LANES], uint16_t *words) {
  size_t i = count;
#if defined(LANES_WIDE)
  if (lanes >= LANES_WIDE) {
    for (; i % lanes; i--) state[(i - 1) % lanes] = rans_put(state[(i - 1) % lanes], table[index[i - 1]], &words);
    return lanes_encode_wide(index, i, table, lanes, state, words);
  }
#endif
  for (; i-- > 0;) state[i & (lanes - 1)] = rans_put(state[i & (lanes - 1)], table[index[i]], &words);
  return words;
}

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

/* A step of all lanes, unchecked, by one table or (context not NULL) by a table each; at least 2 bytes a lane are left. */
static inline void lanes_step(LaneDecoder *d, size_t lanes, const uint32_t *slots, const uint8_t *context, uint8_t *symbols) {
  const uint8_t *at = d->at;
  for (size_t i = 0; i < lanes; i++) {
    uint32_t x = d->state[i], e = slots[(context ? (size_t)context[i] * RANS_TOTAL : 0) + (x & (RANS_TOTAL - 1u))];
    symbols[i] = (uint8_t)(e >> 24);
    x = ((e & 4095u) + 1u) * (x >> RANS_BITS) + (e >> 12 & 4095u);
    uint32_t empty = x < RANS_LEAST, word = (uint32_t)at[0] | (uint32_t)at[1] << 8;
    x = x << 16 * empty | (word & (0u - empty)); /* a branch here would be mispredicted every few symbols */
    at += 2 * empty;
    d->state[i] = x;
  }
  d->at = at;
}

#if defined(LANES_WIDE)
/* Symbols as long as whole steps are left; returns how many. The states stay in registers, so `lanes` is constant. */
static inline ALWAYS_INLINE size_t lanes_steps_wide(LaneDecoder *d, size_t lanes, const uint32_t *slots, const uint8_t *context,
                                                    size_t count, uint8_t *symbols) {
  LanesWide state[LANES / LANES_WIDE];
  const uint8_t *at = d->at;
  size_t i = 0;
  memcpy(state, d->state, lanes * sizeof *d->state);
  for (; i + lanes <= count && (size_t)(d->end - at) >= 2 * LANES; i += lanes)
#pragma GCC unroll 4
    for (size_t v = 0; v < lanes / LANES_WIDE; v++)
      state[v] = lanes_step_wide(state[v], &at, slots, context ? context + i + v * LANES_WIDE : NULL, symbols + i + v * LANES_WIDE);
  memcpy(d->state, state, lanes * sizeof *d->state);
  d->at = at;
  return i;
}
#endif

/* `count` symbols by one table (context NULL) or by a table each; FG_OK or FG_TRUNCATED. */
static inline int lanes_decode(LaneDecoder *d, const uint32_t *slots, const uint8_t *context, size_t count, uint8_t *symbols) {
  size_t i = 0, lanes = d->lanes;
#if defined(LANES_WIDE)
  if (lanes == 32)
    i = lanes_steps_wide(d, 32, slots, context, count, symbols);
  else if (lanes == 16)
    i = lanes_steps_wide(d, 16, slots, context, count, symbols);
  else if (lanes == LANES_WIDE)
    i = lanes_steps_wide(d, LANES_WIDE, slots, context, count, symbols);
#endif
  for (; i + lanes <= count && (size_t)(d->end - d->at) >= 2 * LANES; i += lanes)
    lanes_step(d, lanes, slots, context ? context + i : NULL, symbols + i);
  int short_ = 0;
  for (; i < count; i++) {
    size_t table = context ? (size_t)context[i] * RANS_TOTAL : 0;
    symbols[i] = (uint8_t)(lane_decode(d, i & (lanes - 1), slots + table, &short_) >> 24);
  }
  return short_ ? FG_TRUNCATED : FG_OK;
}

/* A state block: the states of the lanes in use, little-endian; an encoder begins with all at RANS_LEAST. */
static inline size_t states_write(const uint32_t state[LANES], size_t lanes, uint8_t *out) {
  for (size_t i = 0; i < lanes; i++)
    for (size_t byte = 0; byte < 4; byte++) out[4 * i + byte] = (uint8_t)(state[i] >> 8 * byte);
  return 4 * lanes;
}

static inline int states_read(const uint8_t **in, const uint8_t *end, size_t log_lanes, LaneDecoder *d) {
  if (log_lanes > 5) return FG_FIELD;
  size_t lanes = (size_t)1 << log_lanes;
  if ((size_t)(end - *in) < 4 * lanes) return FG_TRUNCATED;
  d->lanes = lanes;
  for (size_t i = 0; i < LANES; i++) {
    const uint8_t *b = *in + 4 * i;
    d->state[i] = i < lanes ? (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24 : RANS_LEAST;
    if (d->state[i] - RANS_LEAST >= 0x80000000u - RANS_LEAST) return FG_STATE;
  }
  *in += 4 * lanes;
  return FG_OK;
}

/* All words are used up and every lane is back where its encoder began. */
static inline int lanes_finished(const LaneDecoder *d) {
  if (d->at != d->end) return FG_TRAILING;
  for (size_t i = 0; i < LANES; i++)
    if (d->state[i] != RANS_LEAST) return FG_STATE;
  return FG_OK;
}
