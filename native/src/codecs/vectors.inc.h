/* What the fixed-rate codecs do on vectors as wide as the ISA's registers, where the compiler's own choice is slow: sixteen small integers to
 * bytes and back, and a table of eight floats. A group of sixteen values is PARTS registers.
 */
#define PARTS (16 / NATIVE_LANES)

static inline NativeFloat load(const float *from) {
  NativeFloat x;
  memcpy(&x, from, sizeof x);
  return x;
}

static inline void store(float *to, NativeFloat x) { memcpy(to, &x, sizeof x); }

static inline NativeFloat chosen(NativeInt mask, NativeFloat yes, NativeFloat no) {
  return (NativeFloat)(((NativeInt)yes & mask) | ((NativeInt)no & ~mask));
}

/* The low bytes of sixteen integers from 0 to 255. */
static inline void store_bytes(const NativeInt from[PARTS], uint8_t *to) {
#if defined(FG_FOR_AVX512VNNI)
  __m128i bytes = _mm512_cvtepi32_epi8((__m512i)from[0]);
  memcpy(to, &bytes, 16);
#elif defined(FG_FOR_AVX2)
  __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)from[0], (__m256i)from[1]), 0xd8);
  __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  memcpy(to, &bytes, 16);
#else
  int32_t wide[16];
  memcpy(wide, from, sizeof wide);
  for (size_t i = 0; i < 16; i++) to[i] = (uint8_t)wide[i];
#endif
}

static inline void load_bytes(const uint8_t *from, NativeInt to[PARTS]) {
#if defined(FG_FOR_AVX512VNNI)
  __m128i bytes;
  memcpy(&bytes, from, 16);
  to[0] = (NativeInt)_mm512_cvtepu8_epi32(bytes);
#elif defined(FG_FOR_AVX2)
  __m128i bytes;
  memcpy(&bytes, from, 16);
  to[0] = (NativeInt)_mm256_cvtepu8_epi32(bytes);
  to[1] = (NativeInt)_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes));
#else
  int32_t wide[16];
  for (size_t i = 0; i < 16; i++) wide[i] = from[i];
  memcpy(to, wide, sizeof wide);
#endif
}

/* table[index], lane by lane, for indices 0 to 7. */
static inline NativeFloat lookup8(const float table[8], NativeInt index) {
#if defined(FG_FOR_AVX512VNNI)
  return (NativeFloat)_mm512_permutexvar_ps((__m512i)index, _mm512_castps256_ps512(_mm256_loadu_ps(table)));
#elif defined(FG_FOR_AVX2)
  return (NativeFloat)_mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)index);
#elif defined(__aarch64__) && !defined(FG_FOR_SERIAL)
  uint8x16x2_t bytes = vld1q_u8_x2((const uint8_t *)table);
  uint32x4_t places = vaddq_u32(vmulq_n_u32((uint32x4_t)index, 0x04040404u), vdupq_n_u32(0x03020100u));
  return (NativeFloat)vqtbl2q_u8(bytes, vreinterpretq_u8_u32(places));
#else
  NativeFloat found;
  for (size_t i = 0; i < NATIVE_LANES; i++) found[i] = table[index[i]];
  return found;
#endif
}

/* The same for tables of 8 or 16 floats; shorter ones are padded to 8. */
static inline NativeFloat lookup(const float *table, size_t count, NativeInt index) {
  if (count <= 8) return lookup8(table, index);
  return chosen(index > 7, lookup8(table + 8, index & 7), lookup8(table, index & 7));
}
