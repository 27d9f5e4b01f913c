/* blk8 and blk4: blocks of 64 codes under a scale. Options: which. */
#include "fuzz.h"

static int narrow(const Input *input) { return input->option[0] & 1; }

size_t target_size(const Input *input) { return 4 * ((input->n + 63) / 64) + (narrow(input) ? (input->n + 1) / 2 : input->n); }
size_t target_output(const Input *input) { return 4 * input->n; }
int target_floats(void) { return 1; }

int target_decode(const Input *input, void *output, size_t *where) {
  return (narrow(input) ? fg_blk4_decode : fg_blk8_decode)(input->payload, input->n, output, where);
}

void target_accepted(const Input *input, const void *output) {
  if (!fuzz_one_in(input, 8)) return;
  uint8_t *again = fuzz_memory(input->size);
  size_t where = 0;
  int error = (narrow(input) ? fg_blk4_encode : fg_blk8_encode)(output, input->n, NULL, again, &where);
  fuzz_require(error == FG_OK || error == FG_RANGE, "what was decoded can be encoded, unless it is too large");
  free(again);
}
