/* Eight lanes of the range coder in a vector: tables by gather, words by a shuffle for each half's four lanes. */

/* Row m puts the low halves of the lanes that are in m, in their order, at the end of 8 bytes. */
static const uint8_t LANES_PUT[16][8] = {
    {0, 0, 0, 0, 0, 0, 0, 0},
    {0, 0, 0, 0, 0, 0, 0, 1},
    {0, 0, 0, 0, 0, 0, 4, 5},
    {0, 0, 0, 0, 0, 1, 4, 5},
    {0, 0, 0, 0, 0, 0, 8, 9},
    {0, 0, 0, 0, 0, 1, 8, 9},
    {0, 0, 0, 0, 4, 5, 8, 9},
    {0, 0, 0, 1, 4, 5, 8, 9},
    {0, 0, 0, 0, 0, 0, 12, 13},
    {0, 0, 0, 0, 0, 1, 12, 13},
    {0, 0, 0, 0, 4, 5, 12, 13},
    {0, 0, 0, 1, 4, 5, 12, 13},
    {0, 0, 0, 0, 8, 9, 12, 13},
    {0, 0, 0, 1, 8, 9, 12, 13},
    {0, 0, 4, 5, 8, 9, 12, 13},
    {0, 1, 4, 5, 8, 9, 12, 13},
};

/* Row m puts the next 16-bit words into the low halves of the lanes that are in m; the others are zero. */
#define N 0x80
static const uint8_t LANES_TAKE[16][16] = {
    {N, N, N, N, N, N, N, N, N, N, N, N, N, N, N, N},
    {0, 1, N, N, N, N, N, N, N, N, N, N, N, N, N, N},
    {N, N, N, N, 0, 1, N, N, N, N, N, N, N, N, N, N},
    {0, 1, N, N, 2, 3, N, N, N, N, N, N, N, N, N, N},
    {N, N, N, N, N, N, N, N, 0, 1, N, N, N, N, N, N},
    {0, 1, N, N, N, N, N, N, 2, 3, N, N, N, N, N, N},
    {N, N, N, N, 0, 1, N, N, 2, 3, N, N, N, N, N, N},
    {0, 1, N, N, 2, 3, N, N, 4, 5, N, N, N, N, N, N},
    {N, N, N, N, N, N, N, N, N, N, N, N, 0, 1, N, N},
    {0, 1, N, N, N, N, N, N, N, N, N, N, 2, 3, N, N},
    {N, N, N, N, 0, 1, N, N, N, N, N, N, 2, 3, N, N},
    {0, 1, N, N, 2, 3, N, N, N, N, N, N, 4, 5, N, N},
    {N, N, N, N, N, N, N, N, 0, 1, N, N, 2, 3, N, N},
    {0, 1, N, N, N, N, N, N, 2, 3, N, N, 4, 5, N, N},
    {N, N, N, N, 0, 1, N, N, 2, 3, N, N, 4, 5, N, N},
    {0, 1, N, N, 2, 3, N, N, 4, 5, N, N, 6, 7, N, N},
};
#undef N

/* Entries of eight symbols: all reciprocals, and all that is beside them. */
static inline void entries_of(const uint16_t *index, const RansSymbol *table, __m256i *reciprocal, __m256i *rest) {
  __m128i pair[4];
  for (int i = 0; i < 4; i++) {
    __m128i low = _mm_loadl_epi64((const __m128i *)(const void *)(table + index[2 * i]));
    pair[i] = _mm_unpacklo_epi64(low, _mm_loadl_epi64((const __m128i *)(const void *)(table + index[2 * i + 1])));
  }
  __m256 a = _mm256_castsi256_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(pair[0]), pair[2], 1));
  __m256 b = _mm256_castsi256_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(pair[1]), pair[3], 1));
  *reciprocal = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));
  *rest = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd));
}

static inline uint16_t *put_half(__m128i x, unsigned mask, uint16_t *words) {
  __m128i out = _mm_shuffle_epi8(x, _mm_loadl_epi64((const __m128i *)(const void *)LANES_PUT[mask]));
  _mm_storel_epi64((__m128i *)(void *)(words - 4), out);
  return words - __builtin_popcount(mask);
}

/* Backwards over `count` symbols, a multiple of the 8, 16 or 32 lanes. Writes up to 4 words below the last. */
static inline uint16_t *lanes_encode_wide(const uint16_t *restrict index, size_t count, const RansSymbol *restrict table, size_t lanes,
                                          uint32_t state[restrict LANES], uint16_t *restrict words) {
  const __m256i low13 = _mm256_set1_epi32(0x1fff), total = _mm256_set1_epi32(RANS_TOTAL);
  __m256i lane[4];
  for (size_t v = 0; v < 4; v++) lane[v] = _mm256_loadu_si256((const __m256i *)(const void *)(state + 8 * v));
  for (size_t i = count; i > 0;)
    for (size_t v = lanes / 8; v-- > 0;) {
      __m256i x = lane[v], reciprocal, rest;
      entries_of(index + (i -= 8), table, &reciprocal, &rest);
      __m256i f = _mm256_and_si256(rest, low13);
      __m256i full = _mm256_cmpeq_epi32(x, _mm256_max_epu32(x, _mm256_slli_epi32(f, 19)));
      unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(full));
      words = put_half(_mm256_extracti128_si256(x, 1), mask >> 4, words);
      words = put_half(_mm256_castsi256_si128(x), mask & 15u, words);
      x = _mm256_blendv_epi8(x, _mm256_srli_epi32(x, 16), full);
      __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(x, reciprocal), 32);
      __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), _mm256_srli_epi64(reciprocal, 32));
      __m256i quotient = _mm256_srlv_epi32(_mm256_blend_epi32(even, odd, 0xaa), _mm256_srli_epi32(rest, 26));
      __m256i bias = _mm256_and_si256(_mm256_srli_epi32(rest, 13), low13);
      lane[v] = _mm256_add_epi32(_mm256_add_epi32(x, bias), _mm256_mullo_epi32(quotient, _mm256_sub_epi32(total, f)));
    }
  for (size_t v = 0; v < 4; v++) _mm256_storeu_si256((__m256i *)(void *)(state + 8 * v), lane[v]);
  return words;
}

typedef __m256i LanesWide;

/* One step of eight lanes; at least 16 bytes of words are left at *at. */
static inline __m256i lanes_step_wide(__m256i x, const uint8_t **at, const uint32_t *slots, const uint8_t *context, uint8_t *symbols) {
  const __m256i low12 = _mm256_set1_epi32(0xfff);
  __m256i index = _mm256_and_si256(x, low12);
  if (context) {
    __m128i tables = _mm_loadl_epi64((const __m128i *)(const void *)context);
    index = _mm256_or_si256(index, _mm256_slli_epi32(_mm256_cvtepu8_epi32(tables), RANS_BITS));
  }
  __m256i e = _mm256_i32gather_epi32((const int *)(const void *)slots, index, 4);
  __m256i f = _mm256_add_epi32(_mm256_and_si256(e, low12), _mm256_set1_epi32(1));
  x = _mm256_mullo_epi32(f, _mm256_srli_epi32(x, RANS_BITS));
  x = _mm256_add_epi32(x, _mm256_and_si256(_mm256_srli_epi32(e, 12), low12));
  __m256i empty = _mm256_cmpgt_epi32(_mm256_set1_epi32(RANS_LEAST), x);
  unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(empty)), low = mask & 15u, high = mask >> 4;
  const uint8_t *middle = *at + 2 * __builtin_popcount(low);
  __m128i words_low = _mm_loadl_epi64((const __m128i *)(const void *)*at), words_high = _mm_loadl_epi64((const __m128i *)(const void *)middle);
  words_low = _mm_shuffle_epi8(words_low, _mm_loadu_si128((const __m128i *)(const void *)LANES_TAKE[low]));
  words_high = _mm_shuffle_epi8(words_high, _mm_loadu_si128((const __m128i *)(const void *)LANES_TAKE[high]));
  __m256i words = _mm256_inserti128_si256(_mm256_castsi128_si256(words_low), words_high, 1);
  x = _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), words), empty);
  *at = middle + 2 * __builtin_popcount(high);
  __m256i s = _mm256_srli_epi32(e, 24);
  s = _mm256_packus_epi32(s, s); /* 4 words twice in each half */
  s = _mm256_packus_epi16(s, s);
  uint32_t symbols_low = (uint32_t)_mm256_extract_epi32(s, 0), symbols_high = (uint32_t)_mm256_extract_epi32(s, 4);
  memcpy(symbols, &symbols_low, 4);
  memcpy(symbols + 4, &symbols_high, 4);
  return x;
}
