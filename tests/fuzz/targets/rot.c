/* rot-k: windows of k-bit codes under a scale, behind a rotation. Options: k - 1; key. */
#include "fuzz.h"

static uint32_t bits_of(const Input *input) { return input->option[0] % 8 + 1u; }

size_t target_size(const Input *input) { return fg_rot_size(input->n, bits_of(input)); }
size_t target_output(const Input *input) { return 4 * input->n; }
int target_floats(void) { return 1; }

int target_decode(const Input *input, void *output, size_t *where) {
  return fg_rot_decode(input->payload, input->n, bits_of(input), input->option[1], input->option[2], output, where);
}

void target_accepted(const Input *input, const void *output) {
  if (!fuzz_one_in(input, 8)) return;
  uint8_t *again = fuzz_memory(input->size);
  size_t where = 0;
  int error = fg_rot_encode(output, input->n, bits_of(input), input->option[1], input->option[2], again, &where);
  fuzz_require(error == FG_OK || error == FG_RANGE, "what was decoded can be encoded, unless it is too large");
  free(again);
}
