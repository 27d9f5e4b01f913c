/* Planes over threads, and windows from attributes, checked in words. */
#include "planes.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define RANGES 16            /* at most, per run of an op */
#define FLOATS_A_RANGE 16384 /* less work than this isn't worth a thread */

typedef struct {
  size_t planes, ranges, scratch;
  void (*work)(void *data, size_t begin, size_t end, void *scratch);
  void *data;
  _Atomic(void *) failed; /* the first range's status that couldn't get its scratch */
} Split;

static void run_range(void *data, size_t i) {
  Split *split = data;
  void *scratch = NULL, *none = NULL;
  OrtStatus *status = split->scratch ? op_scratch(split->scratch, &scratch) : NULL;
  if (status) {
    if (!atomic_compare_exchange_strong(&split->failed, &none, status)) op_forget(status);
    return;
  }
  size_t each = split->planes / split->ranges, rest = split->planes % split->ranges;
  size_t begin = i * each + (i < rest ? i : rest);
  split->work(split->data, begin, begin + each + (i < rest), scratch);
  op_release(scratch);
}

OrtStatus *op_planes(void *context, size_t planes, uint64_t floats, size_t scratch,
                     void (*work)(void *data, size_t begin, size_t end, void *scratch), void *data) {
  if (!planes) return NULL;
  if (scratch == SIZE_MAX) return op_refuse(ORT_INVALID_ARGUMENT, "its windows need more scratch memory than can be addressed");
  uint64_t ranges = floats / FLOATS_A_RANGE + 1;
  if (ranges > RANGES) ranges = RANGES;
  Split split = {planes, ranges < planes ? (size_t)ranges : planes, scratch, work, data, NULL};
  OrtStatus *status = op_parallel(context, run_range, split.ranges, &split);
  OrtStatus *failed = atomic_load(&split.failed);
  if (!status) return failed;
  op_forget(failed);
  return status;
}

static OrtStatus *read_attributes(const void *info, WindowAttributes *a) {
  *a = (WindowAttributes){.group = 0};
  if (op_attribute_given(info, "auto_pad"))
    return op_refuse(ORT_INVALID_ARGUMENT, "attribute auto_pad isn't supported: give pads");
  OrtStatus *status = op_attribute_ints(info, "kernel_shape", a->kernel_shape, 2, &a->kernels);
  if (!status) status = op_attribute_ints(info, "strides", a->stride, 2, &a->strides);
  if (!status) status = op_attribute_ints(info, "pads", a->pad, 4, &a->pads);
  if (!status) status = op_attribute_ints(info, "dilations", a->dilation, 2, &a->dilations);
  if (!status) status = op_attribute_ints(info, "input_shape", a->input_shape, 2, &a->inputs);
  if (!status) status = op_attribute_int(info, "ceil_mode", &a->ceil_mode);
  if (!status) status = op_attribute_int(info, "count_include_pad", &a->count_include_pad);
  if (!status) status = op_attribute_int(info, "group", &a->group);
  return status;
}

OrtStatus *op_create_windows(const void *info, void **kernel) {
  WindowAttributes *attributes = malloc(sizeof *attributes);
  if (!attributes) return op_refuse(ORT_FAIL, "no memory for an op's attributes");
  OrtStatus *status = read_attributes(info, attributes);
  if (status)
    free(attributes);
  else
    *kernel = attributes;
  return status;
}

static OrtStatus *check_list(const char *op, const char *name, size_t given, size_t wanted, const int64_t *values, int64_t least) {
  if (given && given != wanted)
    return op_refuse(ORT_INVALID_ARGUMENT, "%s: attribute %s has %zu values, expected %zu", op, name, given, wanted);
  for (size_t i = 0; i < given; i++)
    if (values[i] < least || values[i] > FG_WINDOW_LIMIT)
      return op_refuse(ORT_INVALID_ARGUMENT, "%s: attribute %s holds %lld, expected %lld to %d", op, name, (long long)values[i],
                       (long long)least, FG_WINDOW_LIMIT);
  return NULL;
}

OrtStatus *op_window(const char *op, const WindowAttributes *a, size_t rank, const size_t *input, const size_t *kernel, fg_window *w) {
  OrtStatus *status = check_list(op, "kernel_shape", a->kernels, rank, a->kernel_shape, 1);
  if (!status) status = check_list(op, "strides", a->strides, rank, a->stride, 1);
  if (!status) status = check_list(op, "pads", a->pads, 2 * rank, a->pad, 0);
  if (!status) status = check_list(op, "dilations", a->dilations, rank, a->dilation, 1);
  if (status) return status;
  if (!kernel && !a->kernels) return op_refuse(ORT_INVALID_ARGUMENT, "%s: attribute kernel_shape is missing", op);
  *w = (fg_window){{1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {0, 0}, {0, 0}};
  for (size_t i = 0; i < rank; i++) {
    size_t axis = 2 - rank + i;
    w->input[axis] = input[i];
    w->kernel[axis] = kernel ? kernel[i] : (size_t)a->kernel_shape[i];
    if (kernel && a->kernels && kernel[i] != (size_t)a->kernel_shape[i])
      return op_refuse(ORT_INVALID_ARGUMENT, "%s: W has %zu taps on spatial axis %zu, attribute kernel_shape says %lld", op, kernel[i], i,
                       (long long)a->kernel_shape[i]);
    if (a->strides) w->stride[axis] = (size_t)a->stride[i];
    if (a->dilations) w->dilation[axis] = (size_t)a->dilation[i];
    if (a->pads) w->before[axis] = (size_t)a->pad[i], w->after[axis] = (size_t)a->pad[rank + i];
    if (!w->input[axis] || w->input[axis] > FG_WINDOW_LIMIT || !w->kernel[axis] || w->kernel[axis] > FG_WINDOW_LIMIT)
      return op_refuse(ORT_INVALID_ARGUMENT, "%s: spatial axis %zu has size %zu and %zu taps, expected 1 to %d", op, i, w->input[axis],
                       w->kernel[axis], FG_WINDOW_LIMIT);
    unsigned long long span = (unsigned long long)(w->kernel[axis] - 1) * w->dilation[axis] + 1;
    size_t padded = w->input[axis] + w->before[axis] + w->after[axis];
    if (span > padded)
      return op_refuse(ORT_INVALID_ARGUMENT, "%s: a window spans %llu on spatial axis %zu, the padded input has %zu", op, span, i, padded);
  }
  if (fg_window_fit(w, a->ceil_mode != 0)) return op_refuse(ORT_INVALID_ARGUMENT, "%s: %s", op, fg_error_text(FG_WINDOW));
  return NULL;
}

OrtStatus *op_input_shape(const char *op, const void *context, size_t index, const WindowAttributes *a, size_t rank, size_t *spatial) {
  Tensor shape;
  OrtStatus *status = op_input(context, index, &shape);
  if (status) return status;
  if (shape.data) {
    if (shape.type != ORT_INT64 || shape.rank != 1 || shape.count != rank + 2)
      return op_refuse(ORT_INVALID_ARGUMENT, "%s: input %zu must be int64[%zu], a whole shape", op, index, rank + 2);
    for (size_t i = 0; i < rank; i++) {
      int64_t size = ((const int64_t *)shape.data)[2 + i];
      if (size < 1 || size > FG_WINDOW_LIMIT)
        return op_refuse(ORT_INVALID_ARGUMENT, "%s: the input's shape holds %lld, expected 1 to %d", op, (long long)size, FG_WINDOW_LIMIT);
      spatial[i] = (size_t)size;
    }
    return NULL;
  }
  if (!a->inputs) return op_refuse(ORT_INVALID_ARGUMENT, "%s: needs attribute input_shape or the input's shape as input %zu", op, index);
  status = check_list(op, "input_shape", a->inputs, rank, a->input_shape, 1);
  for (size_t i = 0; i < rank; i++) spatial[i] = (size_t)a->input_shape[i];
  return status;
}

const char *op_shape_text(const size_t *shape, size_t rank, char *text) {
  int at = snprintf(text, 96, "[");
  for (size_t i = 0; i < rank && at > 0 && at < 70; i++)
    at += snprintf(text + at, 96 - (size_t)at, "%s%zu", i ? ", " : "", shape[i]);
  snprintf(text + at, 96 - (size_t)at, "]");
  return text;
}

OrtStatus *op_check_image(const char *op, const char *name, const Tensor *tensor) {
  char text[96];
  if (tensor->type != ORT_FLOAT) return op_refuse(ORT_INVALID_ARGUMENT, "%s: %s isn't of floats", op, name);
  if (tensor->rank != 3 && tensor->rank != 4)
    return op_refuse(ORT_INVALID_ARGUMENT, "%s: %s has shape %s, expected [N, C, length] or [N, C, height, width]", op, name,
                     op_shape_text(tensor->shape, tensor->rank, text));
  if (!tensor->shape[1]) return op_refuse(ORT_INVALID_ARGUMENT, "%s: %s has no channels", op, name);
  return NULL;
}

void op_image_shape(size_t batch, size_t channels, const size_t *plane, size_t rank, size_t *shape) {
  shape[0] = batch;
  shape[1] = channels;
  for (size_t i = 0; i < rank; i++) shape[2 + i] = plane[2 - rank + i];
}

OrtStatus *op_check_positions(const char *op, const Tensor *dy, const fg_window *w) {
  size_t rank = dy->rank - 2, shape[2];
  char got[96], wanted[96];
  int same = 1;
  for (size_t i = 0; i < rank; i++) same &= dy->shape[2 + i] == (shape[i] = w->output[2 - rank + i]);
  if (same) return NULL;
  return op_refuse(ORT_INVALID_ARGUMENT, "%s: dY has spatial shape %s, the windows give %s", op, op_shape_text(dy->shape + 2, rank, got),
                   op_shape_text(shape, rank, wanted));
}
