/* The entropy-coded codecs ec-dither and ec-dz: what a stream's header says, and how the encoder chooses its tables.
 *
 *   stream = u8 kind + (16: columns have offsets) | u8 log2 of bins | u8 tables | f32 step | ec-dz: 3 x f32 points
 *            tables x (u8 last level | bins x table) | table of block classes | columns' offsets (a plane) | chunks
 *   chunk  = u24 bytes of words + (log2 of lanes << 20) | u24 bytes of raw bits | states | words | raw bits; 64 Ki coordinates
 *
 * Real deltas are heavy-tailed, and their scale is nearly separable: a row's times a column's. So blocks of 64 coordinates each have a
 * class, and a matrix's columns each an offset, both in octaves; the level of a coordinate is the sum of both, and tells its table.
 *
 *   class 0: all inputs are exactly zero;  1: all quantized values are;  2 + k: 2^k <= the sum of |q|, weighted by the columns, < 2^(k+1)
 *   offset 0..6: the column's mean magnitude is 2^(offset - 3) times the matrix's;  level = k + offset, at most 31
 *
 * Neighbouring levels share a table where that saves bits, the table included. Each has one table for each bin of the dither's
 * magnitude. From level 13 on, values have level - 12 raw bits below their symbol. A vector of zeros has step 0, and ends there.
 */
#ifndef FG_ENTROPY_H
#define FG_ENTROPY_H

#include "fleetgrad.h"
#include "rans.h"

#define EC_BLOCK 64
#define EC_CHUNK 65536
#define EC_CLASSES 32
#define EC_LEVELS 32
#define EC_NEUTRAL 3 /* offset of a column like the others */
#define EC_OFFSETS 7
#define EC_LOG_BINS 2 /* at most 4 bins of |dither| */
#define EC_BINS 4
#define EC_ESCAPE 255 /* symbol: the value follows in 24 raw bits */
#define EC_ESCAPE_BITS 24
#define EC_LARGEST 0x1p21f /* |value / step| */
#define EC_ROWS 16         /* a matrix with fewer rows has no offsets: its columns' means say too little */

enum { EC_DITHER = 0, EC_DEADZONE = 1 };

typedef struct {
  uint32_t symbol[EC_LEVELS][EC_BINS][RANS_SYMBOLS];
  uint32_t level[EC_LEVELS]; /* coordinates */
  uint32_t class_[EC_CLASSES]; /* blocks */
} EcCounts;

typedef struct {
  int kind;
  int offsets; /* whether the columns have any */
  uint32_t log_bins;
  size_t tables;
  float step;
  float points[3];             /* ec-dz: what |q| = 1 and 2 decode to, and what is added to |q| * step from 3 on */
  uint8_t table_of[EC_LEVELS]; /* number of a level's table */
  uint8_t last[EC_LEVELS];     /* last level of a table */
  uint16_t classes[RANS_SYMBOLS];
  uint16_t frequencies[EC_LEVELS][EC_BINS][RANS_SYMBOLS]; /* of table and bin */
} EcModel;

/* Blocks of a class up to this have no level that shifts. */
#define EC_UNSHIFTED (12 + 2 - (EC_OFFSETS - 1))

static inline uint32_t ec_shift(size_t level) { return level > 12 ? (uint32_t)level - 12 : 0; }

/* Class of a block whose |q| sum to s > 0 and whose columns weigh 2^offset each, `weight` in all (512 for neutral ones). */
static inline uint32_t ec_class(uint32_t s, uint32_t weight) {
  uint64_t normal = ((uint64_t)s * 512 + weight / 2) / weight;
  uint32_t k = normal ? 63 - (uint32_t)__builtin_clzll(normal) : 0;
  return k > 27 ? 29 : 2 + k;
}
static inline size_t ec_level(uint32_t class_, uint32_t offset) {
  size_t level = class_ - 2 + offset;
  return level < EC_LEVELS ? level : EC_LEVELS - 1;
}

/* Merges levels and bins in place of `counts` into the model's tables, for `scale` times what is counted; fills log_bins, tables, table_of
 * and last. Returns the bits that the whole stream of n coordinates takes, columns' offsets apart. `plain` is scratch. */
double fg_ec_group(EcCounts *counts, EcCounts *plain, uint32_t most_log_bins, double scale, size_t n, EcModel *model);
/* Frequencies from the counts that fg_ec_group has merged. Returns the bits by which they code worse than the counts' own entropy. */
double fg_ec_normalise(const EcCounts *counts, EcModel *model);
/* Returns the header's bytes up to the columns' offsets, at most EC_HEADER_BYTES. */
size_t fg_ec_write(const EcModel *model, uint8_t *out);
#define EC_HEADER_BYTES (19 + RANS_TABLE_BYTES + EC_LEVELS * (1 + EC_BINS * RANS_TABLE_BYTES))
/* Reads the same and moves *in behind it; FG_OK or what is wrong. */
int fg_ec_read(const uint8_t **in, const uint8_t *end, int kind, EcModel *model);
/* Whether matrix m has offsets. */
int fg_ec_has_offsets(const fg_ec *request, size_t m);

#endif
