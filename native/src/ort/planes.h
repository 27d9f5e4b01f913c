/* What the ops of layers share: a loop over planes on the session's threads, and windows from an op's attributes. */
#ifndef FG_ORT_PLANES_H
#define FG_ORT_PLANES_H

#include "op.h"

/* Runs work(data, begin, end, scratch) so that every plane of [0, planes) is in one range. The number of ranges depends on the sizes
 * alone; each has `scratch` bytes of its own while it runs. `floats` is about how many floats the whole touches: small work stays whole. */
OrtStatus *op_planes(void *context, size_t planes, uint64_t floats, size_t scratch,
                     void (*work)(void *data, size_t begin, size_t end, void *scratch), void *data);

/* Attributes of an op with windows, as ONNX names them: kernel_shape, strides, pads (all begins, then all ends), dilations, ceil_mode,
 * count_include_pad; input_shape: the spatial sizes of an input that the op doesn't get. Lists have one or two axes. */
typedef struct {
  size_t kernels, strides, pads, dilations, inputs; /* values given; 0: absent */
  int64_t kernel_shape[2], stride[2], pad[4], dilation[2], input_shape[2];
  int64_t ceil_mode, count_include_pad, group;
} WindowAttributes;

/* For create: reads them into memory that op_destroy_allocated frees. */
OrtStatus *op_create_windows(const void *info, void **kernel);

/* The windows over spatial axes of sizes input[rank] (rank 1 or 2) by taps kernel[rank] (NULL: kernel_shape). */
OrtStatus *op_window(const char *op, const WindowAttributes *attributes, size_t rank, const size_t *input, const size_t *kernel,
                     fg_window *window);

/* The shape of the input that an op doesn't get: attribute input_shape, or the optional int64 input `index`, a whole shape as
 * Shape gives it. spatial gets the last `rank` sizes. */
OrtStatus *op_input_shape(const char *op, const void *context, size_t index, const WindowAttributes *attributes, size_t rank, size_t *spatial);

/* dY must have as many positions as there are windows. */
OrtStatus *op_check_positions(const char *op, const Tensor *dy, const fg_window *window);

/* Refuses unless the tensor is of floats with batch, channels and one or two spatial axes, and with channels. */
OrtStatus *op_check_image(const char *op, const char *name, const Tensor *tensor);
/* Shape as text for a message, in a buffer of 96 bytes. */
const char *op_shape_text(const size_t *shape, size_t rank, char *text);
/* output of a window: the shape n, channels, and the window's outputs for rank spatial axes */
void op_image_shape(size_t batch, size_t channels, const size_t *plane, size_t rank, size_t *shape);

#endif
