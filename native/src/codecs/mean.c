/* The mean of a round from its integer sum. */
#include "fleetgrad.h"

void fg_ring_mean(const int64_t *sum, size_t n, int64_t total, const float *base, float *out) {
  for (size_t i = 0; i < n; i++) out[i] = (float)((double)base[i] + (double)sum[i] / (double)total * 0x1p-32);
}
