/* A step of 32 lanes in two vectors: slots by gather, words by expand. */
static inline __m512i lanes_half(__m512i x, __m512i base, const uint32_t *slots, const uint8_t **at, uint8_t *symbols) {
  const __m512i mask = _mm512_set1_epi32(4095), one = _mm512_set1_epi32(1);
  __m512i index = _mm512_add_epi32(_mm512_and_si512(x, mask), base);
  __m512i e = _mm512_i32gather_epi32(index, slots, 4);
  _mm_storeu_si128((__m128i *)(void *)symbols, _mm512_cvtepi32_epi8(_mm512_srli_epi32(e, 24)));
  __m512i f = _mm512_add_epi32(_mm512_and_si512(e, mask), one);
  x = _mm512_add_epi32(_mm512_mullo_epi32(f, _mm512_srli_epi32(x, RANS_BITS)), _mm512_and_si512(_mm512_srli_epi32(e, 12), mask));
  __mmask16 empty = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32((int)RANS_LEAST));
  __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)*at));
  words = _mm512_maskz_expand_epi32(empty, words);
  *at += 2 * __builtin_popcount(empty);
  return _mm512_mask_or_epi32(x, empty, _mm512_slli_epi32(x, 16), words);
}

static inline void lanes_step(LaneDecoder *d, const uint32_t *slots, uint8_t *symbols) {
  const __m512i zero = _mm512_setzero_si512();
  for (int half = 0; half < 2; half++) {
    uint32_t *state = d->state + 16 * half;
    _mm512_storeu_si512(state, lanes_half(_mm512_loadu_si512(state), zero, slots, &d->at, symbols + 16 * half));
  }
}

static inline void lanes_step_contexts(LaneDecoder *d, const uint32_t *slots, const uint8_t *context, uint8_t *symbols) {
  for (int half = 0; half < 2; half++) {
    uint32_t *state = d->state + 16 * half;
    __m512i table = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(context + 16 * half)));
    __m512i base = _mm512_slli_epi32(table, RANS_BITS);
    _mm512_storeu_si512(state, lanes_half(_mm512_loadu_si512(state), base, slots, &d->at, symbols + 16 * half));
  }
}
