/* All families' bodies, for the ISA that the including file has chosen. */
#include "basics.inc.h"

#if !defined(FG_GRADIENTS_ONLY) /* what times the gradients' tiles */
#include "codecs/vectors.inc.h"
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
#endif

#if !defined(FG_CODECS_ONLY) /* the fuzzers, whose sanitizers take long to compile, need nothing that decodes nothing */
#include "gradients/tiles.inc.h"
#include "gradients/scales.inc.h"
#include "gradients/pack.inc.h"
#include "gradients/few.inc.h"
#include "gradients/matmul.inc.h"
#include "gradients/convolution.inc.h"

#if !defined(FG_GRADIENTS_ONLY)
#include "layers/lanes.inc.h"
#include "layers/phases.inc.h"
#include "layers/correlate.inc.h"
#include "layers/depthwise.inc.h"
#include "layers/pool.inc.h"
#include "layers/activation.inc.h"
#include "layers/batch_norm.inc.h"

#include "optimizers/step.inc.h"

#include "recurrent/activations.inc.h"
#include "recurrent/product.inc.h"
#include "recurrent/lstm.inc.h"
#include "recurrent/gru.inc.h"
#include "recurrent/embedding.inc.h"

#include "layers/cross_entropy.inc.h"
#endif
#endif
