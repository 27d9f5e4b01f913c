/* Sigmoid and tanh in plain float operations of a fixed order, so that every machine gets the same bits; loops that use them vectorise.
 *
 * e^y = 2^n e^r with n = rint(y log2 e) and r = y - n ln 2 in two parts, the first with so few bits that n times it is exact;
 * e^r - 1 = r + r^2 q(r) with q of degree 5, fitted on |r| <= 0.3475 (error under 0.04 units in the last place).
 */
#define LOG2_E 0x1.715476p+0f
#define LN2_HIGH 0x1.63p-1f /* 9 bits: exact times n up to 8 bits */
#define LN2_LOW -0x1.bd0106p-13f

static inline float expm1_part(float r) {
  float q = 0x1.a172ecp-13f;
  q = q * r + 0x1.6d76c4p-10f;
  q = q * r + 0x1.1110b0p-7f;
  q = q * r + 0x1.5554acp-5f;
  q = q * r + 0x1.555556p-3f;
  q = q * r + 0.5f;
  return r + r * r * q;
}

/* x with its magnitude cut to `most`. On the bits, because compilers don't vectorise a choice between floats that could be NaN; here a
 * NaN becomes `most`: who may meet one looks at the bits itself. */
static inline float cut(float x, float most) {
  int32_t magnitude = (int32_t)(bits(x) & MAGNITUDE_MASK), limit = (int32_t)bits(most);
  magnitude = magnitude < limit ? magnitude : limit;
  return from_bits((uint32_t)magnitude | (bits(x) & ~MAGNITUDE_MASK));
}

/* e^y for |y| <= 87, where it is normal. */
static inline float exponential(float y) {
  float n = y * LOG2_E + ROUND_FLOAT;
  float power = from_bits((bits(n) << 23) + 0x3f800000u);
  n -= ROUND_FLOAT;
  float r = (y - n * LN2_HIGH) - n * LN2_LOW;
  return power + power * expm1_part(r);
}

/* 1 / (1 + e^-x); from |x| = 87 on the result is that of 87. */
static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-cut(x, 87.0f))); }

/* t / (t + 2) with t = e^(2 |x|) - 1, which loses nothing near 0; it is 1 from |x| = 10 on. */
static inline float hyperbolic_tangent(float x) {
  float y = 2.0f * cut(from_bits(bits(x) & MAGNITUDE_MASK), 10.0f);
  float n = y * LOG2_E + ROUND_FLOAT;
  float power = from_bits((bits(n) << 23) + 0x3f800000u);
  n -= ROUND_FLOAT;
  float r = (y - n * LN2_HIGH) - n * LN2_LOW;
  float t = power * expm1_part(r) + (power - 1.0f);
  return from_bits(bits(t / (t + 2.0f)) | (bits(x) & ~MAGNITUDE_MASK));
}

void FG_ISA(fg_sigmoid)(const float *x, size_t n, float *out) {
  for (size_t i = 0; i < n; i++) out[i] = sigmoid(x[i]);
}

void FG_ISA(fg_hyperbolic_tangent)(const float *x, size_t n, float *out) {
  for (size_t i = 0; i < n; i++) out[i] = hyperbolic_tangent(x[i]);
}
