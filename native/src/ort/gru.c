/* fleetgrad.GRUTrain and GRUGrad (since 1): a GRU layer as ONNX's GRU defines it, without the products over whole sequences (see lstm.c).
 *
 * GRUTrain: projected float[D, T, B, 3H] = X W^T + bias, R [D, 3H, H], initial_h [D, B, H], recurrent_bias [D, H], sequence_lens int32[B] (the
 *   last three optional)  ->  Y [T, D, B, H], Y_h [D, B, H], gates [D, T, B, 3H], hidden [D, T, B, H] (the last two for GRUGrad).
 *   bias is Wb + Rb; with linear_before_reset = 1, Rb's part of h is recurrent_bias and not in bias; without, hidden is not written.
 * GRUGrad: gates, R, Y, hidden (linear_before_reset = 1), initial_h, sequence_lens, dY, dY_h (optional from hidden on)
 *   ->  dprojected [D, T, B, 3H], previous_h [D, T, B, H], recurrent, dinitial_h.
 *
 * dW, dX and dWb come from dprojected as for LSTM. linear_before_reset = 1: recurrent [D, T, B, 3H] is the gradient of h R^T + Rb, so
 * dR = recurrent^T previous_h, dRb = its sum. linear_before_reset = 0: recurrent [D, T, B, H] is r * h, so dR's rows of z and r are
 * dprojected^T previous_h, those of h dprojected^T recurrent; dRb = dWb.
 */
#include "layer.h"
#include "ops.h"

enum { PROJECTED = 0, WEIGHTS = 1, Y = 2, HIDDEN = 3, H0 = 4, BIAS = 5, DY = 6, DY_H = 7 };

static size_t states(const Layer *layer, size_t d) { return d * layer->sequence.batch * layer->sequence.hidden; }
static size_t saved(const Layer *layer, size_t d) { return states(layer, d) * layer->sequence.steps; }
static const float *at(const float *base, size_t offset) { return base ? base + offset : NULL; }

static int forward(const Layer *layer, const fg_sequence *s, size_t d, size_t *where) {
  size_t row = states(layer, d), all = saved(layer, d);
  return fg_gru_forward(s, layer->in[PROJECTED] + 3 * all, at(layer->in[H0], row), at(layer->in[BIAS], d * s->hidden),
                        layer->out[2] + 3 * all, s->reset_after ? layer->out[3] + all : NULL, layer->out[0] + row,
                        layer->out[1] + row, where);
}

static OrtStatus *gru_train(void *kernel, void *context) {
  Layer layer = {.name = "GRUTrain", .gates = 3, .run = forward};
  OrtStatus *status = layer_open(&layer, kernel, context, 0, 1, 4);
  if (status) return status;
  size_t hidden = layer.sequence.hidden;
  Tensor bias;
  if (!status) status = layer_states(&layer, context, 2, H0);
  if (!status) status = op_input(context, 3, &bias);
  if (!status && bias.data) {
    if (bias.type != ORT_FLOAT || bias.rank != 2 || bias.shape[0] != layer.directions || bias.shape[1] != hidden)
      status = op_refuse(ORT_INVALID_ARGUMENT, "GRUTrain: recurrent_bias isn't float[%zu, %zu]", layer.directions, hidden);
    else if (!layer.sequence.reset_after)
      status = op_refuse(ORT_INVALID_ARGUMENT, "GRUTrain: recurrent_bias is for linear_before_reset = 1: add it to projected");
    layer.in[BIAS] = bias.data;
  }
  if (!status) status = layer_out_steps(&layer, context, 0, 0);
  if (!status) status = layer_out_states(&layer, context, 1, 1);
  if (!status) status = layer_out_saved(&layer, context, 2, 2, 3);
  if (!status && layer.sequence.reset_after) status = layer_out_saved(&layer, context, 3, 3, 1);
  if (!status) status = layer_pack(&layer, 0, 2 * hidden, 1, &layer.packed, &layer.packed_size);
  if (!status) status = layer_pack(&layer, 2 * hidden, hidden, 1, &layer.more, &layer.more_size);
  return layer_run(&layer, context, status);
}

static int backward(const Layer *layer, const fg_sequence *s, size_t d, size_t *where) {
  size_t row = states(layer, d), all = saved(layer, d);
  fg_previous_states(s, layer->in[Y] + row, at(layer->in[H0], row), layer->out[1] + all);
  return fg_gru_backward(s, layer->in[PROJECTED] + 3 * all, at(layer->in[HIDDEN], all), layer->in[Y] + row, at(layer->in[H0], row),
                         at(layer->in[DY], row), at(layer->in[DY_H], row), layer->out[0] + 3 * all,
                         layer->out[2] + (s->reset_after ? 3 * all : all), layer->out[3] + row, where);
}

static OrtStatus *gru_grad(void *kernel, void *context) {
  Layer layer = {.name = "GRUGrad", .gates = 3, .run = backward};
  OrtStatus *status = layer_open(&layer, kernel, context, 0, 1, 5);
  if (status) return status;
  size_t hidden = layer.sequence.hidden;
  int after = layer.sequence.reset_after;
  if (!status) status = layer_steps(&layer, context, 2, Y);
  if (!status) status = layer_saved(&layer, context, 3, HIDDEN, 1);
  if (!status && after && !layer.in[HIDDEN])
    status = op_refuse(ORT_INVALID_ARGUMENT, "GRUGrad: linear_before_reset = 1 needs GRUTrain's hidden");
  if (!status) status = layer_states(&layer, context, 4, H0);
  if (!status) status = layer_steps(&layer, context, 6, DY);
  if (!status) status = layer_states(&layer, context, 7, DY_H);
  if (!status) status = layer_out_saved(&layer, context, 0, 0, 3);
  if (!status) status = layer_out_saved(&layer, context, 1, 1, 1);
  if (!status) status = layer_out_saved(&layer, context, 2, 2, after ? 3 : 1);
  if (!status) status = layer_out_states(&layer, context, 3, 3);
  if (!status) status = layer_pack(&layer, 0, after ? 3 * hidden : 2 * hidden, 0, &layer.packed, &layer.packed_size);
  if (!status && !after) status = layer_pack(&layer, 2 * hidden, hidden, 0, &layer.more, &layer.more_size);
  return layer_run(&layer, context, status);
}

OP_DEFINE(fg_op_gru_train, "GRUTrain", layer_create, op_destroy_allocated, gru_train, 5, 2, 4);
OP_DEFINE(fg_op_gru_grad, "GRUGrad", layer_create, op_destroy_allocated, gru_grad, 8, 3, 4);
