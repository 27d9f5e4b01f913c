/* The int8 products in plain C. */
typedef int8_t Code;
#define TILE_RUN 4
#define TILE_PAD 4
#define TILE_GROUP 4
#define TILE_ROWS 4
#define TILE_WIDTH 16
#define TILE_BIAS 0
#define DOT_STEP 4

static void product_tile(size_t rows, const Code *const *a, size_t step, const Segment *segments, size_t count, const Code *b, size_t width,
                 int32_t *sums) {
  memset(sums, 0, rows * width * sizeof *sums);
  for (const Segment *s = segments; s < segments + count; s++)
    for (size_t p = 0, at = s->start; p < s->length; p += 4, at += step, b += width * 4)
      for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < width; j++) {
          const Code *u = a[i] + at, *v = b + j * 4;
          sums[i * width + j] += u[0] * v[0] + u[1] * v[1] + u[2] * v[2] + u[3] * v[3];
        }
}

static void dots(const Code *const *a, size_t taps, const Code *b, size_t positions, int32_t *sums) {
  for (size_t t = 0; t < taps; t++)
    for (size_t p = 0; p < positions; p++) sums[t * DOT_LANES] += a[t][p] * b[p];
}
