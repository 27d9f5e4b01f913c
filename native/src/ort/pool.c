/* Pooling (since 1), float32, one or two spatial axes; attributes kernel_shape (required), strides, pads, dilations, ceil_mode as in ONNX:
 *
 * fleetgrad.MaxPool            X [N, C, *]                              ->  Y [N, C, *], argmax uint8 [N, C, *]?
 * fleetgrad.MaxPoolGrad        X [N, C, *], dY                          ->  dX [N, C, *]
 * fleetgrad.MaxPoolArgmaxGrad  argmax uint8, dY, Shape(X)?              ->  dX [N, C, *]
 * fleetgrad.AveragePoolGrad    dY, Shape(X)?                            ->  dX [N, C, *]    attribute count_include_pad
 *
 * argmax is the tap in row-major order of the window: the first of equal maxima, as torch has it. It takes a window of up to 256 taps.
 */
#include "ops.h"
#include "planes.h"

typedef struct {
  const float *x, *dy;
  uint8_t *argmax;
  float *out;
  fg_window window;
  int include_padding;
} PoolOp;

static OrtStatus *create(const OrtCustomOp *op, const void *const *table, const void *info, void **kernel) {
  (void)op, (void)table;
  return op_create_windows(info, kernel);
}

static uint64_t floats_of(const PoolOp *p, size_t planes) {
  const fg_window *w = &p->window;
  return (uint64_t)planes * (w->input[0] * w->input[1] + (uint64_t)w->kernel[0] * w->kernel[1] * w->output[0] * w->output[1] / 4);
}

/* The windows over `plane`; dY, and argmax if there is one, must be [batch, channels] of as many positions. */
static OrtStatus *windows_of(const char *op, const WindowAttributes *a, const size_t *plane, const Tensor *dy, const Tensor *argmax,
                             fg_window *w) {
  size_t rank = dy->rank - 2;
  OrtStatus *status = op_window(op, a, rank, plane, NULL, w);
  if (!status) status = op_check_positions(op, dy, w);
  if (status || !argmax) return status;
  int same = argmax->type == ORT_UINT8 && argmax->rank == dy->rank;
  for (size_t i = 0; same && i < dy->rank; i++) same = argmax->shape[i] == dy->shape[i];
  return same ? NULL : op_refuse(ORT_INVALID_ARGUMENT, "%s: argmax isn't uint8 of dY's shape", op);
}

static void forward_planes(void *data, size_t begin, size_t end, void *scratch) {
  PoolOp *p = data;
  fg_max_pool(p->x, &p->window, begin, end, p->out, p->argmax, scratch);
}

static OrtStatus *forward(void *kernel, void *context) {
  static const char op[] = "MaxPool";
  Tensor x;
  PoolOp p = {0};
  void *y = NULL, *argmax = NULL;
  size_t shape[4];
  OrtStatus *status = op_input(context, 0, &x);
  if (!status) status = op_check_image(op, "X", &x);
  if (!status) status = op_window(op, kernel, x.rank - 2, x.shape + 2, NULL, &p.window);
  if (status) return status;
  op_image_shape(x.shape[0], x.shape[1], p.window.output, x.rank - 2, shape);
  status = op_output(context, 0, x.rank, shape, &y);
  if (!status) status = op_output(context, 1, x.rank, shape, &argmax);
  uint64_t taps = (uint64_t)p.window.kernel[0] * p.window.kernel[1];
  if (!status && argmax && taps > 256)
    status = op_refuse(ORT_INVALID_ARGUMENT, "%s: argmax of %llu taps, at most 256: leave it out and use MaxPoolGrad", op,
                       (unsigned long long)taps);
  if (status) return status;
  p.x = x.data, p.out = y, p.argmax = argmax;
  size_t planes = x.shape[0] * x.shape[1];
  return op_planes(context, planes, floats_of(&p, planes), fg_pool_scratch(&p.window), forward_planes, &p);
}

static void max_grad_planes(void *data, size_t begin, size_t end, void *scratch) {
  PoolOp *p = data;
  fg_max_pool_grad(p->x, p->argmax, p->dy, &p->window, begin, end, p->out, scratch);
}

static OrtStatus *finish(const PoolOp *p, void *context, const Tensor *dy, void (*work)(void *, size_t, size_t, void *)) {
  PoolOp run = *p;
  size_t shape[4], planes = dy->shape[0] * dy->shape[1];
  void *dx;
  op_image_shape(dy->shape[0], dy->shape[1], p->window.input, dy->rank - 2, shape);
  OrtStatus *status = op_output(context, 0, dy->rank, shape, &dx);
  if (status) return status;
  run.out = dx;
  run.dy = dy->data;
  return op_planes(context, planes, floats_of(&run, planes), fg_pool_scratch(&run.window), work, &run);
}

static OrtStatus *max_grad(void *kernel, void *context) {
  static const char op[] = "MaxPoolGrad";
  Tensor x, dy;
  PoolOp p = {0};
  OrtStatus *status = op_input(context, 0, &x);
  if (!status) status = op_input(context, 1, &dy);
  if (!status) status = op_check_image(op, "X", &x);
  if (!status) status = op_check_image(op, "dY", &dy);
  if (!status && (x.rank != dy.rank || x.shape[0] != dy.shape[0] || x.shape[1] != dy.shape[1])) {
    char first[96], second[96];
    status = op_refuse(ORT_INVALID_ARGUMENT, "%s: X has shape %s, dY %s: they differ in batch, channels or axes", op,
                       op_shape_text(x.shape, x.rank, first), op_shape_text(dy.shape, dy.rank, second));
  }
  if (!status) status = windows_of(op, kernel, x.shape + 2, &dy, NULL, &p.window);
  if (status) return status;
  p.x = x.data;
  return finish(&p, context, &dy, max_grad_planes);
}

static OrtStatus *argmax_grad(void *kernel, void *context) {
  static const char op[] = "MaxPoolArgmaxGrad";
  Tensor argmax, dy;
  PoolOp p = {0};
  size_t plane[2];
  OrtStatus *status = op_input(context, 0, &argmax);
  if (!status) status = op_input(context, 1, &dy);
  if (!status) status = op_check_image(op, "dY", &dy);
  if (!status) status = op_input_shape(op, context, 2, kernel, dy.rank - 2, plane);
  if (!status) status = windows_of(op, kernel, plane, &dy, &argmax, &p.window);
  if (status) return status;
  p.argmax = argmax.data;
  return finish(&p, context, &dy, max_grad_planes);
}

static void average_grad_planes(void *data, size_t begin, size_t end, void *scratch) {
  PoolOp *p = data;
  fg_average_pool_grad(p->dy, &p->window, p->include_padding, begin, end, p->out, scratch);
}

static OrtStatus *average_grad(void *kernel, void *context) {
  static const char op[] = "AveragePoolGrad";
  const WindowAttributes *a = kernel;
  Tensor dy;
  PoolOp p = {.include_padding = a->count_include_pad != 0};
  size_t plane[2];
  OrtStatus *status = op_input(context, 0, &dy);
  if (!status) status = op_check_image(op, "dY", &dy);
  if (!status) status = op_input_shape(op, context, 1, a, dy.rank - 2, plane);
  if (!status) status = windows_of(op, a, plane, &dy, NULL, &p.window);
  if (status) return status;
  return finish(&p, context, &dy, average_grad_planes);
}

OP_DEFINE_TYPED(fg_op_max_pool, "MaxPool", create, op_destroy_allocated, forward, 1, 1, 2, index ? ORT_UINT8 : ORT_FLOAT);
OP_DEFINE(fg_op_max_pool_grad, "MaxPoolGrad", create, op_destroy_allocated, max_grad, 2, 2, 1);
OP_DEFINE(fg_op_max_pool_argmax_grad, "MaxPoolArgmaxGrad", create, op_destroy_allocated, argmax_grad, 3, 2, 1);
OP_DEFINE(fg_op_average_pool_grad, "AveragePoolGrad", create, op_destroy_allocated, average_grad, 2, 1, 1);
