/* dW = X^T dY of so few rows that quantizing them would take longer than the product in float32, which is exact but for its rounding.
 *
 *     dW[i][j] = base[i][j] + (((x[0][i] dy[0][j] + x[1][i] dy[1][j]) + x[2][i] dy[2][j]) + ...)
 *
 * Each product and each sum is rounded by itself, in this order; an int8 X counts as codes times scale.
 */
#define GRAD_FEW 8      /* rows; a part of the op's contract, so that all machines choose alike: int8 gains from 11 (AVX2, VNNI) */
#define FEW_COLUMNS 512 /* of dY that are worked on at a time: as many rows of them stay in L1 */
#define FEW_ROWS 4      /* of dW whose sums are in registers at a time, as many vectors of each as FEW_VECTORS */
#define FEW_VECTORS 2

/* Columns [row, row + rows) of X as floats [k][GRAD_STRIPE]. */
static void few_inputs(const fg_matmul_grad *job, size_t row, size_t rows, float *a) {
  for (size_t p = 0; p < job->k; p++, a += GRAD_STRIPE)
    for (size_t i = 0; i < rows; i++) {
      size_t at = p * job->m + row + i;
      a[i] = job->x ? job->x[at] : (float)job->codes[at] * job->scale[row + i];
    }
}

/* Sums of `rows` rows of dW, `vectors` vectors of each, from columns of X as few_inputs has them and of dY; pitch: of dY, base and out. */
static inline __attribute__((always_inline)) void few_tile(const float *x, const float *dy, size_t k, size_t pitch, const float *base, float *out,
                                                           size_t rows, size_t vectors) {
  NativeFloat sum[FEW_ROWS][FEW_VECTORS];
  for (size_t v = 0; v < vectors; v++) {
    NativeFloat y = *(const LooseFloat *)(const void *)(dy + v * NATIVE_LANES);
    for (size_t i = 0; i < rows; i++) sum[i][v] = y * x[i];
  }
  for (size_t p = 1; p < k; p++) {
    dy += pitch, x += GRAD_STRIPE;
    for (size_t v = 0; v < vectors; v++) {
      NativeFloat y = *(const LooseFloat *)(const void *)(dy + v * NATIVE_LANES);
      for (size_t i = 0; i < rows; i++) sum[i][v] += y * x[i];
    }
  }
  for (size_t i = 0; i < rows; i++)
    for (size_t v = 0; v < vectors; v++) {
      size_t at = i * pitch + v * NATIVE_LANES;
      if (base) sum[i][v] = *(const LooseFloat *)(const void *)(base + at) + sum[i][v];
      *(LooseFloat *)(void *)(out + at) = sum[i][v];
    }
}

/* `rows` rows of dW at `columns` of its columns. */
static inline __attribute__((always_inline)) void few_rows(const float *x, const float *dy, size_t k, size_t pitch, size_t columns, const float *base,
                                                           float *out, size_t rows) {
  size_t j = 0;
  for (; j + FEW_VECTORS * NATIVE_LANES <= columns; j += FEW_VECTORS * NATIVE_LANES)
    few_tile(x, dy + j, k, pitch, base ? base + j : NULL, out + j, rows, FEW_VECTORS);
  for (; j + NATIVE_LANES <= columns; j += NATIVE_LANES) few_tile(x, dy + j, k, pitch, base ? base + j : NULL, out + j, rows, 1);
  for (; j < columns; j++)
    for (size_t i = 0; i < rows; i++) {
      float sum = dy[j] * x[i];
      for (size_t p = 1; p < k; p++) sum += dy[p * pitch + j] * x[p * GRAD_STRIPE + i];
      out[i * pitch + j] = base ? base[i * pitch + j] + sum : sum;
    }
}

/* Rows [row, row + rows) of dW, at most GRAD_STRIPE. */
static void few_product(const fg_matmul_grad *job, size_t row, size_t rows) {
  float a[GRAD_FEW * GRAD_STRIPE];
  size_t k = job->k, n = job->n;
  few_inputs(job, row, rows, a);
  for (size_t first = 0; first < n; first += FEW_COLUMNS) {
    size_t columns = n - first < FEW_COLUMNS ? n - first : FEW_COLUMNS, i = 0, at = row * n + first;
    const float *dy = job->dy + first, *base = job->base ? job->base + at : NULL;
    float *out = job->out + at;
    for (; i + FEW_ROWS <= rows; i += FEW_ROWS) few_rows(a + i, dy, k, n, columns, base ? base + i * n : NULL, out + i * n, FEW_ROWS);
    for (; i < rows; i++) few_rows(a + i, dy, k, n, columns, base ? base + i * n : NULL, out + i * n, 1);
  }
}
