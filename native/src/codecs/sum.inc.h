/* The integer ring that a round sums in: 64-bit fixed point with 32 fractional bits. */
#define FIXED_RANGE 0x42800000u /* bits of 64.0f */

static inline void add_fixed(int64_t *sum, const float *values, size_t n, int64_t weight) {
  for (size_t i = 0; i < n; i++) {
    double shifted = (double)values[i] * 0x1p32 + ROUND_DOUBLE;
    int64_t q;
    memcpy(&q, &shifted, 8);
    sum[i] += (q - 0x4338000000000000) * weight; /* the bits of ROUND_DOUBLE */
  }
}

/* Checked and added while it is in the cache; integers go back exactly, so what comes before a bad value is taken out again. */
int FG_ISA(fg_ring_add)(int64_t *sum, const float *values, size_t n, int64_t weight, size_t *where) {
  for (size_t start = 0; start < n; start += 1024) {
    size_t count = n - start < 1024 ? n - start : 1024;
    if (absmax(values + start, count) <= FIXED_RANGE) {
      add_fixed(sum + start, values + start, count, weight);
      continue;
    }
    add_fixed(sum, values, start, -weight);
    for (size_t i = start;; i++) {
      uint32_t u = bits(values[i]) & MAGNITUDE_MASK;
      if (u > FIXED_RANGE) {
        *where = i;
        return u >= EXPONENT_MASK ? FG_NONFINITE : FG_RANGE;
      }
    }
  }
  return FG_OK;
}
