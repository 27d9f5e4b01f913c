/* ring: integers mod 2^r. Options: r. Packing is canonical: what was accepted is packed to the same bytes. */
#include "fuzz.h"

static uint32_t bits_of(const Input *input) { return input->option[0] % 3 == 0 ? 16 : input->option[0] % 3 == 1 ? 20 : 32; }

size_t target_size(const Input *input) { return (input->n * bits_of(input) + 7) / 8; }
size_t target_output(const Input *input) { return 4 * input->n; }
int target_floats(void) { return 0; }

int target_decode(const Input *input, void *output, size_t *where) {
  *where = 0;
  return fg_lattice_unpack(input->payload, input->n, bits_of(input), output);
}

void target_accepted(const Input *input, const void *output) {
  uint8_t *again = fuzz_memory(input->size);
  fg_lattice_pack(output, input->n, bits_of(input), again);
  fuzz_require(!memcmp(again, input->payload, input->size), "packing what was unpacked gives the same bytes");
  free(again);
  if (!fuzz_one_in(input, 8)) return;
  uint8_t *by_best = fuzz_memory(4 * input->n), *by_serial = fuzz_memory(4 * input->n);
  fg_lattice_decode(output, input->n, bits_of(input), 0x1p-10f, input->option[1], input->option[2], (float *)(void *)by_best);
  fg_use_capability(FG_SERIAL);
  fg_lattice_decode(output, input->n, bits_of(input), 0x1p-10f, input->option[1], input->option[2], (float *)(void *)by_serial);
  fuzz_require(!memcmp(by_best, by_serial, 4 * input->n), "two ISAs decode the same floats");
  free(by_best);
  free(by_serial);
}
