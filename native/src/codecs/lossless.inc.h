/* lossless: float32 as it is, in four planes of bytes, each by order-0 rANS where that is shorter.
 *
 *   stream = chunks of 64 Ki values, each four planes (planes.inc.h): exponent | mantissa's high 8 bits | middle 8 | low 7 and the sign
 *
 * The sign moves from the front of the 32 bits to their end, so that the exponent is a whole byte: of real updates, only that one and
 * exact zeros are worth coding.
 */
typedef struct { /* in the caller's scratch */
  PlaneScratch plane;
  uint8_t bytes[4][PLANE_CHUNK];
} Lossless;

_Static_assert(sizeof(Lossless) <= FG_LOSSLESS_SCRATCH, "the header promises enough");

int FG_ISA(fg_lossless_encode)(const float *values, size_t n, uint8_t *out, size_t *size, void *scratch, size_t *where) {
  Lossless *s = scratch;
  uint8_t *at = out;
  *where = FG_ISA(fg_find_nonfinite)(values, n);
  if (*where < n) return FG_NONFINITE;
  for (size_t start = 0; start < n; start += PLANE_CHUNK) {
    size_t count = n - start < PLANE_CHUNK ? n - start : PLANE_CHUNK;
    for (size_t i = 0; i < count; i++) {
      uint32_t u = bits(values[start + i]);
      u = u << 1 | u >> 31;
      for (uint32_t plane = 0; plane < 4; plane++) s->bytes[plane][i] = (uint8_t)(u >> (24 - 8 * plane));
    }
    for (size_t plane = 0; plane < 4; plane++) at += plane_encode(s->bytes[plane], count, at, &s->plane);
  }
  *size = (size_t)(at - out);
  return FG_OK;
}

int FG_ISA(fg_lossless_decode)(const uint8_t *payload, size_t size, float *out, size_t n, void *scratch, size_t *where) {
  Lossless *s = scratch;
  const uint8_t *at = payload, *end = payload + size;
  *where = 0;
  for (size_t start = 0; start < n; start += PLANE_CHUNK, ++*where) {
    size_t count = n - start < PLANE_CHUNK ? n - start : PLANE_CHUNK;
    for (size_t plane = 0; plane < 4; plane++) {
      int error = plane_decode(&at, end, count, s->bytes[plane], &s->plane);
      if (error) return error;
    }
    uint32_t most = 0;
    for (size_t i = 0; i < count; i++) {
      uint32_t exponent = s->bytes[0][i];
      uint32_t u = exponent << 24 | (uint32_t)s->bytes[1][i] << 16 | (uint32_t)s->bytes[2][i] << 8 | s->bytes[3][i];
      out[start + i] = from_bits(u >> 1 | u << 31);
      most = exponent > most ? exponent : most;
    }
    if (most == 255) return FG_NONFINITE;
  }
  return at == end ? FG_OK : FG_TRAILING;
}
