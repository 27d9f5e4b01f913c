/* The entropy-coded streams. Options: kind (bit 0: dead zone) and how the vector divides into matrices (the other bits); key. */
#include "fuzz.h"

typedef struct {
  size_t sizes[3], columns[3];
  uint8_t offsets[256];
  fg_ec request;
} Request;

static void request_of(const Input *input, Request *r) {
  size_t width = (size_t)input->option[0] / 2, head = input->n / 4; /* up to 127 columns, between two vectors without any */
  size_t body = width ? (input->n - 2 * head) / width * width : 0;
  *r = (Request){.sizes = {head, body, input->n - head - body}, .columns = {0, width, 0}};
  r->request = (fg_ec){.kind = input->option[0] & 1, .stream = input->option[2], .key = input->option[1], .matrices = 3};
  r->request.sizes = r->sizes;
  r->request.columns = r->columns;
  r->request.offsets = r->offsets;
}

size_t target_size(const Input *input) {
  (void)input;
  return FUZZ_ANY;
}
size_t target_output(const Input *input) { return 4 * input->n; }
int target_floats(void) { return 1; }

int target_decode(const Input *input, void *output, size_t *where) {
  Request r;
  request_of(input, &r);
  fuzz_require(fg_ec_offsets(&r.request) <= sizeof r.offsets, "the target keeps room for the offsets");
  return fg_ec_decode(input->payload, input->size, &r.request, output, input->n, fuzz_scratch(), where);
}

void target_accepted(const Input *input, const void *output) {
  Request r;
  request_of(input, &r);
  float largest = 0;
  for (size_t i = 0; i < input->n; i++) {
    float x = ((const float *)output)[i];
    largest = x > largest ? x : -x > largest ? -x : largest;
  }
  if (largest < 0x1p-60f || largest > 0x1p80f) return; /* no step in range, maybe */
  r.request.step = largest / 300; /* some are escapes */
  r.request.rounding = 0.25f;
  r.request.log_bins = r.request.kind ? 0 : input->option[3] % 3u;
  uint8_t *coded = fuzz_memory(FG_EC_BOUND(input->n)), *decoded = fuzz_memory(4 * input->n), *work = fuzz_memory(4 * 128);
  size_t size = 0, where = 0;
  fg_ec_columns(output, &r.request, (float *)(void *)work);
  fuzz_require(!fg_ec_encode(output, input->n, &r.request, coded, &size, fuzz_scratch(), &where), "what was decoded can be encoded");
  fuzz_require(!fg_ec_decode(coded, size, &r.request, (float *)(void *)decoded, input->n, fuzz_scratch(), &where), "and that be decoded");
  for (size_t i = 0; i < input->n; i++) {
    double error = (double)((const float *)output)[i] - (double)((float *)(void *)decoded)[i];
    fuzz_require(error * error <= 1.2 * (double)r.request.step * (double)r.request.step, "to what is a step away at most");
  }
  free(coded);
  free(decoded);
  free(work);
}
