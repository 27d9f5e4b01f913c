/* Frequency tables of the range coder rANS (J. Duda, arXiv 1311.2540): made from counts, written, read, and expanded for both directions.
 *
 * Probabilities are multiples of 2^-12. A state is kept in [2^15, 2^31) and moves 16 bits at a time.
 *
 *   encode symbol s:  emit 16 bits while x >= f << 19;  x = (x / f) << 12 | (x % f + cum)
 *   decode:           slot = x % 4096 tells s;  x = f * (x >> 12) + slot - cum;  take 16 bits if x < 2^15
 *
 * A table on the wire: u8 last symbol | for each symbol 0..last: its frequency as one byte if under 128, else two, 0x80 | low 7 bits,
 * then the high bits. A frequency of zero is followed by a byte that says how many more zeros there are. The sum is 4096.
 */
#ifndef FG_RANS_H
#define FG_RANS_H

#include <stddef.h>
#include <stdint.h>

#define RANS_BITS 12
#define RANS_TOTAL 4096u
#define RANS_LEAST 0x8000u /* of a state */
#define RANS_SYMBOLS 256
#define RANS_TABLE_BYTES 600 /* more than any written table takes */
#define RANS_LANE_BITS (24.0 * 200.0) /* of a chunk, for each lane: a state costs 24 bits over what it holds, at most 1 in 200 */

typedef struct { /* how to encode one symbol: x / f by a multiplication (R. Alverson, ARITH 1991) */
  uint32_t reciprocal; /* x / f = (x * reciprocal >> 32) >> shift */
  uint32_t rest;       /* f | bias << 13 | shift << 26 */
} RansSymbol;

/* Frequencies that sum to 4096, at least 1 where the count isn't 0; counts are below 2^32 in sum. Without any count, symbol 0 has all.
 * Returns the bits by which they code worse than the counts' own entropy. */
double fg_rans_normalise(const uint32_t counts[RANS_SYMBOLS], uint16_t frequencies[RANS_SYMBOLS]);
/* Returns the bytes written, at most RANS_TABLE_BYTES. */
size_t fg_rans_write(const uint16_t frequencies[RANS_SYMBOLS], uint8_t *out);
/* Bits that the symbols counted will take under their own frequencies, and in *table those of the written table. */
double fg_rans_cost(const uint32_t counts[RANS_SYMBOLS], double *table);
/* Reads a table at *in, moves *in behind it. FG_OK, FG_TRUNCATED or FG_TABLE. */
int fg_rans_read(const uint8_t **in, const uint8_t *end, uint16_t frequencies[RANS_SYMBOLS]);
void fg_rans_encoder(const uint16_t frequencies[RANS_SYMBOLS], RansSymbol symbols[RANS_SYMBOLS]);
/* Slot -> symbol << 24 | (slot - cum) << 12 | (f - 1). */
void fg_rans_decoder(const uint16_t frequencies[RANS_SYMBOLS], uint32_t slots[RANS_TOTAL]);

#endif
