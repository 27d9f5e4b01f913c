/* Optimizer steps over the flat vector: one read-modify-write pass, whatever the options. */
#ifndef FLEETGRAD_OPTIMIZERS_H
#define FLEETGRAD_OPTIMIZERS_H

#include <stddef.h>
#include <stdint.h>

#define FG_SGD 0      /* w -= rate d */
#define FG_MOMENTUM 1 /* v = beta1 v + d; w -= rate v */
#define FG_NESTEROV 2 /* v = beta1 v + d; w -= rate (d + beta1 v) */
#define FG_ADAM 3     /* m = beta1 m + fresh1 d; s = beta2 s + fresh2 d^2; w = keep w - rate m / (sqrt(s) root + epsilon) */

/* What a step does. d = clip g [+ proximal (w - anchor)] [+ (control - own_control)] [- dynamic] + decay w, added up in this order, where
 * a vector that is NULL leaves its term out. Constants that depend on the step's number (Adam's bias corrections) come in as numbers. */
typedef struct {
  int rule;
  float rate;            /* learning rate; Adam: divided by 1 - beta1^t */
  float beta1, fresh1;   /* momentum; Adam: fresh1 = 1 - beta1 */
  float beta2, fresh2;   /* Adam */
  float root, epsilon;   /* Adam: root = 1 / sqrt(1 - beta2^t) */
  float decay;           /* weight decay that is added to the gradient */
  float keep;            /* AdamW: 1 - learning rate * weight decay; 1 otherwise */
  float clip;            /* factor of the gradient */
  float proximal;        /* mu of FedProx, alpha of FedDyn */
  const float *anchor;   /* the round's global model */
  const float *control, *own_control; /* SCAFFOLD's c and c_i; both or none */
  const float *dynamic;  /* FedDyn's h_i */
} fg_update;

#define FG_OPTIMIZER_KERNELS(X)                                                                                           \
  /* One step over the coordinates of `count` ranges [ranges[2 i], ranges[2 i + 1]); all else stays as it is. first, second: velocity or \
     moments, NULL where the rule has none. No vector overlaps one that is written (parameters, first, second). */    \
  X(void, optimizer_step,                                                                                             \
    (const fg_update *update, const size_t *ranges, size_t count, float *parameters, const float *gradients, float *first, float *second), \
    (update, ranges, count, parameters, gradients, first, second))                                                    \
  /* Sum of squares over such ranges, in doubles: coordinate i is added to sum i mod 16, in ascending order, and the 16 sums pairwise, so that \
     neither the machine nor how the ranges are cut changes a bit. Finite if and only if every value is. */           \
  X(double, square_sum, (const float *values, const size_t *ranges, size_t count), (values, ranges, count))

#endif
