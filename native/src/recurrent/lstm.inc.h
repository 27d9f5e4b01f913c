/* LSTM over a sequence (Hochreiter & Schmidhuber 1997; forget gate of Gers et al. 2000), gates in ONNX's order i, o, f, c:
 *
 *   i, o, f = sigmoid(projected + h R^T), g = tanh(...);  c = f c' + i g;  h = o tanh(c)
 *
 * Backward, from the last step to the first, with dh = dy + what the next step gives:
 *
 *   dc += dh o (1 - tanh(c)^2);  di = dc g i (1 - i), do = dh tanh(c) o (1 - o), df = dc c' f (1 - f), dg = dc i (1 - g^2)
 *   what the step before gets: dh' = (di, do, df, dg) R, dc' = dc f
 */
static inline size_t sequence_length(const fg_sequence *s, size_t b) { return s->lengths ? (size_t)s->lengths[b] : s->steps; }

/* The state that sequence b began step t with: a row of `states` (whose steps are `stride` apart), or of the initial ones, or zeros. */
static inline const float *state_before(const fg_sequence *s, size_t t, size_t b, const float *states, size_t stride,
                                        const float *initial, const float *zeros) {
  size_t row = b * s->hidden;
  if (s->reverse ? t + 1 < sequence_length(s, b) : t > 0) return states + (s->reverse ? t + 1 : t - 1) * stride + row;
  return initial ? initial + row : zeros;
}

static inline int is_first(const fg_sequence *s, size_t t, size_t b) {
  return s->reverse ? t + 1 == sequence_length(s, b) : t == 0;
}
static inline int is_last(const fg_sequence *s, size_t t, size_t b) {
  return s->reverse ? t == 0 : t + 1 == sequence_length(s, b);
}

static inline void copy_or_zero(float *to, const float *from, size_t n) {
  if (from)
    memcpy(to, from, n * sizeof *to);
  else
    memset(to, 0, n * sizeof *to);
}

static uint32_t lstm_cell(size_t hidden, const float *restrict projected, const float *restrict product, float *restrict gates,
                          const float *restrict before, float *restrict cell, float *restrict state) {
  uint32_t most = 0;
  for (size_t j = 0; j < 3 * hidden; j++) {
    float x = projected[j] + product[j];
    uint32_t u = bits(x) & MAGNITUDE_MASK;
    most = u > most ? u : most;
    gates[j] = sigmoid(x);
  }
  for (size_t j = 3 * hidden; j < 4 * hidden; j++) {
    float x = projected[j] + product[j];
    uint32_t u = bits(x) & MAGNITUDE_MASK;
    most = u > most ? u : most;
    gates[j] = hyperbolic_tangent(x);
  }
  const float *restrict i = gates, *restrict o = i + hidden, *restrict f = o + hidden, *restrict g = f + hidden;
  for (size_t j = 0; j < hidden; j++) {
    float c = f[j] * before[j] + i[j] * g[j];
    uint32_t u = bits(c) & MAGNITUDE_MASK;
    most = u > most ? u : most;
    cell[j] = c;
    state[j] = o[j] * hyperbolic_tangent(c);
  }
  return most;
}

int FG_ISA(fg_lstm_forward)(const fg_sequence *s, const float *projected, const float *h0, const float *c0, float *gates,
                            float *cells, float *y, float *y_h, float *y_c, size_t *where) {
  const size_t hidden = s->hidden, rows = s->last - s->first, width = whole_panels(4 * hidden);
  float *products = s->scratch, *states = products + rows * width, *zeros = states + rows * hidden;
  memset(zeros, 0, hidden * sizeof *zeros);
  copy_or_zero(states, h0 ? h0 + s->first * hidden : NULL, rows * hidden);
  copy_or_zero(y_h + s->first * hidden, h0 ? h0 + s->first * hidden : NULL, rows * hidden); /* what an empty sequence ends with */
  copy_or_zero(y_c + s->first * hidden, c0 ? c0 + s->first * hidden : NULL, rows * hidden);
  for (size_t step = 0; step < s->steps; step++) {
    size_t t = s->reverse ? s->steps - 1 - step : step;
    recurrent_product(states, hidden, rows, hidden, s->weights, 4 * hidden, NULL, products, width);
    for (size_t r = 0; r < rows; r++) {
      size_t b = s->first + r, at = t * s->batch + b;
      float *out = y + t * s->stride + b * hidden, *cell = cells + at * hidden;
      if (t >= sequence_length(s, b)) {
        memset(gates + at * 4 * hidden, 0, 4 * hidden * sizeof *gates);
        memset(cell, 0, hidden * sizeof *cell);
        memset(out, 0, hidden * sizeof *out);
        continue;
      }
      const float *before = state_before(s, t, b, cells, s->batch * hidden, c0, zeros);
      if (lstm_cell(hidden, projected + at * 4 * hidden, products + r * width, gates + at * 4 * hidden, before, cell,
                    states + r * hidden) >= EXPONENT_MASK) {
        *where = at;
        return FG_NONFINITE;
      }
      memcpy(out, states + r * hidden, hidden * sizeof *out);
      if (is_last(s, t, b)) {
        memcpy(y_h + b * hidden, out, hidden * sizeof *out);
        memcpy(y_c + b * hidden, cell, hidden * sizeof *cell);
      }
    }
  }
  return FG_OK;
}

static uint32_t lstm_cell_backward(size_t hidden, const float *restrict gates, const float *restrict cell,
                                   const float *restrict before, const float *restrict dy, const float *restrict carry,
                                   float *restrict dcell, float *restrict dgates) {
  const float *restrict gate_i = gates, *restrict gate_o = gate_i + hidden, *restrict gate_f = gate_o + hidden,
                        *restrict gate_g = gate_f + hidden;
  float *restrict di = dgates, *restrict dout = di + hidden, *restrict df = dout + hidden, *restrict dg = df + hidden;
  uint32_t most = 0;
  for (size_t j = 0; j < hidden; j++) {
    float i = gate_i[j], o = gate_o[j], f = gate_f[j], g = gate_g[j];
    float tangent = hyperbolic_tangent(cell[j]), dh = dy[j] + carry[j];
    float dc = dcell[j] + dh * o * (1.0f - tangent * tangent);
    di[j] = dc * g * (i * (1.0f - i));
    dout[j] = dh * tangent * (o * (1.0f - o));
    df[j] = dc * before[j] * (f * (1.0f - f));
    dg[j] = dc * i * (1.0f - g * g);
    dcell[j] = dc * f;
  }
  for (size_t j = 0; j < 4 * hidden; j++) {
    uint32_t u = bits(dgates[j]) & MAGNITUDE_MASK;
    most = u > most ? u : most;
  }
  return most;
}

int FG_ISA(fg_lstm_backward)(const fg_sequence *s, const float *gates, const float *cells, const float *c0, const float *dy,
                             const float *dy_h, const float *dy_c, float *dprojected, float *dh0, float *dc0, size_t *where) {
  const size_t hidden = s->hidden, rows = s->last - s->first, width = whole_panels(hidden);
  float *carry = s->scratch, *dcells = carry + rows * width, *zeros = dcells + rows * hidden;
  memset(zeros, 0, hidden * sizeof *zeros);
  copy_or_zero(dh0 + s->first * hidden, dy_h ? dy_h + s->first * hidden : NULL, rows * hidden); /* of an empty sequence */
  copy_or_zero(dc0 + s->first * hidden, dy_c ? dy_c + s->first * hidden : NULL, rows * hidden);
  for (size_t step = s->steps; step-- > 0;) {
    size_t t = s->reverse ? s->steps - 1 - step : step;
    for (size_t r = 0; r < rows; r++) {
      size_t b = s->first + r, at = t * s->batch + b;
      float *dgates = dprojected + at * 4 * hidden;
      if (t >= sequence_length(s, b)) {
        memset(dgates, 0, 4 * hidden * sizeof *dgates);
        continue;
      }
      if (is_last(s, t, b)) {
        copy_or_zero(carry + r * width, dy_h ? dy_h + b * hidden : NULL, hidden);
        copy_or_zero(dcells + r * hidden, dy_c ? dy_c + b * hidden : NULL, hidden);
      }
      const float *before = state_before(s, t, b, cells, s->batch * hidden, c0, zeros);
      if (lstm_cell_backward(hidden, gates + at * 4 * hidden, cells + at * hidden, before,
                             dy ? dy + t * s->stride + b * hidden : zeros, carry + r * width, dcells + r * hidden,
                             dgates) >= EXPONENT_MASK) {
        *where = at;
        return FG_NONFINITE;
      }
    }
    recurrent_product(dprojected + (t * s->batch + s->first) * 4 * hidden, 4 * hidden, rows, 4 * hidden, s->weights, hidden, NULL, carry,
            width);
    for (size_t r = 0; r < rows; r++) {
      size_t b = s->first + r;
      if (t >= sequence_length(s, b) || !is_first(s, t, b)) continue;
      memcpy(dh0 + b * hidden, carry + r * width, hidden * sizeof *dh0);
      memcpy(dc0 + b * hidden, dcells + r * hidden, hidden * sizeof *dc0);
    }
  }
  return FG_OK;
}
