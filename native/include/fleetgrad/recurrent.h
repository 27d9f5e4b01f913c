/* Recurrent cells and the gradient of an embedding. */
#ifndef FLEETGRAD_RECURRENT_H
#define FLEETGRAD_RECURRENT_H

#define FG_RECURRENT_KERNELS(X)

#endif
