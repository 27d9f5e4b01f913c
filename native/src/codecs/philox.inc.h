/* Philox4x32-10 (J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random bits by position.
 *
 * Sixteen counters are run side by side, word w of counter c in lane c, so that vectors of any width give the same bits without a shuffle:
 *
 *   dither    128 coordinates a group, 16 bits each: coordinate 32 w + 16 h + c has half h (0 = low) of word w of counter c
 *   signs    2048 coordinates a group, one bit each: coordinate 16 b + c has bit b % 32 of word b / 32 of counter c
 *
 * Counter c of group g is (16 g + c as 64 bits, stream, purpose); the key is the seed's 64 bits.
 */
#define PHILOX_LANES 16
#define PHILOX_DITHER 128 /* coordinates that one group of counters serves */
#define PHILOX_SIGNS 2048

enum { PURPOSE_DITHER = 1, PURPOSE_SIGNS = 2, PURPOSE_ROUNDING = 3 };

typedef struct {
  uint32_t word[4][PHILOX_LANES];
} Random;

#if defined(FG_FOR_AVX512VNNI)

/* Eight counters in 64-bit lanes, of which the low halves count: a product's high half is then one shift away. */
static inline void philox_eight(__m512i word[4], uint64_t key) {
  const __m512i factor_a = _mm512_set1_epi64(0xd2511f53), factor_c = _mm512_set1_epi64(0xcd9e8d57);
  __m512i a = word[0], b = word[1], c = word[2], d = word[3];
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; round++) {
    __m512i product_a = _mm512_mul_epu32(a, factor_a), product_c = _mm512_mul_epu32(c, factor_c);
    a = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product_c, 32), b, _mm512_set1_epi64(k0), 0x96); /* exclusive or of three */
    c = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product_a, 32), d, _mm512_set1_epi64(k1), 0x96);
    b = product_c;
    d = product_a;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  word[0] = a, word[1] = b, word[2] = c, word[3] = d;
}

static inline void philox_group(uint64_t key, uint64_t group, uint32_t stream, uint32_t purpose, Random *out) {
  __m512i even[4], odd[4]; /* counters 0, 2, .. 14 of the sixteen, and those between */
  even[0] = _mm512_add_epi64(_mm512_set1_epi64((int64_t)(group << 4)), _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14));
  odd[0] = _mm512_or_si512(even[0], _mm512_set1_epi64(1));
  even[1] = odd[1] = _mm512_set1_epi64((int64_t)(group >> 28));
  even[2] = odd[2] = _mm512_set1_epi64(stream);
  even[3] = odd[3] = _mm512_set1_epi64(purpose);
  philox_eight(even, key);
  philox_eight(odd, key);
  for (int w = 0; w < 4; w++)
    _mm512_storeu_si512(out->word[w], _mm512_mask_blend_epi32(0xaaaa, even[w], _mm512_slli_epi64(odd[w], 32)));
}

#elif defined(FG_FOR_AVX2)

/* Four counters in 64-bit lanes, of which the low halves count: a product's high half is then one shift away. */
static inline void philox_four(__m256i word[4], uint64_t key) {
  const __m256i factor_a = _mm256_set1_epi64x(0xd2511f53), factor_c = _mm256_set1_epi64x(0xcd9e8d57);
  __m256i a = word[0], b = word[1], c = word[2], d = word[3];
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; round++) {
    __m256i product_a = _mm256_mul_epu32(a, factor_a), product_c = _mm256_mul_epu32(c, factor_c);
    a = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product_c, 32), b), _mm256_set1_epi64x(k0));
    c = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product_a, 32), d), _mm256_set1_epi64x(k1));
    b = product_c;
    d = product_a;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  word[0] = a, word[1] = b, word[2] = c, word[3] = d;
}

static inline void philox_group(uint64_t key, uint64_t group, uint32_t stream, uint32_t purpose, Random *out) {
  for (uint32_t first = 0; first < PHILOX_LANES; first += 8) {
    __m256i even[4], odd[4]; /* counters 0, 2, 4, 6 of the eight, and those between */
    __m256i counter = _mm256_add_epi64(_mm256_set1_epi64x((int64_t)((group << 4) + first)), _mm256_setr_epi64x(0, 2, 4, 6));
    even[0] = counter;
    odd[0] = _mm256_or_si256(counter, _mm256_set1_epi64x(1));
    even[1] = odd[1] = _mm256_set1_epi64x((int64_t)(group >> 28));
    even[2] = odd[2] = _mm256_set1_epi64x(stream);
    even[3] = odd[3] = _mm256_set1_epi64x(purpose);
    philox_four(even, key);
    philox_four(odd, key);
    for (int w = 0; w < 4; w++) {
      __m256i both = _mm256_blend_epi32(even[w], _mm256_slli_epi64(odd[w], 32), 0xaa);
      _mm256_storeu_si256((__m256i *)(void *)(out->word[w] + first), both);
    }
  }
}

#else

/* high and low halves of a * factor, lane by lane. */
static inline void multiply_wide(const uint32_t a[PHILOX_LANES], uint32_t factor, uint32_t high[PHILOX_LANES],
                                 uint32_t low[PHILOX_LANES]) {
  for (int i = 0; i < PHILOX_LANES; i++) {
    uint64_t product = (uint64_t)a[i] * factor;
    high[i] = (uint32_t)(product >> 32);
    low[i] = (uint32_t)product;
  }
}

static inline void philox_group(uint64_t key, uint64_t group, uint32_t stream, uint32_t purpose, Random *out) {
  uint32_t a[PHILOX_LANES], b[PHILOX_LANES], c[PHILOX_LANES], d[PHILOX_LANES];
  for (uint32_t i = 0; i < PHILOX_LANES; i++) {
    a[i] = (uint32_t)(group << 4) + i;
    b[i] = (uint32_t)(group >> 28);
    c[i] = stream;
    d[i] = purpose;
  }
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; round++) {
    uint32_t high_a[PHILOX_LANES], low_a[PHILOX_LANES], high_c[PHILOX_LANES], low_c[PHILOX_LANES];
    multiply_wide(a, 0xd2511f53u, high_a, low_a);
    multiply_wide(c, 0xcd9e8d57u, high_c, low_c);
    for (int i = 0; i < PHILOX_LANES; i++) {
      a[i] = high_c[i] ^ b[i] ^ k0;
      b[i] = low_c[i];
      c[i] = high_a[i] ^ d[i] ^ k1;
      d[i] = low_a[i];
    }
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  memcpy(out->word[0], a, sizeof a);
  memcpy(out->word[1], b, sizeof b);
  memcpy(out->word[2], c, sizeof c);
  memcpy(out->word[3], d, sizeof d);
}

#endif

void FG_ISA(fg_philox)(uint64_t key, uint64_t group, uint32_t stream, uint32_t purpose, uint32_t *out) {
  Random random;
  philox_group(key, group, stream, purpose, &random);
  memcpy(out, &random, sizeof random);
}
