/* Layers, forward and backward. */
#include "vectors.h"

void layers(void) {}
