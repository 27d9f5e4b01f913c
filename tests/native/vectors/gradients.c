/* Weight gradients with int8 operands: of matrices (of few rows in float32), of convolutions with every attribute, and what the forward pass keeps. */
#include "vectors.h"

#define K 1030
#define M 37
#define COLUMNS 21
#define LARGEST 40000

static float x[LARGEST], dy[LARGEST], dw[LARGEST], scale[64];
static int8_t codes[LARGEST];

static void *scratch_of(fg_grad_parts parts) {
  void *scratch = NULL;
  expect(!posix_memalign(&scratch, 64, parts.scratch), "memory");
  return scratch;
}

static void product(fg_matmul_grad job) {
  fg_grad_parts parts;
  size_t where;
  fg_matmul_grad_plan(&job, &parts);
  job.scratch = scratch_of(parts);
  expect(!fg_matmul_grad_run(&job, &where), "matmul_grad");
  emit(dw, job.m * job.n * sizeof *dw);
  free(job.scratch);
}

static void convolution(fg_conv_grad job) {
  fg_grad_parts parts;
  size_t where;
  fg_conv_grad_plan(&job, &parts);
  job.scratch = scratch_of(parts);
  expect(!fg_conv_grad_run(&job, &where), "conv_grad");
  emit(dw, job.outputs * job.channels / job.group * job.kernel[0] * job.kernel[1] * sizeof *dw);
  free(job.scratch);
}

void gradients(void) {
  size_t where = 0;
  for (size_t i = 0; i < K * M; i++) x[i] = i % M == 5 ? 0.0f : next_float();
  for (size_t i = 0; i < K * COLUMNS; i++) dy[i] = next_float() * 0.01f;
  fg_matmul_grad job = {.x = x, .dy = dy, .out = dw, .k = K, .m = M, .n = COLUMNS};
  product(job);
  expect(!fg_quantize_columns(x, K, M, 1, codes, scale, &where), "quantize_columns");
  emit(codes, K * M);
  emit(scale, M * sizeof *scale);
  job.x = NULL, job.codes = codes, job.scale = scale, job.base = dw;
  product(job);

  /* dense, strided and dilated with groups, depthwise, one-dimensional */
  convolution((fg_conv_grad){.x = x, .dy = dy, .out = dw, .batch = 3, .channels = 5, .outputs = 18, .group = 1, .x_size = {9, 11},
                             .y_size = {9, 10}, .kernel = {3, 4}, .stride = {1, 1}, .dilation = {1, 1}, .before = {1, 2}});
  convolution((fg_conv_grad){.x = x, .dy = dy, .out = dw, .batch = 2, .channels = 6, .outputs = 27, .group = 3, .x_size = {14, 31},
                             .y_size = {6, 9}, .kernel = {3, 3}, .stride = {2, 3}, .dilation = {1, 2}, .before = {0, 1}});
  convolution((fg_conv_grad){.x = x, .dy = dy, .out = dw, .batch = 2, .channels = 7, .outputs = 14, .group = 7, .x_size = {13, 12},
                             .y_size = {7, 6}, .kernel = {3, 5}, .stride = {2, 2}, .dilation = {1, 1}, .before = {1, 2}});
  expect(!fg_quantize_columns(x, 2, 3, 1200, codes, scale, &where), "quantize_columns");
  convolution((fg_conv_grad){.codes = codes, .scale = scale, .dy = dy, .out = dw, .base = dw, .batch = 2, .channels = 3, .outputs = 9,
                             .group = 1, .x_size = {1, 1200}, .y_size = {1, 1193}, .kernel = {1, 8}, .stride = {1, 1},
                             .dilation = {1, 1}, .before = {0, 0}});
  /* few rows */
  for (size_t rows = 1; rows <= 9; rows += 4) {
    product((fg_matmul_grad){.x = x, .dy = dy, .out = dw, .x_total = scale, .k = rows, .m = 60, .n = 531});
    emit(scale, 60 * sizeof *scale);
    product((fg_matmul_grad){.x = x, .dy = dy, .out = dw, .k = rows, .m = 70, .n = 531});
    product((fg_matmul_grad){.x = x, .dy = dy, .out = dw, .base = dw, .k = rows, .m = 70, .n = 531});
    expect(!fg_quantize_columns(x, rows, 60, 1, codes, scale, &where), "quantize_columns");
    product((fg_matmul_grad){.codes = codes, .scale = scale, .dy = dy, .out = dw, .k = rows, .m = 60, .n = 531});
  }
  x[M + 4] = -1e38f * 1e38f;
  job.x = x, job.codes = NULL;
  fg_grad_parts parts;
  fg_matmul_grad_plan(&job, &parts);
  job.scratch = scratch_of(parts);
  expect(fg_matmul_grad_run(&job, &where) == FG_NONFINITE && where == 4, "an infinity is refused");
  free(job.scratch);
}
