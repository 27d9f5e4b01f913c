/* A block's codes and its decoding with AVX2; AVX-512 uses it as well: memory is the limit there. */
/* 64 codes as halves of 32 bytes, and back. */
static inline void block_narrow(const uint8_t *codes, uint8_t *out) {
  __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)codes), high = _mm256_loadu_si256((const __m256i *)(const void *)(codes + 32));
  const __m256i nibble = _mm256_set1_epi8(15);
  _mm256_storeu_si256((__m256i *)(void *)out, _mm256_or_si256(_mm256_and_si256(low, nibble), _mm256_slli_epi16(_mm256_and_si256(high, nibble), 4)));
}

static inline void block_widen(const uint8_t *in, uint8_t *codes) {
  __m256i both = _mm256_loadu_si256((const __m256i *)(const void *)in);
  const __m256i nibble = _mm256_set1_epi8(15), sign = _mm256_set1_epi8(8);
  __m256i low = _mm256_and_si256(both, nibble), high = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
  _mm256_storeu_si256((__m256i *)(void *)codes, _mm256_sub_epi8(_mm256_xor_si256(low, sign), sign));
  _mm256_storeu_si256((__m256i *)(void *)(codes + 32), _mm256_sub_epi8(_mm256_xor_si256(high, sign), sign));
}

/* 64 values; 1 where a code is `never`, or under a scale of zero isn't zero. */
static inline int block_floats(const uint8_t *codes, int never, float scale, float *out) {
  __m256i bad = _mm256_setzero_si256(), zero = bad;
  __m256i unscaled = _mm256_set1_epi8(scale > 0.0f ? 0 : -1);
  for (int half = 0; half < FG_BLOCK; half += 32) {
    __m256i code = _mm256_loadu_si256((const __m256i *)(const void *)(codes + half));
    bad = _mm256_or_si256(bad, _mm256_cmpeq_epi8(code, _mm256_set1_epi8((char)never)));
    bad = _mm256_or_si256(bad, _mm256_andnot_si256(_mm256_cmpeq_epi8(code, zero), unscaled));
    for (int i = 0; i < 32; i += 8) {
      __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(codes + half + i)));
      _mm256_storeu_ps(out + half + i, _mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(scale)));
    }
  }
  return !_mm256_testz_si256(bad, bad);
}
