/* Layers that the stock wheel computes slowly, forward and backward. */
#ifndef FLEETGRAD_LAYERS_H
#define FLEETGRAD_LAYERS_H

#define FG_LAYER_KERNELS(X)

#endif
