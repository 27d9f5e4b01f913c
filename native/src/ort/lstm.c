/* fleetgrad.LSTMTrain and LSTMGrad (since 1): an LSTM layer as ONNX's LSTM defines it, without the products over whole sequences.
 *
 * LSTMTrain: projected float[D, T, B, 4H] = X W^T + Wb + Rb, R [D, 4H, H], initial_h, initial_c [D, B, H], sequence_lens int32[B] (the last
 *   three optional)  ->  Y [T, D, B, H], Y_h, Y_c [D, B, H], gates [D, T, B, 4H], cells [D, T, B, H] (the last two for LSTMGrad).
 * LSTMGrad: gates, R, cells, Y, initial_h, initial_c, sequence_lens, dY, dY_h, dY_c (optional from initial_h on)
 *   ->  dprojected [D, T, B, 4H], previous_h [D, T, B, H], dinitial_h, dinitial_c.
 *
 * Then dW = dprojected^T X, dX = sum over D of dprojected W, dR = dprojected^T previous_h, dB = sum of dprojected over T and B: matrix
 * products, which stay nodes of their own. onnxruntime fuses multiply and add there, which kernels that give the same bytes everywhere may
 * not; and as nodes they can be the int8 MatMulWeightGrad. Peepholes, clip, activations other than the default and layout = 1 don't exist
 * here. Attribute reverse = 1: a layer of one direction that runs backwards.
 */
#include "layer.h"
#include "ops.h"

enum { PROJECTED = 0, WEIGHTS = 1, CELLS = 2, Y = 3, H0 = 4, C0 = 5, DY = 6, DY_H = 7, DY_C = 8 };

static size_t states(const Layer *layer, size_t d) { return d * layer->sequence.batch * layer->sequence.hidden; }
static size_t saved(const Layer *layer, size_t d) { return states(layer, d) * layer->sequence.steps; }
static const float *at(const float *base, size_t offset) { return base ? base + offset : NULL; }

static int forward(const Layer *layer, const fg_sequence *s, size_t d, size_t *where) {
  size_t row = states(layer, d), all = saved(layer, d);
  return fg_lstm_forward(s, layer->in[PROJECTED] + 4 * all, at(layer->in[H0], row), at(layer->in[C0], row), layer->out[3] + 4 * all,
                         layer->out[4] + all, layer->out[0] + row, layer->out[1] + row, layer->out[2] + row, where);
}

static OrtStatus *lstm_train(void *kernel, void *context) {
  Layer layer = {.name = "LSTMTrain", .gates = 4, .run = forward};
  OrtStatus *status = layer_open(&layer, kernel, context, 0, 1, 4);
  if (status) return status;
  if (!status) status = layer_states(&layer, context, 2, H0);
  if (!status) status = layer_states(&layer, context, 3, C0);
  if (!status) status = layer_out_steps(&layer, context, 0, 0);
  if (!status) status = layer_out_states(&layer, context, 1, 1);
  if (!status) status = layer_out_states(&layer, context, 2, 2);
  if (!status) status = layer_out_saved(&layer, context, 3, 3, 4);
  if (!status) status = layer_out_saved(&layer, context, 4, 4, 1);
  if (!status) status = layer_pack(&layer, 0, 4 * layer.sequence.hidden, 1, &layer.packed, &layer.packed_size);
  return layer_run(&layer, context, status);
}

static int backward(const Layer *layer, const fg_sequence *s, size_t d, size_t *where) {
  size_t row = states(layer, d), all = saved(layer, d);
  fg_previous_states(s, layer->in[Y] + row, at(layer->in[H0], row), layer->out[1] + all);
  return fg_lstm_backward(s, layer->in[PROJECTED] + 4 * all, layer->in[CELLS] + all, at(layer->in[C0], row), at(layer->in[DY], row),
                          at(layer->in[DY_H], row), at(layer->in[DY_C], row), layer->out[0] + 4 * all, layer->out[2] + row,
                          layer->out[3] + row, where);
}

static OrtStatus *lstm_grad(void *kernel, void *context) {
  Layer layer = {.name = "LSTMGrad", .gates = 4, .run = backward};
  OrtStatus *status = layer_open(&layer, kernel, context, 0, 1, 6);
  if (status) return status;
  if (!status) status = layer_saved(&layer, context, 2, CELLS, 1);
  if (!status) status = layer_steps(&layer, context, 3, Y);
  if (!status) status = layer_states(&layer, context, 4, H0);
  if (!status) status = layer_states(&layer, context, 5, C0);
  if (!status) status = layer_steps(&layer, context, 7, DY);
  if (!status) status = layer_states(&layer, context, 8, DY_H);
  if (!status) status = layer_states(&layer, context, 9, DY_C);
  if (!status) status = layer_out_saved(&layer, context, 0, 0, 4);
  if (!status) status = layer_out_saved(&layer, context, 1, 1, 1);
  if (!status) status = layer_out_states(&layer, context, 2, 2);
  if (!status) status = layer_out_states(&layer, context, 3, 3);
  if (!status) status = layer_pack(&layer, 0, 4 * layer.sequence.hidden, 0, &layer.packed, &layer.packed_size);
  return layer_run(&layer, context, status);
}

OP_DEFINE(fg_op_lstm_train, "LSTMTrain", layer_create, op_destroy_allocated, lstm_train, 5, 2, 5);
OP_DEFINE(fg_op_lstm_grad, "LSTMGrad", layer_create, op_destroy_allocated, lstm_grad, 10, 4, 4);
