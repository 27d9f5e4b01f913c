/* The portable version of every kernel: always compiled, so dispatch has something to return on any machine. */
#define FG_ISA(name) name##_serial

#include "crc.h"
#define FG_CRC fg_crc32c_table
#include "kernels.inc.h"
