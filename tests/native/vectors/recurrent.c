/* Recurrent cells and the gradient of an embedding. */
#include "vectors.h"

#define T 4
#define B 7
#define H 37

static float *floats(size_t n, float scale) {
  float *x = calloc(n + 1, sizeof *x);
  for (size_t i = 0; i < n && scale != 0.0f; i++) x[i] = next_float() * scale;
  return x;
}

static void pack(const float *matrix, size_t k, size_t n, int transposed, const float **packed) {
  float *memory = malloc(fg_packed(k, n) * sizeof *memory);
  fg_recurrent_pack(matrix, k, n, transposed, memory);
  *packed = memory;
}

static void drop(fg_sequence *s) {
  free((void *)(uintptr_t)s->weights);
  free((void *)(uintptr_t)s->more);
  s->weights = s->more = NULL;
}

void recurrent(void) {
  static const int32_t lengths[B] = {4, 0, 1, 3, 4, 2, 4};
  static float x[3000], y_out[3000];
  size_t where = 0, all = T * B * H, row = B * H;
  for (size_t i = 0; i < 3000; i++) x[i] = (float)((int)i - 1500) * 0.0613f;
  x[7] = 1e-30f, x[8] = -0.0f, x[9] = 300.0f;
  fg_sigmoid(x, 3000, y_out);
  emit(y_out, sizeof y_out);
  fg_hyperbolic_tangent(x, 3000, y_out);
  emit(y_out, sizeof y_out);

  float *projected = floats(4 * all, 2.0f), *r = floats(4 * H * H, 1.0f), *h0 = floats(row, 1.0f), *c0 = floats(row, 1.0f);
  float *dy = floats(all, 1.0f), *dlast = floats(row, 1.0f), *bias = floats(H, 1.0f);
  float *gates = floats(4 * all, 0), *cells = floats(all, 0), *y = floats(all, 0), *y_h = floats(row, 0), *y_c = floats(row, 0);
  float *dp = floats(4 * all, 0), *side = floats(4 * all, 0), *dh0 = floats(row, 0), *dc0 = floats(row, 0), *previous = floats(all, 0);
  for (int reverse = 0; reverse < 2; reverse++) {
    fg_sequence s = {.steps = T, .batch = B, .hidden = H, .last = B, .stride = row, .reverse = reverse, .lengths = lengths};
    s.scratch = malloc(fg_recurrent_scratch(&s) * sizeof *s.scratch);
    pack(r, H, 4 * H, 1, &s.weights);
    expect(!fg_lstm_forward(&s, projected, h0, c0, gates, cells, y, y_h, y_c, &where), "lstm_forward");
    drop(&s);
    pack(r, 4 * H, H, 0, &s.weights);
    s.last = 3; /* in two parts: the bytes are those of one call */
    expect(!fg_lstm_backward(&s, gates, cells, c0, dy, dlast, h0, dp, dh0, dc0, &where), "lstm_backward");
    s.first = 3, s.last = B;
    expect(!fg_lstm_backward(&s, gates, cells, c0, dy, dlast, h0, dp, dh0, dc0, &where), "lstm_backward");
    s.first = 0;
    fg_previous_states(&s, y, h0, previous);
    drop(&s);
    emit(y, all * 4), emit(gates, 4 * all * 4), emit(cells, all * 4), emit(y_h, row * 4), emit(y_c, row * 4);
    emit(dp, 4 * all * 4), emit(dh0, row * 4), emit(dc0, row * 4), emit(previous, all * 4);
    for (s.reset_after = 0; s.reset_after < 2; s.reset_after++) {
      pack(r, H, 2 * H, 1, &s.weights);
      pack(r + 2 * H * H, H, H, 1, &s.more);
      expect(!fg_gru_forward(&s, projected, h0, bias, gates, cells, y, y_h, &where), "gru_forward");
      drop(&s);
      pack(r, s.reset_after ? 3 * H : 2 * H, H, 0, &s.weights);
      pack(r + 2 * H * H, H, H, 0, &s.more);
      expect(!fg_gru_backward(&s, gates, cells, y, h0, dy, dlast, dp, side, dh0, &where), "gru_backward");
      drop(&s);
      emit(y, all * 4), emit(gates, 3 * all * 4), emit(y_h, row * 4), emit(dp, 3 * all * 4), emit(dh0, row * 4);
      emit(side, (s.reset_after ? 3 : 1) * all * 4);
    }
    s.reset_after = 0;
    float kept = projected[(2 * B + 3) * 4 * H + 5];
    projected[(2 * B + 3) * 4 * H + 5] = 0.0f / (x[8] - x[8]);
    pack(r, H, 4 * H, 1, &s.weights);
    expect(fg_lstm_forward(&s, projected, h0, c0, gates, cells, y, y_h, y_c, &where) == FG_NONFINITE && where == 2 * B + 3,
           "lstm_forward of a NaN");
    drop(&s);
    projected[(2 * B + 3) * 4 * H + 5] = kept;
    free(s.scratch);
  }

  static const int32_t narrow[9] = {3, -1, 0, 3, 7, 3, -10, 0, 9};
  static const int64_t beyond[3] = {0, -11, 2};
  uint32_t slots[9], seen[10];
  int64_t rows[9];
  expect(!fg_embedding_slots(narrow, 0, 9, 10, slots, &where), "embedding_slots");
  fg_embedding_sum(slots, 9, dy, 19, 0, 10, y);
  emit(y, 10 * 19 * 4);
  size_t found = fg_embedding_rows(slots, 9, 10, seen, rows);
  expect(found == 4, "embedding_rows");
  fg_embedding_sum(slots, 9, dy, 19, 0, found, y);
  emit(rows, found * 8), emit(y, found * 19 * 4);
  expect(fg_embedding_slots(beyond, 1, 3, 10, slots, &where) == FG_RANGE && where == 1, "embedding_slots out of range");
  float *const owned[] = {projected, r, h0, c0, dy, dlast, bias, gates, cells, y, y_h, y_c, dp, side, dh0, dc0, previous};
  for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
}
