/* Batch normalization in training (Ioffe and Szegedy, ICML 2015) and its gradient.
 *
 *   y  = (x - mean) invstd scale + bias,   invstd = 1 / sqrt(var + epsilon), var over the M = batch x positions values of a channel
 *   dx = scale invstd (dy - sum(dy) / M - (x - mean) invstd^2 sum(dy (x - mean)) / M)
 *
 * Sums are doubles in sixteen lanes: value i of a row goes to lane i modulo 16, rows follow each other. Values are taken relative to the
 * channel's first one, so that a large mean costs no digits, and one pass gives mean and variance. Where a channel has one position
 * (a matrix), lane 0 alone is in use, and sixteen channels are summed side by side: the same sums in the same order.
 */
#define NORM_LANES 16
#define HALF_LANES (NATIVE_LANES / 2)
#define NORM_PARTS (NORM_LANES / HALF_LANES)

typedef float HalfFloat __attribute__((vector_size(4 * HALF_LANES)));
typedef double HalfDouble __attribute__((vector_size(8 * HALF_LANES)));

static inline HalfDouble widen(const float *from) {
  HalfFloat v;
  memcpy(&v, from, sizeof v);
  return __builtin_convertvector(v, HalfDouble);
}

static inline double lanes_total(const HalfDouble *lanes) {
  double all[NORM_LANES], total = 0.0;
  memcpy(all, lanes, sizeof all);
  for (int i = 0; i < NORM_LANES; i++) total += all[i];
  return total;
}

/* Adds to `first` the sum of a - origin_a, to `second` that of (a - origin_a) (b - origin_b), over the batch's rows of one channel. `same`: b
 * is a. */
static inline __attribute__((always_inline)) void norm_sums(const fg_norm *s, const float *a, double origin_a, const float *b,
                                                            double origin_b, int same, double *first, double *second) {
  HalfDouble sum[NORM_PARTS], product[NORM_PARTS];
  for (int k = 0; k < NORM_PARTS; k++) sum[k] = product[k] = (HalfDouble){0};
  size_t n = s->positions;
  for (size_t row = 0; row < s->batch; row++, a += s->channels * n, b += s->channels * n) {
    size_t i = 0;
    for (; i + NORM_LANES <= n; i += NORM_LANES)
#pragma GCC unroll 8
      for (int k = 0; k < NORM_PARTS; k++) {
        HalfDouble d = widen(a + i + k * HALF_LANES) - origin_a, e = same ? d : widen(b + i + k * HALF_LANES) - origin_b;
        sum[k] += d;
        product[k] += d * e;
      }
    if (i == n) continue;
    double left[NORM_LANES] = {0}, right[NORM_LANES] = {0};
    for (size_t j = i; j < n; j++) left[j - i] = (double)a[j] - origin_a, right[j - i] = (double)b[j] - origin_b;
    for (int k = 0; k < NORM_PARTS; k++) {
      HalfDouble d, e;
      memcpy(&d, left + k * HALF_LANES, sizeof d);
      memcpy(&e, right + k * HALF_LANES, sizeof e);
      sum[k] += d;
      product[k] += d * e;
    }
  }
  *first = lanes_total(sum);
  *second = lanes_total(product);
}

/* The same for up to sixteen channels of a matrix, whose values lie side by side. */
static void norm_column_sums(const fg_norm *s, const float *a, const double *origin_a, const float *b, const double *origin_b, size_t count,
                             double *first, double *second) {
  double sum[NORM_LANES] = {0}, product[NORM_LANES] = {0};
  for (size_t row = 0; row < s->batch; row++, a += s->channels, b += s->channels)
    for (size_t c = 0; c < count; c++) {
      double d = (double)a[c] - origin_a[c], e = (double)b[c] - origin_b[c];
      sum[c] += d;
      product[c] += d * e;
    }
  memcpy(first, sum, count * sizeof *sum);
  memcpy(second, product, count * sizeof *product);
}

/* out = a * p + ((b - high) - low) * q + r on the rows of `count` channels from c on; an array of a channel each. */
static void norm_apply(const fg_norm *s, size_t c, size_t count, const float *a, const float *p, const float *b, const float *high,
                       const float *low, const float *q, const float *r, float *out) {
  size_t n = s->positions;
  for (size_t row = 0; row < s->batch; row++) {
    size_t at = (row * s->channels + c) * n;
    if (n == 1) {
      for (size_t k = 0; k < count; k++) {
        float t = ((b[at + k] - high[k]) - low[k]) * q[k] + r[k];
        out[at + k] = a ? a[at + k] * p[k] + t : t;
      }
      continue;
    }
    for (size_t k = 0; k < count; k++, at += n) {
      float scale = p[k], mean = high[k], rest = low[k], slope = q[k], shift = r[k];
      if (a)
        for (size_t i = at; i < at + n; i++) out[i] = a[i] * scale + (((b[i] - mean) - rest) * slope + shift);
      else
        for (size_t i = at; i < at + n; i++) out[i] = ((b[i] - mean) - rest) * slope + shift;
    }
  }
}

void FG_ISA(fg_batch_norm)(const float *x, const float *scale, const float *bias, const float *running_mean, const float *running_var,
                           const fg_norm *s, size_t begin, size_t end, float *y, const fg_norm_results *results) {
  const fg_norm_results *to = results;
  size_t n = s->positions, step = n == 1 ? NORM_LANES : 1;
  double values = (double)s->batch * (double)n, weight = (double)s->momentum;
  for (size_t c = begin; c < end; c += step) {
    size_t count = end - c < step ? end - c : step;
    double origin[NORM_LANES], sum[NORM_LANES], square[NORM_LANES];
    float zero[NORM_LANES] = {0}, high[NORM_LANES], low[NORM_LANES], slope[NORM_LANES];
    const float *from = x + c * n;
    for (size_t k = 0; k < count; k++) origin[k] = (double)from[k];
    if (n == 1)
      norm_column_sums(s, from, origin, from, origin, count, sum, square);
    else
      norm_sums(s, from, origin[0], from, origin[0], 1, sum, square);
    for (size_t k = 0; k < count; k++) {
      double shift = sum[k] / values, mean = origin[k] + shift, var = square[k] / values - shift * shift;
      if (var < 0.0) var = 0.0;
      double invstd = 1.0 / __builtin_sqrt(var + (double)s->epsilon), unbiased = var * (values / (values - 1.0));
      high[k] = (float)mean;
      low[k] = (float)(mean - (double)high[k]);
      slope[k] = (float)((double)scale[c + k] * invstd);
      if (to->mean) to->mean[c + k] = (float)mean;
      if (to->var) to->var[c + k] = (float)var;
      if (to->invstd) to->invstd[c + k] = (float)invstd;
      if (to->running_mean) to->running_mean[c + k] = (float)((1.0 - weight) * (double)running_mean[c + k] + weight * mean);
      if (to->running_var) to->running_var[c + k] = (float)((1.0 - weight) * (double)running_var[c + k] + weight * unbiased);
    }
    norm_apply(s, c, count, NULL, zero, x, high, low, slope, bias + c, y);
  }
}

void FG_ISA(fg_batch_norm_grad)(const float *x, const float *dy, const float *scale, const float *mean, const float *invstd,
                                const fg_norm *s, int training, size_t begin, size_t end, float *dx, float *dscale, float *dbias) {
  size_t n = s->positions, step = n == 1 ? NORM_LANES : 1;
  double values = (double)s->batch * (double)n;
  for (size_t c = begin; c < end; c += step) {
    size_t count = end - c < step ? end - c : step;
    double origin[NORM_LANES], zeros[NORM_LANES] = {0}, sum[NORM_LANES], product[NORM_LANES];
    float zero[NORM_LANES] = {0}, factor[NORM_LANES], slope[NORM_LANES], shift[NORM_LANES];
    for (size_t k = 0; k < count; k++) origin[k] = (double)mean[c + k];
    if (n == 1)
      norm_column_sums(s, dy + c, zeros, x + c, origin, count, sum, product);
    else
      norm_sums(s, dy + c * n, 0.0, x + c * n, origin[0], 0, sum, product);
    for (size_t k = 0; k < count; k++) {
      double inverse = (double)invstd[c + k], slopes = (double)scale[c + k] * inverse;
      if (dscale) dscale[c + k] = (float)(product[k] * inverse);
      if (dbias) dbias[c + k] = (float)sum[k];
      factor[k] = (float)slopes;
      slope[k] = training ? (float)(-slopes * inverse * inverse * (product[k] / values)) : 0.0f;
      shift[k] = training ? (float)(-slopes * (sum[k] / values)) : 0.0f;
    }
    if (!dx) continue;
    if (training)
      norm_apply(s, c, count, dy, factor, x, mean + c, zero, slope, shift, dx);
    else
      norm_apply(s, c, count, NULL, zero, dy, zero, zero, factor, zero, dx);
  }
}
