/* Custom ops for onnxruntime, exported by the Python module's own shared object.
 *
 *   fleetgrad.MatMulWeightGrad (since 1):  X float[K, M], dY float[K, N]  ->  dW float[M, N] = X^T dY, int8 operands
 *
 * A session finds them through RegisterCustomOps. An op that meets a NaN or a wrong shape fails the run with a message; it
 * never returns numbers that it doesn't stand by.
 */
#include <stdio.h>

#include "fleetgrad.h"
#include "ort_abi.h"

static const void *const *api; /* the runtime's function table; the same for every session of a process */

static OrtStatus *refuse(int code, const char *message) { return ORT_SLOT(api, 0, CreateStatusFn)(code, message); }

/* Data and shape of a rank-2 input. */
static OrtStatus *matrix(const void *context, size_t index, const float **data, size_t shape[2]) {
  const void *value;
  void *info, *memory;
  size_t rank;
  int64_t dimensions[2] = {0, 0};
  OrtStatus *status = ORT_SLOT(api, 90, ContextInputFn)(context, index, &value);
  if (!status) status = ORT_SLOT(api, 65, TypeAndShapeFn)(value, &info);
  if (status) return status;
  status = ORT_SLOT(api, 61, DimensionsCountFn)(info, &rank);
  if (!status && rank != 2) status = refuse(ORT_INVALID_ARGUMENT, "MatMulWeightGrad: an input isn't a matrix");
  if (!status) status = ORT_SLOT(api, 62, DimensionsFn)(info, dimensions, 2);
  ORT_SLOT(api, 99, ReleaseInfoFn)(info);
  if (!status) status = ORT_SLOT(api, 51, TensorDataFn)((void *)(uintptr_t)value, &memory);
  if (status) return status;
  *data = memory;
  shape[0] = (size_t)dimensions[0];
  shape[1] = (size_t)dimensions[1];
  return NULL;
}

static OrtStatus *weight_grad(void *kernel, void *context) {
  (void)kernel;
  const float *x, *dy;
  size_t xs[2], ys[2], where;
  char message[160];
  OrtStatus *status = matrix(context, 0, &x, xs);
  if (!status) status = matrix(context, 1, &dy, ys);
  if (status) return status;
  if (xs[0] != ys[0] || xs[0] == 0) {
    snprintf(message, sizeof message, "MatMulWeightGrad: X has %zu rows, dY has %zu: they must be equal, and at least 1", xs[0],
             ys[0]);
    return refuse(ORT_INVALID_ARGUMENT, message);
  }
  int64_t shape[2] = {(int64_t)xs[1], (int64_t)ys[1]};
  void *output, *out, *allocator, *scratch;
  status = ORT_SLOT(api, 91, ContextOutputFn)(context, 0, shape, 2, &output);
  if (!status) status = ORT_SLOT(api, 51, TensorDataFn)(output, &out);
  if (!status) status = ORT_SLOT(api, 78, DefaultAllocatorFn)(&allocator);
  if (!status) status = ORT_SLOT(api, 75, AllocatorAllocFn)(allocator, fg_weight_grad_scratch(xs[0], xs[1], ys[1]), &scratch);
  if (status) return status;
  int error = fg_weight_grad(x, dy, xs[0], xs[1], ys[1], out, scratch, &where);
  status = ORT_SLOT(api, 76, AllocatorFreeFn)(allocator, scratch);
  if (error != FG_OK && !status) {
    int in_x = where < xs[1];
    snprintf(message, sizeof message, "MatMulWeightGrad: column %zu of %s: %s", in_x ? where : where - xs[1], in_x ? "X" : "dY",
             fg_error_text(error));
    status = refuse(ORT_FAIL, message);
  }
  return status;
}

static OrtStatus *create(const OrtCustomOp *op, const void *const *table, const void *info, void **kernel) {
  (void)table, (void)info;
  *kernel = (void *)(uintptr_t)op; /* stateless: any non-NULL pointer */
  return NULL;
}
static void destroy(void *kernel) { (void)kernel; }
static const char *name(const OrtCustomOp *op) { return (void)op, "MatMulWeightGrad"; }
static const char *provider(const OrtCustomOp *op) { return (void)op, (const char *)NULL; }
static int float_type(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, ORT_FLOAT; }
static size_t two(const OrtCustomOp *op) { return (void)op, (size_t)2; }
static size_t one(const OrtCustomOp *op) { return (void)op, (size_t)1; }
static int required(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, 0; }
static int first_version(const OrtCustomOp *op) { return (void)op, 1; }
static int last_version(const OrtCustomOp *op) { return (void)op, 0x7fffffff; }

static const OrtCustomOp MATMUL_WEIGHT_GRAD = {
    .version = ORT_API_VERSION,
    .name = name,
    .provider = provider,
    .input_type = float_type,
    .input_count = two,
    .output_type = float_type,
    .output_count = one,
    .destroy = destroy,
    .input_characteristic = required,
    .output_characteristic = required,
    .input_memory = required,
    .create_kernel_v2 = create,
    .compute_v2 = weight_grad,
    .start_version = first_version,
    .end_version = last_version,
};

/* Called by SessionOptions.register_custom_ops_library. The domain lives as long as the process: sessions share it. */
__attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(void *options, const OrtApiBase *base) {
  static void *domain;
  const void *const *table = base->get_api(ORT_API_VERSION);
  if (!table) return NULL; /* older than 1.17: the session says that it doesn't know the op */
  api = table;
  OrtStatus *status = NULL;
  if (!domain) {
    status = ORT_SLOT(api, 26, CreateDomainFn)("fleetgrad", &domain);
    if (!status) status = ORT_SLOT(api, 27, DomainAddFn)(domain, &MATMUL_WEIGHT_GRAD);
  }
  if (!status) status = ORT_SLOT(api, 28, AddDomainFn)(options, domain);
  return status;
}
