/* The runtime's functions behind op.h, and the entry point that a session looks up. */
#include "op.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"

static const void *const *api; /* the runtime's function table; the same for every session of a process */

OrtStatus *op_refuse(int code, const char *format, ...) {
  char message[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return ORT_SLOT(api, 0, CreateStatusFn)(code, message);
}

OrtStatus *op_input(const void *context, size_t index, Tensor *tensor) {
  *tensor = (Tensor){0};
  size_t given;
  OrtStatus *status = ORT_SLOT(api, 88, ContextCountFn)(context, &given);
  if (status || index >= given) return status;
  const void *value = NULL;
  void *info;
  int64_t dimensions[OP_RANK];
  status = ORT_SLOT(api, 90, ContextInputFn)(context, index, &value);
  if (status || !value) return status;
  status = ORT_SLOT(api, 65, TypeAndShapeFn)(value, &info);
  if (status) return status;
  status = ORT_SLOT(api, 60, ElementTypeFn)(info, &tensor->type);
  if (!status) status = ORT_SLOT(api, 61, DimensionsCountFn)(info, &tensor->rank);
  if (!status && tensor->rank > OP_RANK)
    status = op_refuse(ORT_INVALID_ARGUMENT, "input %zu has %zu dimensions, at most %d", index, tensor->rank, OP_RANK);
  if (!status) status = ORT_SLOT(api, 62, DimensionsFn)(info, dimensions, tensor->rank);
  ORT_SLOT(api, 99, ReleaseInfoFn)(info);
  if (!status) status = ORT_SLOT(api, 51, TensorDataFn)((void *)(uintptr_t)value, &tensor->data);
  if (status) return status;
  tensor->count = 1;
  for (size_t i = 0; i < tensor->rank; i++) tensor->count *= tensor->shape[i] = (size_t)dimensions[i];
  return NULL;
}

OrtStatus *op_output(void *context, size_t index, size_t rank, const size_t *shape, void **data) {
  int64_t dimensions[OP_RANK];
  for (size_t i = 0; i < rank; i++) dimensions[i] = (int64_t)shape[i];
  *data = NULL;
  size_t wanted;
  OrtStatus *status = ORT_SLOT(api, 89, ContextCountFn)(context, &wanted);
  if (status || index >= wanted) return status;
  void *value = NULL;
  status = ORT_SLOT(api, 91, ContextOutputFn)(context, index, dimensions, rank, &value);
  if (status || !value) return status;
  return ORT_SLOT(api, 51, TensorDataFn)(value, data);
}

/* Before a block's aligned start: its size (8 bytes), 7 unused ones, and how far it lies from where the allocator's block began. */
enum { SCRATCH_NOTE = 16 };
static atomic_size_t scratch_held, scratch_most;

size_t fg_scratch_most(void) { return atomic_exchange(&scratch_most, atomic_load(&scratch_held)); }

OrtStatus *op_scratch(size_t bytes, void **memory) {
  void *allocator, *start;
  OrtStatus *status = ORT_SLOT(api, 78, DefaultAllocatorFn)(&allocator);
  if (!status) status = ORT_SLOT(api, 75, AllocatorAllocFn)(allocator, bytes + 64 + SCRATCH_NOTE, &start);
  if (status) return status;
  uintptr_t aligned = ((uintptr_t)start + 63 + SCRATCH_NOTE) & ~(uintptr_t)63;
  unsigned char *at = (void *)aligned;
  memcpy(at - SCRATCH_NOTE, &bytes, sizeof bytes);
  at[-1] = (unsigned char)(aligned - (uintptr_t)start);
  *memory = at;
  size_t held = atomic_fetch_add(&scratch_held, bytes) + bytes, most = atomic_load(&scratch_most);
  while (held > most && !atomic_compare_exchange_weak(&scratch_most, &most, held)) continue;
  return NULL;
}

void op_release(void *memory) {
  if (!memory) return;
  void *allocator;
  unsigned char *at = memory;
  size_t bytes;
  memcpy(&bytes, at - SCRATCH_NOTE, sizeof bytes);
  atomic_fetch_sub(&scratch_held, bytes);
  OrtStatus *status = ORT_SLOT(api, 78, DefaultAllocatorFn)(&allocator);
  if (!status) status = ORT_SLOT(api, 76, AllocatorFreeFn)(allocator, at - at[-1]);
  if (status) ORT_SLOT(api, 93, ReleaseStatusFn)(status);
}

OrtStatus *op_parallel(const void *context, void (*work)(void *data, size_t i), size_t total, void *data) {
  if (total == 1) {
    work(data, 0);
    return NULL;
  }
  return ORT_SLOT(api, 274, ParallelForFn)(context, work, total, 0, data);
}

void op_forget(OrtStatus *status) {
  if (status) ORT_SLOT(api, 93, ReleaseStatusFn)(status);
}

/* 1 for success; the status is dropped. */
static int succeeded(OrtStatus *status) {
  op_forget(status);
  return !status;
}

int op_attribute_given(const void *info, const char *name) {
  int64_t whole;
  float real;
  size_t text = 0, wholes = 0, reals = 0; /* of the lists, the sizes alone are asked for */
  return succeeded(ORT_SLOT(api, 86, AttributeIntFn)(info, name, &whole)) || succeeded(ORT_SLOT(api, 85, AttributeFloatFn)(info, name, &real)) ||
         succeeded(ORT_SLOT(api, 87, AttributeStringFn)(info, name, NULL, &text)) ||
         succeeded(ORT_SLOT(api, 163, AttributeIntsFn)(info, name, NULL, &wholes)) ||
         succeeded(ORT_SLOT(api, 162, AttributeFloatsFn)(info, name, NULL, &reals));
}

static OrtStatus *refuse_other_type(const void *info, const char *name, const char *wanted) {
  return op_attribute_given(info, name) ? op_refuse(ORT_INVALID_ARGUMENT, "attribute %s isn't %s", name, wanted) : NULL;
}

OrtStatus *op_attribute_int(const void *info, const char *name, int64_t *value) {
  int64_t read;
  if (!succeeded(ORT_SLOT(api, 86, AttributeIntFn)(info, name, &read))) return refuse_other_type(info, name, "a whole number");
  *value = read;
  return NULL;
}

OrtStatus *op_attribute_float(const void *info, const char *name, float *value) {
  float read;
  int64_t whole;
  if (succeeded(ORT_SLOT(api, 85, AttributeFloatFn)(info, name, &read)))
    *value = read;
  else if (succeeded(ORT_SLOT(api, 86, AttributeIntFn)(info, name, &whole)))
    *value = (float)whole;
  else
    return refuse_other_type(info, name, "a number");
  return NULL;
}

OrtStatus *op_attribute_ints(const void *info, const char *name, int64_t *values, size_t most, size_t *count) {
  *count = 0;
  OrtStatus *status = ORT_SLOT(api, 163, AttributeIntsFn)(info, name, NULL, count);
  if (!succeeded(status)) {
    *count = 0;
    return refuse_other_type(info, name, "a list of whole numbers");
  }
  if (*count == 0) /* what an attribute of another type is to the runtime */
    return op_refuse(ORT_INVALID_ARGUMENT, "attribute %s isn't a list of whole numbers, or it is empty", name);
  if (*count > most) return op_refuse(ORT_INVALID_ARGUMENT, "attribute %s has %zu values, at most %zu", name, *count, most);
  return ORT_SLOT(api, 163, AttributeIntsFn)(info, name, values, count);
}

OrtStatus *op_create_stateless(const OrtCustomOp *op, const void *const *table, const void *info, void **kernel) {
  (void)table, (void)info;
  *kernel = (void *)(uintptr_t)op; /* any non-NULL pointer */
  return NULL;
}
void op_destroy_stateless(void *kernel) { (void)kernel; }
void op_destroy_allocated(void *kernel) { free(kernel); }

/* Called by SessionOptions.register_custom_ops_library. The domain lives as long as the process: sessions share it. */
__attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(void *options, const OrtApiBase *base) {
  static void *domain;
  const void *const *table = base->get_api(ORT_API_VERSION);
  if (!table) return NULL; /* older than 1.17: the session says that it doesn't know the op */
  api = table;
  OrtStatus *status = NULL;
  if (!domain) {
    status = ORT_SLOT(api, 26, CreateDomainFn)("fleetgrad", &domain);
    for (size_t i = 0; !status && i < sizeof OPS / sizeof *OPS; i++) status = ORT_SLOT(api, 27, DomainAddFn)(domain, OPS[i]);
  }
  if (!status) status = ORT_SLOT(api, 28, AddDomainFn)(options, domain);
  return status;
}
