/* lossless: planes of floats' bytes. */
#include "fuzz.h"

size_t target_size(const Input *input) {
  (void)input;
  return FUZZ_ANY;
}
size_t target_output(const Input *input) { return 4 * input->n; }
int target_floats(void) { return 1; }

int target_decode(const Input *input, void *output, size_t *where) {
  return fg_lossless_decode(input->payload, input->size, output, input->n, fuzz_scratch(), where);
}

void target_accepted(const Input *input, const void *output) {
  uint8_t *coded = fuzz_memory(FG_LOSSLESS_BOUND(input->n)), *decoded = fuzz_memory(4 * input->n);
  size_t size = 0, where = 0;
  fuzz_require(!fg_lossless_encode(output, input->n, coded, &size, fuzz_scratch(), &where), "what was decoded can be encoded");
  fuzz_require(!fg_lossless_decode(coded, size, (float *)(void *)decoded, input->n, fuzz_scratch(), &where), "and that be decoded");
  fuzz_require(!memcmp(decoded, output, 4 * input->n), "to the same floats");
  free(coded);
  free(decoded);
}
