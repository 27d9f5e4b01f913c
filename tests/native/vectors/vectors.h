/* What the vector programs share: inputs that any machine makes alike, and hashes of outputs. */
#ifndef VECTORS_H
#define VECTORS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fleetgrad.h"

float next_float(void);      /* about normal with heavy tails, within +-1; a generator in integers */
void seed_floats(uint32_t);  /* starts it again */
void emit(const void *data, size_t bytes); /* prints the CRC of an output */
void expect(int holds, const char *what);  /* or prints what failed and exits with 1 */

/* One function a family, in a file of its name: prints the hashes of its kernels' outputs, and tries what they refuse. */
void codecs(void);
void entropy(void);
void gradients(void);
void layers(void);
void optimizers(void);
void recurrent(void);
void rotation(void);

#endif
