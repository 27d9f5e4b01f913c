/* Which version of each kernel runs: the best that this machine has, or a lower one where tests mask it. */
#include "fleetgrad.h"
#include "isa/target.h"

#if defined(__aarch64__) || defined(FG_ARMV7_NEON)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define FG_HWCAP2_I8MM (1UL << 13) /* older headers lack the name */
#endif

/* Declares every ISA's version of every kernel; those of the other architecture are never referred to. */
#define FG_DECLARE_ISAS(type, name, parameters, arguments) \
  type fg_##name##_serial parameters;                      \
  type fg_##name##_avx2 parameters;                        \
  type fg_##name##_avx512vnni parameters;                  \
  type fg_##name##_neon parameters;                        \
  type fg_##name##_neondotprod parameters;               \
  type fg_##name##_neoni8mm parameters;
FG_KERNELS(FG_DECLARE_ISAS)

static int chosen = -1;

int fg_has_capability(int capability) {
  if (capability == FG_SERIAL) return 1;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (capability == FG_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("sse4.2");
  if (capability == FG_AVX512VNNI)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__)
  unsigned long flags = getauxval(AT_HWCAP);
  if (capability == FG_NEON) return (flags & HWCAP_CRC32) != 0;
  int dotprod = (flags & HWCAP_CRC32) != 0 && (flags & HWCAP_ASIMDDP) != 0;
  if (capability == FG_NEONDOTPROD) return dotprod;
  if (capability == FG_NEONI8MM) return dotprod && (getauxval(AT_HWCAP2) & FG_HWCAP2_I8MM) != 0;
#elif defined(FG_ARMV7_NEON)
  if (capability == FG_NEON) return (getauxval(AT_HWCAP) & HWCAP_NEON) != 0;
#endif
  return 0;
}

int fg_use_capability(int capability) {
  if (capability < 0 || capability >= FG_CAPABILITIES || !fg_has_capability(capability)) return FG_CAPABILITY;
  chosen = capability;
  return FG_OK;
}

__attribute__((constructor)) static void choose_the_best(void) {
  for (int capability = FG_CAPABILITIES - 1; fg_use_capability(capability) != FG_OK; capability--) continue;
}

int fg_capability(void) { return chosen; }

#if defined(__x86_64__)
#define FG_CASES(name, arguments)                            \
  case FG_AVX2: return fg_##name##_avx2 arguments;           \
  case FG_AVX512VNNI: return fg_##name##_avx512vnni arguments;
#elif defined(__aarch64__)
#define FG_CASES(name, arguments)                  \
  case FG_NEON: return fg_##name##_neon arguments; \
  case FG_NEONDOTPROD: return fg_##name##_neondotprod arguments; \
  case FG_NEONI8MM: return fg_##name##_neoni8mm arguments;
#elif defined(FG_ARMV7_NEON)
#define FG_CASES(name, arguments) \
  case FG_NEON: return fg_##name##_neon arguments;
#else
#define FG_CASES(name, arguments)
#endif

#define FG_DISPATCH(type, name, parameters, arguments) \
  type fg_##name parameters {                          \
    switch (chosen) {                                  \
      FG_CASES(name, arguments)                        \
      default: return fg_##name##_serial arguments;    \
    }                                                  \
  }

/* A void kernel's `return f();` is fine for gcc and clang, and saves a second list. */
#pragma GCC diagnostic ignored "-Wpedantic"
FG_KERNELS(FG_DISPATCH)

const char *fg_error_text(int error) {
  switch (error) {
#define FG_TEXT(name, value, text) \
  case name: return text;
    FG_ERRORS(FG_TEXT)
#undef FG_TEXT
    default: return "unknown error";
  }
}
