/* raw32 and fp16. Options: which. Both are canonical: what was accepted is encoded to the same bytes. */
#include "fuzz.h"

static int narrow(const Input *input) { return input->option[0] & 1; }

size_t target_size(const Input *input) { return input->n * (narrow(input) ? 2 : 4); }
size_t target_output(const Input *input) { return 4 * input->n; }
int target_floats(void) { return 1; }

int target_decode(const Input *input, void *output, size_t *where) {
  return (narrow(input) ? fg_fp16_decode : fg_raw32_decode)(input->payload, input->n, output, where);
}

void target_accepted(const Input *input, const void *output) {
  uint8_t *again = fuzz_memory(input->size);
  size_t where = 0;
  fuzz_require(!(narrow(input) ? fg_fp16_encode : fg_raw32_encode)(output, input->n, again, &where), "what was decoded can be encoded");
  fuzz_require(!memcmp(again, input->payload, input->size), "to the same bytes");
  free(again);
}
