/* Recurrent cells and the gradient of an embedding. */
#include "vectors.h"

void recurrent(void) {}
