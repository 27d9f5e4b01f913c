/* A block's work in portable C: loops of a fixed length, which compilers vectorise. */
static inline uint32_t block_absmax(const float *x) { return absmax(x, FG_BLOCK); }

/* The low byte of each sum is the integer that it was rounded to. */
static inline void block_nearest(const float *x, float inverse, uint8_t *codes) {
  for (size_t i = 0; i < FG_BLOCK; i++) codes[i] = (uint8_t)bits(x[i] * inverse + ROUND_FLOAT);
}

/* v for 16 bits that stand in the upper part of a float's 23-bit fraction: [1, 2) less 3/2, on the middle of its step. Exact. */
static inline float centred(uint32_t fraction) { return from_bits(0x3f800000u | (fraction & 0x7fff80u)) - (1.5f - 0x1p-17f); }

static inline void block_stochastic(const float *x, float inverse, int levels, uint32_t base, uint8_t *codes) {
  float noise[FG_BLOCK], most = (float)levels;
  for (uint32_t j = 0; j < FG_BLOCK / 2; j++) {
    uint32_t h = mix(base + j * 0x9e3779b9u);
    noise[j] = centred(h << 7);
    noise[j + FG_BLOCK / 2] = centred(h >> 9);
  }
  for (size_t i = 0; i < FG_BLOCK; i++) {
    float y = x[i] * inverse + noise[i];
    y = y < most ? y : most;
    y = y > -most ? y : -most;
    codes[i] = (uint8_t)bits(y + ROUND_FLOAT);
  }
}

/* 64 codes as halves of 32 bytes, and back. */
static inline void block_narrow(const uint8_t *codes, uint8_t *out) {
  for (size_t j = 0; j < 32; j++) out[j] = (uint8_t)((codes[j] & 15u) | (unsigned)codes[j + 32] << 4);
}

static inline void block_widen(const uint8_t *in, uint8_t *codes) {
  uint8_t narrow[32];
  memcpy(narrow, in, sizeof narrow);
  for (size_t j = 0; j < 32; j++) {
    codes[j] = (uint8_t)(((narrow[j] & 15u) ^ 8u) - 8u);
    codes[j + 32] = (uint8_t)((narrow[j] >> 4 ^ 8u) - 8u);
  }
}

/* 64 values; 1 where a code is `never`, or under a scale of zero isn't zero. */
static inline int block_floats(const uint8_t *codes, int never, float scale, float *out) {
  int8_t code[FG_BLOCK];
  memcpy(code, codes, sizeof code);
  uint8_t bad = 0, any = 0;
  for (size_t i = 0; i < FG_BLOCK; i++) {
    bad |= code[i] == (int8_t)never;
    any |= (uint8_t)code[i];
  }
  for (size_t i = 0; i < FG_BLOCK; i++) out[i] = scale * (float)code[i];
  return bad || (any && !(scale > 0.0f));
}
