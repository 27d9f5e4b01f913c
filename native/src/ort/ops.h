/* The custom ops of the domain `fleetgrad`, one line each; their files say what they compute. */
#ifndef FG_ORT_OPS_H
#define FG_ORT_OPS_H

#include "abi.h"

extern const OrtCustomOp fg_op_conv_weight_grad;
extern const OrtCustomOp fg_op_matmul_weight_grad;
extern const OrtCustomOp fg_op_depthwise, fg_op_depthwise_input_grad, fg_op_depthwise_weight_grad;
extern const OrtCustomOp fg_op_quantize_columns;
extern const OrtCustomOp fg_op_max_pool, fg_op_max_pool_grad, fg_op_max_pool_argmax_grad, fg_op_average_pool_grad;
extern const OrtCustomOp fg_op_relu_grad, fg_op_clip_grad, fg_op_batch_norm, fg_op_batch_norm_grad;
extern const OrtCustomOp fg_op_cross_entropy;
extern const OrtCustomOp fg_op_embedding_grad;
extern const OrtCustomOp fg_op_gru_grad;
extern const OrtCustomOp fg_op_gru_train;
extern const OrtCustomOp fg_op_lstm_grad;
extern const OrtCustomOp fg_op_lstm_train;
extern const OrtCustomOp fg_op_sparse_embedding_grad;

static const OrtCustomOp *const OPS[] = {
    &fg_op_conv_weight_grad,
    &fg_op_matmul_weight_grad,
    &fg_op_depthwise, &fg_op_depthwise_input_grad, &fg_op_depthwise_weight_grad,
    &fg_op_quantize_columns,
    &fg_op_max_pool, &fg_op_max_pool_grad, &fg_op_max_pool_argmax_grad, &fg_op_average_pool_grad,
    &fg_op_relu_grad, &fg_op_clip_grad, &fg_op_batch_norm, &fg_op_batch_norm_grad,
    &fg_op_cross_entropy,
    &fg_op_embedding_grad,
    &fg_op_gru_grad,
    &fg_op_gru_train,
    &fg_op_lstm_grad,
    &fg_op_lstm_train,
    &fg_op_sparse_embedding_grad,
};

#endif
