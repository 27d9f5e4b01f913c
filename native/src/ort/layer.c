/* The ops of recurrent layers over op.h; see layer.h. */
#include "layer.h"

#include <stdlib.h>

enum { BLOCK_ROWS = 8 }; /* sequences of one task: few enough for threads, enough to share each panel of weights */

OrtStatus *layer_create(const OrtCustomOp *op, const void *const *table, const void *info, void **kernel) {
  (void)op, (void)table;
  LayerKind *kind = calloc(1, sizeof *kind);
  if (!kind) return op_refuse(ORT_FAIL, "recurrent layer: out of memory");
  OrtStatus *status = op_attribute_int(info, "reverse", &kind->reverse);
  if (!status) status = op_attribute_int(info, "linear_before_reset", &kind->linear_before_reset);
  if (status)
    free(kind);
  else
    *kernel = kind;
  return status;
}

static OrtStatus *layer_memory(Layer *layer, size_t bytes, void **memory) {
  for (size_t i = 0; i < LAYER_MEMORY; i++)
    if (!layer->memory[i]) {
      OrtStatus *status = op_scratch(bytes, &layer->memory[i]);
      *memory = status ? NULL : layer->memory[i];
      return status;
    }
  return op_refuse(ORT_FAIL, "%s: more memory than a layer keeps", layer->name);
}

OrtStatus *layer_open(Layer *layer, const LayerKind *kind, void *context, size_t wide, size_t weights, size_t lengths) {
  Tensor x, r, given;
  OrtStatus *status = op_input(context, wide, &x);
  if (!status) status = op_input(context, weights, &r);
  if (!status) status = op_input(context, lengths, &given);
  if (status) return status;
  if (x.rank != 4 || x.type != ORT_FLOAT || r.rank != 3 || r.type != ORT_FLOAT)
    return op_refuse(ORT_INVALID_ARGUMENT, "%s: input %zu isn't float[D, T, B, %zu H] or R isn't float[D, %zu H, H]", layer->name,
                     wide, layer->gates, layer->gates);
  size_t hidden = r.shape[2], d = x.shape[0];
  if (r.shape[1] != layer->gates * hidden || x.shape[3] != layer->gates * hidden || r.shape[0] != d)
    return op_refuse(ORT_INVALID_ARGUMENT, "%s: R [%zu, %zu, %zu] doesn't fit input %zu [%zu, %zu, %zu, %zu]", layer->name,
                     r.shape[0], r.shape[1], hidden, wide, d, x.shape[1], x.shape[2], x.shape[3]);
  if (d < 1 || d > 2 || (d == 2 && kind->reverse))
    return op_refuse(ORT_INVALID_ARGUMENT, "%s: %zu directions with reverse = %d: one, or two without it", layer->name, d,
                     (int)kind->reverse);
  if (x.count == 0) return op_refuse(ORT_INVALID_ARGUMENT, "%s: input %zu is empty", layer->name, wide);
  size_t batch = x.shape[2];
  if (given.data) {
    if (given.type != ORT_INT32 || given.rank != 1 || given.count != batch)
      return op_refuse(ORT_INVALID_ARGUMENT, "%s: sequence_lens isn't int32[%zu]", layer->name, batch);
    const int32_t *value = given.data;
    for (size_t b = 0; b < batch; b++)
      if (value[b] < 0 || (size_t)value[b] > x.shape[1])
        return op_refuse(ORT_INVALID_ARGUMENT, "%s: sequence_lens[%zu] is %d, of %zu steps", layer->name, b, (int)value[b], x.shape[1]);
  }
  layer->directions = d;
  layer->in[wide] = x.data;
  layer->in[weights] = r.data;
  layer->sequence = (fg_sequence){.steps = x.shape[1],
                                  .batch = batch,
                                  .hidden = hidden,
                                  .last = batch,
                                  .stride = d * batch * hidden,
                                  .reverse = kind->reverse != 0,
                                  .reset_after = kind->linear_before_reset != 0,
                                  .lengths = given.data};
  return NULL;
}

static OrtStatus *take(Layer *layer, void *context, size_t index, size_t slot, size_t rank, const size_t *shape) {
  Tensor tensor;
  OrtStatus *status = op_input(context, index, &tensor);
  layer->in[slot] = NULL;
  if (status || !tensor.data) return status;
  int fits = tensor.rank == rank && tensor.type == ORT_FLOAT;
  for (size_t i = 0; i < rank && fits; i++) fits = tensor.shape[i] == shape[i];
  if (!fits)
    return op_refuse(ORT_INVALID_ARGUMENT, "%s: input %zu isn't float[%zu, %zu, %zu%s", layer->name, index, shape[0], shape[1],
                     shape[2], rank == 3 ? "]" : ", ...]");
  layer->in[slot] = tensor.data;
  return NULL;
}

static OrtStatus *give(Layer *layer, void *context, size_t index, size_t slot, size_t rank, const size_t *shape) {
  void *data;
  OrtStatus *status = op_output(context, index, rank, shape, &data);
  size_t bytes = sizeof(float);
  for (size_t i = 0; i < rank; i++) bytes *= shape[i];
  if (!status && !data) status = layer_memory(layer, bytes, &data);
  layer->out[slot] = data;
  return status;
}

#define STATES {layer->directions, layer->sequence.batch, layer->sequence.hidden}
#define STEPS {layer->sequence.steps, layer->directions, layer->sequence.batch, layer->sequence.hidden}
#define SAVED {layer->directions, layer->sequence.steps, layer->sequence.batch, gates * layer->sequence.hidden}
OrtStatus *layer_states(Layer *layer, void *context, size_t index, size_t slot) {
  return take(layer, context, index, slot, 3, (const size_t[])STATES);
}
OrtStatus *layer_steps(Layer *layer, void *context, size_t index, size_t slot) {
  return take(layer, context, index, slot, 4, (const size_t[])STEPS);
}
OrtStatus *layer_saved(Layer *layer, void *context, size_t index, size_t slot, size_t gates) {
  return take(layer, context, index, slot, 4, (const size_t[])SAVED);
}
OrtStatus *layer_out_states(Layer *layer, void *context, size_t index, size_t slot) {
  return give(layer, context, index, slot, 3, (const size_t[])STATES);
}
OrtStatus *layer_out_steps(Layer *layer, void *context, size_t index, size_t slot) {
  return give(layer, context, index, slot, 4, (const size_t[])STEPS);
}
OrtStatus *layer_out_saved(Layer *layer, void *context, size_t index, size_t slot, size_t gates) {
  return give(layer, context, index, slot, 4, (const size_t[])SAVED);
}

OrtStatus *layer_pack(Layer *layer, size_t from, size_t count, int transposed, const float **packed, size_t *size) {
  size_t hidden = layer->sequence.hidden, k = transposed ? hidden : count, n = transposed ? count : hidden;
  void *memory = NULL;
  *size = fg_packed(k, n);
  OrtStatus *status = layer_memory(layer, layer->directions * *size * sizeof(float), &memory);
  if (status) return status;
  *packed = memory;
  for (size_t d = 0; d < layer->directions; d++)
    fg_recurrent_pack(layer->in[1] + (d * layer->gates * hidden + from) * hidden, k, n, transposed, (float *)memory + d * *size);
  return NULL;
}

/* Task i: a direction and a block of sequences. */
static void work(void *data, size_t i) {
  Layer *layer = data;
  size_t d = i / layer->blocks, first = i % layer->blocks * BLOCK_ROWS;
  fg_sequence sequence = layer->sequence;
  sequence.first = first;
  sequence.last = first + BLOCK_ROWS < sequence.batch ? first + BLOCK_ROWS : sequence.batch;
  if (layer->directions == 2) sequence.reverse = d == 1;
  sequence.weights = layer->packed + d * layer->packed_size;
  sequence.more = layer->more ? layer->more + d * layer->more_size : NULL;
  fg_sequence block = {.hidden = sequence.hidden, .last = BLOCK_ROWS};
  sequence.scratch += i * fg_recurrent_scratch(&block);
  layer->error[i] = layer->run(layer, &sequence, d, &layer->where[i]);
}

OrtStatus *layer_run(Layer *layer, void *context, OrtStatus *status) {
  fg_sequence block = {.hidden = layer->sequence.hidden, .last = BLOCK_ROWS};
  layer->blocks = (layer->sequence.batch + BLOCK_ROWS - 1) / BLOCK_ROWS;
  size_t tasks = layer->directions * layer->blocks;
  void *scratch = NULL, *where = NULL, *error = NULL;
  if (!status) status = layer_memory(layer, tasks * fg_recurrent_scratch(&block) * sizeof(float), &scratch);
  if (!status) status = layer_memory(layer, tasks * sizeof *layer->where, &where);
  if (!status) status = layer_memory(layer, tasks * sizeof *layer->error, &error);
  layer->sequence.scratch = scratch;
  layer->where = where;
  layer->error = error;
  if (!status) status = op_parallel(context, work, tasks, layer);
  for (size_t i = 0; i < tasks && !status; i++)
    if (layer->error[i])
      status = op_refuse(ORT_FAIL, "%s: direction %zu, step %zu, sequence %zu: %s", layer->name, i / layer->blocks,
                         layer->where[i] / layer->sequence.batch, layer->where[i] % layer->sequence.batch,
                         fg_error_text(layer->error[i]));
  for (size_t i = 0; i < LAYER_MEMORY; i++) op_release(layer->memory[i]);
  return status;
}
