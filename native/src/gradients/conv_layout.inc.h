/* How a convolution's weight gradient is cut into planes, segments and blocks, and where each part lies in scratch. */
#define MOST_SEGMENTS (GRAD_DEPTH / TILE_PAD)
#define FEW_OUTPUTS 8 /* outputs of a group up to which dot products beat a product padded to 16 columns */
typedef struct {
  size_t slots[2]; /* planes along each axis */
  size_t plane[2]; /* their height and width */
  size_t channel, image; /* codes of a channel and of an image */
  size_t taps, in_group, out_group, rows, np;
  int flat, direct;
  size_t positions; /* of an image: outputs, or with flat those of a plane */
  size_t piece;     /* positions of a segment, the last of a row or plane aside */
  size_t pieces;    /* segments of a row, or with flat of a plane */
  size_t segments, exact_segments, block_segments, depth, blocks, exact_blocks;
  float *x_scale, *dy_scale, *x_inverse, *dy_inverse;
  double *dy_sum;       /* [outputs] */
  int64_t *x_codes;     /* sums of the codes of X's planes: [batch][channels] */
  int32_t *dy_codes;    /* sums of dY's codes: [group][blocks][np], direct: [outputs][batch] */
  int32_t *corrections; /* [group][blocks][np] */
  int32_t *sums;        /* [group][rows][np] */
  Code *x;              /* [batch][channels][slots][slots][height][width] */
  Code *dy;             /* [group][blocks][np][depth], direct: [outputs][batch][depth] */
  size_t bytes;
} ConvLayout;

static inline size_t common_divisor(size_t a, size_t b) {
  while (b) {
    size_t rest = a % b;
    a = b, b = rest;
  }
  return a;
}

static inline size_t parts_of(size_t n, size_t part) { return (n + part - 1) / part; }

static ConvLayout conv_layout(const fg_conv_grad *job) {
  ConvLayout l = {0};
  const size_t *y = job->y_size;
  for (size_t axis = 0; axis < 2; axis++) {
    size_t stride = job->stride[axis], taps = job->kernel[axis], period = stride / common_divisor(stride, job->dilation[axis]);
    l.slots[axis] = taps < period ? taps : period;
    l.plane[axis] = y[axis] + (taps - 1) * job->dilation[axis] / stride;
  }
  l.channel = l.slots[0] * l.slots[1] * l.plane[0] * l.plane[1];
  l.image = job->channels * l.channel;
  l.taps = job->kernel[0] * job->kernel[1];
  l.in_group = job->channels / job->group;
  l.out_group = job->outputs / job->group;
  l.rows = l.in_group * l.taps;
  l.np = up_to(l.out_group, TILE_LANES);

  size_t outputs = y[0] * y[1], run = (y[0] - 1) * l.plane[1] + y[1];
  l.direct = l.out_group <= FEW_OUTPUTS && outputs <= GRAD_EXACT;
  l.flat = l.direct || (outputs <= GRAD_EXACT && l.plane[1] < up_to(y[1], TILE_PAD) + TILE_PAD);
  if (l.flat) {
    l.positions = run;
    l.pieces = parts_of(run, GRAD_DEPTH);
    l.piece = up_to(parts_of(run, l.pieces), TILE_PAD);
    l.pieces = parts_of(run, l.piece);
    l.segments = job->batch * l.pieces;
  } else {
    l.positions = outputs;
    l.piece = y[1] < GRAD_DEPTH ? y[1] : GRAD_DEPTH;
    l.pieces = parts_of(y[1], l.piece);
    l.segments = job->batch * y[0] * l.pieces;
  }
  /* Sums of at most GRAD_EXACT outputs are complete: whole images, or whole rows, or whole pieces; the same on every ISA. */
  if (outputs <= GRAD_EXACT)
    l.exact_segments = GRAD_EXACT / outputs * (l.flat ? l.pieces : y[0] * l.pieces);
  else
    l.exact_segments = y[1] <= GRAD_EXACT ? GRAD_EXACT / y[1] * l.pieces : GRAD_EXACT / GRAD_DEPTH;
  if (l.exact_segments > l.segments) l.exact_segments = l.segments;
  size_t padded_piece = up_to(l.piece, TILE_PAD);
  l.block_segments = padded_piece < GRAD_DEPTH ? GRAD_DEPTH / padded_piece : 1;
  if (l.block_segments > l.exact_segments) l.block_segments = l.exact_segments;
  l.exact_blocks = parts_of(l.exact_segments, l.block_segments);
  l.block_segments = parts_of(l.exact_segments, l.exact_blocks);
  l.depth = l.block_segments * padded_piece;
  size_t whole = l.segments / l.exact_segments;
  l.blocks = whole * l.exact_blocks + parts_of(l.segments - whole * l.exact_segments, l.block_segments);

  size_t at = 0, c = job->channels, m = job->outputs;
  float *scales = (float *)(void *)take(&at, job->scratch, 2 * (c + m) * sizeof(float));
  l.x_scale = scales, l.dy_scale = scales + c, l.x_inverse = scales + c + m, l.dy_inverse = scales + 2 * c + m;
  l.dy_sum = (double *)(void *)take(&at, job->scratch, m * sizeof(double));
  l.x_codes = (int64_t *)(void *)take(&at, job->scratch, job->batch * c * sizeof(int64_t));
  l.dy_codes = (int32_t *)(void *)take(&at, job->scratch, (l.direct ? m * job->batch : job->group * l.blocks * l.np) * sizeof(int32_t));
  l.x = (Code *)(void *)take(&at, job->scratch, (job->batch * l.image + 2 * DOT_STEP) * sizeof(Code));
  if (l.direct) {
    l.depth = up_to(run, DOT_STEP);
    l.dy = (Code *)(void *)take(&at, job->scratch, m * job->batch * l.depth * sizeof(Code));
  } else {
    l.corrections = (int32_t *)(void *)take(&at, job->scratch, job->group * l.blocks * l.np * sizeof(int32_t));
    l.dy = (Code *)(void *)take(&at, job->scratch, job->group * l.blocks * l.np * l.depth * sizeof(Code));
    l.sums = (int32_t *)(void *)take(&at, job->scratch, job->group * l.rows * l.np * sizeof(int32_t));
  }
  l.bytes = at;
  return l;
}
