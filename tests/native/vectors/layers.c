/* Layers, forward and backward. */
#include "vectors.h"

#define IMAGE (2 * 3 * 31 * 29)

static float x[IMAGE], dy[4 * IMAGE], weight[6 * 25], bias[6], out[4 * IMAGE], ties[IMAGE];

static void *memory_of(size_t bytes) {
  void *memory = NULL;
  expect(!posix_memalign(&memory, 64, bytes), "memory");
  return memory;
}

/* Batch 2, three channels, two outputs each; the windows' sizes in order of fg_window's fields. */
static void depthwise(fg_window w) {
  expect(!fg_window_fit(&w, 0), "window_fit");
  size_t outputs = 2 * 6 * w.output[0] * w.output[1];
  void *scratch = memory_of(fg_depthwise_scratch(&w, 2));
  for (size_t begin = 0; begin < 6; begin += 3) fg_depthwise(x, weight, bias, &w, 3, 2, begin, begin + 3, out, scratch);
  emit(out, outputs * 4);
  fg_depthwise_input_grad(dy, weight, &w, 3, 2, 0, 4, out, scratch);
  fg_depthwise_input_grad(dy, weight, &w, 3, 2, 4, 6, out, scratch);
  emit(out, 2 * 3 * w.input[0] * w.input[1] * 4);
  fg_depthwise_weight_grad(x, dy, &w, 2, 3, 2, 0, 3, out, scratch);
  emit(out, 6 * w.kernel[0] * w.kernel[1] * 4);
  free(scratch);
}

/* Six planes; maxima with ties, with and without argmax, and averages. */
static void pool(fg_window w, int ceil_mode) {
  static uint8_t argmax[4 * IMAGE];
  static float again[IMAGE];
  expect(!fg_window_fit(&w, ceil_mode), "window_fit");
  size_t positions = w.output[0] * w.output[1], inputs = 6 * w.input[0] * w.input[1] * 4;
  void *scratch = memory_of(fg_pool_scratch(&w));
  fg_max_pool(ties, &w, 0, 6, out, argmax, scratch);
  emit(out, 6 * positions * 4);
  emit(argmax, 6 * positions);
  fg_max_pool_grad(ties, NULL, dy, &w, 0, 2, out, scratch);
  fg_max_pool_grad(ties, NULL, dy, &w, 2, 6, out, scratch);
  emit(out, inputs);
  fg_max_pool_grad(NULL, argmax, dy, &w, 0, 6, again, scratch);
  expect(!memcmp(out, again, inputs), "max_pool_grad from argmax");
  for (int include = 0; include < 2; include++) {
    fg_average_pool_grad(dy, &w, include, 0, 6, out, scratch);
    emit(out, inputs);
  }
  free(scratch);
}

static void norm(fg_norm shape) {
  static float mean[40], var[40], invstd[40], running_mean[40], running_var[40], dscale[40], dbias[40];
  const fg_norm_results results = {mean, var, invstd, running_mean, running_var};
  size_t bytes = shape.channels * 4, size = shape.batch * shape.positions * bytes, half = shape.channels / 2;
  for (size_t i = 0; i < shape.channels; i++) running_mean[i] = weight[i], running_var[i] = weight[i] * weight[i];
  fg_batch_norm(x, weight, weight + 40, running_mean, running_var, &shape, 0, half, out, &results);
  fg_batch_norm(x, weight, weight + 40, running_mean, running_var, &shape, half, shape.channels, out, &results);
  emit(out, size);
  emit(mean, bytes);
  emit(var, bytes);
  emit(invstd, bytes);
  emit(running_mean, bytes);
  emit(running_var, bytes);
  for (int training = 0; training < 2; training++) {
    fg_batch_norm_grad(x, dy, weight, mean, invstd, &shape, training, 0, shape.channels, out, dscale, dbias);
    emit(out, size);
    emit(dscale, bytes);
    emit(dbias, bytes);
  }
}

void layers(void) {
  for (size_t i = 0; i < IMAGE; i++) x[i] = next_float();
  for (size_t i = 0; i < 4 * IMAGE; i++) dy[i] = next_float();
  for (size_t i = 0; i < 6 * 25; i++) weight[i] = next_float();
  for (size_t i = 0; i < 6; i++) bias[i] = next_float();

  depthwise((fg_window){{31, 29}, {0, 0}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}});
  depthwise((fg_window){{31, 29}, {0, 0}, {3, 3}, {2, 2}, {1, 1}, {1, 0}, {1, 1}});
  depthwise((fg_window){{31, 29}, {0, 0}, {5, 5}, {3, 2}, {1, 2}, {2, 3}, {2, 4}});
  depthwise((fg_window){{1, 899}, {0, 0}, {1, 9}, {1, 1}, {1, 3}, {0, 4}, {0, 2}});
  depthwise((fg_window){{31, 29}, {0, 0}, {2, 1}, {5, 3}, {1, 1}, {0, 0}, {0, 0}});

  for (size_t i = 0; i < IMAGE; i++) ties[i] = (float)(int)(3.0f * x[i]);
  pool((fg_window){{31, 29}, {0, 0}, {2, 2}, {2, 2}, {1, 1}, {0, 0}, {0, 0}}, 0);
  pool((fg_window){{31, 29}, {0, 0}, {2, 2}, {2, 2}, {1, 1}, {0, 0}, {0, 0}}, 1);
  pool((fg_window){{31, 29}, {0, 0}, {3, 3}, {2, 2}, {1, 1}, {1, 1}, {1, 1}}, 0);
  pool((fg_window){{31, 29}, {0, 0}, {4, 3}, {1, 3}, {2, 1}, {3, 0}, {1, 2}}, 1);
  pool((fg_window){{1, 899}, {0, 0}, {1, 5}, {1, 2}, {1, 3}, {0, 4}, {0, 2}}, 0);

  norm((fg_norm){2, 3, 31 * 29, 1e-5f, 0.1f});
  norm((fg_norm){7, 37, 1, 1e-5f, 0.1f});
  norm((fg_norm){11, 40, 9, 1e-3f, 0.03f});

  fg_relu_grad(x, dy, IMAGE, out);
  emit(out, IMAGE * 4);
  for (int inclusive = 0; inclusive < 2; inclusive++) {
    fg_clip_grad(ties, dy, -1.0f, 2.0f, inclusive, IMAGE, out);
    emit(out, IMAGE * 4);
  }

  /* logits that lie close, far apart, and in short rows; one of minus infinity */
  static double losses[40];
  static int64_t labels[40];
  const size_t rows[] = {5, 3, 40}, classes[] = {1000, 1700, 7};
  for (size_t i = 0; i < 40; i++) labels[i] = (int64_t)(i * i % 7);
  for (size_t i = 0; i < IMAGE; i++) ties[i] = 60.0f * x[i];
  ties[9] = -1e38f * 1e38f;
  for (size_t i = 0; i < 6; i++) {
    size_t where = 0, r = rows[i / 2], c = classes[i / 2];
    expect(!fg_cross_entropy(i % 2 ? ties : dy, labels, r, c, r, losses, out, &where), "cross_entropy");
    emit(losses, r * sizeof *losses);
    emit(out, r * c * 4);
  }
  labels[2] = 7;
  size_t bad = 0;
  expect(fg_cross_entropy(x, labels, 5, 7, 5, losses, NULL, &bad) == FG_RANGE && bad == 2, "a label beyond the classes");

  fg_window wide = {{31, 29}, {0, 0}, {40, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}};
  expect(fg_window_fit(&wide, 0) == FG_WINDOW, "a window larger than its plane");
}
