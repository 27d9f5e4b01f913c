/* Portable C: what the compiler's baseline has, and nothing more. */
#define FG_FOR_SERIAL
#define FG_ISA(name) name##_serial
#include "../kernels.inc.h"
