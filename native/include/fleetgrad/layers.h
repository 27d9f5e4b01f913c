/* Layers that the stock wheel computes slowly, forward and backward. Tensors are float32, batch first, then channels, then one or two
 * spatial axes, contiguous. A kernel that works plane by plane takes the range [begin, end) of them, so that a caller can split the
 * work over threads; what a plane's result is doesn't depend on the split. Buffers don't overlap, unless a row says so. */
#ifndef FLEETGRAD_LAYERS_H
#define FLEETGRAD_LAYERS_H

#include <stddef.h>
#include <stdint.h>

/* Windows that move over a plane: [0] is the row axis, [1] the column axis; a signal of one axis is a plane of one row. */
typedef struct {
  size_t input[2];    /* size of the plane */
  size_t output[2];   /* number of windows: fg_window_fit */
  size_t kernel[2];   /* taps of a window */
  size_t stride[2];   /* from a window to the next */
  size_t dilation[2]; /* from a tap to the next */
  size_t before[2];   /* padding above and left */
  size_t after[2];    /* padding below and right */
} fg_window;

/* A tensor [batch, channels, positions] that is normalized by channel. positions is the product of the spatial axes, 1 for a matrix. */
typedef struct {
  size_t batch, channels, positions;
  float epsilon;  /* added to the variance */
  float momentum; /* running = (1 - momentum) running + momentum batch, as torch has it */
} fg_norm;

/* What batch normalization leaves behind, [channels] each; NULL: not wanted. */
typedef struct {
  float *mean, *var, *invstd; /* of the batch; var is that of the population, what epsilon was added to */
  float *running_mean, *running_var; /* updated: the mean, and the variance of the sample (M - 1) */
} fg_norm_results;

#define FG_WINDOW_LIMIT 16777216 /* every field of a window is at most this */

#define FG_LAYER_KERNELS(X)                                                                                                    \
  /* Depthwise convolution: y[n][c * multiplier + j] = bias[c * multiplier + j] (NULL: 0) + the cross-correlation of x[n][c] with \
     weight[c * multiplier + j], taps added in row-major order, padding as zeros. Planes: n * channels + c, of x. scratch:         \
     fg_depthwise_scratch bytes, 64-byte aligned, one per concurrent call. */                                                      \
  X(void, depthwise,                                                                                                               \
    (const float *x, const float *weight, const float *bias, const fg_window *window, size_t channels, size_t multiplier,          \
     size_t begin, size_t end, float *y, void *scratch),                                                                           \
    (x, weight, bias, window, channels, multiplier, begin, end, y, scratch))                                                       \
  /* Its gradient by the input: dx[n][c], for each j in order the taps backwards, so that dy is read forwards. Planes: n * channels + c. */\
  X(void, depthwise_input_grad,                                                                                                    \
    (const float *dy, const float *weight, const fg_window *window, size_t channels, size_t multiplier, size_t begin, size_t end,  \
     float *dx, void *scratch),                                                                                                    \
    (dy, weight, window, channels, multiplier, begin, end, dx, scratch))                                                           \
  /* Its gradient by the weight: dw[c * multiplier + j][taps], summed over the batch: 16 float sums over 8192 positions at a time,  \
     16 sums of doubles above. Planes: channels c, so that one call owns a weight. */                                              \
  X(void, depthwise_weight_grad,                                                                                                   \
    (const float *x, const float *dy, const fg_window *window, size_t batch, size_t channels, size_t multiplier, size_t begin,     \
     size_t end, float *dw, void *scratch),                                                                                        \
    (x, dy, window, batch, channels, multiplier, begin, end, dw, scratch))                                                         \
  /* dx = dy where y > 0, else 0 (also where y is NaN). dx may be y or dy. */                                                      \
  X(void, relu_grad, (const float *y, const float *dy, size_t n, float *dx), (y, dy, n, dx))                                       \
  /* dx = dy where low <= x <= high, else 0 (also where x is NaN); not inclusive: where low < x < high. dx may be x or dy. */      \
  X(void, clip_grad, (const float *x, const float *dy, float low, float high, int inclusive, size_t n, float *dx),                 \
    (x, dy, low, high, inclusive, n, dx))                                                                                          \
  /* losses[row] = -log softmax(z[row])[label], dz = their gradient over `count`; z and dz [rows][classes], dz may be NULL, classes at      \
     least 1. A row with a NaN, a positive infinity or nothing but negative ones gives NaN. FG_RANGE: where = row whose label isn't one. */ \
  X(int, cross_entropy,                                                                                                            \
    (const float *z, const int64_t *labels, size_t rows, size_t classes, size_t count, double *losses, float *dz, size_t *where),  \
    (z, labels, rows, classes, count, losses, dz, where))                                                                          \
  /* Maximum over windows, padding as -infinity; argmax is the tap in row-major order that won: the first of equals, NaN over      \
     numbers, the first tap inside the plane where all are -infinity. y or argmax may be NULL; argmax wants at most 256 taps.       \
     Planes: of x. scratch: fg_pool_scratch bytes, 64-byte aligned, one per concurrent call. */                                    \
  X(void, max_pool,                                                                                                                \
    (const float *x, const fg_window *window, size_t begin, size_t end, float *y, uint8_t *argmax, void *scratch),                 \
    (x, window, begin, end, y, argmax, scratch))                                                                                   \
  /* Its gradient from x (argmax NULL) or from argmax (x NULL): dx gets dy where the maximum was taken. Overlapping windows add up \
     in order of their row, in a row by tap. A tap that doesn't exist, or lies in the padding, gets nothing. */                    \
  X(void, max_pool_grad,                                                                                                           \
    (const float *x, const uint8_t *argmax, const float *dy, const fg_window *window, size_t begin, size_t end, float *dx,         \
     void *scratch),                                                                                                               \
    (x, argmax, dy, window, begin, end, dx, scratch))                                                                              \
  /* Gradient of the average over windows: dy / count to each input of a window, in the same order. count: the inputs of the       \
     window, or (include_padding) its taps inside the padded plane. */                                                             \
  X(void, average_pool_grad,                                                                                                       \
    (const float *dy, const fg_window *window, int include_padding, size_t begin, size_t end, float *dx, void *scratch),           \
    (dy, window, include_padding, begin, end, dx, scratch))                                                                        \
  /* Batch normalization in training: y = (x - mean) invstd scale + bias by the batch's own statistics, M = batch x positions      \
     values a channel, at least 2. Sums are doubles. Planes: channels. */                                                          \
  X(void, batch_norm,                                                                                                              \
    (const float *x, const float *scale, const float *bias, const float *running_mean, const float *running_var,                   \
     const fg_norm *shape, size_t begin, size_t end, float *y, const fg_norm_results *results),                                    \
    (x, scale, bias, running_mean, running_var, shape, begin, end, y, results))                                                    \
  /* Its gradient from the batch's mean and invstd; not training: these are constants (a frozen layer), dx = scale invstd dy.      \
     dx, dscale or dbias may be NULL. Planes: channels. */                                                                         \
  X(void, batch_norm_grad,                                                                                                         \
    (const float *x, const float *dy, const float *scale, const float *mean, const float *invstd, const fg_norm *shape,            \
     int training, size_t begin, size_t end, float *dx, float *dscale, float *dbias),                                              \
    (x, dy, scale, mean, invstd, shape, training, begin, end, dx, dscale, dbias))

/* Fills in `output` from the other fields, as ONNX defines it; ceil_mode: a last window that isn't full counts if it starts before the
 * padding on the right. FG_WINDOW: a field is 0 (padding may be) or over the limit, or a window is larger than the padded plane. */
int fg_window_fit(fg_window *window, int ceil_mode);
size_t fg_depthwise_scratch(const fg_window *window, size_t multiplier); /* bytes; SIZE_MAX: more than can be addressed */
size_t fg_pool_scratch(const fg_window *window); /* likewise */

#endif
