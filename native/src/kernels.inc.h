/* All families' bodies, for the ISA that the including file has chosen. */
#include "basics.inc.h"

#include "codecs/plain.inc.h"
#include "codecs/blocks.inc.h"
#include "codecs/checksum.inc.h"
#include "codecs/lanes.inc.h"
#include "codecs/chunks.inc.h"
#include "codecs/philox.inc.h"
#include "codecs/planes.inc.h"
#include "codecs/quantize.inc.h"
#include "codecs/entropy.inc.h"
#include "codecs/topk.inc.h"
#include "codecs/lossless.inc.h"
#include "codecs/rotation.inc.h"
#include "codecs/eden.inc.h"
#include "codecs/lattice.inc.h"
#include "codecs/sum.inc.h"

#include "gradients/weight_grad.inc.h"

#include "layers/lanes.inc.h"
#include "layers/phases.inc.h"
#include "layers/correlate.inc.h"
#include "layers/depthwise.inc.h"

#include "optimizers/step.inc.h"
