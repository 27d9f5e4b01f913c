/* Optimizer steps over the flat vector, and the sum of squares that clipping by norm needs.
 *
 * A step goes block by block: a block of every vector is read once, the gradient with its terms is made in a buffer that stays in the
 * first-level cache, and the rule writes the block back. So an option costs the memory traffic of its own vectors and no more, and there are
 * eight loops for terms and four for rules instead of their product. */
#define STEP_BLOCK 512 /* floats; 4 KiB of stack */

/* The gradient's block with its terms; inlined with constants for `anchored`, `controlled` and `dynamical`. */
static inline __attribute__((always_inline)) void correct(const fg_update *u, const float *restrict w, const float *restrict g,
                                                          size_t at, size_t n, float *restrict out, int anchored,
                                                          int controlled, int dynamical) {
  const float clip = u->clip, proximal = u->proximal;
  const float *restrict anchor = anchored ? u->anchor + at : g;
  const float *restrict control = controlled ? u->control + at : g, *restrict own = controlled ? u->own_control + at : g;
  const float *restrict dynamic = dynamical ? u->dynamic + at : g;
  for (size_t i = 0; i < n; i++) {
    float d = clip * g[i];
    if (anchored) d += proximal * (w[i] - anchor[i]);
    if (controlled) d += control[i] - own[i];
    if (dynamical) d -= dynamic[i];
    out[i] = d;
  }
}

/* The gradient that the rule sees, before weight decay: the caller's own memory where no option changes it. */
static const float *corrected(const fg_update *u, const float *w, const float *g, size_t at, size_t n, float *out) {
  switch ((u->anchor ? 1 : 0) | (u->control ? 2 : 0) | (u->dynamic ? 4 : 0)) {
    case 0:
      if (u->clip == 1.0f) return g;
      correct(u, w, g, at, n, out, 0, 0, 0);
      break;
    case 1: correct(u, w, g, at, n, out, 1, 0, 0); break;
    case 2: correct(u, w, g, at, n, out, 0, 1, 0); break;
    case 3: correct(u, w, g, at, n, out, 1, 1, 0); break;
    case 4: correct(u, w, g, at, n, out, 0, 0, 1); break;
    case 5: correct(u, w, g, at, n, out, 1, 0, 1); break;
    case 6: correct(u, w, g, at, n, out, 0, 1, 1); break;
    default: correct(u, w, g, at, n, out, 1, 1, 1);
  }
  return out;
}

static void step_sgd(const fg_update *u, float *restrict w, const float *restrict g, size_t n) {
  const float rate = u->rate, decay = u->decay;
  for (size_t i = 0; i < n; i++) w[i] -= rate * (g[i] + decay * w[i]);
}

static void step_momentum(const fg_update *u, float *restrict w, const float *restrict g, float *restrict velocity, size_t n) {
  const float rate = u->rate, decay = u->decay, beta = u->beta1;
  for (size_t i = 0; i < n; i++) {
    float v = beta * velocity[i] + (g[i] + decay * w[i]);
    velocity[i] = v;
    w[i] -= rate * v;
  }
}

static void step_nesterov(const fg_update *u, float *restrict w, const float *restrict g, float *restrict velocity, size_t n) {
  const float rate = u->rate, decay = u->decay, beta = u->beta1;
  for (size_t i = 0; i < n; i++) {
    float d = g[i] + decay * w[i];
    float v = beta * velocity[i] + d;
    velocity[i] = v;
    w[i] -= rate * (d + beta * v);
  }
}

static void step_adam(const fg_update *u, float *restrict w, const float *restrict g, float *restrict first,
                      float *restrict second, size_t n) {
  const float rate = u->rate, decay = u->decay, keep = u->keep, root = u->root, epsilon = u->epsilon;
  const float beta1 = u->beta1, fresh1 = u->fresh1, beta2 = u->beta2, fresh2 = u->fresh2;
  for (size_t i = 0; i < n; i++) {
    float d = g[i] + decay * w[i];
    float m = beta1 * first[i] + fresh1 * d;
    float s = beta2 * second[i] + fresh2 * (d * d);
    first[i] = m;
    second[i] = s;
    w[i] = keep * w[i] - rate * m / (__builtin_sqrtf(s) * root + epsilon);
  }
}

void FG_ISA(fg_optimizer_step)(const fg_update *update, const size_t *ranges, size_t count, float *parameters,
                               const float *gradients, float *first, float *second) {
  float buffer[STEP_BLOCK];
  for (size_t r = 0; r < count; r++)
    for (size_t at = ranges[2 * r], end = ranges[2 * r + 1]; at < end; at += STEP_BLOCK) {
      size_t n = end - at < STEP_BLOCK ? end - at : STEP_BLOCK;
      float *w = parameters + at;
      const float *g = corrected(update, w, gradients + at, at, n, buffer);
      switch (update->rule) {
        case FG_SGD: step_sgd(update, w, g, n); break;
        case FG_MOMENTUM: step_momentum(update, w, g, first + at, n); break;
        case FG_NESTEROV: step_nesterov(update, w, g, first + at, n); break;
        default: step_adam(update, w, g, first + at, second + at, n);
      }
    }
}

/* Sixteen sums of doubles in the ISA's registers: SUM_LANES to a register. A float's square is exact in double. */
#define SUM_LANES (NATIVE_LANES / 2)
typedef float SumFloat __attribute__((vector_size(4 * SUM_LANES)));
typedef double SumDouble __attribute__((vector_size(8 * SUM_LANES)));

double FG_ISA(fg_square_sum)(const float *values, const size_t *ranges, size_t count) {
  SumDouble sums[16 / SUM_LANES];
  double lane[16];
  memset(sums, 0, sizeof sums);
  for (size_t r = 0; r < count; r++) {
    size_t i = ranges[2 * r], end = ranges[2 * r + 1];
    memcpy(lane, sums, sizeof lane);
    for (; i < end && i % 16; i++) lane[i % 16] += (double)values[i] * (double)values[i];
    memcpy(sums, lane, sizeof lane);
    for (; i + 16 <= end; i += 16)
      for (size_t j = 0; j < 16 / SUM_LANES; j++) {
        SumFloat x;
        memcpy(&x, values + i + j * SUM_LANES, sizeof x);
        SumDouble wide = __builtin_convertvector(x, SumDouble);
        sums[j] += wide * wide;
      }
    memcpy(lane, sums, sizeof lane);
    for (; i < end; i++) lane[i % 16] += (double)values[i] * (double)values[i];
    memcpy(sums, lane, sizeof lane);
  }
  memcpy(lane, sums, sizeof lane);
  for (size_t width = 8; width; width /= 2)
    for (size_t i = 0; i < width; i++) lane[i] += lane[i + width];
  return lane[0];
}
