/* Depthwise convolution (since 1), float32, one or two spatial axes:
 *
 * fleetgrad.DepthwiseConv            X [N, C, *], W [M, 1, *k], B [M]?           ->  Y [N, M, *]
 * fleetgrad.DepthwiseConvInputGrad   dY [N, M, *], W [M, 1, *k], Shape(X)?       ->  dX [N, C, *]
 * fleetgrad.DepthwiseConvWeightGrad  X [N, C, *], dY [N, M, *]                   ->  dW [M, 1, *k]
 *
 * Attributes as ONNX's Conv has them: strides, pads, dilations, kernel_shape (WeightGrad needs it), group (absent: every channel is
 * one; otherwise it must be C). InputGrad takes X's spatial sizes from attribute input_shape or from its third input, and the
 * channels from group (absent: M, unless the third input says otherwise).
 */
#include "ops.h"
#include "planes.h"

typedef struct {
  const float *a, *b, *bias;
  float *out;
  fg_window window;
  size_t batch, channels, multiplier;
} Depthwise;

static OrtStatus *create(const OrtCustomOp *op, const void *const *table, const void *info, void **kernel) {
  (void)op, (void)table;
  return op_create_windows(info, kernel);
}

/* M must be a multiple of the channels, and group, where it is given, equal to them. */
static OrtStatus *split_channels(const char *op, const WindowAttributes *a, size_t channels, size_t outputs, Depthwise *d) {
  if (a->group && (a->group < 0 || (uint64_t)a->group != channels))
    return op_refuse(ORT_INVALID_ARGUMENT, "%s: group is %lld, X has %zu channels: not depthwise", op, (long long)a->group, channels);
  if (!outputs || outputs % channels)
    return op_refuse(ORT_INVALID_ARGUMENT, "%s: %zu output channels aren't a multiple of %zu input channels", op, outputs, channels);
  d->channels = channels;
  d->multiplier = outputs / channels;
  return NULL;
}

static OrtStatus *check_weight(const char *op, const Tensor *w, size_t rank) {
  char text[96];
  if (w->type == ORT_FLOAT && w->rank == rank && w->shape[1] == 1) return NULL;
  return op_refuse(ORT_INVALID_ARGUMENT, "%s: W has shape %s, expected floats [M, 1, %s]", op, op_shape_text(w->shape, w->rank, text),
                   rank == 3 ? "taps" : "rows, columns");
}

static uint64_t work_floats(const Depthwise *d) {
  const fg_window *w = &d->window;
  uint64_t taps = (uint64_t)w->kernel[0] * w->kernel[1], size = (uint64_t)w->output[0] * w->output[1];
  return (taps / 8 + 1) * size * d->batch * d->channels * d->multiplier;
}

static void forward_planes(void *data, size_t begin, size_t end, void *scratch) {
  Depthwise *d = data;
  fg_depthwise(d->a, d->b, d->bias, &d->window, d->channels, d->multiplier, begin, end, d->out, scratch);
}

static OrtStatus *forward(void *kernel, void *context) {
  static const char op[] = "DepthwiseConv";
  Tensor x, w, bias;
  Depthwise d = {0};
  OrtStatus *status = op_input(context, 0, &x);
  if (!status) status = op_input(context, 1, &w);
  if (!status) status = op_input(context, 2, &bias);
  if (!status) status = op_check_image(op, "X", &x);
  if (!status) status = check_weight(op, &w, x.rank);
  if (!status) status = split_channels(op, kernel, x.shape[1], w.shape[0], &d);
  if (!status && bias.data && (bias.type != ORT_FLOAT || bias.rank != 1 || bias.count != w.shape[0]))
    status = op_refuse(ORT_INVALID_ARGUMENT, "%s: B has %zu values, expected floats [%zu]", op, bias.count, w.shape[0]);
  if (!status) status = op_window(op, kernel, x.rank - 2, x.shape + 2, w.shape + 2, &d.window);
  if (status) return status;
  size_t shape[4];
  op_image_shape(x.shape[0], w.shape[0], d.window.output, x.rank - 2, shape);
  void *out;
  status = op_output(context, 0, x.rank, shape, &out);
  if (status) return status;
  d.a = x.data, d.b = w.data, d.bias = bias.data, d.out = out, d.batch = x.shape[0];
  return op_planes(context, d.batch * d.channels, work_floats(&d), fg_depthwise_scratch(&d.window, d.multiplier), forward_planes, &d);
}

static void input_grad_planes(void *data, size_t begin, size_t end, void *scratch) {
  Depthwise *d = data;
  fg_depthwise_input_grad(d->a, d->b, &d->window, d->channels, d->multiplier, begin, end, d->out, scratch);
}

static OrtStatus *input_grad(void *kernel, void *context) {
  static const char op[] = "DepthwiseConvInputGrad";
  const WindowAttributes *a = kernel;
  Tensor dy, w, whole;
  Depthwise d = {0};
  size_t spatial[2], channels;
  OrtStatus *status = op_input(context, 0, &dy);
  if (!status) status = op_input(context, 1, &w);
  if (!status) status = op_check_image(op, "dY", &dy);
  if (!status) status = check_weight(op, &w, dy.rank);
  if (!status && w.shape[0] != dy.shape[1])
    status = op_refuse(ORT_INVALID_ARGUMENT, "%s: dY has %zu channels, W %zu", op, dy.shape[1], w.shape[0]);
  if (!status) status = op_input_shape(op, context, 2, a, dy.rank - 2, spatial);
  if (!status) status = op_input(context, 2, &whole);
  if (status) return status;
  channels = a->group > 0 ? (size_t)a->group : dy.shape[1];
  if (whole.data) {
    const int64_t *sizes = whole.data;
    if (sizes[0] != (int64_t)dy.shape[0] || sizes[1] < 1)
      return op_refuse(ORT_INVALID_ARGUMENT, "%s: the input's shape begins %lld, %lld; dY has a batch of %zu", op, (long long)sizes[0],
                       (long long)sizes[1], dy.shape[0]);
    channels = (size_t)sizes[1];
  }
  status = split_channels(op, a, channels, dy.shape[1], &d);
  if (!status) status = op_window(op, a, dy.rank - 2, spatial, w.shape + 2, &d.window);
  if (!status) status = op_check_positions(op, &dy, &d.window);
  if (status) return status;
  size_t shape[4];
  op_image_shape(dy.shape[0], channels, d.window.input, dy.rank - 2, shape);
  void *out;
  status = op_output(context, 0, dy.rank, shape, &out);
  if (status) return status;
  d.a = dy.data, d.b = w.data, d.out = out, d.batch = dy.shape[0];
  return op_planes(context, d.batch * channels, work_floats(&d), fg_depthwise_scratch(&d.window, d.multiplier), input_grad_planes, &d);
}

static void weight_grad_planes(void *data, size_t begin, size_t end, void *scratch) {
  Depthwise *d = data;
  fg_depthwise_weight_grad(d->a, d->b, &d->window, d->batch, d->channels, d->multiplier, begin, end, d->out, scratch);
}

static OrtStatus *weight_grad(void *kernel, void *context) {
  static const char op[] = "DepthwiseConvWeightGrad";
  Tensor x, dy;
  Depthwise d = {0};
  OrtStatus *status = op_input(context, 0, &x);
  if (!status) status = op_input(context, 1, &dy);
  if (!status) status = op_check_image(op, "X", &x);
  if (!status) status = op_check_image(op, "dY", &dy);
  if (!status && (x.rank != dy.rank || x.shape[0] != dy.shape[0])) {
    char first[96], second[96];
    status = op_refuse(ORT_INVALID_ARGUMENT, "%s: X has shape %s, dY %s: they differ in batch or axes", op,
                       op_shape_text(x.shape, x.rank, first), op_shape_text(dy.shape, dy.rank, second));
  }
  if (!status) status = split_channels(op, kernel, x.shape[1], dy.shape[1], &d);
  if (!status) status = op_window(op, kernel, x.rank - 2, x.shape + 2, NULL, &d.window);
  if (!status) status = op_check_positions(op, &dy, &d.window);
  if (status) return status;
  size_t shape[4];
  op_image_shape(dy.shape[1], 1, d.window.kernel, x.rank - 2, shape);
  void *out;
  status = op_output(context, 0, x.rank, shape, &out);
  if (status) return status;
  d.a = x.data, d.b = dy.data, d.out = out, d.batch = x.shape[0];
  return op_planes(context, d.channels, work_floats(&d), fg_depthwise_scratch(&d.window, d.multiplier), weight_grad_planes, &d);
}

OP_DEFINE(fg_op_depthwise, "DepthwiseConv", create, op_destroy_allocated, forward, 3, 2, 1);
OP_DEFINE(fg_op_depthwise_input_grad, "DepthwiseConvInputGrad", create, op_destroy_allocated, input_grad, 3, 2, 1);
OP_DEFINE(fg_op_depthwise_weight_grad, "DepthwiseConvWeightGrad", create, op_destroy_allocated, weight_grad, 2, 2, 1);
