/* Optimizer steps over the flat vector. */
#ifndef FLEETGRAD_OPTIMIZERS_H
#define FLEETGRAD_OPTIMIZERS_H

#define FG_OPTIMIZER_KERNELS(X)                                                                                           \
  /* velocity = momentum * velocity + (gradient + decay * parameter); parameter -= rate * velocity. */                \
  X(void, sgd_momentum,                                                                                               \
    (float *parameters, const float *gradients, float *velocity, size_t n, float rate, float momentum, float decay),  \
    (parameters, gradients, velocity, n, rate, momentum, decay))

#endif
