/* Sixteen lanes of the range coder in a vector: tables by gather, words by compress and expand. */

/* Backwards over `count` symbols, a multiple of the 16 or 32 lanes. */
static inline uint16_t *lanes_encode_wide(const uint16_t *index, size_t count, const RansSymbol *table, size_t lanes, uint32_t state[32],
                                          uint16_t *words) {
  const __m512i low13 = _mm512_set1_epi32(0x1fff), total = _mm512_set1_epi32(RANS_TOTAL);
  __m512i lane[2] = {_mm512_loadu_si512(state), _mm512_loadu_si512(state + 16)};
  for (size_t i = count; i > 0; i -= lanes)
    for (int half = lanes == 32; half >= 0; half--) {
      __m512i x = lane[half];
      __m512i at = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(index + i - lanes + 16 * (size_t)half)));
      __m512i reciprocal = _mm512_i32gather_epi32(at, table, 8);
      __m512i rest = _mm512_i32gather_epi32(at, (const char *)table + 4, 8);
      __m512i f = _mm512_and_si512(rest, low13);
      __mmask16 full = _mm512_cmpge_epu32_mask(x, _mm512_slli_epi32(f, 19));
      int put = __builtin_popcount(full);
      words -= put;
      __m256i out = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, x));
      _mm256_mask_storeu_epi16(words, (__mmask16)((1u << put) - 1u), out);
      x = _mm512_mask_srli_epi32(x, full, x, 16);
      __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(x, reciprocal), 32);
      __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), _mm512_srli_epi64(reciprocal, 32));
      __m512i quotient = _mm512_mask_blend_epi32(0xaaaa, even, odd);
      quotient = _mm512_srlv_epi32(quotient, _mm512_srli_epi32(rest, 26));
      __m512i bias = _mm512_and_si512(_mm512_srli_epi32(rest, 13), low13);
      lane[half] = _mm512_add_epi32(_mm512_add_epi32(x, bias), _mm512_mullo_epi32(quotient, _mm512_sub_epi32(total, f)));
    }
  _mm512_storeu_si512(state, lane[0]);
  _mm512_storeu_si512(state + 16, lane[1]);
  return words;
}

typedef __m512i LanesWide;

/* One step of sixteen lanes; at least 32 bytes of words are left at *at. */
static inline __m512i lanes_step_wide(__m512i x, const uint8_t **at, const uint32_t *slots, const uint8_t *context, uint8_t *symbols) {
  const __m512i mask = _mm512_set1_epi32(4095), one = _mm512_set1_epi32(1);
  __m512i index = _mm512_and_si512(x, mask);
  if (context) {
    __m512i table = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)context));
    index = _mm512_add_epi32(index, _mm512_slli_epi32(table, RANS_BITS));
  }
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
