/* ring: integers that devices' updates can be added in, mod 2^r, without decoding: one rotation and one step for all, rounding of one's own.
 *
 *   z = floor(rotation(x) / step + 1 - uniform)  mod 2^r  sum of x = rotation back((sum of z, read as signed r-bit numbers) * step)
 *
 * The uniform number is (s + 1/2) / 65536, s the 16 bits that Philox gives the rotated coordinate (as for dither, with a purpose of its own).
 * z's whole part is split off first, so that the chance of rounding up is the fraction that is left, however large z is.
 *
 * r is 16, 20 or 32. On the wire: 16 bits, or 16-bit numbers and then a plane of the upper 4 bits (byte j: values j and j + S, S = ceil(n / 2)),
 * or 32 bits, all little-endian.
 *
 *   r = 20 of 1, -1, 70000:   01 00  ff ff  70 11  |  10 0f
 */
/* z = whole number + fraction; 1 where the number to be added makes it one more. */
static inline int32_t lattice_round(float z, uint32_t half) {
  int32_t floor = (int32_t)z;
  floor -= z < (float)floor;
  return floor + ((float)(int32_t)half * 0x1p-16f + 0x1p-17f < z - (float)floor);
}

int FG_ISA(fg_lattice_encode)(const float *values, size_t n, float step, uint32_t most, uint64_t shared, uint64_t own,
                              uint32_t stream, uint32_t *out, size_t *where) {
  if (n == 0) return FG_OK;
  size_t window = window_for(n), windows = n / window, left = n % window;
  float y[2 * WINDOW], inverse = 1.0f / step, bound = (float)most;
  for (size_t i = 0; i < windows; i++) {
    size_t start = i * window, count = i + 1 == windows ? window + left : window;
    if (absmax(values + start, count) > RANGE_BITS) return refuse(values, RANGE_BITS, start, where);
    rotate(values + start, y, window, shared, stream, i, 1.0f);
    if (count > window) {
      memcpy(y + window, values + start + window, left * sizeof *y);
      rotate(y + left, y + left, window, shared, stream, windows, 1.0f);
    }
    for (size_t from = 0; from < count; from += PHILOX_DITHER) {
      Random random;
      philox_group(own, (start + from) / PHILOX_DITHER, stream, PURPOSE_ROUNDING, &random);
      size_t length = count - from < PHILOX_DITHER ? count - from : PHILOX_DITHER;
      int beyond = 0;
      for (size_t j = 0; j < length; j++) {
        y[from + j] *= inverse;
        beyond |= !(y[from + j] < bound && y[from + j] > -bound);
      }
      if (beyond) {
        for (*where = start + from; y[*where - start] < bound && y[*where - start] > -bound;) ++*where;
        return FG_RANGE;
      }
      for (size_t row = 0; row < length; row += 16) {
        size_t lanes = length - row < 16 ? length - row : 16;
        for (size_t c = 0; c < lanes; c++)
          out[start + from + row + c] = (uint32_t)lattice_round(y[from + row + c], random.word[row / 32][c] >> row % 32 & 0xffffu);
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
  if (r == 32) {
    memcpy(out, values, 4 * n);
    return;
  }
  for (size_t start = 0; start < n; start += 1024) {
    uint16_t low[1024];
    size_t count = n - start < 1024 ? n - start : 1024;
    for (size_t i = 0; i < count; i++) low[i] = (uint16_t)values[start + i];
    memcpy(out + 2 * start, low, 2 * count);
  }
  if (r == 16) return;
  size_t half = (n + 1) / 2;
  out += 2 * n;
  for (size_t j = 0; j < n - half; j++) out[j] = (uint8_t)((values[j] >> 16 & 15u) | (values[j + half] >> 12 & 0xf0u));
  if (n % 2) out[half - 1] = (uint8_t)(values[half - 1] >> 16 & 15u);
}

int FG_ISA(fg_lattice_unpack)(const uint8_t *payload, size_t n, uint32_t r, uint32_t *out) {
  if (r == 32) {
    memcpy(out, payload, 4 * n);
    return FG_OK;
  }
  for (size_t start = 0; start < n; start += 1024) {
    uint16_t low[1024];
    size_t count = n - start < 1024 ? n - start : 1024;
    memcpy(low, payload + 2 * start, 2 * count);
    for (size_t i = 0; i < count; i++) out[start + i] = low[i];
  }
  if (r == 16) return FG_OK;
  size_t half = (n + 1) / 2;
  payload += 2 * n;
  for (size_t j = 0; j < half; j++) out[j] |= (payload[j] & 15u) << 16;
  for (size_t j = 0; j < n - half; j++) out[j + half] |= (uint32_t)(payload[j] >> 4) << 16;
  return n % 2 && payload[half - 1] >> 4 ? FG_CODE : FG_OK;
}
