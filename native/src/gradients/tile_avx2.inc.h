/* AVX2: int8 products in 16-bit lanes, with half the multiplications (Winograd, A new algorithm for inner product, 1968).
 *
 *   (x0 + y2)(x2 + y0) = x0 y0 + x2 y2 + x0 x2 + y0 y2
 *
 * so four positions cost two products, and what is too much depends on the row or on the column alone. AVX2's multiplier (vpmaddwd, two a
 * cycle on most machines) is busier than its adders: with two additions before each vpmaddwd, a cycle does as much in theory, and
 * in practice a sixth more, since a port is nearly always free. A sum of two codes is within 9 bits, a product of two such within 18.
 *
 * Assembly keeps the eight sums and four columns in registers: gcc 12 moves them around so much that it takes 1.6 times as long.
 */
typedef int16_t Code;
#define TILE_RUN 4
#define TILE_PAD 4
#define TILE_GROUP 2
#define TILE_ROWS 4
#define TILE_WIDTH 16
#define TILE_BIAS 0
#define DOT_STEP 16
#define TILE_ROW_CORRECTION row_correction
#define TILE_ROWS_CORRECTION row_corrections
#define TILE_COLUMN_CORRECTION column_correction

/* Columns 0-7 and 8-15: positions 0 and 1 in ymm8 and ymm9, 2 and 3 in ymm10 and ymm11. */
#define LOAD_COLUMNS(bytes)                                                                   \
  "vmovdqu " #bytes "+0(%[b]), %%ymm8\n vmovdqu " #bytes "+32(%[b]), %%ymm9\n"                \
  "vmovdqu " #bytes "+64(%[b]), %%ymm10\n vmovdqu " #bytes "+96(%[b]), %%ymm11\n"
#define ADD_ROW(i, at)                                \
  "vpbroadcastd (%[a" #i "],%[" #at "]), %%ymm12\n"   \
  "vpbroadcastd 4(%[a" #i "],%[" #at "]), %%ymm13\n"  \
  "vpaddw %%ymm12, %%ymm10, %%ymm14\n"                \
  "vpaddw %%ymm13, %%ymm8, %%ymm15\n"                 \
  "vpmaddwd %%ymm14, %%ymm15, %%ymm14\n"              \
  "vpaddw %%ymm12, %%ymm11, %%ymm12\n"                \
  "vpaddw %%ymm13, %%ymm9, %%ymm13\n"                 \
  "vpmaddwd %%ymm12, %%ymm13, %%ymm12\n"              \
  "vpaddd %%ymm14, %[s" #i "0], %[s" #i "0]\n"        \
  "vpaddd %%ymm12, %[s" #i "1], %[s" #i "1]\n"
#define FETCH_ROWS "prefetcht0 1024(%[a0],%[at])\n"
#define FOUR_ROWS(at) ADD_ROW(0, at) ADD_ROW(1, at) ADD_ROW(2, at) ADD_ROW(3, at)
#define SUMS(i) [s##i##0] "+x"(s##i##0), [s##i##1] "+x"(s##i##1)
#define ROW(i) [a##i] "r"(a##i)
#define USED "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "memory"
#define EACH_RUN                                              \
  for (const Segment *s = segments; s < segments + count; s++) \
    for (size_t p = 0, at = s->start * 2; p < s->length; p += 4, at += step * 2, b += 64)
#define STORE_ROW(i)                                                      \
  _mm256_storeu_si256((__m256i *)(void *)(sums + 16 * (i)), s##i##0); \
  _mm256_storeu_si256((__m256i *)(void *)(sums + 16 * (i) + 8), s##i##1)

/* Two runs a turn; what the next rows are packed in is fetched meanwhile, for it lies in L2. */
static inline void tile_of_4(const Code *const *a, size_t step, const Segment *segments, size_t count, const Code *b, int32_t *sums) {
  const Code *a0 = a[0], *a1 = a[1], *a2 = a[2], *a3 = a[3]; /* or the compiler reads them again for each run */
  __m256i s00, s01, s10, s11, s20, s21, s30, s31;
  s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = _mm256_setzero_si256();
  for (const Segment *s = segments; s < segments + count; s++) {
    size_t p = 0, at = s->start * 2;
    for (; p + 8 <= s->length; p += 8, at += step * 4, b += 128)
      __asm__(FETCH_ROWS LOAD_COLUMNS(0) FOUR_ROWS(at) LOAD_COLUMNS(128) FOUR_ROWS(at_next)
              : SUMS(0), SUMS(1), SUMS(2), SUMS(3)
              : ROW(0), ROW(1), ROW(2), ROW(3), [at] "r"(at), [at_next] "r"(at + step * 2), [b] "r"(b)
              : USED);
    if (p == s->length) continue;
    __asm__(LOAD_COLUMNS(0) FOUR_ROWS(at)
            : SUMS(0), SUMS(1), SUMS(2), SUMS(3)
            : ROW(0), ROW(1), ROW(2), ROW(3), [at] "r"(at), [b] "r"(b)
            : USED);
    b += 64;
  }
  STORE_ROW(0);
  STORE_ROW(1);
  STORE_ROW(2);
  STORE_ROW(3);
}

static inline void tile_of_2(const Code *const *a, size_t step, const Segment *segments, size_t count, const Code *b, int32_t *sums) {
  const Code *a0 = a[0], *a1 = a[1];
  __m256i s00, s01, s10, s11;
  s00 = s01 = s10 = s11 = _mm256_setzero_si256();
  EACH_RUN __asm__(LOAD_COLUMNS(0) ADD_ROW(0, at) ADD_ROW(1, at)
                   : SUMS(0), SUMS(1)
                   : ROW(0), ROW(1), [at] "r"(at), [b] "r"(b)
                   : USED);
  STORE_ROW(0);
  STORE_ROW(1);
}

static inline void tile_of_1(const Code *const *a, size_t step, const Segment *segments, size_t count, const Code *b, int32_t *sums) {
  const Code *a0 = a[0];
  __m256i s00, s01;
  s00 = s01 = _mm256_setzero_si256();
  EACH_RUN __asm__(LOAD_COLUMNS(0) ADD_ROW(0, at) : SUMS(0) : ROW(0), [at] "r"(at), [b] "r"(b) : USED);
  STORE_ROW(0);
}

static void product_tile(size_t rows, const Code *const *a, size_t step, const Segment *segments, size_t count, const Code *b, size_t width,
                 int32_t *sums) {
  (void)width;
  if (rows == 4) {
    tile_of_4(a, step, segments, count, b, sums);
    return;
  }
  if (rows & 2) tile_of_2(a, step, segments, count, b, sums);
  if (rows & 1) tile_of_1(a + (rows & 2), step, segments, count, b, sums + 16 * (rows & 2));
}

/* x0 x2 + x1 x3, summed over a row's runs: for each, the lower half of a 64-bit lane; the upper one's pair is zero. */
static int32_t row_correction(const Code *a, size_t step, const Segment *segments, size_t count) {
  __m128i sum = _mm_setzero_si128();
  for (const Segment *s = segments; s < segments + count; s++) {
    const Code *at = a + s->start;
    for (size_t p = 0; p < s->length; p += 4, at += step) {
      __m128i x = _mm_loadl_epi64((const __m128i *)(const void *)at);
      sum = _mm_add_epi32(sum, _mm_madd_epi16(x, _mm_srli_epi64(x, 32)));
    }
  }
  return _mm_cvtsi128_si32(sum);
}

/* The same for up to four rows whose runs lie one behind the other. */
static void row_corrections(size_t rows, const Code *const *a, const Segment *segments, size_t count, int32_t *sums) {
  __m256i total[4];
  const Code *row[4];
  for (size_t i = 0; i < 4; i++) total[i] = _mm256_setzero_si256(), row[i] = a[i < rows ? i : 0];
  for (const Segment *s = segments; s < segments + count; s++) {
    size_t p = 0;
    for (; p + 16 <= s->length; p += 16)
      for (size_t i = 0; i < 4; i++) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(row[i] + s->start + p));
        total[i] = _mm256_add_epi32(total[i], _mm256_madd_epi16(x, _mm256_srli_epi64(x, 32)));
      }
    for (; p + 8 <= s->length; p += 8)
      for (size_t i = 0; i < 4; i++) {
        __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(row[i] + s->start + p));
        total[i] = _mm256_add_epi32(total[i], _mm256_zextsi128_si256(_mm_madd_epi16(x, _mm_srli_epi64(x, 32))));
      }
    if (p < s->length)
      for (size_t i = 0; i < 4; i++) {
        __m128i x = _mm_loadl_epi64((const __m128i *)(const void *)(row[i] + s->start + p));
        total[i] = _mm256_add_epi32(total[i], _mm256_zextsi128_si256(_mm_madd_epi16(x, _mm_srli_epi64(x, 32))));
      }
  }
  for (size_t i = 0; i < rows; i++) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(total[i]), _mm256_extracti128_si256(total[i], 1));
    sums[i] = _mm_cvtsi128_si32(half) + _mm_extract_epi32(half, 2);
  }
}

/* y0 y2 + y1 y3, summed over each column's runs. */
static void column_correction(const Code *b, size_t width, size_t positions, int32_t *sums) {
  (void)width;
  __m256i s0 = _mm256_setzero_si256(), s1 = s0;
  for (size_t p = 0; p < positions; p += 4, b += 64) {
    const __m256i *y = (const __m256i *)(const void *)b;
    s0 = _mm256_add_epi32(s0, _mm256_madd_epi16(_mm256_loadu_si256(y), _mm256_loadu_si256(y + 2)));
    s1 = _mm256_add_epi32(s1, _mm256_madd_epi16(_mm256_loadu_si256(y + 1), _mm256_loadu_si256(y + 3)));
  }
  _mm256_storeu_si256((__m256i *)(void *)sums, s0);
  _mm256_storeu_si256((__m256i *)(void *)(sums + 8), s1);
}

static inline __attribute__((always_inline)) void dots_of(size_t taps, const Code *const *a, const Code *b, size_t positions, int32_t *sums) {
  __m256i s[DOT_TAPS];
#pragma GCC unroll 8
  for (size_t t = 0; t < taps; t++) s[t] = _mm256_loadu_si256((const __m256i *)(const void *)(sums + t * DOT_LANES));
  for (size_t p = 0; p < positions; p += 16) {
    __m256i y = _mm256_loadu_si256((const __m256i *)(const void *)(b + p));
#pragma GCC unroll 8
    for (size_t t = 0; t < taps; t++)
      s[t] = _mm256_add_epi32(s[t], _mm256_madd_epi16(y, _mm256_loadu_si256((const __m256i *)(const void *)(a[t] + p))));
  }
#pragma GCC unroll 8
  for (size_t t = 0; t < taps; t++) _mm256_storeu_si256((__m256i *)(void *)(sums + t * DOT_LANES), s[t]);
}
#define DOTS_BY_TAPS

#undef LOAD_COLUMNS
#undef ADD_ROW
#undef FETCH_ROWS
#undef FOUR_ROWS
#undef SUMS
#undef ROW
#undef USED
#undef EACH_RUN
#undef STORE_ROW
