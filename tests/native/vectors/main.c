/* Runs every kernel on fixed inputs under every capability of this machine: a line per capability and family, with a CRC of each
 * kernel's output. The lines of all capabilities, of x86 and of ARM, must be equal from the third word on. */
#include "vectors.h"

static const char *const NAMES[] = {"serial", "avx2", "avx512vnni", "neon", "neondotprod", "neoni8mm"};
static const struct {
  const char *name;
  void (*run)(void);
} FAMILIES[] = {{"codecs", codecs}, {"entropy", entropy}, {"gradients", gradients}, {"layers", layers}, {"optimizers", optimizers}, {"recurrent", recurrent}, {"rotation", rotation}};
static uint32_t state;

void seed_floats(uint32_t seed) { state = seed; }

float next_float(void) {
  state = state * 1664525u + 1013904223u;
  float x = (float)(int32_t)(state >> 8) * 0x1p-23f - 1.0f;
  return x * x * x;
}

void emit(const void *data, size_t bytes) { printf(" %08x", fg_crc32c(0, data, bytes)); }

void expect(int holds, const char *what) {
  if (holds) return;
  printf("\nFAILED: %s\n", what);
  exit(1);
}

int main(void) {
  for (int capability = 0; capability < FG_CAPABILITIES; capability++) {
    if (fg_use_capability(capability) != FG_OK) continue;
    for (size_t i = 0; i < sizeof FAMILIES / sizeof *FAMILIES; i++) {
      printf("%s %s", NAMES[capability], FAMILIES[i].name);
      seed_floats(12345);
      FAMILIES[i].run();
      printf("\n");
    }
  }
  return 0;
}
