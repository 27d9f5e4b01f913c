/* int8 weight gradient: X^T dY with a scale per column of both operands.
 *
 * Packed operand: rows in quads, element (k, j) at ((k / 4) * columns + j) * 4 + k % 4, so that four products of one output
 * element lie in one 32-bit lane.
 */
#define GEMM_ROWS 65536 /* 127 * 127 * 65536 < 2^31 */
#define PANEL 8         /* rows of the output that one sweep over dy computes */
#define COLUMNS 16      /* packed columns are padded to this */

static inline size_t padded(size_t n, size_t to) { return (n + to - 1) / to * to; }

/* Scale and its inverse for each column; 0 and 0 for a column that is zero. Index of a column that isn't finite, or n. */
static size_t column_scales(const float *x, size_t k, size_t n, float *scale, float *inverse) {
  uint32_t *most = (uint32_t *)(void *)inverse;
  memset(most, 0, n * 4);
  for (size_t row = 0; row < k; row++)
    for (size_t j = 0; j < n; j++) {
      uint32_t u = bits(x[row * n + j]) & MAGNITUDE_MASK;
      most[j] = u > most[j] ? u : most[j];
    }
  size_t bad = n;
  for (size_t j = 0; j < n; j++) {
    uint32_t u = most[j];
    float absmax = from_bits(u);
    if (u >= EXPONENT_MASK && bad == n) bad = j;
    int used = absmax >= 0x1p-100f;
    scale[j] = used ? absmax / 127.0f : 0.0f;
    inverse[j] = used ? 127.0f / absmax : 0.0f;
  }
  return bad;
}

static void pack(const float *x, size_t k, size_t n, const float *inverse, int8_t *packed) {
  size_t columns = padded(n, COLUMNS);
  for (size_t row = 0; row < k; row += 4, packed += columns * 4) {
    uint32_t *quads = (uint32_t *)(void *)packed;
    const float *x0 = x + row * n, *x1 = x0 + n, *x2 = x1 + n, *x3 = x2 + n;
    if (row + 4 <= k) {
      for (size_t j = 0; j < n; j++) {
        uint32_t q0 = bits(x0[j] * inverse[j] + ROUND_FLOAT) & 255u;
        uint32_t q1 = bits(x1[j] * inverse[j] + ROUND_FLOAT) & 255u;
        uint32_t q2 = bits(x2[j] * inverse[j] + ROUND_FLOAT) & 255u;
        uint32_t q3 = bits(x3[j] * inverse[j] + ROUND_FLOAT) & 255u;
        quads[j] = q0 | q1 << 8 | q2 << 16 | q3 << 24;
      }
    } else {
      for (size_t j = 0; j < n; j++) {
        uint32_t quad = 0;
        for (size_t r = 0; row + r < k; r++)
          quad |= (bits(x0[r * n + j] * inverse[j] + ROUND_FLOAT) & 255u) << (8 * r);
        quads[j] = quad;
      }
    }
    memset(quads + n, 0, (columns - n) * 4);
  }
}

#if defined(FG_FOR_AVX512VNNI)
#include "dot_avx512vnni.inc.h"
#elif defined(FG_FOR_AVX2)
#include "dot_avx2.inc.h"
#elif defined(FG_FOR_NEONDOTPROD)
#include "dot_neondotprod.inc.h"
#elif defined(FG_FOR_NEON)
#include "dot_neon.inc.h"
#else
#include "dot_serial.inc.h"
#endif

int FG_ISA(fg_weight_grad)(const float *x, const float *dy, size_t k, size_t m, size_t n, float *out, void *scratch,
                           size_t *where) {
  size_t mp = padded(m, COLUMNS), np = padded(n, COLUMNS);
  size_t rows = k < GEMM_ROWS ? padded(k, 4) : GEMM_ROWS;
  float *x_scale = scratch, *x_inverse = x_scale + mp, *dy_scale = x_inverse + mp, *dy_inverse = dy_scale + np;
  int32_t *sums = (int32_t *)(void *)(dy_inverse + np);
  int8_t *a = (int8_t *)(sums + PANEL * np), *b = a + rows * mp;

  if ((*where = column_scales(x, k, m, x_scale, x_inverse)) < m) return FG_NONFINITE;
  if ((*where = column_scales(dy, k, n, dy_scale, dy_inverse)) < n) {
    *where += m;
    return FG_NONFINITE;
  }
  for (size_t start = 0; start < k; start += GEMM_ROWS) {
    size_t count = k - start < GEMM_ROWS ? k - start : GEMM_ROWS;
    pack(x + start * m, count, m, x_inverse, a);
    pack(dy + start * n, count, n, dy_inverse, b);
    for (size_t i = 0; i < m; i += PANEL) {
      dot_panel(a + i * 4, mp, b, np, padded(count, 4) / 4, sums);
      for (size_t r = 0; r < PANEL && i + r < m; r++) {
        float *row = out + (i + r) * n;
        float scale = x_scale[i + r];
        const int32_t *sum = sums + r * np;
        if (start == 0)
          for (size_t j = 0; j < n; j++) row[j] = (float)sum[j] * (scale * dy_scale[j]);
        else
          for (size_t j = 0; j < n; j++) row[j] += (float)sum[j] * (scale * dy_scale[j]);
      }
    }
  }
  return FG_OK;
}
