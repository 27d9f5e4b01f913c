/* AVX-512 with VNNI: int8 products by vpdpbusd, unsigned by signed: rows are biased by 128, and 128 times the sum of a column is taken off.
 *
 * Inline assembly keeps the sums in registers: gcc 12 spills them around the intrinsic.
 */
typedef int8_t Code;
#define TILE_RUN 4
#define TILE_PAD 4
#define TILE_GROUP 4
#define TILE_ROWS 8
#define TILE_WIDTH 32
#define TILE_BIAS (-128)
#define DOT_STEP 64
#define TILE_COLUMN_CORRECTION column_correction
#define TILE_COLUMN_SUM(correction) ((correction) / 128)
#define TILE_ROW_SUM sum_of_biased

#define MULTIPLY_ADD(sum, unsigned_, signed_) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_), "v"(signed_))

static inline __attribute__((always_inline)) void tile_of(size_t rows, size_t vectors, const Code *const *a, size_t step,
                                                          const Segment *segments, size_t count, const Code *b, int32_t *sums) {
  __m512i s[8][2];
#pragma GCC unroll 8
  for (size_t i = 0; i < rows; i++) s[i][0] = s[i][1] = _mm512_setzero_si512();
  for (const Segment *g = segments; g < segments + count; g++)
    for (size_t p = 0, at = g->start; p < g->length; p += 4, at += step, b += vectors * 64) {
      __m512i v0 = _mm512_loadu_si512(b), v1 = vectors > 1 ? _mm512_loadu_si512(b + 64) : v0;
#pragma GCC unroll 8
      for (size_t i = 0; i < rows; i++) {
        __m512i u = _mm512_set1_epi32(load4(a[i] + at));
        MULTIPLY_ADD(s[i][0], u, v0);
        if (vectors > 1) MULTIPLY_ADD(s[i][1], u, v1);
      }
    }
#pragma GCC unroll 8
  for (size_t i = 0; i < rows; i++) {
    _mm512_storeu_si512(sums + i * vectors * 16, s[i][0]);
    if (vectors > 1) _mm512_storeu_si512(sums + i * vectors * 16 + 16, s[i][1]);
  }
}

static inline __attribute__((always_inline)) void tile_wide(size_t vectors, size_t rows, const Code *const *a, size_t step,
                                                            const Segment *segments, size_t count, const Code *b, int32_t *sums) {
  size_t done = 0;
  if (rows == 8) {
    tile_of(8, vectors, a, step, segments, count, b, sums);
    return;
  }
  if (rows & 4) tile_of(4, vectors, a, step, segments, count, b, sums), done = 4;
  if (rows & 2) tile_of(2, vectors, a + done, step, segments, count, b, sums + done * vectors * 16), done += 2;
  if (rows & 1) tile_of(1, vectors, a + done, step, segments, count, b, sums + done * vectors * 16);
}

static void product_tile(size_t rows, const Code *const *a, size_t step, const Segment *segments, size_t count, const Code *b, size_t width,
                 int32_t *sums) {
  if (width == 32)
    tile_wide(2, rows, a, step, segments, count, b, sums);
  else
    tile_wide(1, rows, a, step, segments, count, b, sums);
}

/* Sum of codes that were biased. */
static int32_t sum_of_biased(const Code *codes, size_t count) {
  __m512i sums = _mm512_setzero_si512();
  size_t i = 0;
  for (; i + 64 <= count; i += 64) sums = _mm512_add_epi64(sums, _mm512_sad_epu8(_mm512_loadu_si512(codes + i), _mm512_setzero_si512()));
  int32_t sum = (int32_t)_mm512_reduce_add_epi64(sums);
  for (; i < count; i++) sum += (uint8_t)codes[i];
  return sum - 128 * (int32_t)count;
}

static void column_correction(const Code *b, size_t width, size_t positions, int32_t *sums) {
  const __m512i bias = _mm512_set1_epi8((char)0x80);
  for (size_t j = 0; j < width; j += 16) {
    __m512i s = _mm512_setzero_si512();
    for (size_t p = 0; p < positions; p += 4) {
      __m512i v = _mm512_loadu_si512(b + (p / 4 * width + j) * 4);
      MULTIPLY_ADD(s, bias, v);
    }
    _mm512_storeu_si512(sums + j, s);
  }
}

static inline __attribute__((always_inline)) void dots_of(size_t taps, const Code *const *a, const Code *b, size_t positions, int32_t *sums) {
  __m512i s[DOT_TAPS];
#pragma GCC unroll 8
  for (size_t t = 0; t < taps; t++) s[t] = _mm512_loadu_si512(sums + t * DOT_LANES);
  for (size_t p = 0; p < positions; p += 64) {
    __m512i y = _mm512_loadu_si512(b + p);
#pragma GCC unroll 8
    for (size_t t = 0; t < taps; t++) {
      __m512i x = _mm512_loadu_si512(a[t] + p);
      MULTIPLY_ADD(s[t], x, y);
    }
  }
#pragma GCC unroll 8
  for (size_t t = 0; t < taps; t++) _mm512_storeu_si512(sums + t * DOT_LANES, s[t]);
}
#define DOTS_BY_TAPS
