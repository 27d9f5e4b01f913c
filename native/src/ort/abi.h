/* The part of onnxruntime's C ABI that custom ops use. The function table is append-only, so a slot's index never changes;
 * we ask for version 17 of it and declare the slots used, by index. Types of the runtime stay opaque. */
#ifndef FG_ORT_ABI_H
#define FG_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 17
enum { ORT_ANY_TYPE = 0, ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT8 = 3, ORT_INT32 = 6, ORT_INT64 = 7 };
enum { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 };
enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };

typedef void OrtStatus; /* NULL = success */

typedef struct {
  const void *const *(*get_api)(uint32_t version);
  const char *(*version)(void);
} OrtApiBase;

#define ORT_SLOT(api, index, type) ((type)(uintptr_t)(api)[index])
typedef OrtStatus *(*CreateStatusFn)(int code, const char *message);                                             /* 0 */
typedef OrtStatus *(*CreateDomainFn)(const char *name, void **domain);                                           /* 26 */
typedef OrtStatus *(*DomainAddFn)(void *domain, const void *op);                                                 /* 27 */
typedef OrtStatus *(*AddDomainFn)(void *options, void *domain);                                                  /* 28 */
typedef OrtStatus *(*TensorDataFn)(void *value, void **data);                                                    /* 51 */
typedef OrtStatus *(*ElementTypeFn)(const void *info, int *type);                                                /* 60 */
typedef OrtStatus *(*DimensionsCountFn)(const void *info, size_t *count);                                        /* 61 */
typedef OrtStatus *(*DimensionsFn)(const void *info, int64_t *dimensions, size_t count);                         /* 62 */
typedef OrtStatus *(*TypeAndShapeFn)(const void *value, void **info);                                            /* 65 */
typedef OrtStatus *(*AllocatorAllocFn)(void *allocator, size_t bytes, void **memory);                            /* 75 */
typedef OrtStatus *(*AllocatorFreeFn)(void *allocator, void *memory);                                            /* 76 */
typedef OrtStatus *(*DefaultAllocatorFn)(void **allocator);                                                      /* 78 */
typedef OrtStatus *(*AttributeFloatFn)(const void *info, const char *name, float *value);                        /* 85 */
typedef OrtStatus *(*AttributeIntFn)(const void *info, const char *name, int64_t *value);                        /* 86 */
typedef OrtStatus *(*AttributeStringFn)(const void *info, const char *name, char *text, size_t *size);            /* 87 */
typedef OrtStatus *(*ContextCountFn)(const void *context, size_t *count);                                        /* 88, 89 */
typedef OrtStatus *(*ContextInputFn)(const void *context, size_t index, const void **value);                     /* 90 */
typedef OrtStatus *(*ContextOutputFn)(void *context, size_t index, const int64_t *shape, size_t rank, void **v); /* 91 */
typedef void (*ReleaseStatusFn)(OrtStatus *status);                                                              /* 93 */
typedef void (*ReleaseInfoFn)(void *info);                                                                       /* 99 */
typedef OrtStatus *(*AttributeFloatsFn)(const void *info, const char *name, float *values, size_t *count);        /* 162 */
typedef OrtStatus *(*AttributeIntsFn)(const void *info, const char *name, int64_t *values, size_t *count);       /* 163 */
typedef OrtStatus *(*ParallelForFn)(const void *context, void (*work)(void *, size_t), size_t total, size_t batches,
                                    void *data); /* 274 */

/* Byte offsets on LP64 are those of the runtime's own struct; fields after what we use stay NULL. */
typedef struct OrtCustomOp {
  uint32_t version;
  void *(*create_kernel)(const struct OrtCustomOp *op, const void *const *api, const void *info);
  const char *(*name)(const struct OrtCustomOp *op);
  const char *(*provider)(const struct OrtCustomOp *op);
  int (*input_type)(const struct OrtCustomOp *op, size_t index);
  size_t (*input_count)(const struct OrtCustomOp *op);
  int (*output_type)(const struct OrtCustomOp *op, size_t index);
  size_t (*output_count)(const struct OrtCustomOp *op);
  void (*compute)(void *kernel, void *context);
  void (*destroy)(void *kernel);
  int (*input_characteristic)(const struct OrtCustomOp *op, size_t index);
  int (*output_characteristic)(const struct OrtCustomOp *op, size_t index);
  int (*input_memory)(const struct OrtCustomOp *op, size_t index);
  int (*input_variadic[2])(const struct OrtCustomOp *op);
  int (*output_variadic[2])(const struct OrtCustomOp *op);
  OrtStatus *(*create_kernel_v2)(const struct OrtCustomOp *op, const void *const *api, const void *info, void **kernel);
  OrtStatus *(*compute_v2)(void *kernel, void *context);
  OrtStatus *(*infer_shape)(const struct OrtCustomOp *op, void *context);
  int (*start_version)(const struct OrtCustomOp *op);
  int (*end_version)(const struct OrtCustomOp *op);
  void *aliases[4];
} OrtCustomOp;

_Static_assert(sizeof(void *) != 8 || sizeof(OrtCustomOp) == 208, "the runtime's struct has 208 bytes on LP64");

#endif
