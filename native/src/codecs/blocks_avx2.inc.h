/* A block's encoding with AVX2: 64 values in eight registers. */
static inline uint32_t block_absmax(const float *x) {
  const __m256i magnitude = _mm256_set1_epi32(INT32_MAX);
  __m256i most = _mm256_setzero_si256(), other = most;
  for (int i = 0; i < FG_BLOCK; i += 16) {
    most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + i)), magnitude));
    other = _mm256_max_epi32(other, _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + i + 8)), magnitude));
  }
  most = _mm256_max_epi32(most, other);
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return (uint32_t)_mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

/* 32 integers as bytes, saturated. */
static inline __m256i bytes_of(const __m256i from[4]) {
  __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(from[0], from[1]), _mm256_packs_epi32(from[2], from[3]));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

static inline void block_nearest(const float *x, float inverse, uint8_t *codes) {
  for (int half = 0; half < FG_BLOCK; half += 32) {
    __m256i code[4];
    for (int i = 0; i < 4; i++) code[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + half + 8 * i), _mm256_set1_ps(inverse)));
    _mm256_storeu_si256((__m256i *)(void *)(codes + half), bytes_of(code));
  }
}

static inline __m256i mix_avx2(__m256i z) {
  z = _mm256_mullo_epi32(_mm256_xor_si256(z, _mm256_srli_epi32(z, 16)), _mm256_set1_epi32(0x7feb352d));
  z = _mm256_mullo_epi32(_mm256_xor_si256(z, _mm256_srli_epi32(z, 15)), _mm256_set1_epi32((int32_t)0x846ca68bu));
  return _mm256_xor_si256(z, _mm256_srli_epi32(z, 16));
}

/* y + v to the nearest integer, v from bits that a shift has brought to their place. */
static inline __m256i with_noise(const float *x, float inverse, __m256i bits) {
  __m256i fraction = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fff80));
  __m256 v = _mm256_sub_ps(_mm256_castsi256_ps(_mm256_or_si256(fraction, _mm256_set1_epi32(0x3f800000))), _mm256_set1_ps(1.5f - 0x1p-17f));
  return _mm256_cvtps_epi32(_mm256_add_ps(_mm256_mul_ps(_mm256_loadu_ps(x), _mm256_set1_ps(inverse)), v));
}

static inline void block_stochastic(const float *x, float inverse, int levels, uint32_t base, uint8_t *codes) {
  const __m256i lane = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32((int32_t)0x9e3779b9u));
  __m256i low[4], high[4];
  for (uint32_t i = 0; i < 4; i++) {
    __m256i h = mix_avx2(_mm256_add_epi32(_mm256_set1_epi32((int32_t)(base + 8 * i * 0x9e3779b9u)), lane));
    low[i] = with_noise(x + 8 * i, inverse, _mm256_slli_epi32(h, 7));
    high[i] = with_noise(x + 32 + 8 * i, inverse, _mm256_srli_epi32(h, 9));
  }
  __m256i most = _mm256_set1_epi8((char)levels), least = _mm256_set1_epi8((char)-levels);
  _mm256_storeu_si256((__m256i *)(void *)codes, _mm256_max_epi8(least, _mm256_min_epi8(most, bytes_of(low))));
  _mm256_storeu_si256((__m256i *)(void *)(codes + 32), _mm256_max_epi8(least, _mm256_min_epi8(most, bytes_of(high))));
}
