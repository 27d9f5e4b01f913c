/* fleetgrad.MatMulWeightGrad (since 1):  dW float[M, N] = X^T dY with int8 operands (float where K is 8 or less), plus `base`.
 *
 *   X float[K, M], or int8[K, M] with x_scale float[M] as QuantizeColumns gives them (int8 and base: since version 2 of the ops)
 *   dY float[K, N];  base float[M, N], optional
 *   x_total float[M], an optional second output: the sums of a float X's columns (since version 3)
 */
#include "op.h"
#include "ops.h"

#define OP "MatMulWeightGrad"

static void scales(void *job, size_t part) { fg_matmul_grad_scales(job, part); }
static void packs(void *job, size_t part) { fg_matmul_grad_pack(job, part); }
static void rows(void *job, size_t part) { fg_matmul_grad_rows(job, part); }

static OrtStatus *checked(const Tensor *x, const Tensor *dy, const Tensor *scale, const Tensor *base) {
  if (x->rank != 2 || dy->rank != 2 || (x->type != ORT_FLOAT && x->type != ORT_INT8) || dy->type != ORT_FLOAT)
    return op_refuse(ORT_INVALID_ARGUMENT, OP ": an input isn't a matrix of floats (X: or of int8)");
  if (x->shape[0] != dy->shape[0] || x->shape[0] == 0)
    return op_refuse(ORT_INVALID_ARGUMENT, OP ": X has %zu rows, dY has %zu: they must be equal, and at least 1", x->shape[0],
                     dy->shape[0]);
  if ((x->type == ORT_INT8) != (scale->data != NULL))
    return op_refuse(ORT_INVALID_ARGUMENT, OP ": x_scale belongs to an int8 X, and to nothing else");
  if (scale->data && (scale->type != ORT_FLOAT || scale->rank != 1 || scale->count != x->shape[1]))
    return op_refuse(ORT_INVALID_ARGUMENT, OP ": x_scale isn't a vector of %zu floats, one for each column of X", x->shape[1]);
  if (base->data && (base->type != ORT_FLOAT || base->rank != 2 || base->shape[0] != x->shape[1] || base->shape[1] != dy->shape[1]))
    return op_refuse(ORT_INVALID_ARGUMENT, OP ": base isn't a matrix of %zu x %zu floats, as dW is", x->shape[1], dy->shape[1]);
  return NULL;
}

static OrtStatus *matmul_weight_grad(void *kernel, void *context) {
  (void)kernel;
  Tensor x, dy, scale, base;
  OrtStatus *status = op_input(context, 0, &x);
  if (!status) status = op_input(context, 1, &dy);
  if (!status) status = op_input(context, 2, &scale);
  if (!status) status = op_input(context, 3, &base);
  if (!status) status = checked(&x, &dy, &scale, &base);
  if (status) return status;
  size_t m = x.shape[1], n = dy.shape[1];
  fg_matmul_grad job = {.dy = dy.data, .scale = scale.data, .base = base.data, .k = x.shape[0], .m = m, .n = n};
  if (x.type == ORT_INT8)
    job.codes = x.data;
  else
    job.x = x.data;
  fg_grad_parts parts;
  fg_matmul_grad_plan(&job, &parts);
  void *out, *total;
  status = op_output(context, 0, 2, (size_t[]){m, n}, &out);
  if (!status) status = op_output(context, 1, 1, &m, &total);
  if (!status && total && job.codes) status = op_refuse(ORT_INVALID_ARGUMENT, OP ": x_total belongs to a float X, X is int8");
  if (!status) status = op_scratch(parts.scratch, &job.scratch);
  if (status) return status;
  job.out = out, job.x_total = total;
  status = op_parallel(context, scales, parts.scales, &job);
  size_t bad = status ? m + n : fg_grad_refused(job.scratch, m + n);
  if (bad < m + n)
    status = op_refuse(ORT_FAIL, OP ": column %zu of %s: %s", bad < m ? bad : bad - m, bad < m ? "X" : "dY",
                       fg_error_text(FG_NONFINITE));
  if (!status && parts.packs) status = op_parallel(context, packs, parts.packs, &job);
  if (!status) status = op_parallel(context, rows, parts.rows, &job);
  op_release(job.scratch);
  return status;
}

OP_DEFINE(fg_op_matmul_weight_grad, OP, op_create_stateless, op_destroy_stateless, matmul_weight_grad, 4, 2, 2);
