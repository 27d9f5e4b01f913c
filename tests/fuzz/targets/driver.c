/* Runs a target on an input, by two ISAs: see fuzz.h. */
#include "fuzz.h"

#include <stdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

void fuzz_require(int holds, const char *what) {
  if (holds) return;
  fprintf(stderr, "\nwhat doesn't hold: %s\n", what);
  abort();
}

uint8_t *fuzz_memory(size_t bytes) {
  uint8_t *memory = malloc(bytes ? bytes : 1);
  fuzz_require(memory != NULL, "there is memory");
  return memory;
}

int fuzz_one_in(const Input *input, unsigned rate) {
  unsigned sum = 0;
  for (size_t i = 0; i < input->size; i++) sum += input->payload[i];
  return sum % rate == 1;
}

void *fuzz_scratch(void) {
  static _Alignas(64) uint8_t scratch[FUZZ_SCRATCH];
  return scratch;
}

/* The number-th capability of this machine beyond the portable one, counted in a circle. */
static int other_capability(uint8_t number) {
  int found[FG_CAPABILITIES], count = 0;
  for (int capability = FG_CAPABILITIES - 1; capability > FG_SERIAL; capability--)
    if (fg_has_capability(capability)) found[count++] = capability;
  return count ? found[number % count] : FG_SERIAL;
}

static void require_finite(const uint8_t *output, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 4) {
    uint32_t u;
    memcpy(&u, output + i, 4);
    fuzz_require((u & 0x7f800000u) != 0x7f800000u, "an accepted input decodes to finite values");
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < FUZZ_HEADER) return 0;
  Input input = {.n = data[0]}; /* mostly few, so that a run takes microseconds */
  memcpy(input.option, data + 4, 4);
  if (data[1] > 224) input.n += data[1] > 253 ? (size_t)(data[1] - 253) * 4096 : (size_t)(data[1] - 224) * 16;
  if (data[2] == 255 && target_size(&input) == FUZZ_ANY) input.n += 65536;
  size_t given = size - FUZZ_HEADER, expected = target_size(&input), bytes = target_output(&input);
  input.size = expected == FUZZ_ANY ? given : expected;
  uint8_t *payload = fuzz_memory(input.size), *by_serial = fuzz_memory(bytes), *by_other = fuzz_memory(bytes);
  memset(payload, 0, input.size);
  memcpy(payload, data + FUZZ_HEADER, given < input.size ? given : input.size);
  input.payload = payload;

  size_t where_serial = 0, where_other = 0;
  fuzz_require(!fg_use_capability(FG_SERIAL), "the portable kernels are there");
  int error_serial = target_decode(&input, by_serial, &where_serial);
  fuzz_require(!fg_use_capability(other_capability(data[3])), "the capability is there");
  int error_other = target_decode(&input, by_other, &where_other);
  fuzz_require(error_serial == error_other, "two ISAs give the same error");
  if (error_serial) {
    fuzz_require(where_serial == where_other, "two ISAs name the same place");
    fuzz_require(strcmp(fg_error_text(error_serial), "unknown error") != 0, "the error is one of the list");
  } else {
    fuzz_require(!memcmp(by_serial, by_other, bytes), "two ISAs decode the same bytes");
    if (target_floats()) require_finite(by_serial, bytes);
    target_accepted(&input, by_serial);
  }
  free(payload);
  free(by_serial);
  free(by_other);
  return 0;
}
