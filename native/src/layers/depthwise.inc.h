/* Depthwise convolution and its two gradients, on planes cut into phases (phases.h).
 *
 * forward:          y[o]           = bias + sum over taps t of w[t] X[o + offset(t)]
 * input gradient:   phase r of dx, element i = sum over the taps t of that phase of w[t] dY[i - q(t)], so the same kind of sum, on dY
 *                   with margins of zeros; taps go backwards, so that dY is read forwards
 * weight gradient:  dw[t]          = sum over o of dY[o] X[o + offset(t)], dY in rows as far apart as the phases' are, zeros between
 */
#define DOT_LANES 16     /* partial sums of a dot product, on every ISA */
#define DOT_LENGTH 8192  /* positions summed in float before the sums are added as doubles */
#define DOT_PARTS (DOT_LANES / NATIVE_LANES)

void FG_ISA(fg_depthwise)(const float *x, const float *weight, const float *bias, const fg_window *w, size_t channels,
                          size_t multiplier, size_t begin, size_t end, float *y, void *scratch) {
  Cut cut = prepare_cut(w, scratch, &scratch);
  size_t taps = w->kernel[0] * w->kernel[1], size = w->output[0] * w->output[1], t = 0;
  size_t *offsets = scratch;
  float *image = (float *)(void *)(offsets + taps);
  for (size_t ky = 0; ky < w->kernel[0]; ky++)
    for (size_t kx = 0; kx < w->kernel[1]; kx++) offsets[t++] = tap_offset(w, &cut.p, ky, kx);
  fill_row(image, cut.p.count[0] * cut.p.count[1] * cut.p.plane, 0.0f);
  Correlation sum = {.base = image, .pitch = cut.p.pitch, .offsets = offsets, .taps = taps,
                     .out_pitch = w->output[1], .rows = w->output[0], .columns = w->output[1]};
  for (size_t plane = begin; plane < end; plane++) {
    cut_into_phases(&cut, x + plane * w->input[0] * w->input[1], image);
    for (size_t j = 0; j < multiplier; j++) {
      size_t m = plane % channels * multiplier + j;
      sum.weights = weight + m * taps;
      sum.start = bias ? bias[m] : 0.0f;
      sum.out = y + (plane * multiplier + j) * size;
      correlate(&sum);
    }
  }
}

void FG_ISA(fg_depthwise_input_grad)(const float *dy, const float *weight, const fg_window *w, size_t channels, size_t multiplier,
                                     size_t begin, size_t end, float *dx, void *scratch) {
  Cut cut = prepare_cut(w, scratch, &scratch);
  const Phases *p = &cut.p;
  size_t taps = w->kernel[0] * w->kernel[1], phases = p->count[0] * p->count[1], size = w->input[0] * w->input[1];
  size_t pitch = w->output[1] + 2 * p->reach[1], rows = w->output[0] + 2 * p->reach[0]; /* of dY with its margins */
  size_t *starts = scratch, *offsets = starts + phases + 1, *order = offsets + taps, t = 0;
  float *weights = (float *)(void *)(order + taps), *image = weights + taps, *parts = image + rows * pitch + PHASE_SLACK;
  for (size_t phase = 0; phase < phases; phase++) {
    starts[phase] = t;
    for (size_t ky = w->kernel[0]; ky-- > 0;)
      for (size_t kx = w->kernel[1]; kx-- > 0;)
        if (ky % p->period[0] == phase / p->count[1] && kx % p->period[1] == phase % p->count[1]) {
          size_t up = ky * w->dilation[0] / w->stride[0], back = kx * w->dilation[1] / w->stride[1];
          offsets[t] = (p->reach[0] - up) * pitch + p->reach[1] - back;
          order[t++] = ky * w->kernel[1] + kx;
        }
  }
  starts[phases] = t;
  fill_row(image, rows * pitch + PHASE_SLACK, 0.0f);
  int whole = covers(&cut), direct = w->stride[0] == 1 && w->stride[1] == 1;
  int pair = alternating(&cut);
  size_t wide = 0;
  for (size_t b = 0; b < p->count[1]; b++) wide = cut.columns[b].high - cut.columns[b].low > wide ? cut.columns[b].high - cut.columns[b].low : wide;
  for (size_t plane = begin; plane < end; plane++) {
    float *out = dx + plane * size;
    if (!whole) fill_row(out, size, 0.0f);
    for (size_t j = 0; j < multiplier; j++) {
      const float *kernel = weight + (plane % channels * multiplier + j) * taps;
      const float *from = dy + (plane * multiplier + j) * w->output[0] * w->output[1];
      for (t = 0; t < taps; t++) weights[t] = kernel[order[t]];
      for (size_t row = 0; row < w->output[0]; row++)
        copy_row(image + (row + p->reach[0]) * pitch + p->reach[1], from + row * w->output[1], w->output[1]);
      for (size_t a = 0; a < p->count[0]; a++) {
        const Stretch *r = cut.rows + a;
        size_t height = r->high - r->low;
        int zipped = pair >= 0 && !j && height >= TILE_VECTORS;
        Correlation sums[2];
        for (size_t b = 0; b < p->count[1]; b++) {
          const Stretch *c = cut.columns + b;
          size_t phase = a * p->count[1] + b;
          Correlation *sum = sums + (zipped && pair != (int)b);
          *sum = (Correlation){.base = image + r->low * pitch + c->low, .pitch = pitch, .offsets = offsets + starts[phase],
                               .weights = weights + starts[phase], .taps = starts[phase + 1] - starts[phase], .start = 0.0f,
                               .rows = height, .columns = c->high - c->low};
          if (zipped || (direct && !j)) {
            sum->out = out + r->first * w->input[1] + (zipped ? 0 : c->first);
            sum->out_pitch = w->stride[0] * w->input[1];
          } else {
            sum->out = parts + b * height * wide;
            sum->out_pitch = wide;
          }
          if (!zipped) correlate(sum);
        }
        if (zipped) {
          correlate_zipped(sums, sums + 1);
          continue;
        }
        if (!direct || j) join_row_phase(&cut, a, parts, height * wide, wide, 0, j > 0, out);
      }
    }
  }
}

/* totals[t][lane] += sum over i of dy[i] base[offsets[t] + i], i < n congruent to lane; n is a multiple of DOT_LANES. */
static inline __attribute__((always_inline)) void dot_taps(const float *dy, const float *base, const size_t *offsets, int taps, size_t n,
                                                           double (*totals)[DOT_LANES]) {
  NativeFloat sum[5][DOT_PARTS];
  const float *from[5];
#pragma GCC unroll 5
  for (int t = 0; t < taps; t++) {
    from[t] = base + offsets[t];
#pragma GCC unroll 4
    for (int part = 0; part < DOT_PARTS; part++) sum[t][part] = (NativeFloat){0};
  }
  for (size_t i = 0; i < n; i += DOT_LANES) {
#pragma GCC unroll 4
    for (int part = 0; part < DOT_PARTS; part++) {
      NativeFloat d = load_lanes(dy + i + part * NATIVE_LANES);
#pragma GCC unroll 5
      for (int t = 0; t < taps; t++) sum[t][part] += d * load_lanes(from[t] + i + part * NATIVE_LANES);
    }
  }
#pragma GCC unroll 5
  for (int t = 0; t < taps; t++) {
    float lanes[DOT_LANES];
#pragma GCC unroll 4
    for (int part = 0; part < DOT_PARTS; part++) store_lanes(lanes + part * NATIVE_LANES, sum[t][part]);
    for (int lane = 0; lane < DOT_LANES; lane++) totals[t][lane] += (double)lanes[lane];
  }
}

static void dot_all_taps(const float *dy, const float *base, const size_t *offsets, size_t taps, size_t n, double (*totals)[DOT_LANES]) {
  for (size_t start = 0; start < n; start += DOT_LENGTH, dy += DOT_LENGTH, base += DOT_LENGTH) {
    size_t count = n - start < DOT_LENGTH ? n - start : DOT_LENGTH;
    for (size_t t = 0; t < taps;) {
      size_t left = taps - t;
      if (left % 5 == 0) {
        dot_taps(dy, base, offsets + t, 5, count, totals + t);
        t += 5;
      } else if (left >= 3) {
        dot_taps(dy, base, offsets + t, 3, count, totals + t);
        t += 3;
      } else {
        dot_taps(dy, base, offsets + t, 1, count, totals + t);
        t += 1;
      }
    }
  }
}

void FG_ISA(fg_depthwise_weight_grad)(const float *x, const float *dy, const fg_window *w, size_t batch, size_t channels,
                                      size_t multiplier, size_t begin, size_t end, float *dw, void *scratch) {
  size_t taps = w->kernel[0] * w->kernel[1], width = w->output[1], t = 0;
  double(*totals)[DOT_LANES] = scratch;
  Cut cut = prepare_cut(w, totals + taps * multiplier, &scratch);
  const Phases *p = &cut.p;
  size_t flat = (w->output[0] - 1) * p->pitch + width, n = (flat + DOT_LANES - 1) / DOT_LANES * DOT_LANES;
  size_t *offsets = scratch;
  float *rows = (float *)(void *)(offsets + taps), *image = rows + w->output[0] * p->pitch + PHASE_SLACK;
  for (size_t ky = 0; ky < w->kernel[0]; ky++)
    for (size_t kx = 0; kx < w->kernel[1]; kx++) offsets[t++] = tap_offset(w, p, ky, kx);
  fill_row(image, p->count[0] * p->count[1] * p->plane, 0.0f);
  fill_row(rows, w->output[0] * p->pitch + PHASE_SLACK, 0.0f);
  for (size_t c = begin; c < end; c++) {
    memset(totals, 0, taps * multiplier * sizeof *totals);
    for (size_t i = 0; i < batch; i++) {
      size_t plane = i * channels + c;
      cut_into_phases(&cut, x + plane * w->input[0] * w->input[1], image);
      for (size_t j = 0; j < multiplier; j++) {
        const float *from = dy + (plane * multiplier + j) * w->output[0] * width;
        for (size_t row = 0; row < w->output[0]; row++) copy_row(rows + row * p->pitch, from + row * width, width);
        dot_all_taps(rows, image, offsets, taps, n, totals + j * taps);
      }
    }
    for (t = 0; t < taps * multiplier; t++) {
      double total = 0.0;
      for (int lane = 0; lane < DOT_LANES; lane++) total += totals[t][lane];
      dw[c * multiplier * taps + t] = (float)total;
    }
  }
}
