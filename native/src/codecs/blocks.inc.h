/* blk8: blocks of 64 values under one absmax scale, rounded to nearest or stochastically. */
/* Uniform 24 bits for value i: two rounds of a 32-bit mixer (C. Wellons' lowbias32), keyed by the halves of the key. */
static inline uint32_t mix(uint32_t z) {
  z = (z ^ (z >> 16)) * 0x7feb352du;
  z = (z ^ (z >> 15)) * 0x846ca68bu;
  return z ^ (z >> 16);
}

int FG_ISA(fg_blk8_encode)(const float *values, size_t n, const uint64_t *key, uint8_t *out, size_t *where) {
  for (size_t start = 0; start < n; start += FG_BLOCK) {
    const float *x = values + start;
    size_t count = n - start < FG_BLOCK ? n - start : FG_BLOCK;
    uint32_t most = absmax(x, count);
    if (most >= EXPONENT_MASK) {
      *where = start + FG_ISA(fg_find_nonfinite)(x, count);
      return FG_NONFINITE;
    }
    float scale = from_bits(most) / 127.0f;
    float inverse = 0.0f;
    if (scale < LEAST_SCALE)
      scale = 0.0f;
    else
      inverse = 127.0f / from_bits(most);
    memcpy(out, &scale, 4);
    out += 4;
    if (key) {
      uint32_t low = (uint32_t)*key, high = (uint32_t)(*key >> 32);
      for (size_t i = 0; i < count; i++) {
        uint32_t h = mix(mix((uint32_t)(start + i) + low) ^ high);
        float y = x[i] * inverse + (float)(int32_t)(h >> 8) * 0x1p-24f;
        int32_t floor = (int32_t)y;
        floor -= y < (float)floor;
        floor = floor > 127 ? 127 : floor;
        floor = floor < -127 ? -127 : floor;
        out[i] = (uint8_t)(inverse > 0.0f ? floor : 0);
      }
    } else {
      for (size_t i = 0; i < count; i++) out[i] = (uint8_t)bits(x[i] * inverse + ROUND_FLOAT);
    }
    out += count;
  }
  return FG_OK;
}

int FG_ISA(fg_blk8_decode)(const uint8_t *payload, size_t n, float *out, size_t *where) {
  for (size_t start = 0; start < n; start += FG_BLOCK) {
    size_t count = n - start < FG_BLOCK ? n - start : FG_BLOCK;
    uint32_t raw;
    memcpy(&raw, payload, 4);
    float scale = from_bits(raw);
    *where = start / FG_BLOCK;
    if (raw != 0 && !(raw < EXPONENT_MASK && scale >= LEAST_SCALE)) return FG_SCALE;
    payload += 4;
    int bad = 0;
    int zero = raw == 0;
    for (size_t i = 0; i < count; i++) {
      int8_t code = (int8_t)payload[i];
      bad |= code == -128;
      bad |= zero & (code != 0);
      out[start + i] = scale * (float)code;
    }
    if (bad) return FG_CODE;
    payload += count;
  }
  return FG_OK;
}
