/* Products of a few rows with a packed matrix: a step of a recurrent layer.
 *
 * An element of the result is summed in the order of k, products rounded before they are added: vectors run along columns, so neither their
 * width nor the number of rows computed together changes a bit. A panel is PANEL_COLUMNS columns of the matrix, row after row; with all
 * rows of a batch in turn on one panel, the panel stays in the first-level cache. Columns that don't exist are zeros.
 */
#define PANEL_COLUMNS (2 * NATIVE_LANES) /* with four rows: 8 sums, enough to hide the latency of additions, in 16 registers */

static inline size_t whole_panels(size_t n) { return (n + FG_PANEL - 1) / FG_PANEL * FG_PANEL; }

void FG_ISA(fg_recurrent_pack)(const float *matrix, size_t k, size_t n, int transposed, float *packed) {
  for (size_t start = 0; start < n; start += PANEL_COLUMNS, packed += k * PANEL_COLUMNS) {
    size_t count = n - start < PANEL_COLUMNS ? n - start : PANEL_COLUMNS;
    if (count < PANEL_COLUMNS) memset(packed, 0, k * PANEL_COLUMNS * sizeof *packed);
    if (transposed) {
      for (size_t j = 0; j < count; j++)
        for (size_t row = 0; row < k; row++) packed[row * PANEL_COLUMNS + j] = matrix[(start + j) * k + row];
    } else {
      for (size_t row = 0; row < k; row++) memcpy(packed + row * PANEL_COLUMNS, matrix + row * n + start, count * sizeof *packed);
    }
  }
}

#define PRODUCT_ROWS 256 /* of a panel at a time: 16 KiB with AVX2: half a first-level cache */

static inline void load_sums(NativeFloat *low, NativeFloat *high, const float *base) {
  if (!base) return;
  memcpy(low, base, sizeof *low);
  memcpy(high, base + NATIVE_LANES, sizeof *high);
}

static inline void store_sums(NativeFloat low, NativeFloat high, float *out) {
  memcpy(out, &low, sizeof low);
  memcpy(out + NATIVE_LANES, &high, sizeof high);
}

/* A few rows (1 to 4) on a panel; inlined with a constant number of rows, so that the sums are registers. They start from base. */
static inline __attribute__((always_inline)) void product_rows(const float *a, size_t a_stride, size_t rows, size_t k,
                                                               const float *panel, const float *base, float *out,
                                                               size_t stride) {
  const float *a1 = a + (rows > 1 ? a_stride : 0), *a2 = a1 + (rows > 2 ? a_stride : 0), *a3 = a2 + (rows > 3 ? a_stride : 0);
  NativeFloat zero = {0}, low, high, low0 = zero, high0 = zero, low1 = zero, high1 = zero, low2 = zero, high2 = zero, low3 = zero,
              high3 = zero;
  load_sums(&low0, &high0, base);
  if (rows > 1) load_sums(&low1, &high1, base ? base + stride : NULL);
  if (rows > 2) load_sums(&low2, &high2, base ? base + 2 * stride : NULL);
  if (rows > 3) load_sums(&low3, &high3, base ? base + 3 * stride : NULL);
  for (size_t i = 0; i < k; i++, panel += PANEL_COLUMNS) {
    memcpy(&low, panel, sizeof low);
    memcpy(&high, panel + NATIVE_LANES, sizeof high);
    low0 += a[i] * low, high0 += a[i] * high;
    if (rows > 1) low1 += a1[i] * low, high1 += a1[i] * high;
    if (rows > 2) low2 += a2[i] * low, high2 += a2[i] * high;
    if (rows > 3) low3 += a3[i] * low, high3 += a3[i] * high;
  }
  store_sums(low0, high0, out);
  if (rows > 1) store_sums(low1, high1, out + stride);
  if (rows > 2) store_sums(low2, high2, out + 2 * stride);
  if (rows > 3) store_sums(low3, high3, out + 3 * stride);
}

/* out [rows][n] = base + a [rows][k] packed [k][n]; base is NULL (zeros) or has out's stride, at least n padded to FG_PANEL. */
static void recurrent_product(const float *a, size_t a_stride, size_t rows, size_t k, const float *packed, size_t n,
                              const float *base, float *out, size_t stride) {
  for (size_t j = 0; j < n; j += PANEL_COLUMNS)
    for (size_t i = 0; i < k; i += PRODUCT_ROWS) {
      size_t count = k - i < PRODUCT_ROWS ? k - i : PRODUCT_ROWS, r = 0;
      const float *panel = packed + j * k + i * PANEL_COLUMNS, *start = i ? out + j : base ? base + j : NULL;
      for (; r + 4 <= rows; r += 4)
        product_rows(a + r * a_stride + i, a_stride, 4, count, panel, start ? start + r * stride : NULL, out + r * stride + j, stride);
      const float *rest = a + r * a_stride + i, *sums = start ? start + r * stride : NULL;
      float *to = out + r * stride + j;
      if (rows - r == 3) product_rows(rest, a_stride, 3, count, panel, sums, to, stride);
      if (rows - r == 2) product_rows(rest, a_stride, 2, count, panel, sums, to, stride);
      if (rows - r == 1) product_rows(rest, a_stride, 1, count, panel, sums, to, stride);
    }
}
