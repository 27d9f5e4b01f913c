/* raw32 and fp16: floats as they are, and as IEEE 754 halves (binary16), little-endian.
 *
 *   half   s eeeee mmmmmmmmmm    e > 0: (1 + m / 1024) * 2^(e - 15)    e = 0: m * 2^-24    e = 31 (infinity, NaN): never written
 *   1.0 = 00 3c    -2.0 = 00 c0    65504 = ff 7b    2^-24 = 01 00
 *
 * No float in between is subnormal, so a machine that flushes those (NEON on ARMv7) gives the same bytes.
 */
#define HALF_OVERFLOW 0x477ff000u /* bits of 65520: it and what is above would round to infinity */
#define HALF_NORMAL 0x38800000u   /* bits of 2^-14 */
#define HALF_REBIAS 0x38000000u   /* (127 - 15) << 23 */

/* Index of the first of n values whose magnitude's bits are over `most`, and the error that it is. There is one. */
static int refuse(const float *values, uint32_t most, size_t from, size_t *where) {
  for (size_t i = from;; i++) {
    uint32_t u = bits(values[i]) & MAGNITUDE_MASK;
    if (u <= most) continue;
    *where = i;
    return u >= EXPONENT_MASK ? FG_NONFINITE : FG_RANGE;
  }
}

int FG_ISA(fg_raw32_encode)(const float *values, size_t n, uint8_t *out, size_t *where) {
  for (size_t start = 0; start < n; start += 1024) {
    size_t count = n - start < 1024 ? n - start : 1024;
    if (absmax(values + start, count) >= EXPONENT_MASK) return refuse(values, EXPONENT_MASK - 1, start, where);
    memcpy(out + 4 * start, values + start, 4 * count);
  }
  return FG_OK;
}

int FG_ISA(fg_raw32_decode)(const uint8_t *payload, size_t n, float *out, size_t *where) {
  for (size_t start = 0; start < n; start += 1024) {
    size_t count = n - start < 1024 ? n - start : 1024;
    memcpy(out + start, payload + 4 * start, 4 * count);
    if (absmax(out + start, count) >= EXPONENT_MASK) return refuse(out, EXPONENT_MASK - 1, start, where);
  }
  return FG_OK;
}

static inline uint16_t half_of(float x) {
  uint32_t sign = bits(x) >> 16 & 0x8000u, magnitude = bits(x) & MAGNITUDE_MASK;
  uint32_t normal = (magnitude - HALF_REBIAS + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  uint32_t small = bits(from_bits(magnitude) + 0.5f) - 0x3f000000u; /* beside 0.5 a float's last bit is 2^-24, a half's least step */
  uint32_t is_small = 0u - (magnitude < HALF_NORMAL); /* a mask: with ?: the compiler branches around the addition */
  return (uint16_t)(sign | (small & is_small) | (normal & ~is_small));
}

static inline float float_of(uint16_t half) {
  uint32_t magnitude = half & 0x7fffu;
  uint32_t normal = (magnitude << 13) + HALF_REBIAS, small = bits((float)(int32_t)magnitude * 0x1p-24f);
  uint32_t is_small = 0u - (magnitude < 0x400u);
  return from_bits((uint32_t)(half & 0x8000u) << 16 | (small & is_small) | (normal & ~is_small));
}

int FG_ISA(fg_fp16_encode)(const float *values, size_t n, uint8_t *out, size_t *where) {
  for (size_t start = 0; start < n; start += 1024) {
    size_t count = n - start < 1024 ? n - start : 1024;
    if (absmax(values + start, count) >= HALF_OVERFLOW) return refuse(values, HALF_OVERFLOW - 1, start, where);
    uint16_t halves[1024];
    for (size_t i = 0; i < count; i++) halves[i] = half_of(values[start + i]);
    memcpy(out + 2 * start, halves, 2 * count);
  }
  return FG_OK;
}

int FG_ISA(fg_fp16_decode)(const uint8_t *payload, size_t n, float *out, size_t *where) {
  for (size_t start = 0; start < n; start += 1024) {
    size_t count = n - start < 1024 ? n - start : 1024;
    uint16_t halves[1024];
    memcpy(halves, payload + 2 * start, 2 * count);
    for (size_t i = 0; i < count; i++) out[start + i] = float_of(halves[i]); /* exponent 31 becomes 2^16 and more, which nothing else does */
    if (absmax(out + start, count) >= 0x47800000u) {
      refuse(out, 0x477fffffu, start, where);
      return FG_NONFINITE;
    }
  }
  return FG_OK;
}
