/* Cross-entropy of logits and its gradient, in one pass over each row z with label l:
 *
 *     e[c] = exp(z[c] - max z),  s = sum of e       loss = log s - (z[l] - max z)       dz[c] = (e[c] / s - [c = l]) / count
 *
 * s is summed in the sixteen lanes of LaneSum, 512 classes at a time; what follows from it is double. e is 0 from 87 below the maximum on.
 */
#define LOSS_BLOCK 512 /* classes; 2 KiB of stack */
#define LEAST_LOGIT 87.0f

/* Whole numbers in the order of the floats whose bits they are, and back. */
static inline int32_t ordered(int32_t b) { return b ^ ((b >> 31) & (int32_t)MAGNITUDE_MASK); }

/* log x for a normal x: e ln 2 + 2 artanh y with y = (m - 1) / (m + 1), x = m 2^e, m in [sqrt(1/2), sqrt(2)]; the series' rest is under 2^-54. */
static double logarithm(double x) {
  uint64_t u;
  memcpy(&u, &x, sizeof u);
  double exponent = (double)((int)(u >> 52) - 1023);
  u = (u & 0xfffffffffffffu) | 0x3ff0000000000000u;
  memcpy(&x, &u, sizeof x);
  if (x > 0x1.6a09e667f3bcdp0) x *= 0.5, exponent += 1.0;
  double y = (x - 1.0) / (x + 1.0), z = y * y, sum = 1.0 / 21.0;
  for (int odd = 19; odd > 0; odd -= 2) sum = sum * z + 1.0 / odd;
  return exponent * 0x1.62e42fefa39efp-1 + 2.0 * y * sum;
}

/* The maximum of a row, or NaN where no softmax is: a NaN, an infinity that isn't negative, nothing but negative ones. */
static float most_of(const float *z, size_t classes) {
  int32_t most = INT32_MIN;
  uint32_t magnitude = 0;
  for (size_t c = 0; c < classes; c++) {
    int32_t b = (int32_t)bits(z[c]), key = ordered(b);
    most = key > most ? key : most;
    magnitude = larger(magnitude, (uint32_t)b & MAGNITUDE_MASK);
  }
  uint32_t found = (uint32_t)ordered(most);
  return magnitude > EXPONENT_MASK || (found & MAGNITUDE_MASK) == EXPONENT_MASK ? from_bits(0x7fc00000u) : from_bits(found);
}

static void exponentials(const float *z, size_t n, float most, float *out) {
  for (size_t c = 0; c < n; c++) {
    float y = z[c] - most;
    uint32_t kept = (bits(y) & MAGNITUDE_MASK) < bits(LEAST_LOGIT) ? 0xffffffffu : 0;
    out[c] = from_bits(bits(exponential(cut(y, LEAST_LOGIT))) & kept);
  }
}

int FG_ISA(fg_cross_entropy)(const float *z, const int64_t *labels, size_t rows, size_t classes, size_t count, double *losses, float *dz, size_t *where) {
  float block[LOSS_BLOCK];
  for (size_t row = 0; row < rows; row++, z += classes) {
    int64_t label = labels[row];
    if (label < 0 || (uint64_t)label >= classes) {
      *where = row;
      return FG_RANGE;
    }
    float most = most_of(z, classes);
    LaneSum lanes = {0};
    for (size_t start = 0; start < classes; start += LOSS_BLOCK) {
      size_t n = classes - start < LOSS_BLOCK ? classes - start : LOSS_BLOCK;
      float *e = dz ? dz + start : block;
      exponentials(z + start, n, most, e);
      add_run(&lanes, e, n);
    }
    settle(&lanes);
    losses[row] = most == most ? logarithm(lanes.total) - ((double)z[label] - (double)most) : (double)most;
    if (!dz) continue;
    float factor = most == most ? (float)(1.0 / (lanes.total * (double)count)) : most, at_label = dz[label];
    for (size_t c = 0; c < classes; c++) dz[c] *= factor;
    if (most == most) dz[label] = (float)(((double)at_label / lanes.total - 1.0) / (double)count);
    dz += classes;
  }
  return FG_OK;
}
