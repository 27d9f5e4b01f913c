/* AVX-512 with VNNI: the shared bodies in 512-bit vectors, int8 products by vpdpbusd.
 *
 * vpdpbusd multiplies unsigned by signed: dy is biased by 128, and 128 times the sum of x's column is taken off at the end.
 * Inline assembly keeps the broadcast in the instruction and the sums in registers: gcc 12 spills them around the intrinsic.
 */
#define DOT(sum, v, quad) __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(v), "m"(*(const int(*))(const void *)(quad)))

static inline __m512i biased(const signed char *b) {
  return _mm512_xor_si512(_mm512_loadu_si512(b), _mm512_set1_epi8((char)0x80));
}

static void dot_panel(const signed char *a, size_t a_columns, const signed char *b, size_t columns, size_t quads,
                                 int *out) {
  __m256i bias = _mm256_setzero_si256(); /* 128 * sum of x's columns, one lane each */
  const __m256i units = _mm256_set1_epi8((char)0x80);
  for (size_t q = 0; q < quads; q++) {
    __m256i u = _mm256_loadu_si256((const __m256i *)(const void *)(a + q * a_columns * 4));
    __asm__("vpdpbusd %2, %1, %0" : "+v"(bias) : "v"(units), "v"(u));
  }
  int offset[8];
  _mm256_storeu_si256((__m256i *)(void *)offset, bias);

  size_t j = 0;
  for (; j + 32 <= columns; j += 32) {
    __m512i s[8][2];
    for (int i = 0; i < 8; i++) s[i][0] = s[i][1] = _mm512_set1_epi32(-offset[i]);
    for (size_t q = 0; q < quads; q++) {
      const signed char *u = a + q * a_columns * 4;
      __m512i v0 = biased(b + (q * columns + j) * 4), v1 = biased(b + (q * columns + j + 16) * 4);
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) {
        DOT(s[i][0], v0, u + 4 * i);
        DOT(s[i][1], v1, u + 4 * i);
      }
    }
    for (size_t i = 0; i < 8; i++) {
      _mm512_storeu_si512(out + i * columns + j, s[i][0]);
      _mm512_storeu_si512(out + i * columns + j + 16, s[i][1]);
    }
  }
  for (; j < columns; j += 16) {
    __m512i s[8];
    for (int i = 0; i < 8; i++) s[i] = _mm512_set1_epi32(-offset[i]);
    for (size_t q = 0; q < quads; q++) {
      const signed char *u = a + q * a_columns * 4;
      __m512i v = biased(b + (q * columns + j) * 4);
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) DOT(s[i], v, u + 4 * i);
    }
    for (size_t i = 0; i < 8; i++) _mm512_storeu_si512(out + i * columns + j, s[i]);
  }
}
