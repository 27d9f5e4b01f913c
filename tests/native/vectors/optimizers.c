/* Optimizer steps. */
#include "vectors.h"

#define N 5003

void optimizers(void) {
  static float gradients[N], velocity[N], parameters[N];
  for (size_t i = 0; i < N; i++) parameters[i] = next_float();
  for (size_t i = 0; i < N; i++) gradients[i] = next_float();
  memset(velocity, 0, sizeof velocity);
  for (int step = 0; step < 3; step++) fg_sgd_momentum(parameters, gradients, velocity, N, 0.05f, 0.9f, 0.001f);
  emit(parameters, sizeof parameters);
  emit(velocity, sizeof velocity);
}
