/* Tables of the range coder: see rans.h. Runs once a table, not once a symbol. */
#include "rans.h"

#include <string.h>

#include "fleetgrad.h"

/* log2 of n >= 1 to 3e-5, in plain arithmetic, so that every machine makes the same choices by it. */
static float log2_of(uint32_t n) {
  float x = (float)n;
  uint32_t u;
  memcpy(&u, &x, 4);
  float exponent = (float)(int32_t)((u >> 23) - 127u);
  u = (u & 0x7fffffu) | 0x3f800000u;
  memcpy(&x, &u, 4);
  float y = (x - 1.0f) / (x + 1.0f), z = y * y; /* log2(x) = 2 / ln 2 * atanh(y) */
  return exponent + y * (2.8853901f + z * (0.9617967f + z * (0.5770780f + z * 0.4121986f)));
}

double fg_rans_normalise(const uint32_t counts[RANS_SYMBOLS], uint16_t frequencies[RANS_SYMBOLS]) {
  uint64_t total = 0;
  size_t end = 0; /* behind the last symbol */
  int32_t sum = 0;
  memset(frequencies, 0, RANS_SYMBOLS * sizeof *frequencies);
  for (size_t s = 0; s < RANS_SYMBOLS; s++)
    if (counts[s]) total += counts[s], end = s + 1;
  if (total == 0) {
    frequencies[0] = RANS_TOTAL;
    return 0;
  }
  for (size_t s = 0; s < end; s++) {
    uint64_t f = (counts[s] * (uint64_t)RANS_TOTAL + total / 2) / total;
    frequencies[s] = (uint16_t)(counts[s] && f == 0 ? 1 : f);
    sum += frequencies[s];
  }
  for (; sum != (int32_t)RANS_TOTAL;) { /* one unit moves where it costs least, or gains most: about count / f bits */
    int step = sum > (int32_t)RANS_TOTAL ? -1 : 1;
    size_t best = RANS_SYMBOLS;
    uint64_t best_count = 0, best_f = 1;
    for (size_t s = 0; s < end; s++) {
      uint64_t f = frequencies[s], c = counts[s];
      if (c == 0 || (step < 0 && f == 1)) continue;
      int better = step < 0 ? c * best_f < best_count * f : c * best_f > best_count * f;
      if (best == RANS_SYMBOLS || better) best = s, best_count = c, best_f = f;
    }
    frequencies[best] = (uint16_t)(frequencies[best] + step);
    sum += step;
  }
  double loss = 0;
  for (size_t s = 0; s < end; s++)
    if (counts[s]) loss += (double)counts[s] * (double)(log2_of(counts[s]) - log2_of(frequencies[s]) - log2_of((uint32_t)total) + 12.0f);
  return loss;
}

size_t fg_rans_write(const uint16_t frequencies[RANS_SYMBOLS], uint8_t *out) {
  size_t last = RANS_SYMBOLS - 1, n = 0;
  while (last > 0 && frequencies[last] == 0) last--;
  out[n++] = (uint8_t)last;
  for (size_t s = 0; s <= last; s++) {
    uint32_t f = frequencies[s];
    if (f == 0) {
      size_t more = 0;
      while (frequencies[s + more + 1] == 0) more++; /* ends: the last isn't zero */
      out[n++] = 0;
      out[n++] = (uint8_t)more;
      s += more;
    } else if (f < 128) {
      out[n++] = (uint8_t)f;
    } else {
      out[n++] = (uint8_t)(0x80u | (f & 127u));
      out[n++] = (uint8_t)(f >> 7);
    }
  }
  return n;
}

double fg_rans_cost(const uint32_t counts[RANS_SYMBOLS], double *table) {
  uint64_t total = 0;
  size_t last = 0;
  double bits = 0;
  *table = 8;
  for (size_t s = 0; s < RANS_SYMBOLS; s++)
    if (counts[s]) total += counts[last = s];
  if (total == 0) return 0;
  float log_total = log2_of((uint32_t)total);
  uint32_t large = (uint32_t)(total >> 5); /* frequencies from 128 on take two bytes */
  for (size_t s = 0; s <= last; s++) {
    if (counts[s] == 0) {
      while (counts[s + 1] == 0) s++;
      *table += 16;
      continue;
    }
    float symbol_bits = log_total - log2_of(counts[s]);
    bits += (double)counts[s] * (double)(symbol_bits < 12.0f ? symbol_bits : 12.0f);
    *table += counts[s] < large ? 8 : 16;
  }
  return bits;
}

int fg_rans_read(const uint8_t **in, const uint8_t *end, uint16_t frequencies[RANS_SYMBOLS]) {
  const uint8_t *at = *in;
  memset(frequencies, 0, RANS_SYMBOLS * sizeof *frequencies);
  if (at == end) return FG_TRUNCATED;
  size_t last = *at++;
  uint32_t sum = 0;
  for (size_t s = 0; s <= last; s++) {
    if (at == end) return FG_TRUNCATED;
    uint32_t f = *at++;
    if (f == 0 || f >= 128) {
      if (at == end) return FG_TRUNCATED;
      uint32_t second = *at++;
      if (f == 0) {
        s += second;
        if (s >= last || *(at - 2) != 0) return FG_TABLE; /* the last symbol has a frequency */
        continue;
      }
      f = (f & 127u) | second << 7;
      if (f < 128 || f > RANS_TOTAL) return FG_TABLE;
    }
    frequencies[s] = (uint16_t)f;
    sum += f;
  }
  *in = at;
  return sum == RANS_TOTAL ? FG_OK : FG_TABLE;
}

void fg_rans_encoder(const uint16_t frequencies[RANS_SYMBOLS], RansSymbol symbols[RANS_SYMBOLS]) {
  uint32_t start = 0;
  for (size_t s = 0; s < RANS_SYMBOLS; s++) {
    uint32_t f = frequencies[s];
    if (f == 0) {
      symbols[s] = (RansSymbol){0, 0};
    } else if (f == 1) { /* x / 1 = (x * (2^32 - 1) >> 32) + 1 for x > 0: the one too few is made up by the bias */
      symbols[s] = (RansSymbol){UINT32_MAX, f | (start + RANS_TOTAL - 1u) << 13};
    } else {
      uint32_t shift = 0;
      while (f > 1u << shift) shift++;
      symbols[s].reciprocal = (uint32_t)((((uint64_t)1 << (shift + 31)) + f - 1) / f);
      symbols[s].rest = f | start << 13 | (shift - 1) << 26;
    }
    start += f;
  }
}

void fg_rans_decoder(const uint16_t frequencies[RANS_SYMBOLS], uint32_t slots[RANS_TOTAL]) {
  uint32_t slot = 0;
  for (uint32_t s = 0; s < RANS_SYMBOLS; s++)
    for (uint32_t i = 0; i < frequencies[s]; i++) slots[slot++] = s << 24 | i << 12 | (frequencies[s] - 1u);
}
