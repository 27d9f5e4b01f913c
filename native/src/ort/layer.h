/* What the four ops of recurrent layers share: shapes checked, memory kept until the op ends, directions and parts of the batch run in parallel. */
#ifndef FG_ORT_LAYER_H
#define FG_ORT_LAYER_H

#include "op.h"

enum { LAYER_MEMORY = 12, LAYER_POINTERS = 12 };

/* Attributes of the ops. */
typedef struct {
  int64_t reverse;             /* of a layer of one direction; one of two runs forward, then reverse */
  int64_t linear_before_reset; /* GRU, as in ONNX */
} LayerKind;

typedef struct Layer Layer;
struct Layer {
  const char *name;
  size_t directions, gates; /* D; 4 for LSTM, 3 for GRU */
  fg_sequence sequence;     /* of one direction, all of the batch */
  const float *in[LAYER_POINTERS]; /* the op's own order; NULL: not given */
  float *out[LAYER_POINTERS];
  const float *packed, *more; /* of all directions */
  size_t packed_size, more_size;
  /* Runs direction d of `sequence`, which has its part of the batch, weights and scratch. */
  int (*run)(const Layer *layer, const fg_sequence *sequence, size_t d, size_t *where);
  void *memory[LAYER_MEMORY];
  size_t blocks, *where;
  int *error;
};

OrtStatus *layer_create(const OrtCustomOp *op, const void *const *table, const void *info, void **kernel);

/* Opens input `wide` [D, T, B, gates H] and `weights` [D, gates H, H], and the optional `lengths` int32 [B]. */
OrtStatus *layer_open(Layer *layer, const LayerKind *kind, void *context, size_t wide, size_t weights, size_t lengths);
/* layer->in[slot] = input `index`: states [D, B, H], steps [T, D, B, H] or saved [D, T, B, gates H]; NULL where it isn't given. */
OrtStatus *layer_states(Layer *layer, void *context, size_t index, size_t slot);
OrtStatus *layer_steps(Layer *layer, void *context, size_t index, size_t slot);
OrtStatus *layer_saved(Layer *layer, void *context, size_t index, size_t slot, size_t gates);
/* layer->out[slot] = output `index`, in memory of the layer's where nobody wants it. */
OrtStatus *layer_out_states(Layer *layer, void *context, size_t index, size_t slot);
OrtStatus *layer_out_steps(Layer *layer, void *context, size_t index, size_t slot);
OrtStatus *layer_out_saved(Layer *layer, void *context, size_t index, size_t slot, size_t gates);
/* Packs rows [from, from + count) of each direction's R (those of the gates), or their transpose. */
OrtStatus *layer_pack(Layer *layer, size_t from, size_t count, int transposed, const float **packed, size_t *size);
/* Runs all directions and sequences, releases the layer's memory, and returns `status` at once if it isn't NULL. */
OrtStatus *layer_run(Layer *layer, void *context, OrtStatus *status);

#endif
