/* Layers, forward and backward. */
#include "vectors.h"

#define IMAGE (2 * 3 * 31 * 29)

static float x[IMAGE], dy[4 * IMAGE], weight[6 * 25], bias[6], out[4 * IMAGE];

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

  fg_window wide = {{31, 29}, {0, 0}, {40, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}};
  expect(fg_window_fit(&wide, 0) == FG_WINDOW, "a window larger than its plane");
}
