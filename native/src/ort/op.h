/* What a custom op's file needs: its inputs as plain tensors, its outputs, attributes, scratch memory and threads.
 *
 * Every function returns NULL for success or a status that the op returns at once: the session's run fails with its message. An op never
 * returns numbers that it doesn't stand by.
 */
#ifndef FG_ORT_OP_H
#define FG_ORT_OP_H

#include "abi.h"
#include "fleetgrad.h"

#define OP_RANK 8 /* most dimensions of a tensor that an op takes */

typedef struct {
  void *data; /* NULL: an optional input that isn't given */
  int type;   /* ORT_FLOAT, ... */
  size_t rank;
  size_t shape[OP_RANK];
  size_t count; /* elements */
} Tensor;

/* Message as printf gives it, cut at 255 bytes. */
OrtStatus *op_refuse(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

OrtStatus *op_input(const void *context, size_t index, Tensor *tensor);
OrtStatus *op_output(void *context, size_t index, size_t rank, const size_t *shape, void **data); /* data may be NULL */
OrtStatus *op_scratch(size_t bytes, void **memory); /* 64-byte aligned; give it back by op_release */
void op_release(void *memory);
void op_forget(OrtStatus *status); /* drops a status, or NULL, that isn't returned */
/* Runs work(data, i) for i < total on the session's threads; returns when all are done. */
OrtStatus *op_parallel(const void *context, void (*work)(void *data, size_t i), size_t total, void *data);

/* Attributes, read in create; an absent one leaves the value as it is, one of another type is refused. A whole number may stand for a float. */
OrtStatus *op_attribute_int(const void *info, const char *name, int64_t *value);
OrtStatus *op_attribute_float(const void *info, const char *name, float *value);
int op_attribute_given(const void *info, const char *name); /* 1 if the node has an attribute of this name, of whatever type but tensors */
/* At most `most` values are stored, *count gets how many there are (0: absent). More than that is refused. */
OrtStatus *op_attribute_ints(const void *info, const char *name, int64_t *values, size_t most, size_t *count);

/* Defines the op `NAME`: compute(kernel, context) and create(op, table, info, kernel) are static functions of the including file;
 * inputs may be of any type, those from `required` on are optional; outputs are float, those after the first are optional. */
#define OP_DEFINE(symbol, text, create_function, destroy_function, compute_function, inputs, required, outputs)             \
  OP_DEFINE_TYPED(symbol, text, create_function, destroy_function, compute_function, inputs, required, outputs, ORT_FLOAT)

/* The same with outputs that aren't all float: kind is an expression in `index`. */
#define OP_DEFINE_TYPED(symbol, text, create_function, destroy_function, compute_function, inputs, required, outputs, kind) \
  static const char *symbol##_name(const OrtCustomOp *op) { return (void)op, text; }                                         \
  static const char *symbol##_provider(const OrtCustomOp *op) { return (void)op, (const char *)NULL; }                       \
  static int symbol##_type(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, ORT_ANY_TYPE; }              \
  static int symbol##_kind(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, (kind); }                    \
  static size_t symbol##_inputs(const OrtCustomOp *op) { return (void)op, (size_t)(inputs); }                                \
  static size_t symbol##_outputs(const OrtCustomOp *op) { return (void)op, (size_t)(outputs); }                              \
  static int symbol##_given(const OrtCustomOp *op, size_t index) {                                                           \
    return (void)op, index < (size_t)(required) ? ORT_REQUIRED : ORT_OPTIONAL;                                               \
  }                                                                                                                          \
  static int symbol##_memory(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, 0; }                       \
  static int symbol##_wanted(const OrtCustomOp *op, size_t index) { return (void)op, index ? ORT_OPTIONAL : ORT_REQUIRED; }  \
  static int symbol##_first(const OrtCustomOp *op) { return (void)op, 1; }                                                   \
  static int symbol##_last(const OrtCustomOp *op) { return (void)op, 0x7fffffff; }                                           \
  const OrtCustomOp symbol = {                                                                                               \
      .version = ORT_API_VERSION,                                                                                            \
      .name = symbol##_name,                                                                                                 \
      .provider = symbol##_provider,                                                                                         \
      .input_type = symbol##_type,                                                                                           \
      .input_count = symbol##_inputs,                                                                                        \
      .output_type = symbol##_kind,                                                                                          \
      .output_count = symbol##_outputs,                                                                                      \
      .destroy = destroy_function,                                                                                           \
      .input_characteristic = symbol##_given,                                                                                \
      .output_characteristic = symbol##_wanted,                                                                              \
      .input_memory = symbol##_memory,                                                                                       \
      .create_kernel_v2 = create_function,                                                                                   \
      .compute_v2 = compute_function,                                                                                        \
      .start_version = symbol##_first,                                                                                       \
      .end_version = symbol##_last,                                                                                          \
  }

/* For ops without attributes. */
OrtStatus *op_create_stateless(const OrtCustomOp *op, const void *const *table, const void *info, void **kernel);
void op_destroy_stateless(void *kernel);
/* For ops whose create allocates its attributes with malloc. */
void op_destroy_allocated(void *kernel);

#endif
