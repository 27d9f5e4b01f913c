/* Optimizer steps over the flat vector, in one read-modify-write pass. */
void FG_ISA(fg_sgd_momentum)(float *restrict parameters, const float *restrict gradients, float *restrict velocity, size_t n,
                             float rate, float momentum, float decay) {
  for (size_t i = 0; i < n; i++) {
    float v = momentum * velocity[i] + (gradients[i] + decay * parameters[i]);
    velocity[i] = v;
    parameters[i] -= rate * v;
  }
}
