/* Weight gradients with int8 operands. */
#include "vectors.h"

#define K 1030
#define M 37
#define COLUMNS 21

void gradients(void) {
  static float x[K * M], dy[K * COLUMNS], dw[M * COLUMNS];
  size_t where = 0;
  for (size_t i = 0; i < K * M; i++) x[i] = i % M == 5 ? 0.0f : next_float();
  for (size_t i = 0; i < K * COLUMNS; i++) dy[i] = next_float() * 0.01f;
  void *scratch = NULL;
  expect(!posix_memalign(&scratch, 64, fg_weight_grad_scratch(K, M, COLUMNS)), "memory");
  expect(!fg_weight_grad(x, dy, K, M, COLUMNS, dw, scratch, &where), "weight_grad");
  emit(dw, sizeof dw);
  free(scratch);
}
