/* Gradients of activations (since 1), float32 of any shape:
 *
 * fleetgrad.ReluGrad  Y, dY              ->  dX = dY where Y > 0, else 0
 * fleetgrad.ClipGrad  X, dY, min?, max?  ->  dX = dY where min <= X <= max, else 0
 *
 * ClipGrad takes min and max as scalar inputs (as ONNX's Clip since 11) or as attributes; neither: no bound. Its attribute `inclusive`
 * (1) says whether the bounds themselves pass the gradient: torch.clamp passes it (1), torch's ReLU6 and Hardtanh don't (0), and
 * the exporter writes all of them as Clip. With inclusive = 0, Y serves as well as X.
 */
#include <math.h>
#include <stdlib.h>

#include "ops.h"
#include "planes.h"

#define BLOCK 4096 /* floats that a thread takes at a time */

typedef struct {
  float low, high;
  int64_t inclusive;
} Bounds;

typedef struct {
  const float *from, *dy;
  float *dx;
  size_t n;
  const Bounds *bounds; /* NULL: ReLU */
} Activation;

static void run_blocks(void *data, size_t begin, size_t end, void *scratch) {
  (void)scratch;
  Activation *a = data;
  size_t start = begin * BLOCK, n = (end * BLOCK < a->n ? end * BLOCK : a->n) - start;
  if (a->bounds)
    fg_clip_grad(a->from + start, a->dy + start, a->bounds->low, a->bounds->high, a->bounds->inclusive != 0, n, a->dx + start);
  else
    fg_relu_grad(a->from + start, a->dy + start, n, a->dx + start);
}

static OrtStatus *run(const char *op, const char *name, void *context, const Bounds *bounds) {
  Tensor from, dy;
  OrtStatus *status = op_input(context, 0, &from);
  if (!status) status = op_input(context, 1, &dy);
  if (status) return status;
  int same = from.rank == dy.rank;
  for (size_t i = 0; same && i < dy.rank; i++) same = from.shape[i] == dy.shape[i];
  if (from.type != ORT_FLOAT || dy.type != ORT_FLOAT || !same) {
    char first[96], second[96];
    return op_refuse(ORT_INVALID_ARGUMENT, "%s: %s has shape %s, dY %s, expected floats of one shape", op, name,
                     op_shape_text(from.shape, from.rank, first), op_shape_text(dy.shape, dy.rank, second));
  }
  void *dx;
  status = op_output(context, 0, dy.rank, dy.shape, &dx);
  if (status) return status;
  Activation a = {from.data, dy.data, dx, dy.count, bounds};
  return op_planes(context, (dy.count + BLOCK - 1) / BLOCK, dy.count / 4, 0, run_blocks, &a);
}

static OrtStatus *relu_grad(void *kernel, void *context) {
  (void)kernel;
  return run("ReluGrad", "Y", context, NULL);
}

static OrtStatus *create_clip(const OrtCustomOp *op, const void *const *table, const void *info, void **kernel) {
  (void)op, (void)table;
  Bounds *bounds = malloc(sizeof *bounds);
  if (!bounds) return op_refuse(ORT_FAIL, "no memory for an op's attributes");
  *bounds = (Bounds){-INFINITY, INFINITY, 1};
  OrtStatus *status = op_attribute_float(info, "min", &bounds->low);
  if (!status) status = op_attribute_float(info, "max", &bounds->high);
  if (!status) status = op_attribute_int(info, "inclusive", &bounds->inclusive);
  if (status)
    free(bounds);
  else
    *kernel = bounds;
  return status;
}

static OrtStatus *read_bound(void *context, size_t index, const char *name, float *bound) {
  Tensor given;
  OrtStatus *status = op_input(context, index, &given);
  if (status || !given.data) return status;
  if (given.type != ORT_FLOAT || given.count != 1)
    return op_refuse(ORT_INVALID_ARGUMENT, "ClipGrad: %s must be one float32, it has %zu elements%s", name, given.count,
                     given.type == ORT_FLOAT ? "" : " of another type");
  *bound = *(const float *)given.data;
  return NULL;
}

static OrtStatus *clip_grad(void *kernel, void *context) {
  Bounds bounds = *(const Bounds *)kernel;
  OrtStatus *status = read_bound(context, 2, "min", &bounds.low);
  if (!status) status = read_bound(context, 3, "max", &bounds.high);
  return status ? status : run("ClipGrad", "X", context, &bounds);
}

OP_DEFINE(fg_op_relu_grad, "ReluGrad", op_create_stateless, op_destroy_stateless, relu_grad, 2, 2, 1);
OP_DEFINE(fg_op_clip_grad, "ClipGrad", create_clip, op_destroy_allocated, clip_grad, 4, 2, 1);
