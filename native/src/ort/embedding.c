/* fleetgrad.EmbeddingGrad and SparseEmbeddingGrad (since 1): the gradient of Gather(W, indices, axis = 0) with respect to W.
 *
 * indices int32 or int64 [...], dY float[..., width...]; attribute vocabulary: W's rows. EmbeddingGrad -> dW float[vocabulary, width...];
 * SparseEmbeddingGrad -> values float[n, width...] and rows int64[n]: the rows that occur, ascending. Rows of dY are added in the order of
 * their positions, so the result doesn't depend on threads; negative indices count from the end.
 */
#include <stdlib.h>

#include "op.h"
#include "ops.h"

enum { MOST_TASKS = 16, TASK_FLOATS = 65536 };

typedef struct {
  const uint32_t *slots;
  size_t count, width, rows, per_task;
  const float *dy;
  float *out;
} Sum;

static OrtStatus *create(const OrtCustomOp *op, const void *const *table, const void *info, void **kernel) {
  (void)op, (void)table;
  int64_t *vocabulary = calloc(1, sizeof *vocabulary);
  if (!vocabulary) return op_refuse(ORT_FAIL, "EmbeddingGrad: out of memory");
  OrtStatus *status = op_attribute_int(info, "vocabulary", vocabulary);
  if (!status && (*vocabulary < 1 || *vocabulary >= (int64_t)1 << 32))
    status = op_refuse(ORT_INVALID_ARGUMENT, "EmbeddingGrad: attribute vocabulary is %lld, W's rows: 1 to 2^32 - 1", (long long)*vocabulary);
  if (status)
    free(vocabulary);
  else
    *kernel = vocabulary;
  return status;
}

static void part(void *data, size_t i) {
  const Sum *sum = data;
  size_t first = i * sum->per_task, last = first + sum->per_task < sum->rows ? first + sum->per_task : sum->rows;
  fg_embedding_sum(sum->slots, sum->count, sum->dy, sum->width, first, last, sum->out + first * sum->width);
}

static OrtStatus *embedding(const void *kernel, void *context, int sparse) {
  const char *name = sparse ? "SparseEmbeddingGrad" : "EmbeddingGrad";
  size_t vocabulary = (size_t) * (const int64_t *)kernel, where = 0;
  Tensor indices, dy;
  OrtStatus *status = op_input(context, 0, &indices);
  if (!status) status = op_input(context, 1, &dy);
  if (status) return status;
  int fits = (indices.type == ORT_INT32 || indices.type == ORT_INT64) && dy.type == ORT_FLOAT && dy.rank >= indices.rank &&
             dy.rank - indices.rank < OP_RANK;
  for (size_t i = 0; i < indices.rank && fits; i++) fits = dy.shape[i] == indices.shape[i];
  if (!fits)
    return op_refuse(ORT_INVALID_ARGUMENT, "%s: dY isn't float with the shape of int32 or int64 indices in front", name);
  size_t shape[OP_RANK], rank = dy.rank - indices.rank + 1, width = 1;
  for (size_t i = 1; i < rank; i++) width *= shape[i] = dy.shape[indices.rank + i - 1];

  void *slots = NULL, *seen = NULL, *rows = NULL, *out = NULL;
  status = op_scratch(indices.count * sizeof(uint32_t), &slots);
  if (!status && fg_embedding_slots(indices.data, indices.type == ORT_INT64, indices.count, vocabulary, slots, &where)) {
    long long value = indices.type == ORT_INT64 ? ((const int64_t *)indices.data)[where] : ((const int32_t *)indices.data)[where];
    status = op_refuse(ORT_INVALID_ARGUMENT, "%s: index %lld at position %zu, the vocabulary has %zu rows", name, value, where, vocabulary);
  }
  Sum sum = {slots, indices.count, width, vocabulary, vocabulary, dy.data, NULL};
  if (sparse) {
    size_t most = indices.count < vocabulary ? indices.count : vocabulary;
    void *numbers = NULL;
    if (!status) status = op_scratch(vocabulary * sizeof(uint32_t), &seen);
    if (!status) status = op_scratch(most * sizeof(int64_t), &numbers);
    if (!status) {
      sum.rows = fg_embedding_rows(slots, indices.count, vocabulary, seen, numbers);
      status = op_output(context, 1, 1, &sum.rows, &rows);
      for (size_t i = 0; i < sum.rows && rows && !status; i++) ((int64_t *)rows)[i] = ((int64_t *)numbers)[i];
    }
    op_release(numbers);
  }
  shape[0] = sum.rows;
  if (!status) status = op_output(context, 0, rank, shape, &out);
  if (!status && sum.rows && out) {
    size_t tasks = sum.rows * (width ? width : 1) / TASK_FLOATS;
    tasks = tasks < 1 ? 1 : tasks > MOST_TASKS ? MOST_TASKS : tasks;
    if (tasks > sum.rows) tasks = sum.rows;
    sum.per_task = (sum.rows + tasks - 1) / tasks;
    sum.out = out;
    status = op_parallel(context, part, (sum.rows + sum.per_task - 1) / sum.per_task, &sum);
  }
  op_release(seen);
  op_release(slots);
  return status;
}

static OrtStatus *embedding_grad(void *kernel, void *context) { return embedding(kernel, context, 0); }
static OrtStatus *sparse_embedding_grad(void *kernel, void *context) { return embedding(kernel, context, 1); }

OP_DEFINE(fg_op_embedding_grad, "EmbeddingGrad", create, op_destroy_allocated, embedding_grad, 2, 2, 1);
OP_DEFINE_TYPED(fg_op_sparse_embedding_grad, "SparseEmbeddingGrad", create, op_destroy_allocated, sparse_embedding_grad, 2, 2, 2,
                index ? ORT_INT64 : ORT_FLOAT);
