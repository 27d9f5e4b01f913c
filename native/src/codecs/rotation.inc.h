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

static inline size_t window_for(size_t n) {
  size_t window = 1;
  while (window < WINDOW && 2 * window <= n) window *= 2;
  return window;
}

/* Registers that one pass transforms at once: eight where there are sixteen, sixteen where there are thirty-two. */
#if defined(FG_FOR_AVX512VNNI) || defined(__aarch64__)
#define RADIX 16
#else
#define RADIX 8
#endif

#if defined(__clang__)
#define SWAP(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define SWAP(x, ...) __builtin_shuffle(x, (NativeInt){__VA_ARGS__})
#endif
/* x[i] = x[i ^ h] +- x[i]: minus where the lane is the upper of its pair. */
#define LEVEL(x, swapped, ...) ((swapped) + (NativeFloat)((NativeInt)(x) ^ ((NativeInt){__VA_ARGS__} * INT32_MIN)))

/* The levels 1, 2, ... inside a register. */
static inline NativeFloat butterfly_lanes(NativeFloat x) {
#if NATIVE_LANES == 4
  x = LEVEL(x, SWAP(x, 1, 0, 3, 2), 0, 1, 0, 1);
  x = LEVEL(x, SWAP(x, 2, 3, 0, 1), 0, 0, 1, 1);
#elif NATIVE_LANES == 8
  x = LEVEL(x, SWAP(x, 1, 0, 3, 2, 5, 4, 7, 6), 0, 1, 0, 1, 0, 1, 0, 1);
  x = LEVEL(x, SWAP(x, 2, 3, 0, 1, 6, 7, 4, 5), 0, 0, 1, 1, 0, 0, 1, 1);
  x = LEVEL(x, SWAP(x, 4, 5, 6, 7, 0, 1, 2, 3), 0, 0, 0, 0, 1, 1, 1, 1);
#else
  x = LEVEL(x, SWAP(x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14), 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1);
  x = LEVEL(x, SWAP(x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13), 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1);
  x = LEVEL(x, SWAP(x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11), 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1);
  x = LEVEL(x, SWAP(x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7), 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
#endif
  return x;
}

/* log2(count) levels on `count` registers that lie `stride` floats apart, after those inside a register where `lanes` says so. */
static inline ALWAYS_INLINE void butterfly_registers(float *at, size_t stride, size_t count, int lanes) {
  NativeFloat x[RADIX];
#pragma GCC unroll 16
  for (size_t i = 0; i < count; i++) x[i] = lanes ? butterfly_lanes(load(at + i * stride)) : load(at + i * stride);
#pragma GCC unroll 4
  for (size_t h = 1; h < count; h *= 2)
#pragma GCC unroll 16
    for (size_t i = 0; i < count; i++)
      if (!(i & h)) {
        NativeFloat low = x[i], high = x[i | h];
        x[i] = low + high;
        x[i | h] = low - high;
      }
#pragma GCC unroll 16
  for (size_t i = 0; i < count; i++) store(at + i * stride, x[i]);
}

static inline ALWAYS_INLINE void pass(float *x, size_t n, size_t h, size_t count) {
  for (size_t block = 0; block < n; block += count * h)
    for (size_t i = 0; i < h; i += NATIVE_LANES) butterfly_registers(x + block + i, h, count, 0);
}

/* Unscaled transform of n values, a power of two up to 4096, in place. */
static void hadamard(float *x, size_t n) {
  if (n < RADIX * NATIVE_LANES) {
    for (size_t h = 1; h < n; h *= 2)
      for (size_t i = 0; i < n; i++)
        if (!(i & h)) {
          float low = x[i], high = x[i | h];
          x[i] = low + high;
          x[i | h] = low - high;
        }
    return;
  }
  for (size_t i = 0; i < n; i += RADIX * NATIVE_LANES) butterfly_registers(x + i, NATIVE_LANES, RADIX, 1);
  for (size_t h = RADIX * NATIVE_LANES; h < n;) {
    size_t count = n / h < RADIX ? n / h : RADIX;
    switch (count) { /* a constant count keeps everything in registers */
      case 2: pass(x, n, h, 2); break;
      case 4: pass(x, n, h, 4); break;
      case 8: pass(x, n, h, 8); break;
      default: pass(x, n, h, RADIX); break;
    }
    h *= count;
  }
}

/* Window number `window`'s signs and a factor, applied to n values on their way to `to`, which may be where they are. */
static void flip_signs(const float *from, float *to, size_t n, uint64_t key, uint32_t stream, uint64_t window, float factor) {
  for (size_t start = 0; start < n; start += PHILOX_SIGNS) {
    Random random;
    philox_group(key, window * (WINDOW / PHILOX_SIGNS) + start / PHILOX_SIGNS, stream, PURPOSE_SIGNS, &random);
    size_t count = n - start < PHILOX_SIGNS ? n - start : PHILOX_SIGNS;
    if (count < 16)
      for (size_t i = 0; i < count; i++) to[i] = from_bits(bits(from[i] * factor) ^ random.word[0][i] << 31);
    else
      for (size_t b = 0; b < count / 16; b++)
        for (size_t part = 0; part < 16; part += NATIVE_LANES) {
          size_t at = start + 16 * b + part;
          NativeInt words;
          memcpy(&words, random.word[b / 32] + part, sizeof words);
          store(to + at, (NativeFloat)((NativeInt)(load(from + at) * factor) ^ (words >> (int32_t)(b % 32) << 31)));
        }
  }
}

/* 2^-floor(log2(n) / 2) for n a power of two: the forward factor; the inverse one is 1 / (n * forward). Both are exact. */
static inline float rotation_factor(size_t n) { return 1.0f / (float)((size_t)1 << (63 - (size_t)__builtin_clzll(n)) / 2); }

/* Rotates n values, times a power of two, from one place to another or in place. */
static void rotate(const float *from, float *to, size_t n, uint64_t key, uint32_t stream, uint64_t window, float factor) {
  flip_signs(from, to, n, key, stream, window, rotation_factor(n) * factor);
  hadamard(to, n);
}

static void rotate_back(float *x, size_t n, uint64_t key, uint32_t stream, uint64_t window) {
  hadamard(x, n);
  flip_signs(x, x, n, key, stream, window, 1.0f / ((float)n * rotation_factor(n)));
}
