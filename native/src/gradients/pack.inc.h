/* Brings operands into the order that the tiles read, quantizing on the way. */
typedef int32_t Four __attribute__((vector_size(16)));

#if defined(__clang__)
#define FROM_BOTH(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FROM_BOTH(a, b, ...) __builtin_shuffle(a, b, (Four){__VA_ARGS__})
#endif

static inline void transpose4(Four v[4]) {
  Four a = FROM_BOTH(v[0], v[1], 0, 4, 1, 5), b = FROM_BOTH(v[0], v[1], 2, 6, 3, 7);
  Four c = FROM_BOTH(v[2], v[3], 0, 4, 1, 5), d = FROM_BOTH(v[2], v[3], 2, 6, 3, 7);
  v[0] = FROM_BOTH(a, c, 0, 1, 4, 5);
  v[1] = FROM_BOTH(a, c, 2, 3, 6, 7);
  v[2] = FROM_BOTH(b, d, 0, 1, 4, 5);
  v[3] = FROM_BOTH(b, d, 2, 3, 6, 7);
}

/* Eight codes of eight neighbours. Conversion rounds to nearest even, as adding ROUND_FLOAT does. */
static inline void quantize8(const float *x, float inverse, int32_t bias, Code *out) {
#if defined(FG_FOR_AVX2)
  (void)bias; /* 0 here */
  __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), _mm256_set1_ps(inverse)));
  _mm_storeu_si128((__m128i *)(void *)out, _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1)));
#elif defined(FG_FOR_AVX512VNNI)
  __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), _mm256_set1_ps(inverse)));
  _mm_storel_epi64((__m128i *)(void *)out, _mm256_cvtepi32_epi8(_mm256_add_epi32(q, _mm256_set1_epi32(bias))));
#elif defined(__aarch64__) && !defined(FG_FOR_SERIAL)
  (void)bias;
  int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), inverse)), high = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4), inverse));
  vst1_s8(out, vmovn_s16(vcombine_s16(vmovn_s32(low), vmovn_s32(high))));
#else
  for (size_t i = 0; i < 8; i++) out[i] = (Code)(quantized(x[i], inverse) + bias);
#endif
}

/* Codes of `count` neighbours with one scale. A last vector overlaps the one before it: what it writes twice is the same. */
static inline void quantize_run(const float *x, size_t count, float inverse, int32_t bias, Code *out) {
  size_t i = 0;
  if (count < 8) {
    for (; i < count; i++) out[i] = (Code)(quantized(x[i], inverse) + bias);
    return;
  }
#if defined(FG_FOR_AVX2)
  for (; i + 16 <= count; i += 16) { /* half the shuffles of two times eight */
    __m256 scale = _mm256_set1_ps(inverse);
    __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), scale));
    __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), scale));
    _mm256_storeu_si256((__m256i *)(void *)(out + i), _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8));
  }
#endif
  for (; i + 8 <= count; i += 8) quantize8(x + i, inverse, bias, out + i);
  if (i < count) quantize8(x + count - 8, inverse, bias, out + count - 8);
}

static void widen_run(const int8_t *codes, size_t count, Code *out) {
  for (size_t i = 0; i < count; i++) out[i] = (Code)(codes[i] + TILE_BIAS);
}

#if defined(FG_FOR_AVX2)
#include "pack_avx2.inc.h"
#endif

/* Sixteen columns, each a row of `rows` that are `pitch` codes apart, into a panel of `width`. positions: a multiple of TILE_PAD. */
static void interleave(const Code *rows, size_t pitch, size_t positions, Code *panel, size_t width) {
  const size_t bytes = TILE_GROUP * sizeof(Code);
  if (bytes == 4) {
    size_t groups = positions / TILE_GROUP, g = 0;
    for (; g + 4 <= groups; g += 4)
      for (size_t j = 0; j < TILE_LANES; j += 4) {
        Four v[4];
        for (size_t r = 0; r < 4; r++) memcpy(&v[r], rows + (j + r) * pitch + g * TILE_GROUP, 16);
        transpose4(v);
        for (size_t r = 0; r < 4; r++) memcpy(panel + ((g + r) * width + j) * TILE_GROUP, &v[r], 16);
      }
    for (; g < groups; g++)
      for (size_t j = 0; j < TILE_LANES; j++) memcpy(panel + (g * width + j) * TILE_GROUP, rows + j * pitch + g * TILE_GROUP, 4);
  } else {
    for (size_t g = 0; g < positions / TILE_GROUP; g++)
      for (size_t j = 0; j < TILE_LANES; j++) memcpy(panel + (g * width + j) * TILE_GROUP, rows + j * pitch + g * TILE_GROUP, bytes);
  }
}

/* Codes of one position each, joined: into 32-bit words, as TILE_GROUP or a run has them in memory. */
static inline uint32_t word_of(const int32_t *q, size_t pitch, size_t word) {
  if (sizeof(Code) == 2) {
    const int32_t *at = q + 2 * word * pitch;
    return ((uint32_t)at[0] & 0xffffu) | (uint32_t)at[pitch] << 16;
  }
  const int32_t *at = q + 4 * word * pitch;
  uint32_t low = ((uint32_t)at[0] & 0xffu) | ((uint32_t)at[pitch] & 0xffu) << 8;
  return low | ((uint32_t)at[2 * pitch] & 0xffu) << 16 | (uint32_t)at[3 * pitch] << 24;
}

#define WORD_OF(n) ((n) * sizeof(Code) / 4) /* words of n codes */

/* A group of TILE_GROUP positions of at most 16 columns of a matrix in row order; what is outside is zero. */
static inline void pack_group(const float *x, size_t pitch, size_t positions, size_t columns, const float *inverse, Code *out) {
#if defined(FG_FOR_AVX2)
  if (positions >= TILE_GROUP && columns == TILE_LANES) {
    pack_pairs(x, pitch, inverse, out);
    return;
  }
#endif
  int32_t q[TILE_GROUP][TILE_LANES];
  for (size_t r = 0; r < TILE_GROUP; r++) {
    if (r < positions && columns == TILE_LANES) {
      for (size_t j = 0; j < TILE_LANES; j++) q[r][j] = quantized(x[r * pitch + j], inverse[j]);
    } else {
      memset(q[r], 0, sizeof q[r]);
      if (r < positions)
        for (size_t j = 0; j < columns; j++) q[r][j] = quantized(x[r * pitch + j], inverse[j]);
    }
  }
  uint32_t words[TILE_LANES * WORD_OF(TILE_GROUP)];
  for (size_t j = 0; j < TILE_LANES; j++)
    for (size_t w = 0; w < WORD_OF(TILE_GROUP); w++) words[j * WORD_OF(TILE_GROUP) + w] = word_of(&q[0][j], TILE_LANES, w);
  memcpy(out, words, sizeof words);
}

#define AHEAD 16 /* rows of a matrix that are fetched before they are needed */

/* Rows of a product from columns of a matrix in row order: a panel of TILE_ROWS rows after the other, each [run][row][TILE_RUN],
 * a row's share of it `reach` codes; and their corrections. columns <= GRAD_STRIPE; depth is `positions`, zeros added for whole runs. */
static void pack_rows(const float *x, const int8_t *codes, size_t pitch, size_t positions, size_t depth, size_t reach, size_t columns,
                      const float *inverse, Code *out, int32_t *row_off) {
  const size_t element = codes ? sizeof *codes : sizeof *x;
  int32_t q[TILE_RUN][GRAD_STRIPE];
  uint32_t line[GRAD_STRIPE * WORD_OF(TILE_RUN)];
#if defined(FG_FOR_AVX2)
  const size_t fast = columns / 8 * 8; /* columns that pack_run takes */
  int32_t corrections[2 * GRAD_STRIPE] = {0};
  float last[TILE_RUN][GRAD_STRIPE] = {{0}};
  int8_t last_codes[TILE_RUN][GRAD_STRIPE] = {{0}};
  for (size_t r = positions / TILE_RUN * TILE_RUN; r < positions; r++) /* a run that isn't whole */
    memcpy(codes ? (void *)last_codes[r % TILE_RUN] : (void *)last[r % TILE_RUN],
           codes ? (const void *)(codes + r * pitch) : (const void *)(x + r * pitch), columns * element);
#else
  const size_t fast = 0;
#endif
  for (size_t p = 0; p < depth; p += TILE_RUN) {
    for (size_t r = p + AHEAD; r < p + AHEAD + TILE_RUN && r < positions; r++) /* rows lie too far apart for the processor to foresee */
      for (size_t j = 0; j < columns; j += 64 / element)
        __builtin_prefetch(codes ? (const void *)(codes + r * pitch + j) : (const void *)(x + r * pitch + j));
#if defined(FG_FOR_AVX2)
    int whole = p + TILE_RUN <= positions;
    pack_run(whole && !codes ? x + p * pitch : last[0], !codes ? NULL : whole ? codes + p * pitch : last_codes[0],
             whole ? pitch : GRAD_STRIPE, reach, fast, inverse, out + p * TILE_ROWS, corrections);
    if (fast == columns) continue;
#endif
    for (size_t r = 0; r < TILE_RUN; r++) {
      size_t at = (p + r) * pitch;
      if (p + r >= positions)
        for (size_t j = fast; j < columns; j++) q[r][j] = TILE_BIAS;
      else if (codes)
        for (size_t j = fast; j < columns; j++) q[r][j] = codes[at + j] + TILE_BIAS;
      else
        for (size_t j = fast; j < columns; j++) q[r][j] = quantized(x[at + j], inverse[j]) + TILE_BIAS;
    }
    for (size_t j = fast; j < columns; j++)
      for (size_t w = 0; w < WORD_OF(TILE_RUN); w++) line[j * WORD_OF(TILE_RUN) + w] = word_of(&q[0][j], GRAD_STRIPE, w);
    size_t first = fast;
    for (; first + TILE_ROWS <= columns; first += TILE_ROWS)
      memcpy(out + first * reach + p * TILE_ROWS, line + first * WORD_OF(TILE_RUN), TILE_ROWS * TILE_RUN * sizeof(Code));
    if (first < columns)
      memcpy(out + first * reach + p * (columns - first), line + first * WORD_OF(TILE_RUN),
             (columns - first) * TILE_RUN * sizeof(Code));
  }
#if defined(FG_FOR_AVX2)
  for (size_t j = 0; j < fast; j++) row_off[j] = corrections[2 * j];
#endif
#if defined(TILE_ROW_CORRECTION)
  for (size_t j = fast; j < columns; j++) {
    size_t panel = j / TILE_ROWS * TILE_ROWS, of = columns - panel < TILE_ROWS ? columns - panel : TILE_ROWS;
    Segment all = {0, depth};
    row_off[j] = TILE_ROW_CORRECTION(out + panel * reach + (j - panel) * TILE_RUN, of * TILE_RUN, &all, 1);
  }
#else
  memset(row_off, 0, columns * sizeof *row_off);
#endif
}
