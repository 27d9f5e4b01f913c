/* What a fuzz target consists of: it turns an input's bytes into the arguments of one decoder.
 *
 *   input = u8 n | u8 size | u8 long | u8 which ISA | 4 option bytes | payload
 *   values = n, and for sizes from 225 to 253 up to 464 more, for 254 and 255 one and two windows of a rotation more;
 *            65,536 more where `long` is 255 and the decoder takes payloads of any size
 *
 * The driver (driver.c) decodes each input by the portable kernels and by another ISA's, from a payload and into an output that are as large
 * as they must be and no byte larger, so that the address sanitizer sees any step aside. Both must give the same error at the same
 * place, or the same bytes; floats must be finite; then the target says what else holds for what was accepted.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fleetgrad.h"

#define FUZZ_HEADER 8
#define FUZZ_ANY ((size_t)-1) /* a payload of any size */

typedef struct {
  size_t n;
  uint8_t option[4];
  const uint8_t *payload;
  size_t size;
} Input;

/* The target's part. */
size_t target_size(const Input *input);   /* bytes that the payload must have, or FUZZ_ANY */
size_t target_output(const Input *input); /* bytes that are decoded to */
int target_floats(void);                  /* whether those are floats */
int target_decode(const Input *input, void *output, size_t *where);
void target_accepted(const Input *input, const void *output);

/* The driver's part. */
void fuzz_require(int holds, const char *what); /* or the run ends as a crash */
int fuzz_one_in(const Input *input, unsigned rate); /* for checks that take long: whether the payload's sum says so */
uint8_t *fuzz_memory(size_t bytes);             /* aligned to 64, from malloc */
void *fuzz_scratch(void);                       /* FUZZ_SCRATCH bytes, aligned to 64, dirty */
#define FUZZ_SCRATCH 4000000

#endif
