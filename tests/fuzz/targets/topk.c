/* topk: gaps and values of the coordinates kept. */
#include "fuzz.h"

size_t target_size(const Input *input) {
  (void)input;
  return FUZZ_ANY;
}
size_t target_output(const Input *input) { return 4 * input->n; }
int target_floats(void) { return 1; }

int target_decode(const Input *input, void *output, size_t *where) {
  return fg_topk_decode(input->payload, input->size, output, input->n, fuzz_scratch(), where);
}

void target_accepted(const Input *input, const void *output) {
  if (!fuzz_one_in(input, 2)) return;
  uint8_t *coded = fuzz_memory(FG_TOPK_BOUND(input->n)), *decoded = fuzz_memory(4 * input->n);
  size_t size = 0, where = 0;
  int error = fg_topk_encode(output, input->n, input->n, coded, &size, fuzz_scratch(), &where);
  fuzz_require(error == FG_OK || error == FG_RANGE, "what was decoded can be encoded, unless it is too large");
  if (!error)
    fuzz_require(!fg_topk_decode(coded, size, (float *)(void *)decoded, input->n, fuzz_scratch(), &where), "and that be decoded");
  free(coded);
  free(decoded);
}
