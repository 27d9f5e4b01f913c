/* fleetgrad.SoftmaxCrossEntropy (since 3):  logits float[K, C], labels int64[K]  ->  loss float[], dlogits? float[K, C]
 *
 * The mean of -log softmax(logits)[label] over the rows, and its gradient.
 */
#include "op.h"
#include "ops.h"

#define OP "SoftmaxCrossEntropy"

enum { PART_FLOATS = 16384, MOST_PARTS = 64 };

typedef struct {
  const float *z;
  const int64_t *labels;
  size_t rows, classes, per_part, bad[MOST_PARTS]; /* row whose label is out of range, or `rows` */
  double *losses;
  float *dz;
} Loss;

static void part(void *data, size_t i) {
  Loss *l = data;
  size_t first = i * l->per_part, count = l->rows - first < l->per_part ? l->rows - first : l->per_part, where;
  int error = fg_cross_entropy(l->z + first * l->classes, l->labels + first, count, l->classes, l->rows, l->losses + first,
                               l->dz ? l->dz + first * l->classes : NULL, &where);
  l->bad[i] = error ? first + where : l->rows;
}

static OrtStatus *cross_entropy(void *kernel, void *context) {
  (void)kernel;
  Tensor z, labels;
  OrtStatus *status = op_input(context, 0, &z);
  if (!status) status = op_input(context, 1, &labels);
  if (status) return status;
  if (z.type != ORT_FLOAT || z.rank != 2 || labels.type != ORT_INT64 || labels.rank != 1)
    return op_refuse(ORT_INVALID_ARGUMENT, OP ": the logits must be a matrix of floats, the labels a vector of int64");
  if (z.shape[0] != labels.shape[0] || z.count == 0)
    return op_refuse(ORT_INVALID_ARGUMENT, OP ": %zu rows of %zu logits for %zu labels: there must be as many, and at least 1", z.shape[0],
                     z.shape[1], labels.shape[0]);
  Loss l = {.z = z.data, .labels = labels.data, .rows = z.shape[0], .classes = z.shape[1]};
  void *loss, *dz, *losses;
  status = op_output(context, 0, 0, NULL, &loss);
  if (!status) status = op_output(context, 1, 2, z.shape, &dz);
  if (!status) status = op_scratch(l.rows * sizeof *l.losses, &losses);
  if (status) return status;
  l.losses = losses, l.dz = dz;
  size_t parts = (z.count + PART_FLOATS - 1) / PART_FLOATS;
  parts = parts < MOST_PARTS ? parts : MOST_PARTS;
  l.per_part = (l.rows + parts - 1) / parts;
  parts = (l.rows + l.per_part - 1) / l.per_part;
  status = op_parallel(context, part, parts, &l);
  double total = 0.0;
  for (size_t i = 0; i < parts && !status; i++)
    if (l.bad[i] < l.rows)
      status = op_refuse(ORT_INVALID_ARGUMENT, OP ": label %lld at row %zu, there are %zu classes", (long long)l.labels[l.bad[i]], l.bad[i], l.classes);
  for (size_t i = 0; i < l.rows && !status; i++) total += l.losses[i];
  if (!status) *(float *)loss = (float)(total / (double)l.rows);
  op_release(losses);
  return status;
}

OP_DEFINE(fg_op_cross_entropy, OP, op_create_stateless, op_destroy_stateless, cross_entropy, 2, 2, 2);
