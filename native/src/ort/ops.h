/* The custom ops of the domain `fleetgrad`, one line each; their files say what they compute. */
#ifndef FG_ORT_OPS_H
#define FG_ORT_OPS_H

#include "abi.h"

extern const OrtCustomOp fg_op_conv_weight_grad;
extern const OrtCustomOp fg_op_matmul_weight_grad;
extern const OrtCustomOp fg_op_depthwise, fg_op_depthwise_input_grad, fg_op_depthwise_weight_grad;
extern const OrtCustomOp fg_op_quantize_columns;

static const OrtCustomOp *const OPS[] = {
    &fg_op_conv_weight_grad,
    &fg_op_matmul_weight_grad,
    &fg_op_depthwise, &fg_op_depthwise_input_grad, &fg_op_depthwise_weight_grad,
    &fg_op_quantize_columns,
};

#endif
