/* Weight gradients with int8 operands. */
#ifndef FLEETGRAD_GRADIENTS_H
#define FLEETGRAD_GRADIENTS_H

#define FG_GRADIENT_KERNELS(X)                                                                                            \
  /* out[m][n] = x[k][m]^T dy[k][n] with int8 operands: a scale per column (absmax / 127), to nearest even, int32 sums over \
     at most 65536 rows. scratch: fg_weight_grad_scratch(k, m, n) bytes, 64-byte aligned. where = column of x, or m +    \
     column of dy, that holds a NaN or infinity. */                                                                     \
  X(int, weight_grad,                                                                                                 \
    (const float *x, const float *dy, size_t k, size_t m, size_t n, float *out, void *scratch, size_t *where),        \
    (x, dy, k, m, n, out, scratch, where))

size_t fg_weight_grad_scratch(size_t k, size_t m, size_t n); /* bytes */

#endif
