/* The entropy-coded codecs ec-dither and ec-dz: what a stream's header says, and how the encoder chooses its tables.
 *
 *   stream = u8 kind | u8 log2 of bins | u8 groups | f32 step | ec-dz: 3 x f32 points
 *            table of the groups' numbers (0: a block of zeros) | groups x (u8 shift | bins x table) | chunks
 *   chunk  = u24 bytes of words + (log2 of lanes << 20) | u24 bytes of raw bits | states | words | raw bits; 64 Ki coordinates
 *
 * Coordinates go in blocks of 64. A block's class tells how large its quantized values are: 0 if all its inputs are exactly zero, else by
 * the sum s of their magnitudes, 1 for s = 0 and finer than an octave from there. Neighbouring classes are merged into groups as long as
 * that saves bits, tables included. A group has one table for each bin of the dither's magnitude. A vector of zeros has step 0, and ends there.
 */
#ifndef FG_ENTROPY_H
#define FG_ENTROPY_H

#include "rans.h"

#define EC_BLOCK 64
#define EC_CHUNK 65536
#define EC_CLASSES 32 /* 0 is the block of zeros */
#define EC_LOG_BINS 3 /* at most 8 bins of |dither| */
#define EC_BINS 8
#define EC_ESCAPE 255 /* symbol: the value follows in 24 raw bits */
#define EC_ESCAPE_BITS 24
#define EC_LARGEST 0x1p21f /* |value / step| */

enum { EC_DITHER = 0, EC_DEADZONE = 1 };

typedef struct {
  uint32_t symbol[EC_CLASSES][EC_BINS][RANS_SYMBOLS];
  uint32_t blocks[EC_CLASSES];
} EcCounts;

typedef struct {
  int kind;
  uint32_t log_bins;
  size_t groups; /* beside the group of zeros, which is number 0 */
  float step;
  float points[3];              /* ec-dz: what |q| = 1 and 2 decode to, and what is added to |q| * step from 3 on */
  uint8_t group[EC_CLASSES];    /* of a class */
  uint8_t shift[EC_CLASSES];    /* of a group: raw bits below the symbol */
  uint16_t numbers[RANS_SYMBOLS];
  uint16_t frequencies[EC_CLASSES][EC_BINS][RANS_SYMBOLS]; /* of group - 1 and bin */
} EcModel;

/* Class of a block whose magnitudes sum to s, and the raw bits that its values have below the symbol. */
static inline uint32_t ec_class(uint32_t s) {
  static const uint16_t LARGEST[12] = {0, 1, 3, 6, 11, 19, 32, 54, 91, 153, 256, 430};
  uint32_t class_ = 1;
  for (size_t i = 0; i < 12; i++) class_ += s > LARGEST[i];
  for (s /= 862; s > 0 && class_ < EC_CLASSES - 1; s >>= 1) class_++;
  return class_;
}
static inline uint32_t ec_shift(uint32_t class_) { return class_ > 13 ? class_ - 13 : 0; }

/* Merges classes and bins into the model's groups, in place of `counts`, for `scale` times the blocks counted. Returns the bits that
 * the whole stream of n coordinates will take, and fills the model's log_bins, groups, group and shift. `plain` is scratch. */
double fg_ec_group(EcCounts *counts, EcCounts *plain, uint32_t most_log_bins, double scale, size_t n, EcModel *model);
/* Frequencies from the counts that fg_ec_group has merged. */
void fg_ec_normalise(const EcCounts *counts, EcModel *model);
/* Returns the header's bytes, at most EC_HEADER_BYTES. */
size_t fg_ec_write(const EcModel *model, uint8_t *out);
#define EC_HEADER_BYTES (19 + RANS_TABLE_BYTES + EC_CLASSES * (1 + EC_BINS * RANS_TABLE_BYTES))
/* Reads a header and moves *in behind it; FG_OK or what is wrong. */
int fg_ec_read(const uint8_t **in, const uint8_t *end, int kind, EcModel *model);

#endif
