/* ring: integers that devices' updates can be added in, mod 2^r, without decoding: one rotation and one step for all, rounding of one's own.
 *
 *   z = floor(rotation(x) / step + uniform)  mod 2^r      sum of x = rotation back((sum of z, read as signed r-bit numbers) * step)
 *
 * r is 16, 20 or 32. On the wire: 16 bits, or 16-bit numbers and then a plane of the upper 4 bits (byte j: values j and j + S), or 32 bits.
 */
static inline float uniform24(uint32_t word) { return (float)(int32_t)(word >> 8) * 0x1p-24f; }

int FG_ISA(fg_lattice_encode)(const float *values, size_t n, float step, uint32_t most, uint64_t shared, uint64_t own,
                              uint32_t stream, uint32_t *out, size_t *where) {
  if (n == 0) return FG_OK;
  size_t window = window_for(n), windows = n / window, left = n % window;
  float y[2 * WINDOW], inverse = 1.0f / step, bound = (float)most;
  for (size_t i = 0; i < windows; i++) {
    size_t start = i * window, count = i + 1 == windows ? window + left : window;
    memcpy(y, values + start, count * sizeof *y);
    if (absmax(y, count) > 0x6c800000u) {
      for (*where = start;; ++*where) {
        uint32_t u = bits(values[*where]) & MAGNITUDE_MASK;
        if (u > 0x6c800000u) return u >= EXPONENT_MASK ? FG_NONFINITE : FG_RANGE;
      }
    }
    rotate(y, window, shared, stream, i);
    if (count > window) rotate(y + left, window, shared, stream, windows);
    for (size_t from = 0; from < count; from += 64) {
      Random random;
      philox_group(own, (start + from) / 64 + (i + 1 == windows), stream, PURPOSE_ROUNDING, &random);
      size_t length = count - from < 64 ? count - from : 64;
      for (size_t j = 0; j < length; j++) {
        float z = y[from + j] * inverse;
        if (!(z < bound && z > -bound)) {
          *where = start + from + j;
          return FG_RANGE;
        }
        float shifted = z + uniform24(random.word[j / 16][j % 16]);
        int32_t floor = (int32_t)shifted;
        floor -= shifted < (float)floor;
        out[start + from + j] = (uint32_t)floor;
      }
    }
  }
  return FG_OK;
}

void FG_ISA(fg_lattice_decode)(const uint32_t *sum, size_t n, uint32_t r, float step, uint64_t shared, uint32_t stream, float *out) {
  if (n == 0) return;
  size_t window = window_for(n), windows = n / window, left = n % window;
  for (size_t i = 0; i < n; i++) out[i] = (float)((int32_t)(sum[i] << (32 - r)) >> (32 - r)) * step;
  if (left) rotate_back(out + n - window, window, shared, stream, windows);
  for (size_t i = 0; i < windows; i++) rotate_back(out + i * window, window, shared, stream, i);
}

void FG_ISA(fg_lattice_pack)(const uint32_t *values, size_t n, uint32_t r, uint8_t *out) {
  size_t bytes = r == 32 ? 4 : 2;
  for (size_t i = 0; i < n; i++)
    for (size_t byte = 0; byte < bytes; byte++) out[bytes * i + byte] = (uint8_t)(values[i] >> 8 * byte);
  if (r != 20) return;
  size_t half = (n + 1) / 2;
  for (size_t j = 0; j < half; j++)
    out[2 * n + j] = (uint8_t)((values[j] >> 16 & 15u) | (j + half < n ? values[j + half] >> 16 & 15u : 0u) << 4);
}

int FG_ISA(fg_lattice_unpack)(const uint8_t *payload, size_t n, uint32_t r, uint32_t *out) {
  size_t bytes = r == 32 ? 4 : 2, half = (n + 1) / 2;
  for (size_t i = 0; i < n; i++) {
    out[i] = (uint32_t)payload[bytes * i] | (uint32_t)payload[bytes * i + 1] << 8;
    if (r == 32) out[i] |= (uint32_t)payload[4 * i + 2] << 16 | (uint32_t)payload[4 * i + 3] << 24;
  }
  if (r != 20) return FG_OK;
  for (size_t j = 0; j < half; j++) {
    out[j] |= (payload[2 * n + j] & 15u) << 16;
    if (j + half < n)
      out[j + half] |= (uint32_t)(payload[2 * n + j] >> 4) << 16;
    else if (payload[2 * n + j] >> 4)
      return FG_CODE;
  }
  return FG_OK;
}
