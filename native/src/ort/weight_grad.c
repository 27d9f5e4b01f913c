/* fleetgrad.MatMulWeightGrad (since 1):  X float[K, M], dY float[K, N]  ->  dW float[M, N] = X^T dY, int8 operands. */
#include "op.h"
#include "ops.h"

static OrtStatus *matmul_weight_grad(void *kernel, void *context) {
  (void)kernel;
  Tensor x, dy;
  OrtStatus *status = op_input(context, 0, &x);
  if (!status) status = op_input(context, 1, &dy);
  if (status) return status;
  if (x.rank != 2 || dy.rank != 2 || x.type != ORT_FLOAT || dy.type != ORT_FLOAT)
    return op_refuse(ORT_INVALID_ARGUMENT, "MatMulWeightGrad: an input isn't a matrix of floats");
  if (x.shape[0] != dy.shape[0] || x.shape[0] == 0)
    return op_refuse(ORT_INVALID_ARGUMENT, "MatMulWeightGrad: X has %zu rows, dY has %zu: they must be equal, and at least 1",
                     x.shape[0], dy.shape[0]);
  size_t k = x.shape[0], m = x.shape[1], n = dy.shape[1], where;
  void *out, *scratch;
  status = op_output(context, 0, 2, (size_t[]){m, n}, &out);
  if (!status) status = op_scratch(fg_weight_grad_scratch(k, m, n), &scratch);
  if (status) return status;
  int error = fg_weight_grad(x.data, dy.data, k, m, n, out, scratch, &where);
  op_release(scratch);
  if (error == FG_OK) return NULL;
  int in_x = where < m;
  return op_refuse(ORT_FAIL, "MatMulWeightGrad: column %zu of %s: %s", in_x ? where : where - m, in_x ? "X" : "dY",
                   fg_error_text(error));
}

OP_DEFINE(fg_op_matmul_weight_grad, "MatMulWeightGrad", op_create_stateless, op_destroy_stateless, matmul_weight_grad, 2, 2, 1);
