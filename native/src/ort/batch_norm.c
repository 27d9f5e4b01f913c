/* Batch normalization (since 1), float32, X [N, C] or [N, C, *] with any number of spatial axes; statistics are [C]:
 *
 * fleetgrad.BatchNorm      X, scale, bias, running_mean?, running_var?  ->  Y, mean?, var?, invstd?, running_mean?, running_var?
 * fleetgrad.BatchNormGrad  X, dY, scale, mean, invstd                   ->  dX, dscale?, dbias?
 *
 * BatchNorm is the training mode: attributes epsilon (1e-5) and momentum (0.1). momentum is torch's, the weight of the new batch: what
 * ONNX's BatchNormalization calls 1 - momentum. var is the population's, the running variance takes the sample's, as torch does.
 * BatchNormGrad: attribute training (1); 0 takes mean and invstd as constants, for a frozen layer.
 */
#include <stdlib.h>

#include "ops.h"
#include "planes.h"

typedef struct {
  float epsilon, momentum;
  int64_t training;
} NormAttributes;

typedef struct {
  const float *x, *dy, *scale, *bias, *mean, *invstd;
  float *out, *dscale, *dbias;
  fg_norm shape;
  fg_norm_results results;
  int training;
} NormOp;

static OrtStatus *create(const OrtCustomOp *op, const void *const *table, const void *info, void **kernel) {
  (void)op, (void)table;
  NormAttributes *a = malloc(sizeof *a);
  if (!a) return op_refuse(ORT_FAIL, "no memory for an op's attributes");
  *a = (NormAttributes){1e-5f, 0.1f, 1};
  OrtStatus *status = op_attribute_float(info, "epsilon", &a->epsilon);
  if (!status) status = op_attribute_float(info, "momentum", &a->momentum);
  if (!status) status = op_attribute_int(info, "training", &a->training);
  if (status)
    free(a);
  else
    *kernel = a;
  return status;
}

static OrtStatus *read_image(const char *op, const Tensor *x, fg_norm *shape) {
  char text[96];
  if (x->type != ORT_FLOAT || x->rank < 2 || !x->count)
    return op_refuse(ORT_INVALID_ARGUMENT, "%s: X has shape %s, expected floats [N, C, *] with at least one value", op,
                     op_shape_text(x->shape, x->rank, text));
  shape->batch = x->shape[0];
  shape->channels = x->shape[1];
  shape->positions = x->count / shape->batch / shape->channels;
  return NULL;
}

/* Input `index` as floats [channels]; absent is NULL where it may be. */
static OrtStatus *read_channels(const char *op, void *context, size_t index, size_t channels, int optional, const char *name,
                                const float **data) {
  Tensor t;
  char text[96];
  OrtStatus *status = op_input(context, index, &t);
  if (status) return status;
  *data = t.data;
  if ((!t.data && optional) || (t.data && t.type == ORT_FLOAT && t.rank == 1 && t.count == channels)) return NULL;
  return op_refuse(ORT_INVALID_ARGUMENT, "%s: %s has shape %s, expected floats [%zu]", op, name, op_shape_text(t.shape, t.rank, text),
                   channels);
}

static OrtStatus *write_channels(void *context, size_t index, size_t channels, float **data) {
  void *out;
  OrtStatus *status = op_output(context, index, 1, &channels, &out);
  *data = out;
  return status;
}

static void forward_channels(void *data, size_t begin, size_t end, void *scratch) {
  (void)scratch;
  NormOp *n = data;
  fg_batch_norm(n->x, n->scale, n->bias, n->mean, n->invstd, &n->shape, begin, end, n->out, &n->results);
}

static OrtStatus *forward(void *kernel, void *context) {
  static const char op[] = "BatchNorm";
  const NormAttributes *a = kernel;
  Tensor x;
  NormOp n = {0};
  OrtStatus *status = op_input(context, 0, &x);
  if (!status) status = read_image(op, &x, &n.shape);
  size_t channels = n.shape.channels;
  if (!status && n.shape.batch * n.shape.positions < 2)
    status = op_refuse(ORT_INVALID_ARGUMENT, "%s: 1 value a channel, statistics of a batch need at least 2", op);
  if (!status && !(a->epsilon >= 0.0f && a->momentum >= 0.0f && a->momentum <= 1.0f))
    status = op_refuse(ORT_INVALID_ARGUMENT, "%s: epsilon is %g and momentum %g, expected 0 or more, and 0 to 1", op,
                       (double)a->epsilon, (double)a->momentum);
  if (!status) status = read_channels(op, context, 1, channels, 0, "scale", &n.scale);
  if (!status) status = read_channels(op, context, 2, channels, 0, "bias", &n.bias);
  if (!status) status = read_channels(op, context, 3, channels, 1, "running_mean", &n.mean);
  if (!status) status = read_channels(op, context, 4, channels, 1, "running_var", &n.invstd);
  void *y;
  fg_norm_results *r = &n.results;
  if (!status) status = op_output(context, 0, x.rank, x.shape, &y);
  if (!status) status = write_channels(context, 1, channels, &r->mean);
  if (!status) status = write_channels(context, 2, channels, &r->var);
  if (!status) status = write_channels(context, 3, channels, &r->invstd);
  if (!status) status = write_channels(context, 4, channels, &r->running_mean);
  if (!status) status = write_channels(context, 5, channels, &r->running_var);
  if (status) return status;
  if ((r->running_mean && !n.mean) || (r->running_var && !n.invstd))
    return op_refuse(ORT_INVALID_ARGUMENT, "%s: a running statistic is wanted whose input isn't given", op);
  n.x = x.data, n.out = y;
  n.shape.epsilon = a->epsilon;
  n.shape.momentum = a->momentum;
  return op_planes(context, channels, x.count, 0, forward_channels, &n);
}

static void grad_channels(void *data, size_t begin, size_t end, void *scratch) {
  (void)scratch;
  NormOp *n = data;
  fg_batch_norm_grad(n->x, n->dy, n->scale, n->mean, n->invstd, &n->shape, n->training, begin, end, n->out, n->dscale, n->dbias);
}

static OrtStatus *grad(void *kernel, void *context) {
  static const char op[] = "BatchNormGrad";
  const NormAttributes *a = kernel;
  Tensor x, dy;
  NormOp n = {.training = a->training != 0};
  OrtStatus *status = op_input(context, 0, &x);
  if (!status) status = op_input(context, 1, &dy);
  if (!status) status = read_image(op, &x, &n.shape);
  if (status) return status;
  int same = dy.type == ORT_FLOAT && dy.rank == x.rank;
  for (size_t i = 0; same && i < x.rank; i++) same = x.shape[i] == dy.shape[i];
  if (!same) {
    char first[96], second[96];
    return op_refuse(ORT_INVALID_ARGUMENT, "%s: X has shape %s, dY %s, expected floats of one shape", op,
                     op_shape_text(x.shape, x.rank, first), op_shape_text(dy.shape, dy.rank, second));
  }
  size_t channels = n.shape.channels;
  status = read_channels(op, context, 2, channels, 0, "scale", &n.scale);
  if (!status) status = read_channels(op, context, 3, channels, 0, "mean", &n.mean);
  if (!status) status = read_channels(op, context, 4, channels, 0, "invstd", &n.invstd);
  void *dx;
  if (!status) status = op_output(context, 0, x.rank, x.shape, &dx);
  if (!status) status = write_channels(context, 1, channels, &n.dscale);
  if (!status) status = write_channels(context, 2, channels, &n.dbias);
  if (status) return status;
  n.x = x.data, n.dy = dy.data, n.out = dx;
  return op_planes(context, channels, x.count, 0, grad_channels, &n);
}

OP_DEFINE(fg_op_batch_norm, "BatchNorm", create, op_destroy_allocated, forward, 5, 3, 6);
OP_DEFINE(fg_op_batch_norm_grad, "BatchNormGrad", create, op_destroy_allocated, grad, 5, 5, 3);
