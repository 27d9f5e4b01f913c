/* Optimizer steps: every rule alone and with every term, over ranges, and the norm. */
#include "vectors.h"

#define N 5003

void optimizers(void) {
  static float gradients[N], first[N], second[N], parameters[N], anchor[N], control[N], own[N], dynamic[N];
  float *inputs[] = {anchor, control, own, dynamic, gradients};
  const size_t ranges[] = {0, 1000, 1003, 1003, 1003, 1017, 1040, N}, all[] = {0, N};
  for (size_t k = 0; k < sizeof inputs / sizeof *inputs; k++)
    for (size_t i = 0; i < N; i++) inputs[k][i] = next_float();
  for (int terms = 0; terms < 2; terms++)
    for (int rule = FG_SGD; rule <= FG_ADAM; rule++) {
      memcpy(parameters, control, sizeof parameters);
      memset(first, 0, sizeof first);
      memset(second, 0, sizeof second);
      fg_update update = {rule, 0.05f, 0.9f, 0.1f, 0.999f, 0.001f, 31.6f, 1e-8f, 0.001f, 0.999f, 1.0f, 0.0f, NULL, NULL, NULL, NULL};
      if (terms) {
        update.clip = 0.3f, update.proximal = 0.01f;
        update.anchor = anchor, update.control = control, update.own_control = own, update.dynamic = dynamic;
      }
      for (int step = 0; step < 3; step++)
        fg_optimizer_step(&update, terms ? ranges : all, terms ? 4 : 1, parameters, gradients, first, second);
      emit(parameters, sizeof parameters);
      emit(first, sizeof first);
      emit(second, sizeof second);
    }
  double sums[2] = {fg_square_sum(gradients, all, 1), fg_square_sum(gradients, ranges, 4)};
  emit(sums, sizeof sums);
}
