/* The randomized Hadamard rotation: signs by Philox, then the fast Walsh-Hadamard transform, window by window.
 *
 * A window has 4096 values, or for shorter vectors the largest power of two that fits. Windows lie side by side; what is left over at
 * the end is covered by one more window that ends at the vector's end and overlaps the last: it is rotated after it, and undone before
 * it. So nothing is padded, and the whole stays orthogonal.
 *
 *   n = 10000:   |---- 4096 ----|---- 4096 ----|
 *                                    |---- 4096 ----|      the leftover's window, rotated last
 *
 * Levels run h = 1, 2, 4, ...: every output is the same tree of additions on every ISA.
 */
#define WINDOW 4096

typedef float Lanes16 __attribute__((vector_size(64)));
typedef int32_t Mask16 __attribute__((vector_size(64)));

static inline size_t window_for(size_t n) {
  size_t window = 1;
  while (window < WINDOW && 2 * window <= n) window *= 2;
  return window;
}

#if defined(__clang__)
#define SWAP(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define SWAP(x, ...) __builtin_shuffle(x, (Mask16){__VA_ARGS__})
#endif
#define MINUS(...) ((Mask16){__VA_ARGS__} * INT32_MIN) /* the sign bit where the lane is the lower of its pair */

/* Levels 1, 2, 4, 8 inside sixteen values: x[i] = x[i ^ h] +- x[i]. */
static inline void butterfly16(float *at) {
  Lanes16 x;
  memcpy(&x, at, sizeof x);
  x = SWAP(x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14) +
      (Lanes16)((Mask16)x ^ MINUS(0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1));
  x = SWAP(x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13) +
      (Lanes16)((Mask16)x ^ MINUS(0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1));
  x = SWAP(x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11) +
      (Lanes16)((Mask16)x ^ MINUS(0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1));
  x = SWAP(x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7) +
      (Lanes16)((Mask16)x ^ MINUS(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1));
  memcpy(at, &x, sizeof x);
}

/* Four levels at once on sixteen vectors that lie `stride` floats apart. */
static inline void butterfly_vectors(float *at, size_t stride) {
  Lanes16 x[16];
  for (size_t i = 0; i < 16; i++) memcpy(&x[i], at + i * stride, sizeof x[i]);
#pragma GCC unroll 4
  for (size_t h = 1; h < 16; h *= 2)
#pragma GCC unroll 16
    for (size_t i = 0; i < 16; i++)
      if (!(i & h)) {
        Lanes16 low = x[i], high = x[i | h];
        x[i] = low + high;
        x[i | h] = low - high;
      }
  for (size_t i = 0; i < 16; i++) memcpy(at + i * stride, &x[i], sizeof x[i]);
}

/* Unscaled transform of n values, a power of two up to 4096, in place. */
static void hadamard(float *x, size_t n) {
  if (n < 16) {
    for (size_t h = 1; h < n; h *= 2)
      for (size_t i = 0; i < n; i++)
        if (!(i & h)) {
          float low = x[i], high = x[i | h];
          x[i] = low + high;
          x[i | h] = low - high;
        }
    return;
  }
  for (size_t i = 0; i < n; i += 16) butterfly16(x + i);
  size_t h = 16;
  for (; 16 * h <= n; h *= 16)
    for (size_t block = 0; block < n; block += 16 * h)
      for (size_t i = 0; i < h; i += 16) butterfly_vectors(x + block + i, h);
  for (; h < n; h *= 2)
    for (size_t block = 0; block < n; block += 2 * h)
      for (size_t i = 0; i < h; i++) {
        float low = x[block + i], high = x[block + h + i];
        x[block + i] = low + high;
        x[block + h + i] = low - high;
      }
}

/* Window number `window`'s signs and a factor, applied to n values in place. */
static void flip_signs(float *x, size_t n, uint64_t key, uint32_t stream, uint64_t window, float factor) {
  for (size_t start = 0; start < n; start += PHILOX_SIGNS) {
    Random random;
    philox_group(key, window * (WINDOW / PHILOX_SIGNS) + start / PHILOX_SIGNS, stream, PURPOSE_SIGNS, &random);
    size_t count = n - start < PHILOX_SIGNS ? n - start : PHILOX_SIGNS;
    for (size_t b = 0; b < (count + 15) / 16; b++) {
      float *at = x + start + 16 * b;
      const uint32_t *word = random.word[b / 32];
      size_t lanes = count - 16 * b < 16 ? count - 16 * b : 16;
      if (lanes == 16)
        for (size_t i = 0; i < 16; i++) at[i] = from_bits(bits(at[i] * factor) ^ (word[i] >> b % 32 << 31));
      else
        for (size_t i = 0; i < lanes; i++) at[i] = from_bits(bits(at[i] * factor) ^ (word[i] >> b % 32 << 31));
    }
  }
}

/* 2^-floor(log2(n) / 2) for n a power of two: the forward factor; the inverse one is 1 / (n * forward). Both are exact. */
static inline float rotation_factor(size_t n) { return 1.0f / (float)((size_t)1 << (63 - (size_t)__builtin_clzll(n)) / 2); }

static void rotate(float *x, size_t n, uint64_t key, uint32_t stream, uint64_t window) {
  flip_signs(x, n, key, stream, window, rotation_factor(n));
  hadamard(x, n);
}

static void rotate_back(float *x, size_t n, uint64_t key, uint32_t stream, uint64_t window) {
  hadamard(x, n);
  flip_signs(x, n, key, stream, window, 1.0f / ((float)n * rotation_factor(n)));
}
