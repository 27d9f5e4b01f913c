/* CRC32C: by the machine's instruction where it has one, else by table. */
#if defined(FG_FOR_AVX2) || defined(FG_FOR_AVX512VNNI)
#include "crc_sse42.inc.h"
#elif defined(__aarch64__) && !defined(FG_FOR_SERIAL)
#include "crc_armv8.inc.h"
#else
#include "crc.h"
#define crc_instruction fg_crc32c_table
#endif

uint32_t FG_ISA(fg_crc32c)(uint32_t crc, const uint8_t *data, size_t n) { return crc_instruction(crc, data, n); }
