/* CRC-32C by table, eight bytes a step (M. Kounavis and F. Berry, "A systematic approach to building high performance
 * software-based CRC generators", 2005); the ISAs with an instruction for it don't use this. */
#ifndef FG_CRC_H
#define FG_CRC_H
#include <stddef.h>
#include <stdint.h>

uint32_t fg_crc32c_table(uint32_t crc, const uint8_t *data, size_t n);

#endif
