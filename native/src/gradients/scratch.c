/* Sizes of the scratch buffers that callers provide. */
#include "fleetgrad.h"

size_t fg_weight_grad_scratch(size_t k, size_t m, size_t n) {
  size_t mp = (m + 15) / 16 * 16, np = (n + 15) / 16 * 16, rows = k < 65536 ? (k + 3) / 4 * 4 : 65536;
  return 4 * (2 * mp + 2 * np + 8 * np) + rows * (mp + np) + 64;
}
