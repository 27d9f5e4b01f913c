/* The inner loops of the int8 products, one file per ISA, and what they agree on.
 *
 * A product is rows x columns, contracted over positions. Rows ("a") are read a run of TILE_RUN neighbouring positions at a time, each row
 * from a pointer of its own: so an image serves as it lies, one pointer per channel and tap, and no im2col is ever made. Columns ("b") are
 * packed in panels of TILE_WIDTH (the last of 16 or TILE_WIDTH): element (position p, column j) of a panel is at
 *
 *   ((p / TILE_GROUP) * width + j) * TILE_GROUP + p % TILE_GROUP
 *
 * Positions come in segments: in each, a row's runs lie `step` codes apart; columns go on without a gap. A segment's length is a multiple
 * of TILE_PAD; where it is longer than the data, columns are zero and rows hold anything.
 *
 *   product_tile(rows, a, step, segments, count, b, width, sums)   sums[rows][width]: the products, rows <= TILE_ROWS
 *   dots(a, taps, b, positions, sums)                      sums[taps][DOT_LANES] += a[t] . b, in lanes, taps <= DOT_TAPS;
 *                                                          positions is a multiple of DOT_STEP, both sides contiguous
 *
 * What an ISA computes may be off by what depends on a row or on a column alone: TILE_COLUMN_CORRECTION,
 * TILE_ROW_CORRECTION (one row) and TILE_ROWS_CORRECTION (up to four whose runs are neighbours) name functions for what is to be taken
 * off. Sums are exact modulo 2^32, and the products' true sums stay within 2^31.
 *
 * TILE_ROW_SUM and TILE_COLUMN_SUM, where an ISA has them, sum a row's codes without their bias and give a column's sum from its correction.
 *
 * TILE_BIAS is added to the codes of rows (VNNI multiplies unsigned by signed); columns are signed.
 */
#define TILE_LANES 16 /* columns are padded to this */
#define DOT_LANES 16
#define DOT_TAPS 8

typedef struct {
  size_t start;  /* codes from a row's pointer */
  size_t length; /* positions */
} Segment;

static inline int32_t load4(const void *at) {
  int32_t word;
  memcpy(&word, at, 4);
  return word;
}

#if defined(FG_FOR_AVX512VNNI)
#include "tile_avx512vnni.inc.h"
#elif defined(FG_FOR_AVX2)
#include "tile_avx2.inc.h"
#elif defined(FG_FOR_NEONI8MM)
#include "tile_neoni8mm.inc.h"
#elif defined(FG_FOR_NEONDOTPROD)
#include "tile_neondotprod.inc.h"
#elif defined(FG_FOR_NEON)
#include "tile_neon.inc.h"
#else
#include "tile_serial.inc.h"
#endif

#define ZERO_CODE ((Code)TILE_BIAS)

#if defined(DOTS_BY_TAPS)
static void dots(const Code *const *a, size_t taps, const Code *b, size_t positions, int32_t *sums) {
  switch (taps) {
    case 1: dots_of(1, a, b, positions, sums); break;
    case 2: dots_of(2, a, b, positions, sums); break;
    case 3: dots_of(3, a, b, positions, sums); break;
    case 4: dots_of(4, a, b, positions, sums); break;
    case 5: dots_of(5, a, b, positions, sums); break;
    case 6: dots_of(6, a, b, positions, sums); break;
    case 7: dots_of(7, a, b, positions, sums); break;
    default: dots_of(8, a, b, positions, sums); break;
  }
}
#endif
