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
    (x, dy, window, batch, channels, multiplier, begin, end, dw, scratch))

/* Fills in `output` from the other fields, as ONNX defines it; ceil_mode: a last window that isn't full counts if it starts before the
 * padding on the right. FG_WINDOW: a field is 0 (padding may be) or over the limit, or a window is larger than the padded plane. */
int fg_window_fit(fg_window *window, int ceil_mode);
size_t fg_depthwise_scratch(const fg_window *window, size_t multiplier); /* bytes; SIZE_MAX: more than can be addressed */

#endif
