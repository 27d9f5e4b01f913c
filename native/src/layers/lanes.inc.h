/* Moves of short rows, in native vectors: rows of planes have 7 to 224 floats, too few for memcpy's call or for a loop with a remainder.
 * A row that isn't a whole number of vectors ends with a vector that overlaps the one before. */
static inline NativeFloat load_lanes(const float *from) {
  NativeFloat v;
  memcpy(&v, from, sizeof v);
  return v;
}

static inline void store_lanes(float *to, NativeFloat v) { memcpy(to, &v, sizeof v); }

static inline void fill_row(float *out, size_t n, float value) {
  for (size_t i = 0; i < n; i++) out[i] = value;
}

static inline void copy_row(float *to, const float *from, size_t n) {
  if (n >= NATIVE_LANES) {
    for (size_t i = 0; i < n; i += NATIVE_LANES) {
      size_t at = i + NATIVE_LANES <= n ? i : n - NATIVE_LANES;
      store_lanes(to + at, load_lanes(from + at));
    }
  } else if (n >= 8) {
    memcpy(to, from, 32);
    memmove(to + n - 8, from + n - 8, 32);
  } else if (n >= 4) {
    memcpy(to, from, 16);
    memmove(to + n - 4, from + n - 4, 16);
  } else {
    for (size_t i = 0; i < n; i++) to[i] = from[i];
  }
}

#if NATIVE_LANES == 16
#define EVENS 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODDS 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif NATIVE_LANES == 8
#define EVENS 0, 2, 4, 6, 8, 10, 12, 14
#define ODDS 1, 3, 5, 7, 9, 11, 13, 15
#define ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define EVENS 0, 2, 4, 6
#define ODDS 1, 3, 5, 7
#define ZIP_LOW 0, 4, 1, 5
#define ZIP_HIGH 2, 6, 3, 7
#endif
#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (NativeInt){__VA_ARGS__})
#endif

/* even[i] = x[2 i], odd[i] = x[2 i + 1] for i < n */
static inline void unzip_row(const float *x, size_t n, float *even, float *odd) {
  if (n < NATIVE_LANES) {
    for (size_t i = 0; i < n; i++) even[i] = x[2 * i], odd[i] = x[2 * i + 1];
    return;
  }
  for (size_t i = 0; i < n; i += NATIVE_LANES) {
    size_t at = i + NATIVE_LANES <= n ? i : n - NATIVE_LANES;
    NativeFloat low = load_lanes(x + 2 * at), high = load_lanes(x + 2 * at + NATIVE_LANES);
    store_lanes(even + at, PICK(low, high, EVENS));
    store_lanes(odd + at, PICK(low, high, ODDS));
  }
}

/* x[2 i] = even[i], x[2 i + 1] = odd[i] for i < n */
static inline void zip_row(const float *even, const float *odd, size_t n, float *x) {
  if (n < NATIVE_LANES) {
    for (size_t i = 0; i < n; i++) x[2 * i] = even[i], x[2 * i + 1] = odd[i];
    return;
  }
  for (size_t i = 0; i < n; i += NATIVE_LANES) {
    size_t at = i + NATIVE_LANES <= n ? i : n - NATIVE_LANES;
    NativeFloat a = load_lanes(even + at), b = load_lanes(odd + at);
    store_lanes(x + 2 * at, PICK(a, b, ZIP_LOW));
    store_lanes(x + 2 * at + NATIVE_LANES, PICK(a, b, ZIP_HIGH));
  }
}
