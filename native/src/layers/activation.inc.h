/* Gradients of activations that pass or stop: one pass, a compare and a mask. */
void FG_ISA(fg_relu_grad)(const float *y, const float *dy, size_t n, float *dx) {
  for (size_t i = 0; i < n; i++) dx[i] = y[i] > 0.0f ? dy[i] : 0.0f;
}

void FG_ISA(fg_clip_grad)(const float *x, const float *dy, float low, float high, int inclusive, size_t n, float *dx) {
  if (inclusive)
    for (size_t i = 0; i < n; i++) dx[i] = ((x[i] >= low) & (x[i] <= high)) ? dy[i] : 0.0f;
  else
    for (size_t i = 0; i < n; i++) dx[i] = ((x[i] > low) & (x[i] < high)) ? dy[i] : 0.0f;
}
