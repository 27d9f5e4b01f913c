/* The C core's only public header: what every kernel keeps to, the error list, the capabilities and, by family, the kernel lists.
 *
 * A kernel owns no memory, takes sizes as size_t and touches nothing but the buffers it is given. What a kernel can refuse
 * (a NaN, a hostile byte) comes back as a negative error of the list below, with the place in `where`; what a caller can get wrong
 * (sizes, aliasing) the typed Python face refuses before.
 *
 * Every kernel gives the same bytes on every ISA: no fused multiply-add, no reassociated sum, round to nearest even.
 *
 * A list's rows are X(type, name, (parameters), (arguments)); build_kernels.py reads them as they stand, so a row is all that a kernel
 * needs to be dispatched and to be known to Python.
 */
#ifndef FLEETGRAD_H
#define FLEETGRAD_H

#include <stddef.h>
#include <stdint.h>

#define FG_ERRORS(X)                                                                     \
  X(FG_OK, 0, "fine")                                                                    \
  X(FG_NONFINITE, -1, "value is NaN or infinite")                                        \
  X(FG_RANGE, -2, "value is beyond the range")                                           \
  X(FG_SCALE, -3, "scale is negative, not finite, under 2^-90 or over 2^90")             \
  X(FG_CODE, -4, "code is one that no encoder writes")                                   \
  X(FG_CAPABILITY, -5, "this machine has no such instruction set")                       \
  X(FG_TRUNCATED, -6, "stream ends too early")                                           \
  X(FG_TRAILING, -7, "bytes are left over at the end")                                   \
  X(FG_TABLE, -8, "table of symbol frequencies is malformed")                            \
  X(FG_STATE, -9, "entropy decoder doesn't end where its encoder began")                 \
  X(FG_FIELD, -10, "a field of the header is out of range")                              \
  X(FG_RATE, -11, "the stream would take more or fewer bits than asked for") \
  X(FG_WINDOW, -20, "window doesn't fit the plane")

enum {
#define FG_ENUM(name, value, text) name = value,
  FG_ERRORS(FG_ENUM)
#undef FG_ENUM
};

/* ISAs, best last for each architecture. A kernel without a version of its own for an ISA uses the shared body. */
enum { FG_SERIAL, FG_AVX2, FG_AVX512VNNI, FG_NEON, FG_NEONDOTPROD, FG_NEONI8MM, FG_CAPABILITIES };

#include "fleetgrad/codecs.h"
#include "fleetgrad/entropy.h"
#include "fleetgrad/gradients.h"
#include "fleetgrad/layers.h"
#include "fleetgrad/optimizers.h"
#include "fleetgrad/recurrent.h"

#if defined(FG_CODECS_ONLY)
#define FG_KERNELS(X) FG_CODEC_KERNELS(X) FG_ENTROPY_KERNELS(X)
#else
#define FG_KERNELS(X) \
  FG_CODEC_KERNELS(X) FG_ENTROPY_KERNELS(X) FG_GRADIENT_KERNELS(X) FG_LAYER_KERNELS(X) FG_OPTIMIZER_KERNELS(X) FG_RECURRENT_KERNELS(X)
#endif

#define FG_DECLARE(type, name, parameters, arguments) type fg_##name parameters;
FG_KERNELS(FG_DECLARE)
#undef FG_DECLARE

int fg_has_capability(int capability); /* 1 if this machine can run it */
int fg_use_capability(int capability); /* FG_OK, or FG_CAPABILITY */
int fg_capability(void);
const char *fg_error_text(int error);
size_t fg_scratch_most(void); /* bytes that the custom ops' kernels held at once since the last call; beside the runtime's arena */

#endif
