/* Scales of columns: absmax / 127, found in one pass over the data; and the quantized copy that a forward pass keeps. */
#define GRAD_STRIPE 64 /* columns whose absmax one sweep over the rows finds */

static inline size_t up_to(size_t n, size_t to) { return (n + to - 1) / to * to; }

/* Scale and inverse from the bits of an absmax: 0 and 0 for a column of zeros, NaN for one that isn't finite. */
static inline void scale_of(uint32_t most, float *scale, float *inverse) {
  float absmax = from_bits(most);
  int used = absmax >= 0x1p-100f;
  *scale = most >= EXPONENT_MASK ? from_bits(0x7fc00000u) : used ? absmax / 127.0f : 0.0f;
  *inverse = most < EXPONENT_MASK && used ? 127.0f / absmax : 0.0f;
}

static inline uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

static inline __attribute__((always_inline)) void sweep(const float *x, size_t rows, size_t pitch, size_t columns, uint32_t *most) {
  size_t row = 0;
  for (; row + 4 <= rows; row += 4, x += 4 * pitch)
    for (size_t j = 0; j < columns; j++) {
      uint32_t a = bits(x[j]) & MAGNITUDE_MASK, b = bits(x[pitch + j]) & MAGNITUDE_MASK;
      uint32_t c = bits(x[2 * pitch + j]) & MAGNITUDE_MASK, d = bits(x[3 * pitch + j]) & MAGNITUDE_MASK;
      most[j] = larger(most[j], larger(larger(a, b), larger(c, d)));
    }
  for (; row < rows; row++, x += pitch)
    for (size_t j = 0; j < columns; j++) most[j] = larger(most[j], bits(x[j]) & MAGNITUDE_MASK);
}

/* Scales of at most GRAD_STRIPE neighbouring columns of a matrix whose rows are `pitch` floats apart. */
static void stripe_scales(const float *x, size_t rows, size_t pitch, size_t columns, float *scale, float *inverse) {
  uint32_t most[GRAD_STRIPE] = {0};
  if (columns == GRAD_STRIPE)
    sweep(x, rows, pitch, GRAD_STRIPE, most);
  else
    sweep(x, rows, pitch, columns, most);
  for (size_t j = 0; j < columns; j++) scale_of(most[j], scale + j, inverse + j);
}

/* Sums of such columns, row after row. */
static void stripe_totals(const float *x, size_t rows, size_t pitch, size_t columns, float *total) {
  double sum[GRAD_STRIPE] = {0};
  for (size_t row = 0; row < rows; row++, x += pitch)
    for (size_t j = 0; j < columns; j++) sum[j] += (double)x[j];
  for (size_t j = 0; j < columns; j++) total[j] = (float)sum[j];
}

/* Vectors wherever they lie; a memcpy of several goes by way of the stack, in pieces that the loads then wait for. */
typedef uint32_t LooseSum __attribute__((vector_size(4 * NATIVE_LANES), aligned(4), may_alias));
typedef NativeFloat LooseFloat __attribute__((aligned(4), may_alias));

/* A sum that is the same on every ISA: of each run of at most SUM_RUN neighbours float i goes to lane i mod LANES_OF_SUM; lanes that have
 * taken SUM_RUN floats or more are added up in order, as doubles. */
#define LANES_OF_SUM 16
#define SUM_RUN 4096

typedef struct {
  NativeFloat lanes[LANES_OF_SUM / NATIVE_LANES];
  size_t taken;
  double total;
} LaneSum;

static void settle(LaneSum *s) {
  float each[LANES_OF_SUM];
  memcpy(each, s->lanes, sizeof each);
  for (size_t j = 0; j < LANES_OF_SUM; j++) s->total += (double)each[j];
  memset(s->lanes, 0, sizeof s->lanes);
  s->taken = 0;
}

static void add_run(LaneSum *s, const float *x, size_t n) {
  size_t i = 0;
  for (; i + LANES_OF_SUM <= n; i += LANES_OF_SUM)
    for (size_t v = 0; v < LANES_OF_SUM / NATIVE_LANES; v++) s->lanes[v] += *(const LooseFloat *)(const void *)(x + i + v * NATIVE_LANES);
  float rest[LANES_OF_SUM] = {0};
  memcpy(rest, x + i, (n - i) * sizeof *x);
  for (size_t v = 0; v < LANES_OF_SUM / NATIVE_LANES; v++) s->lanes[v] += *(const LooseFloat *)(const void *)(rest + v * NATIVE_LANES);
  if ((s->taken += n) >= SUM_RUN) settle(s);
}

/* Scale of channel `channel` of a tensor [batch][channels][size], and where `sum` is given the sum of its values, plane by plane. */
static void channel_scale(const float *x, size_t batch, size_t channels, size_t size, size_t channel, float *scale, float *inverse, double *sum) {
  uint32_t most = 0;
  LaneSum lanes = {0};
  for (size_t n = 0; n < batch; n++) {
    const float *plane = x + (n * channels + channel) * size;
    most = larger(most, absmax(plane, size));
    if (sum)
      for (size_t start = 0; start < size; start += SUM_RUN) add_run(&lanes, plane + start, size - start < SUM_RUN ? size - start : SUM_RUN);
  }
  scale_of(most, scale + channel, inverse + channel);
  if (!sum) return;
  settle(&lanes);
  sum[channel] = inverse[channel] > 0.0f ? lanes.total : 0.0;
}

/* Scales that came with codes: what isn't finite or is negative becomes NaN. */
static void take_scales(const float *given, size_t count, float *scale) {
  for (size_t j = 0; j < count; j++) scale[j] = bits(given[j]) < EXPONENT_MASK || given[j] == 0.0f ? given[j] : from_bits(0x7fc00000u);
}

static inline int32_t quantized(float x, float inverse) { return (int32_t)(bits(x * inverse + ROUND_FLOAT) - bits(ROUND_FLOAT)); }

int FG_ISA(fg_quantize_columns)(const float *x, size_t outer, size_t columns, size_t inner, int8_t *codes, float *scale, size_t *where) {
  float inverse[GRAD_STRIPE];
  for (size_t first = 0; first < columns; first += GRAD_STRIPE) {
    size_t count = columns - first < GRAD_STRIPE ? columns - first : GRAD_STRIPE;
    if (inner == 1)
      stripe_scales(x + first, outer, columns, count, scale + first, inverse);
    else
      for (size_t j = 0; j < count; j++)
        channel_scale(x + first * inner, outer, columns, inner, j, scale + first, inverse, NULL);
    for (size_t j = 0; j < count; j++)
      if ((bits(scale[first + j]) & MAGNITUDE_MASK) >= EXPONENT_MASK) {
        *where = first + j;
        return FG_NONFINITE;
      }
    for (size_t row = 0; row < outer; row++) {
      const float *from = x + (row * columns + first) * inner;
      int8_t *to = codes + (row * columns + first) * inner;
      if (inner == 1)
        for (size_t j = 0; j < count; j++) to[j] = (int8_t)quantized(from[j], inverse[j]);
      else
        for (size_t j = 0; j < count; j++)
          for (size_t i = 0; i < inner; i++) to[j * inner + i] = (int8_t)quantized(from[j * inner + i], inverse[j]);
    }
  }
  return FG_OK;
}
