/* A block's encoding with AVX-512: 64 values in four registers. */
static inline uint32_t block_absmax(const float *x) {
  const __m512i magnitude = _mm512_set1_epi32(INT32_MAX);
  __m512i part[4];
  for (int i = 0; i < 4; i++) part[i] = _mm512_and_si512(_mm512_loadu_si512(x + 16 * i), magnitude);
  __m512i most = _mm512_max_epi32(_mm512_max_epi32(part[0], part[1]), _mm512_max_epi32(part[2], part[3]));
  return (uint32_t)_mm512_reduce_max_epi32(most);
}

/* 32 bytes in one store: blk4 loads them as such, and would wait for two. */
static inline void store_half(uint8_t *codes, __m128i low, __m128i high) {
  _mm256_storeu_si256((__m256i *)(void *)codes, _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}

static inline __m128i to_nearest(const float *x, float inverse) {
  return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inverse))));
}

static inline void block_nearest(const float *x, float inverse, uint8_t *codes) {
  for (int half = 0; half < FG_BLOCK; half += 32) store_half(codes + half, to_nearest(x + half, inverse), to_nearest(x + half + 16, inverse));
}

static inline __m512i mix_avx512(__m512i z) {
  z = _mm512_mullo_epi32(_mm512_xor_si512(z, _mm512_srli_epi32(z, 16)), _mm512_set1_epi32(0x7feb352d));
  z = _mm512_mullo_epi32(_mm512_xor_si512(z, _mm512_srli_epi32(z, 15)), _mm512_set1_epi32((int32_t)0x846ca68bu));
  return _mm512_xor_si512(z, _mm512_srli_epi32(z, 16));
}

/* y + v to the nearest integer within the levels, v from bits that a shift has brought to their place; as 16 bytes. */
static inline __m128i with_noise(const float *x, float inverse, int levels, __m512i bits) {
  const __m512i fraction = _mm512_set1_epi32(0x7fff80), one = _mm512_set1_epi32(0x3f800000);
  __m512i above_one = _mm512_ternarylogic_epi32(bits, fraction, one, 0xea); /* (bits & fraction) | one */
  __m512 v = _mm512_sub_ps(_mm512_castsi512_ps(above_one), _mm512_set1_ps(1.5f - 0x1p-17f));
  __m512i code = _mm512_cvtps_epi32(_mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inverse)), v));
  return _mm_max_epi8(_mm_set1_epi8((char)-levels), _mm_min_epi8(_mm_set1_epi8((char)levels), _mm512_cvtsepi32_epi8(code)));
}

static inline void block_stochastic(const float *x, float inverse, int levels, uint32_t base, uint8_t *codes) {
  const __m512i lane = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32((int32_t)0x9e3779b9u));
  __m128i low[2], high[2];
  for (uint32_t i = 0; i < 2; i++) {
    __m512i h = mix_avx512(_mm512_add_epi32(_mm512_set1_epi32((int32_t)(base + 16 * i * 0x9e3779b9u)), lane));
    low[i] = with_noise(x + 16 * i, inverse, levels, _mm512_slli_epi32(h, 7));
    high[i] = with_noise(x + 32 + 16 * i, inverse, levels, _mm512_srli_epi32(h, 9));
  }
  store_half(codes, low[0], low[1]);
  store_half(codes + 32, high[0], high[1]);
}
