/* fleetgrad.QuantizeColumns (since 2):  X float[A, C, ...]  ->  codes int8, as X, and scale float[C]: X ~ codes * scale.
 *
 * A column is what axis 1 counts: a matrix's column, an image's channel. For what a forward pass keeps: the weight gradients take both
 * in place of X, which takes four times the memory.
 */
#include "op.h"
#include "ops.h"

static OrtStatus *quantize_columns(void *kernel, void *context) {
  (void)kernel;
  Tensor x;
  OrtStatus *status = op_input(context, 0, &x);
  if (status) return status;
  if (x.type != ORT_FLOAT || x.rank < 2)
    return op_refuse(ORT_INVALID_ARGUMENT, "QuantizeColumns: X must be floats with 2 dimensions or more, has %zu", x.rank);
  size_t inner = 1, where;
  for (size_t i = 2; i < x.rank; i++) inner *= x.shape[i];
  void *codes, *scale, *unused = NULL;
  status = op_output(context, 0, x.rank, x.shape, &codes);
  if (!status) status = op_output(context, 1, 1, &x.shape[1], &scale);
  if (!status && !scale) status = op_scratch(x.shape[1] * sizeof(float), &unused);
  if (status) return status;
  int error = fg_quantize_columns(x.data, x.shape[0], x.shape[1], inner, codes, scale ? scale : unused, &where);
  op_release(unused);
  return error == FG_OK ? NULL : op_refuse(ORT_FAIL, "QuantizeColumns: column %zu: %s", where, fg_error_text(error));
}

OP_DEFINE_TYPED(fg_op_quantize_columns, "QuantizeColumns", op_create_stateless, op_destroy_stateless, quantize_columns, 1, 1, 2,
                index == 0 ? ORT_INT8 : ORT_FLOAT);
