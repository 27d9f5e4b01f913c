/* Packing for AVX2's tiles: codes of 16 bits, columns of dY in pairs of positions, rows in runs of four. gcc finds none of it. */

/* Codes of eight columns at two positions, joined by column. */
static inline __m256i pairs_of_8(const float *x, size_t pitch, __m256 inverse) {
  __m256i even = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
  __m256i odd = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + pitch), inverse));
  return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
}

/* Two positions of sixteen columns, as pack_group has them. */
static inline void pack_pairs(const float *x, size_t pitch, const float *inverse, Code *out) {
  for (size_t j = 0; j < TILE_LANES; j += 8)
    _mm256_storeu_si256((__m256i *)(void *)(out + 2 * j), pairs_of_8(x + j, pitch, _mm256_loadu_ps(inverse + j)));
}

/* Adds a run of four rows to their corrections x0 x2 + x1 x3: to the lower half of a 64-bit lane each. */
static inline void correct_run(__m256i runs, int32_t *sums) {
  __m256i *at = (__m256i *)(void *)sums;
  _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), _mm256_madd_epi16(runs, _mm256_srli_epi64(runs, 32))));
}

/* A run of columns (a multiple of eight) as pack_rows has them. corrections: [columns][2] */
static inline void pack_run(const float *x, const int8_t *codes, size_t pitch, size_t reach, size_t columns, const float *inverse, Code *out,
                              int32_t *corrections) {
  for (size_t j = 0; j < columns; j += 8) {
    __m256i low, high; /* four columns each, a run is 64 bits */
    if (codes) {
      __m128i row[4];
      for (size_t r = 0; r < 4; r++) row[r] = _mm_loadl_epi64((const __m128i *)(const void *)(codes + r * pitch + j));
      __m128i first = _mm_unpacklo_epi8(row[0], row[1]), second = _mm_unpacklo_epi8(row[2], row[3]);
      low = _mm256_cvtepi8_epi16(_mm_unpacklo_epi16(first, second));
      high = _mm256_cvtepi8_epi16(_mm_unpackhi_epi16(first, second));
    } else {
      __m256 scale = _mm256_loadu_ps(inverse + j);
      __m256i first = pairs_of_8(x + j, pitch, scale), second = pairs_of_8(x + 2 * pitch + j, pitch, scale);
      __m256i even = _mm256_unpacklo_epi32(first, second), odd = _mm256_unpackhi_epi32(first, second);
      low = _mm256_permute2x128_si256(even, odd, 0x20);
      high = _mm256_permute2x128_si256(even, odd, 0x31);
    }
    correct_run(low, corrections + 2 * j);
    correct_run(high, corrections + 2 * (j + 4));
    _mm256_storeu_si256((__m256i *)(void *)(out + j * reach), low);
    _mm256_storeu_si256((__m256i *)(void *)(out + (j + 4) * reach), high);
  }
}
