/* GRU over a sequence (Cho et al. 2014), gates in ONNX's order z, r, h:
 *
 *   z, r = sigmoid(projected + h R^T);  n = tanh(projected + r * (h R_h^T + bias))      reset_after (torch, cuDNN)
 *                                       n = tanh(projected + (r * h) R_h^T)             the paper's
 *   h = (1 - z) n + z h'
 *
 * Backward, with dh = dy + what the next step gives:
 *
 *   dn = dh (1 - z) (1 - n^2);  dz = dh (h' - n) z (1 - z);  dr = (dn (h' R_h^T + bias) or (dn R_h) h') r (1 - r)
 *   what the step before gets: dh z + (dz, dr) R_zr + (dn r) R_h, or + (dn R_h) r
 */
static uint32_t gru_gates(size_t n, const float *restrict projected, const float *restrict product, float *restrict gates) {
  uint32_t most = 0;
  for (size_t j = 0; j < n; j++) {
    float x = projected[j] + product[j];
    uint32_t u = bits(x) & MAGNITUDE_MASK;
    most = u > most ? u : most;
    gates[j] = sigmoid(x);
  }
  return most;
}

/* n, and the new state from z and n; `inner` is what the product of R_h adds. */
static uint32_t gru_state(size_t hidden, const float *restrict projected, const float *restrict inner, const float *restrict z,
                          float *restrict gate_n, const float *restrict before, float *restrict out) {
  uint32_t most = 0;
  for (size_t j = 0; j < hidden; j++) {
    float x = projected[j] + inner[j];
    uint32_t u = bits(x) & MAGNITUDE_MASK;
    most = u > most ? u : most;
    float n = hyperbolic_tangent(x), h = (1.0f - z[j]) * n + z[j] * before[j];
    u = bits(h) & MAGNITUDE_MASK; /* an initial state that isn't finite shows here */
    most = u > most ? u : most;
    gate_n[j] = n;
    out[j] = h;
  }
  return most;
}

int FG_ISA(fg_gru_forward)(const fg_sequence *s, const float *projected, const float *h0, const float *bias, float *gates,
                           float *hidden_part, float *y, float *y_h, size_t *where) {
  const size_t hidden = s->hidden, rows = s->last - s->first, width = whole_panels(2 * hidden), narrow = whole_panels(hidden);
  float *products = s->scratch, *inner = products + rows * width, *states = inner + rows * narrow;
  float *reset = states + rows * hidden, *zeros = reset + rows * hidden;
  memset(zeros, 0, hidden * sizeof *zeros);
  memset(reset, 0, rows * hidden * sizeof *reset);
  copy_or_zero(states, h0 ? h0 + s->first * hidden : NULL, rows * hidden);
  copy_or_zero(y_h + s->first * hidden, h0 ? h0 + s->first * hidden : NULL, rows * hidden);
  for (size_t step = 0; step < s->steps; step++) {
    size_t t = s->reverse ? s->steps - 1 - step : step;
    recurrent_product(states, hidden, rows, hidden, s->weights, 2 * hidden, NULL, products, width);
    if (s->reset_after) recurrent_product(states, hidden, rows, hidden, s->more, hidden, NULL, inner, narrow);
    uint32_t most = 0;
    for (size_t r = 0; r < rows; r++) {
      size_t b = s->first + r, at = t * s->batch + b;
      float *gate = gates + at * 3 * hidden;
      if (t >= sequence_length(s, b)) {
        memset(gate, 0, 3 * hidden * sizeof *gate);
        if (s->reset_after) memset(hidden_part + at * hidden, 0, hidden * sizeof *hidden_part);
        continue;
      }
      most = gru_gates(2 * hidden, projected + at * 3 * hidden, products + r * width, gate);
      if (most >= EXPONENT_MASK) return *where = at, FG_NONFINITE;
      const float *restrict gate_r = gate + hidden;
      if (s->reset_after) {
        float *restrict saved = hidden_part + at * hidden, *restrict part = inner + r * narrow;
        const float *restrict added = bias ? bias : zeros;
        for (size_t j = 0; j < hidden; j++) {
          float x = part[j] + added[j];
          saved[j] = x;
          part[j] = gate_r[j] * x;
        }
      } else {
        float *restrict to = reset + r * hidden;
        const float *restrict state = states + r * hidden;
        for (size_t j = 0; j < hidden; j++) to[j] = gate_r[j] * state[j];
      }
    }
    if (!s->reset_after) recurrent_product(reset, hidden, rows, hidden, s->more, hidden, NULL, inner, narrow);
    for (size_t r = 0; r < rows; r++) {
      size_t b = s->first + r, at = t * s->batch + b;
      float *gate = gates + at * 3 * hidden, *out = y + t * s->stride + b * hidden, *state = states + r * hidden;
      if (t >= sequence_length(s, b)) {
        memset(out, 0, hidden * sizeof *out);
        continue;
      }
      most = gru_state(hidden, projected + (at * 3 + 2) * hidden, inner + r * narrow, gate, gate + 2 * hidden, state, out);
      if (most >= EXPONENT_MASK) return *where = at, FG_NONFINITE;
      memcpy(state, out, hidden * sizeof *out);
      if (is_last(s, t, b)) memcpy(y_h + b * hidden, out, hidden * sizeof *out);
    }
  }
  return FG_OK;
}

/* dz and dn of a row, dh z for the step before and, with reset_after, dr and the recurrent side of dn. */
static uint32_t gru_cell_backward(size_t hidden, const float *restrict gates, const float *restrict hidden_part,
                                  const float *restrict before, const float *restrict dy, const float *restrict carry,
                                  float *restrict keep, float *restrict dgates, float *restrict recurrent) {
  const float *restrict gate_z = gates, *restrict gate_r = gates + hidden, *restrict gate_n = gate_r + hidden;
  uint32_t most = 0;
  for (size_t j = 0; j < hidden; j++) {
    float z = gate_z[j], n = gate_n[j], dh = dy[j] + carry[j];
    float dn = dh * (1.0f - z) * (1.0f - n * n);
    keep[j] = dh * z;
    dgates[j] = dh * (before[j] - n) * (z * (1.0f - z));
    dgates[2 * hidden + j] = dn;
    uint32_t u = bits(dn) & MAGNITUDE_MASK, v = bits(dgates[j]) & MAGNITUDE_MASK;
    most = u > most ? u : most;
    most = v > most ? v : most;
  }
  if (hidden_part)
    for (size_t j = 0; j < hidden; j++) {
      float r = gate_r[j], dn = dgates[2 * hidden + j], dr = dn * hidden_part[j] * (r * (1.0f - r));
      dgates[hidden + j] = dr;
      recurrent[j] = dgates[j];
      recurrent[hidden + j] = dr;
      recurrent[2 * hidden + j] = dn * r;
      uint32_t u = bits(dr) & MAGNITUDE_MASK;
      most = u > most ? u : most;
    }
  return most;
}

/* dr from ds = dn R_h, the operand that R_h multiplied, and what ds gives to the step before. */
static uint32_t gru_reset_backward(size_t hidden, const float *restrict gate_r, const float *restrict ds,
                                   const float *restrict before, float *restrict keep, float *restrict dr,
                                   float *restrict operand) {
  uint32_t most = 0;
  for (size_t j = 0; j < hidden; j++) {
    float r = gate_r[j], d = ds[j] * before[j] * (r * (1.0f - r));
    dr[j] = d;
    operand[j] = r * before[j];
    keep[j] += ds[j] * r;
    uint32_t u = bits(d) & MAGNITUDE_MASK;
    most = u > most ? u : most;
  }
  return most;
}

int FG_ISA(fg_gru_backward)(const fg_sequence *s, const float *gates, const float *hidden_part, const float *y, const float *h0,
                            const float *dy, const float *dy_h, float *dprojected, float *recurrent, float *dh0, size_t *where) {
  const size_t hidden = s->hidden, rows = s->last - s->first, width = whole_panels(hidden);
  const size_t side = s->reset_after ? 3 * hidden : hidden; /* width of a row of `recurrent` */
  float *carry = s->scratch, *ds = carry + rows * width, *keep = ds + rows * width, *zeros = keep + rows * width;
  memset(zeros, 0, hidden * sizeof *zeros);
  memset(keep, 0, rows * width * sizeof *keep);
  copy_or_zero(dh0 + s->first * hidden, dy_h ? dy_h + s->first * hidden : NULL, rows * hidden);
  for (size_t step = s->steps; step-- > 0;) {
    size_t t = s->reverse ? s->steps - 1 - step : step, start = t * s->batch + s->first;
    for (size_t r = 0; r < rows; r++) {
      size_t b = s->first + r, at = start + r;
      float *dgates = dprojected + at * 3 * hidden;
      if (t >= sequence_length(s, b)) {
        memset(dgates, 0, 3 * hidden * sizeof *dgates);
        memset(recurrent + at * side, 0, side * sizeof *recurrent);
        continue;
      }
      if (is_last(s, t, b)) copy_or_zero(carry + r * width, dy_h ? dy_h + b * hidden : NULL, hidden);
      const float *before = state_before(s, t, b, y, s->stride, h0, zeros);
      if (gru_cell_backward(hidden, gates + at * 3 * hidden, s->reset_after ? hidden_part + at * hidden : NULL, before,
                            dy ? dy + t * s->stride + b * hidden : zeros, carry + r * width, keep + r * width, dgates,
                            s->reset_after ? recurrent + at * side : NULL) >= EXPONENT_MASK)
        return *where = at, FG_NONFINITE;
    }
    if (s->reset_after) {
      recurrent_product(recurrent + start * side, side, rows, 3 * hidden, s->weights, hidden, keep, carry, width);
    } else {
      recurrent_product(dprojected + (start * 3 + 2) * hidden, 3 * hidden, rows, hidden, s->more, hidden, NULL, ds, width);
      for (size_t r = 0; r < rows; r++) {
        size_t b = s->first + r, at = start + r;
        if (t >= sequence_length(s, b)) continue;
        const float *before = state_before(s, t, b, y, s->stride, h0, zeros);
        if (gru_reset_backward(hidden, gates + (at * 3 + 1) * hidden, ds + r * width, before, keep + r * width,
                               dprojected + (at * 3 + 1) * hidden, recurrent + at * side) >= EXPONENT_MASK)
          return *where = at, FG_NONFINITE;
      }
      recurrent_product(dprojected + start * 3 * hidden, 3 * hidden, rows, 2 * hidden, s->weights, hidden, keep, carry, width);
    }
    for (size_t r = 0; r < rows; r++) {
      size_t b = s->first + r;
      if (t < sequence_length(s, b) && is_first(s, t, b)) memcpy(dh0 + b * hidden, carry + r * width, hidden * sizeof *dh0);
    }
  }
  return FG_OK;
}
