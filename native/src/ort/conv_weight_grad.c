/* fleetgrad.ConvWeightGrad (since 2):  the gradient of a convolution's weight with int8 operands, plus `base`.
 *
 *   X float[N, C, *x], or int8 with x_scale float[C] as QuantizeColumns gives them;  dY float[N, M, *y];  base float, as dW, optional
 *   ->  dW float[M, C / group, *kernel_shape]
 *
 * Attributes as Conv has them: kernel_shape (required), strides, dilations, pads (begins, then ends), group. One or two spatial axes.
 */
#include <stdlib.h>

#include "op.h"
#include "ops.h"

#define OP "ConvWeightGrad"
#define LARGEST 65535 /* of an attribute's values: far beyond any model, and no product of two overflows */

typedef struct {
  size_t rank, group, kernel[2], stride[2], dilation[2], before[2], after[2]; /* by axis: height and width, 1-D: width */
} Attributes;

/* An attribute's values into an array whose last `rank` entries are the axes. */
static OrtStatus *read(const void *info, const char *name, size_t rank, size_t least, size_t *first, size_t *second) {
  int64_t values[4];
  size_t count, wanted = second ? 2 * rank : rank;
  OrtStatus *status = op_attribute_ints(info, name, values, 4, &count);
  if (status || count == 0) return status;
  if (count != wanted)
    return op_refuse(ORT_INVALID_ARGUMENT, OP ": %s has %zu values, %zu axes need %zu", name, count, rank, wanted);
  for (size_t i = 0; i < count; i++) {
    if (values[i] < (int64_t)least || values[i] > LARGEST)
      return op_refuse(ORT_INVALID_ARGUMENT, OP ": %s has the value %lld, expected %zu to %d", name, (long long)values[i], least,
                       LARGEST);
    *(i < rank ? first + 2 - rank + i : second + 2 - rank + i - rank) = (size_t)values[i];
  }
  return NULL;
}

static OrtStatus *create(const OrtCustomOp *op, const void *const *table, const void *info, void **kernel) {
  (void)op, (void)table;
  Attributes a = {.kernel = {1, 1}, .stride = {1, 1}, .dilation = {1, 1}};
  int64_t shape[2], group = 1;
  if (op_attribute_given(info, "auto_pad")) return op_refuse(ORT_INVALID_ARGUMENT, OP ": attribute auto_pad isn't supported: give pads");
  OrtStatus *status = op_attribute_ints(info, "kernel_shape", shape, 2, &a.rank);
  if (!status && a.rank == 0) status = op_refuse(ORT_INVALID_ARGUMENT, OP ": kernel_shape is missing");
  if (!status) status = read(info, "kernel_shape", a.rank, 1, a.kernel, NULL);
  if (!status) status = read(info, "strides", a.rank, 1, a.stride, NULL);
  if (!status) status = read(info, "dilations", a.rank, 1, a.dilation, NULL);
  if (!status) status = read(info, "pads", a.rank, 0, a.before, a.after);
  if (!status) status = op_attribute_int(info, "group", &group);
  if (!status && (group < 1 || group > LARGEST))
    status = op_refuse(ORT_INVALID_ARGUMENT, OP ": group is %lld, expected 1 to %d", (long long)group, LARGEST);
  if (status) return status;
  a.group = (size_t)group;
  Attributes *kept = malloc(sizeof *kept);
  if (!kept) return op_refuse(ORT_FAIL, OP ": no memory");
  *kept = a;
  *kernel = kept;
  return NULL;
}

static void scales(void *job, size_t part) { fg_conv_grad_scales(job, part); }
static void packs(void *job, size_t part) { fg_conv_grad_pack(job, part); }
static void rows(void *job, size_t part) { fg_conv_grad_rows(job, part); }

/* The job for these inputs, its pointers aside. */
static OrtStatus *described(const Attributes *a, const Tensor *x, const Tensor *dy, const Tensor *scale, fg_conv_grad *job) {
  if (x->rank != a->rank + 2 || dy->rank != x->rank || (x->type != ORT_FLOAT && x->type != ORT_INT8) || dy->type != ORT_FLOAT)
    return op_refuse(ORT_INVALID_ARGUMENT, OP ": X and dY must be floats (X: or int8) with %zu dimensions, have %zu and %zu", a->rank + 2,
                     x->rank, dy->rank);
  if (x->shape[0] != dy->shape[0] || x->count == 0 || dy->count == 0)
    return op_refuse(ORT_INVALID_ARGUMENT, OP ": X has %zu images of %zu values in all, dY has %zu of %zu: batches must be equal, and none empty",
                     x->shape[0], x->count, dy->shape[0], dy->count);
  if (x->shape[1] % a->group || dy->shape[1] % a->group)
    return op_refuse(ORT_INVALID_ARGUMENT, OP ": %zu channels of X and %zu of dY don't divide into %zu groups", x->shape[1],
                     dy->shape[1], a->group);
  if ((x->type == ORT_INT8) != (scale->data != NULL))
    return op_refuse(ORT_INVALID_ARGUMENT, OP ": x_scale belongs to an int8 X, and to nothing else");
  if (scale->data && (scale->type != ORT_FLOAT || scale->rank != 1 || scale->count != x->shape[1]))
    return op_refuse(ORT_INVALID_ARGUMENT, OP ": x_scale isn't a vector of %zu floats, one for each channel of X", x->shape[1]);
  *job = (fg_conv_grad){.batch = x->shape[0], .channels = x->shape[1], .outputs = dy->shape[1], .group = a->group};
  for (size_t axis = 0; axis < 2; axis++) {
    int given = axis + a->rank >= 2; /* 1-D has no height */
    size_t at = axis + a->rank;      /* of its dimension in a tensor [N, C, *spatial] */
    size_t size = given ? x->shape[at] : 1, found = given ? dy->shape[at] : 1;
    size_t span = (a->kernel[axis] - 1) * a->dilation[axis] + 1, padded = size + a->before[axis] + a->after[axis];
    size_t expected = padded < span ? 0 : (padded - span) / a->stride[axis] + 1;
    if (found != expected)
      return op_refuse(ORT_INVALID_ARGUMENT, OP ": dY has %zu values along axis %zu, the windows on X give %zu", found, at, expected);
    job->x_size[axis] = size, job->y_size[axis] = found, job->kernel[axis] = a->kernel[axis], job->stride[axis] = a->stride[axis];
    job->dilation[axis] = a->dilation[axis], job->before[axis] = a->before[axis];
  }
  return NULL;
}

static OrtStatus *conv_weight_grad(void *kernel, void *context) {
  const Attributes *a = kernel;
  Tensor x, dy, scale, base;
  fg_conv_grad job;
  OrtStatus *status = op_input(context, 0, &x);
  if (!status) status = op_input(context, 1, &dy);
  if (!status) status = op_input(context, 2, &scale);
  if (!status) status = op_input(context, 3, &base);
  if (!status) status = described(a, &x, &dy, &scale, &job);
  if (status) return status;
  size_t shape[4] = {job.outputs, job.channels / a->group}, columns = job.channels + job.outputs;
  for (size_t i = 0; i < a->rank; i++) shape[2 + i] = a->kernel[2 - a->rank + i];
  if (base.data) {
    int fits = base.type == ORT_FLOAT && base.rank == a->rank + 2;
    for (size_t i = 0; fits && i < base.rank; i++) fits = base.shape[i] == shape[i];
    if (!fits) return op_refuse(ORT_INVALID_ARGUMENT, OP ": base hasn't the shape of dW, %zu x %zu x the kernel, or isn't of floats", shape[0], shape[1]);
  }
  job.dy = dy.data, job.scale = scale.data, job.base = base.data;
  if (x.type == ORT_INT8)
    job.codes = x.data;
  else
    job.x = x.data;
  fg_grad_parts parts;
  fg_conv_grad_plan(&job, &parts);
  void *out;
  status = op_output(context, 0, a->rank + 2, shape, &out);
  if (!status) status = op_scratch(parts.scratch, &job.scratch);
  if (status) return status;
  job.out = out;
  status = op_parallel(context, scales, parts.scales, &job);
  size_t bad = status ? columns : fg_grad_refused(job.scratch, columns);
  if (bad < columns)
    status = op_refuse(ORT_FAIL, OP ": channel %zu of %s: %s", bad < job.channels ? bad : bad - job.channels,
                       bad < job.channels ? "X" : "dY", fg_error_text(FG_NONFINITE));
  if (!status) status = op_parallel(context, packs, parts.packs, &job);
  if (!status) status = op_parallel(context, rows, parts.rows, &job);
  op_release(job.scratch);
  return status;
}

OP_DEFINE(fg_op_conv_weight_grad, OP, create, op_destroy_allocated, conv_weight_grad, 4, 2, 1);
