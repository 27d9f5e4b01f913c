/* What recurrent layers and embeddings do without arithmetic: sizes, saved states moved to where a product wants them, indices checked. */
#include <string.h>

#include "fleetgrad.h"

static size_t padded(size_t n) { return (n + FG_PANEL - 1) / FG_PANEL * FG_PANEL; }

size_t fg_packed(size_t k, size_t n) { return k * padded(n); }

/* The widest of the four passes: a GRU's forward pass has rows of 2H, H padded, and two of H; an LSTM's has 4H padded and H. */
size_t fg_recurrent_scratch(const fg_sequence *s) {
  return (s->last - s->first) * (padded(4 * s->hidden) + padded(2 * s->hidden) + 2 * padded(s->hidden)) + s->hidden;
}

void fg_previous_states(const fg_sequence *s, const float *y, const float *h0, float *out) {
  size_t row = s->hidden * sizeof *out;
  for (size_t t = 0; t < s->steps; t++)
    for (size_t b = s->first; b < s->last; b++) {
      size_t length = s->lengths ? (size_t)s->lengths[b] : s->steps;
      float *to = out + (t * s->batch + b) * s->hidden;
      if (t >= length)
        memset(to, 0, row);
      else if (s->reverse ? t + 1 < length : t > 0)
        memcpy(to, y + (s->reverse ? t + 1 : t - 1) * s->stride + b * s->hidden, row);
      else if (h0)
        memcpy(to, h0 + b * s->hidden, row);
      else
        memset(to, 0, row);
    }
}

int fg_embedding_slots(const void *indices, int wide, size_t count, size_t vocabulary, uint32_t *slots, size_t *where) {
  const int64_t rows = (int64_t)vocabulary;
  for (size_t i = 0; i < count; i++) {
    int64_t index = wide ? ((const int64_t *)indices)[i] : ((const int32_t *)indices)[i];
    if (index < -rows || index >= rows) {
      *where = i;
      return FG_RANGE;
    }
    slots[i] = (uint32_t)(index < 0 ? index + rows : index);
  }
  return FG_OK;
}

size_t fg_embedding_rows(uint32_t *slots, size_t count, size_t vocabulary, uint32_t *seen, int64_t *rows) {
  size_t found = 0;
  memset(seen, 0, vocabulary * sizeof *seen);
  for (size_t i = 0; i < count; i++) seen[slots[i]] = 1;
  for (size_t v = 0; v < vocabulary; v++)
    if (seen[v]) {
      seen[v] = (uint32_t)found;
      rows[found++] = (int64_t)v;
    }
  for (size_t i = 0; i < count; i++) slots[i] = seen[slots[i]];
  return found;
}
