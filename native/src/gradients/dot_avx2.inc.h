/* AVX2: the shared bodies in 256-bit vectors, CRC32C by SSE4.2, int8 products by maddubs.
 *
 * maddubs multiplies unsigned by signed: |a| * sign(b, a) is a * b, and 127 * 127 * 2 fits its 16-bit sums.
 */
static void dot_panel(const signed char *a, size_t a_columns, const signed char *b, size_t columns, size_t quads, int *out) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (size_t j = 0; j < columns; j += 8) {
    __m256i sum[8];
    for (int i = 0; i < 8; i++) sum[i] = _mm256_setzero_si256();
    for (size_t q = 0; q < quads; q++) {
      __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(b + (q * columns + j) * 4));
      for (int i = 0; i < 8; i++) {
        int quad;
        __builtin_memcpy(&quad, a + (q * a_columns + (size_t)i) * 4, 4);
        __m256i u = _mm256_set1_epi32(quad);
        __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(u), _mm256_sign_epi8(v, u));
        sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(pairs, ones));
      }
    }
    for (size_t i = 0; i < 8; i++) _mm256_storeu_si256((__m256i *)(void *)(out + i * columns + j), sum[i]);
  }
}
