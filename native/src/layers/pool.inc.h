/* Maximum and average pooling and their gradients, on planes cut into phases (phases.h).
 *
 * A tap of all windows of a row is one contiguous run, so the maximum is a chain of compares over runs, which also keeps the index of
 * the tap that won: a tap replaces the one before if it is greater or NaN, so that the first maximum of a window keeps it and NaN wins.
 * The index starts at the window's first tap inside the plane: a window of -infinity gives its gradient there, as torch does.
 *
 * Gradients go back the same way: each tap's run of its phase gets dy where the index names it. Rows are taken in order, within a row
 * the taps in row-major order, so that where windows overlap the order of the sum is fixed. Windows that don't overlap are stored.
 */
typedef struct {
  Cut cut;
  size_t *offsets;
  int32_t *first;           /* for each window of a row, its first column tap inside the plane */
  int32_t *index;           /* taps that won, one row */
  float *gradient, *counts; /* one row of dy; how many inputs a window of a row averages, along the columns */
  float *image, *phases;
} Pool;

static Pool prepare_pool(const fg_window *w, void *scratch) {
  Pool pool;
  pool.cut = prepare_cut(w, scratch, &scratch);
  const Phases *p = &pool.cut.p;
  size_t taps = w->kernel[0] * w->kernel[1], row = w->output[1] + PHASE_SLACK, size = p->count[0] * p->count[1] * p->plane, t = 0;
  pool.offsets = scratch;
  pool.first = (int32_t *)(void *)(pool.offsets + taps);
  pool.index = pool.first + row;
  pool.gradient = (float *)(void *)(pool.index + row);
  pool.counts = pool.gradient + row;
  pool.image = pool.counts + row;
  pool.phases = pool.image + size;
  for (size_t ky = 0; ky < w->kernel[0]; ky++)
    for (size_t kx = 0; kx < w->kernel[1]; kx++) pool.offsets[t++] = tap_offset(w, p, ky, kx);
  fill_row(pool.gradient, row, 0.0f);
  fill_row(pool.counts, row, 1.0f);
  for (size_t i = 0; i < row; i++) pool.first[i] = pool.index[i] = 0;
  return pool;
}

/* How many taps of window `at` along an axis lie inside the plane, or (padded) inside the padded plane; *first gets the first one, or 0. */
static size_t taps_inside(const fg_window *w, int axis, size_t at, int padded, size_t *first) {
  size_t count = 0, before = padded ? 0 : w->before[axis];
  size_t end = w->before[axis] + w->input[axis] + (padded ? w->after[axis] : 0);
  *first = 0;
  for (size_t k = 0; k < w->kernel[axis]; k++) {
    size_t position = at * w->stride[axis] + k * w->dilation[axis];
    if (position >= before && position < end && count++ == 0) *first = k;
  }
  return count;
}

static inline NativeFloat choose(NativeInt mask, NativeFloat yes, NativeFloat no) {
  return (NativeFloat)(((NativeInt)yes & mask) | ((NativeInt)no & ~mask));
}

/* The maxima of one row of windows, and (index != NULL) which tap each is; `first_row` is the row's first row tap inside the plane. */
static inline __attribute__((always_inline)) void max_row(const Pool *pool, const float *base, size_t taps, size_t first_row, float *y,
                                                          int32_t *index) {
  size_t n = pool->cut.w->output[1];
  int32_t start = (int32_t)(first_row * pool->cut.w->kernel[1]);
  for (size_t j = 0; j < n; j += NATIVE_LANES) {
    size_t at = j + NATIVE_LANES <= n || j == 0 ? j : n - NATIVE_LANES;
    NativeFloat most = -__builtin_inff() - (NativeFloat){0};
    NativeInt winner;
    memcpy(&winner, pool->first + at, sizeof winner);
    winner += start;
    for (size_t t = 0; t < taps; t++) {
      NativeFloat value = load_lanes(base + pool->offsets[t] + at);
      NativeInt wins = (value > most) | (value != value);
      most = choose(wins, value, most);
      winner = (wins & (int32_t)t) | (~wins & winner);
    }
    if (index) memcpy(index + at, &winner, sizeof winner);
    if (!y) continue;
    if (n >= NATIVE_LANES)
      store_lanes(y + at, most);
    else
      for (size_t i = 0; i < n; i++) y[i] = most[i];
  }
}

static void max_row_of(const Pool *pool, size_t row, float *y, int32_t *index) {
  const fg_window *w = pool->cut.w;
  const float *base = pool->image + row * pool->cut.p.pitch;
  size_t first, taps = w->kernel[0] * w->kernel[1];
  taps_inside(w, 0, row, 0, &first);
  if (taps == 4)
    max_row(pool, base, 4, first, y, index);
  else if (taps == 9)
    max_row(pool, base, 9, first, y, index);
  else
    max_row(pool, base, taps, first, y, index);
}

static void prepare_maxima(const Pool *pool) {
  const fg_window *w = pool->cut.w;
  size_t first;
  for (size_t j = 0; j < w->output[1]; j++) {
    taps_inside(w, 1, j, 0, &first);
    pool->first[j] = (int32_t)first;
  }
  fill_row(pool->image, pool->cut.p.count[0] * pool->cut.p.count[1] * pool->cut.p.plane, -__builtin_inff());
}

/* Windows of 2x2 side by side, the pooling of most small networks: straight from the plane's rows, with the same results. Rows of less than
 * a vector go the other way. */
static int side_by_side(const fg_window *w) {
  for (int axis = 0; axis < 2; axis++)
    if (w->kernel[axis] != 2 || w->stride[axis] != 2 || w->dilation[axis] != 1 || w->before[axis] || 2 * w->output[axis] > w->input[axis])
      return 0;
  return w->output[1] >= NATIVE_LANES;
}

static inline void consider(NativeFloat value, int32_t tap, NativeFloat *most, NativeInt *winner) {
  NativeInt wins = (value > *most) | (value != value);
  *most = choose(wins, value, *most);
  *winner = (wins & tap) | (~wins & *winner);
}

/* Maxima of n windows of two rows, and which tap each is. */
static inline void max_pairs(const float *top, const float *bottom, size_t n, float *y, int32_t *index) {
  for (size_t j = 0; j < n; j += NATIVE_LANES) {
    size_t at = j + NATIVE_LANES <= n ? j : n - NATIVE_LANES;
    NativeFloat a = load_lanes(top + 2 * at), b = load_lanes(top + 2 * at + NATIVE_LANES);
    NativeFloat c = load_lanes(bottom + 2 * at), d = load_lanes(bottom + 2 * at + NATIVE_LANES);
    NativeFloat most = PICK(a, b, EVENS);
    NativeInt winner = {0};
    consider(PICK(a, b, ODDS), 1, &most, &winner);
    consider(PICK(c, d, EVENS), 2, &most, &winner);
    consider(PICK(c, d, ODDS), 3, &most, &winner);
    if (y) store_lanes(y + at, most);
    if (index) memcpy(index + at, &winner, sizeof winner);
  }
}

/* The gradient of n windows into two rows. */
static inline void spread_pairs(const float *dy, const int32_t *index, size_t n, float *top, float *bottom) {
  for (size_t j = 0; j < n; j += NATIVE_LANES) {
    size_t at = j + NATIVE_LANES <= n ? j : n - NATIVE_LANES;
    NativeInt value, winner;
    memcpy(&value, dy + at, sizeof value);
    memcpy(&winner, index + at, sizeof winner);
    NativeFloat a = (NativeFloat)(value & (winner == 0)), b = (NativeFloat)(value & (winner == 1));
    NativeFloat c = (NativeFloat)(value & (winner == 2)), d = (NativeFloat)(value & (winner == 3));
    store_lanes(top + 2 * at, PICK(a, b, ZIP_LOW));
    store_lanes(top + 2 * at + NATIVE_LANES, PICK(a, b, ZIP_HIGH));
    store_lanes(bottom + 2 * at, PICK(c, d, ZIP_LOW));
    store_lanes(bottom + 2 * at + NATIVE_LANES, PICK(c, d, ZIP_HIGH));
  }
}

void FG_ISA(fg_max_pool)(const float *x, const fg_window *w, size_t begin, size_t end, float *y, uint8_t *argmax, void *scratch) {
  Pool pool = prepare_pool(w, scratch);
  size_t n = w->output[1], width = w->input[1];
  int pairs = side_by_side(w);
  if (!pairs) prepare_maxima(&pool);
  for (size_t plane = begin; plane < end; plane++) {
    const float *from = x + plane * w->input[0] * width;
    if (!pairs) cut_into_phases(&pool.cut, from, pool.image);
    for (size_t row = 0; row < w->output[0]; row++) {
      size_t at = (plane * w->output[0] + row) * n;
      if (pairs)
        max_pairs(from + 2 * row * width, from + (2 * row + 1) * width, n, y ? y + at : NULL, argmax ? pool.index : NULL);
      else
        max_row_of(&pool, row, y ? y + at : NULL, argmax ? pool.index : NULL);
      if (argmax)
        for (size_t i = 0; i < n; i++) argmax[at + i] = (uint8_t)pool.index[i];
    }
  }
}

/* Windows of which no two share an input. */
static int apart(const fg_window *w) {
  for (int axis = 0; axis < 2; axis++)
    if ((w->kernel[axis] - 1) * w->dilation[axis] >= w->stride[axis]) return 0;
  return 1;
}

/* One row of windows: the run of each tap gets the row of pool->gradient, all of it or (by_index) where the tap won. */
static inline __attribute__((always_inline)) void spread_row(const Pool *pool, size_t row, int add, int by_index) {
  const fg_window *w = pool->cut.w;
  size_t n = w->output[1], taps = w->kernel[0] * w->kernel[1];
  float *base = pool->phases + row * pool->cut.p.pitch;
  for (size_t t = 0; t < taps; t++) {
    float *to = base + pool->offsets[t];
    for (size_t j = 0; j < n; j += NATIVE_LANES) { /* the lanes past n hold zeros: they change nothing, or what the next row writes */
      NativeFloat value = load_lanes(pool->gradient + j);
      if (by_index) {
        NativeInt index;
        memcpy(&index, pool->index + j, sizeof index);
        value = (NativeFloat)((NativeInt)value & (index == (int32_t)t));
      }
      store_lanes(to + j, add ? load_lanes(to + j) + value : value);
    }
  }
}

static void spread(const Pool *pool, size_t row, int add, int by_index) {
  if (add && by_index)
    spread_row(pool, row, 1, 1);
  else if (add)
    spread_row(pool, row, 1, 0);
  else if (by_index)
    spread_row(pool, row, 0, 1);
  else
    spread_row(pool, row, 0, 0);
}

static void join_phases(const Pool *pool, int whole, float *dx) {
  const Phases *p = &pool->cut.p;
  if (!whole) fill_row(dx, pool->cut.w->input[0] * pool->cut.w->input[1], 0.0f);
  for (size_t a = 0; a < p->count[0]; a++)
    join_row_phase(&pool->cut, a, pool->phases + a * p->count[1] * p->plane, p->plane, p->pitch, 1, 0, dx);
}

void FG_ISA(fg_max_pool_grad)(const float *x, const uint8_t *argmax, const float *dy, const fg_window *w, size_t begin, size_t end,
                              float *dx, void *scratch) {
  Pool pool = prepare_pool(w, scratch);
  size_t n = w->output[1], width = w->input[1], size = pool.cut.p.count[0] * pool.cut.p.count[1] * pool.cut.p.plane;
  int add = !apart(w), whole = covers(&pool.cut);
  if (side_by_side(w)) {
    for (size_t plane = begin; plane < end; plane++) {
      float *out = dx + plane * w->input[0] * width;
      if (!whole) fill_row(out, w->input[0] * width, 0.0f);
      for (size_t row = 0; row < w->output[0]; row++, out += 2 * width) {
        size_t at = (plane * w->output[0] + row) * n;
        const float *from = x ? x + (plane * w->input[0] + 2 * row) * width : NULL;
        if (x)
          max_pairs(from, from + width, n, NULL, pool.index);
        else
          for (size_t i = 0; i < n; i++) pool.index[i] = argmax[at + i];
        spread_pairs(dy + at, pool.index, n, out, out + width);
      }
    }
    return;
  }
  if (x) prepare_maxima(&pool);
  for (size_t plane = begin; plane < end; plane++) {
    if (x) cut_into_phases(&pool.cut, x + plane * w->input[0] * w->input[1], pool.image);
    if (add) fill_row(pool.phases, size, 0.0f);
    for (size_t row = 0; row < w->output[0]; row++) {
      size_t at = (plane * w->output[0] + row) * n;
      copy_row(pool.gradient, dy + at, n);
      if (x)
        max_row_of(&pool, row, NULL, pool.index);
      else
        for (size_t i = 0; i < n; i++) pool.index[i] = argmax[at + i];
      spread(&pool, row, add, 1);
    }
    join_phases(&pool, whole, dx + plane * w->input[0] * w->input[1]);
  }
}

void FG_ISA(fg_average_pool_grad)(const float *dy, const fg_window *w, int include_padding, size_t begin, size_t end, float *dx,
                                  void *scratch) {
  Pool pool = prepare_pool(w, scratch);
  size_t n = w->output[1], size = pool.cut.p.count[0] * pool.cut.p.count[1] * pool.cut.p.plane, first;
  int add = !apart(w), whole = covers(&pool.cut);
  for (size_t j = 0; j < n; j++) pool.counts[j] = (float)taps_inside(w, 1, j, include_padding, &first);
  for (size_t plane = begin; plane < end; plane++) {
    if (add) fill_row(pool.phases, size, 0.0f);
    for (size_t row = 0; row < w->output[0]; row++) {
      const float *from = dy + (plane * w->output[0] + row) * n;
      float rows = (float)taps_inside(w, 0, row, include_padding, &first);
      for (size_t i = 0; i < n; i++) {
        float count = rows * pool.counts[i];
        pool.gradient[i] = count > 0.0f ? from[i] / count : 0.0f;
      }
      spread(&pool, row, add, 0);
    }
    join_phases(&pool, whole, dx + plane * w->input[0] * w->input[1]);
  }
}
