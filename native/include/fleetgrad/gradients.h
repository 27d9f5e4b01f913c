/* Weight gradients with int8 operands: dW = X^T dY for matrices and for convolutions.
 *
 * Both operands have a scale per column (absmax / 127; for images per channel) and are rounded to nearest even; sums are int32 over at most
 * 65536 positions, the sums' floats are added in order. A convolution takes off what dY's rounding adds by way of X's mean. A job is done in three stages, each of independent parts that any threads may do
 * in any order: scales, packs, rows. fg_grad_refused after the first tells which column is NaN or infinite.
 */
#ifndef FLEETGRAD_GRADIENTS_H
#define FLEETGRAD_GRADIENTS_H

typedef struct {
  size_t scales;  /* parts of each stage */
  size_t packs;
  size_t rows;
  size_t scratch; /* bytes, 64-byte aligned */
} fg_grad_parts;

/* out[m][n] = base + x[k][m]^T dy[k][n]; with k of 8 or less nothing is rounded to int8 (few.inc.h). out overlaps nothing but base, which may be the same array. */
typedef struct {
  const float *x;      /* [k][m], or NULL */
  const int8_t *codes; /* [k][m] in place of x */
  const float *scale;  /* [m], of codes */
  const float *dy;     /* [k][n] */
  const float *base;   /* [m][n], or NULL for zero */
  float *out;          /* [m][n] */
  float *x_total;      /* [m]: sums of x's columns, added up as doubles; or NULL, as with codes */
  void *scratch;
  size_t k;            /* at least 1 */
  size_t m;
  size_t n;
} fg_matmul_grad;

/* out[outputs][channels / group][kernel] = base + the gradient of a convolution's weight; sizes are height and width, 1 for what 1-D lacks.
 * All sizes are at least 1, group divides channels and outputs; y_size is at most what the windows give. */
typedef struct {
  const float *x;      /* [batch][channels][x_size], or NULL */
  const int8_t *codes; /* in place of x */
  const float *scale;  /* [channels], of codes */
  const float *dy;     /* [batch][outputs][y_size] */
  const float *base;   /* as out, or NULL for zero */
  float *out;
  void *scratch;
  size_t batch;
  size_t channels;
  size_t outputs;
  size_t group;
  size_t x_size[2];
  size_t y_size[2];
  size_t kernel[2];
  size_t stride[2];
  size_t dilation[2];
  size_t before[2];    /* padding at the start of each axis */
} fg_conv_grad;

#define FG_GRADIENT_KERNELS(X)                                                                                                       \
  /* codes[outer][columns][inner] of x: a column's absmax is 127. where = the column that holds a NaN or infinity. */                \
  X(int, quantize_columns,                                                                                                           \
    (const float *x, size_t outer, size_t columns, size_t inner, int8_t *codes, float *scale, size_t *where),                        \
    (x, outer, columns, inner, codes, scale, where))                                                                                 \
  /* Parts of each stage and bytes of scratch; of the job's pointers only whether base is NULL counts. */                            \
  X(void, matmul_grad_plan, (const fg_matmul_grad *job, fg_grad_parts *parts), (job, parts))                                         \
  X(void, matmul_grad_scales, (const fg_matmul_grad *job, size_t part), (job, part))                                                 \
  X(void, matmul_grad_pack, (const fg_matmul_grad *job, size_t part), (job, part))                                                   \
  X(void, matmul_grad_rows, (const fg_matmul_grad *job, size_t part), (job, part))                                                   \
  X(void, conv_grad_plan, (const fg_conv_grad *job, fg_grad_parts *parts), (job, parts))                                             \
  X(void, conv_grad_scales, (const fg_conv_grad *job, size_t part), (job, part))                                                     \
  X(void, conv_grad_pack, (const fg_conv_grad *job, size_t part), (job, part))                                                       \
  X(void, conv_grad_rows, (const fg_conv_grad *job, size_t part), (job, part))

/* First of x's, then dY's columns whose scale isn't a number, or `columns` (both together). */
size_t fg_grad_refused(const void *scratch, size_t columns);
/* All stages in order: FG_OK, or FG_NONFINITE with where = column of x, or x's columns + column of dY. */
int fg_matmul_grad_run(const fg_matmul_grad *job, size_t *where);
int fg_conv_grad_run(const fg_conv_grad *job, size_t *where);

#endif
