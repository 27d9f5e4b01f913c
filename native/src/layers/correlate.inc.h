/* Sums of shifted planes: out[i][j] = start + sum over t of weights[t] base[i * pitch + j + offsets[t]].
 *
 * A tile is four vectors: of four rows, or of one row where there are fewer than four. What is left over at the end of a row or of
 * the rows is covered by a tile that overlaps the one before, which computes the same values again. Each output is one sum in the order
 * of t, so its bytes don't depend on the tiles.
 */
#define TILE_VECTORS 4

typedef struct {
  const float *base;
  size_t pitch;
  const size_t *offsets;
  const float *weights;
  size_t taps;
  float start;
  float *out;
  size_t out_pitch, rows, columns;
} Correlation;

/* `vectors` vectors, `step` floats apart in base and `out_step` in out. */
static inline __attribute__((always_inline)) void tile(const float *base, size_t step, const Correlation *c, int vectors,
                                                       NativeFloat *out) {
  NativeFloat sum[TILE_VECTORS];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; v++) sum[v] = c->start - (NativeFloat){0}; /* keeps -0 */
  const size_t *offsets = c->offsets, taps = c->taps;
  const float *weights = c->weights;
  for (size_t t = 0; t < taps; t++) {
    const float *from = base + offsets[t];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) sum[v] += weights[t] * load_lanes(from + (size_t)v * step);
  }
#pragma GCC unroll 4
  for (int v = 0; v < vectors; v++) out[v] = sum[v];
}

/* The same for 3x3 taps that are neighbours: a loaded vector serves up to three rows. `k` are the weights. */
static inline __attribute__((always_inline)) void tile_3x3(const float *base, size_t pitch, const float *k, float start, NativeFloat *out) {
  NativeFloat sum[TILE_VECTORS];
#pragma GCC unroll 4
  for (int r = 0; r < TILE_VECTORS; r++) sum[r] = start - (NativeFloat){0};
#pragma GCC unroll 6
  for (int q = 0; q < TILE_VECTORS + 2; q++) {
    NativeFloat left = load_lanes(base), middle = load_lanes(base + 1), right = load_lanes(base + 2);
#pragma GCC unroll 4
    for (int r = 0; r < TILE_VECTORS; r++)
      if (q >= r && q <= r + 2) {
        sum[r] += k[3 * (q - r)] * left;
        sum[r] += k[3 * (q - r) + 1] * middle;
        sum[r] += k[3 * (q - r) + 2] * right;
      }
    base += pitch;
  }
#pragma GCC unroll 4
  for (int r = 0; r < TILE_VECTORS; r++) out[r] = sum[r];
}

static int neighbours_3x3(const Correlation *c) {
  if (c->taps != 9 || c->rows < TILE_VECTORS) return 0;
  for (size_t t = 0; t < 9; t++)
    if (c->offsets[t] != c->offsets[0] + t / 3 * c->pitch + t % 3) return 0;
  return 1;
}

/* Rows narrower than a vector are stored whole where what they spill into is written later, that is, up to the plane's last floats. */
static inline void store_narrow(const Correlation *c, size_t row, NativeFloat value) {
  float *to = c->out + row * c->out_pitch;
  if (c->columns == c->out_pitch && (c->rows - row) * c->columns >= NATIVE_LANES)
    store_lanes(to, value);
  else
    for (size_t i = 0; i < c->columns; i++) to[i] = value[i];
}

static inline __attribute__((always_inline)) void correlate_rows(const Correlation *c, int neighbours) {
  NativeFloat value[TILE_VECTORS];
  float k[9];
  if (neighbours) memcpy(k, c->weights, sizeof k);
  for (size_t i = 0; i < c->rows; i += TILE_VECTORS) {
    size_t row = i + TILE_VECTORS <= c->rows ? i : c->rows - TILE_VECTORS;
    const float *base = c->base + row * c->pitch;
    float *out = c->out + row * c->out_pitch;
    for (size_t j = 0; j < c->columns; j += NATIVE_LANES) {
      size_t at = j + NATIVE_LANES <= c->columns || j == 0 ? j : c->columns - NATIVE_LANES;
      if (neighbours)
        tile_3x3(base + c->offsets[0] + at, c->pitch, k, c->start, value);
      else
        tile(base + at, c->pitch, c, TILE_VECTORS, value);
      if (c->columns >= NATIVE_LANES) {
#pragma GCC unroll 4
        for (size_t r = 0; r < TILE_VECTORS; r++) store_lanes(out + r * c->out_pitch + at, value[r]);
      } else {
        for (size_t r = 0; r < TILE_VECTORS; r++) store_narrow(c, row + r, value[r]);
      }
    }
  }
}

static void correlate(const Correlation *c) {
  if (c->rows >= TILE_VECTORS) {
    if (neighbours_3x3(c))
      correlate_rows(c, 1);
    else
      correlate_rows(c, 0);
    return;
  }
  NativeFloat value[TILE_VECTORS];
  for (size_t row = 0; row < c->rows; row++) {
    const float *base = c->base + row * c->pitch;
    float *out = c->out + row * c->out_pitch;
    size_t j = 0;
    for (; j + TILE_VECTORS * NATIVE_LANES <= c->columns; j += TILE_VECTORS * NATIVE_LANES) {
      tile(base + j, NATIVE_LANES, c, TILE_VECTORS, value);
#pragma GCC unroll 4
      for (size_t v = 0; v < TILE_VECTORS; v++) store_lanes(out + j + v * NATIVE_LANES, value[v]);
    }
    for (; j < c->columns; j += NATIVE_LANES) {
      size_t at = j + NATIVE_LANES <= c->columns || j == 0 ? j : c->columns - NATIVE_LANES;
      tile(base + at, NATIVE_LANES, c, 1, value);
      if (c->columns >= NATIVE_LANES)
        store_lanes(out + at, value[0]);
      else
        store_narrow(c, row, value[0]);
    }
  }
}

/* One output past the vectors, into column `column` of the zipped rows. */
static void single_column(const Correlation *c, size_t at, size_t column) {
  for (size_t row = 0; row < c->rows; row++) {
    float sum = c->start;
    for (size_t t = 0; t < c->taps; t++) sum += c->weights[t] * c->base[row * c->pitch + at + c->offsets[t]];
    c->out[row * c->out_pitch + column] = sum;
  }
}

/* Two sums at once whose outputs alternate: out[i][2 j] is `even`'s, out[i][2 j + 1] is `odd`'s. out and out_pitch are even's; at
 * least TILE_VECTORS rows. */
static void correlate_zipped(const Correlation *even, const Correlation *odd) {
  size_t n = even->columns < odd->columns ? even->columns : odd->columns;
  for (size_t i = 0; i < even->rows; i += TILE_VECTORS) {
    size_t row = i + TILE_VECTORS <= even->rows ? i : even->rows - TILE_VECTORS;
    for (size_t j = 0; j < n; j += NATIVE_LANES) {
      size_t at = j + NATIVE_LANES <= n || j == 0 ? j : n - NATIVE_LANES;
      NativeFloat a[TILE_VECTORS], b[TILE_VECTORS];
      tile(even->base + row * even->pitch + at, even->pitch, even, TILE_VECTORS, a);
      tile(odd->base + row * odd->pitch + at, odd->pitch, odd, TILE_VECTORS, b);
#pragma GCC unroll 4
      for (size_t r = 0; r < TILE_VECTORS; r++) {
        float *to = even->out + (row + r) * even->out_pitch + 2 * at;
        if (n >= NATIVE_LANES) {
          store_lanes(to, PICK(a[r], b[r], ZIP_LOW));
          store_lanes(to + NATIVE_LANES, PICK(a[r], b[r], ZIP_HIGH));
        } else {
          float zipped[2 * NATIVE_LANES];
          store_lanes(zipped, PICK(a[r], b[r], ZIP_LOW));
          store_lanes(zipped + NATIVE_LANES, PICK(a[r], b[r], ZIP_HIGH));
          copy_row(to, zipped, 2 * n);
        }
      }
    }
  }
  for (size_t j = n; j < even->columns; j++) single_column(even, j, 2 * j);
  for (size_t j = n; j < odd->columns; j++) single_column(odd, j, 2 * j + 1);
}
