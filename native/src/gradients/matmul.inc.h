/* dW = X^T dY for matrices. dY is packed once; then each chunk of dW's rows packs its columns of X, a block of positions at a time.
 * With at most GRAD_FEW positions there is nothing to pack, and the chunks are few.inc.h's. */
#define GRAD_EXACT 65536 /* positions whose products an int32 holds: 128 * 127 * 65536 < 2^31 */
#define GRAD_DEPTH 512   /* positions that are worked on at a time: a panel of columns stays in L1 */
#define GRAD_ROWS GRAD_STRIPE /* rows of dW that one task computes */
#define GRAD_GAP 16      /* codes of each row behind a block: panels 4 KiB apart would compete for the same few lines of L1 */

typedef struct {
  float *x_scale, *dy_scale, *x_inverse, *dy_inverse;
  int32_t *corrections; /* [blocks][np] */
  int32_t *sums;        /* [m][n] where out can't hold them until they are complete, or NULL */
  Code *b;              /* [blocks][np][depth] */
  size_t np, depth, blocks, bytes;
} MatmulLayout;

typedef int32_t Overlaid __attribute__((may_alias)); /* an integer sum where its float will be */

static char *take(size_t *offset, void *base, size_t bytes) {
  char *at = (char *)base + *offset;
  *offset += up_to(bytes, 64);
  return at;
}

static MatmulLayout matmul_layout(const fg_matmul_grad *job) {
  MatmulLayout l = {0};
  size_t k = job->k, m = job->m, n = job->n, at = 0;
  l.np = k <= GRAD_FEW ? 0 : up_to(n, TILE_LANES);
  if (k <= GRAD_EXACT && k > 0) {
    l.blocks = (k + GRAD_DEPTH - 1) / GRAD_DEPTH;
    l.depth = up_to((k + l.blocks - 1) / l.blocks, TILE_RUN);
    l.blocks = (k + l.depth - 1) / l.depth;
  } else {
    l.blocks = (k + GRAD_DEPTH - 1) / GRAD_DEPTH;
    l.depth = GRAD_DEPTH;
  }
  float *scales = (float *)(void *)take(&at, job->scratch, 2 * (m + n) * sizeof(float));
  l.x_scale = scales, l.dy_scale = scales + m, l.x_inverse = scales + m + n, l.dy_inverse = scales + 2 * m + n;
  l.corrections = (int32_t *)(void *)take(&at, job->scratch, l.blocks * l.np * sizeof(int32_t));
  l.b = (Code *)(void *)take(&at, job->scratch, l.blocks * l.np * l.depth * sizeof(Code));
  if (k > GRAD_EXACT || (job->base && l.blocks > 1)) l.sums = (int32_t *)(void *)take(&at, job->scratch, m * n * sizeof(int32_t));
  l.bytes = at;
  return l;
}

void FG_ISA(fg_matmul_grad_plan)(const fg_matmul_grad *job, fg_grad_parts *parts) {
  MatmulLayout l = matmul_layout(job);
  parts->scales = (job->m + GRAD_STRIPE - 1) / GRAD_STRIPE + (job->n + GRAD_STRIPE - 1) / GRAD_STRIPE;
  parts->packs = job->k <= GRAD_FEW ? 0 : l.blocks;
  parts->rows = job->n ? (job->m + GRAD_ROWS - 1) / GRAD_ROWS : 0;
  parts->scratch = l.bytes;
}

void FG_ISA(fg_matmul_grad_scales)(const fg_matmul_grad *job, size_t part) {
  MatmulLayout l = matmul_layout(job);
  size_t stripes = (job->m + GRAD_STRIPE - 1) / GRAD_STRIPE, of_x = part < stripes;
  size_t first = (of_x ? part : part - stripes) * GRAD_STRIPE, columns = of_x ? job->m : job->n;
  size_t count = columns - first < GRAD_STRIPE ? columns - first : GRAD_STRIPE;
  if (of_x && job->codes)
    take_scales(job->scale + first, count, l.x_scale + first);
  else if (of_x)
    stripe_scales(job->x + first, job->k, job->m, count, l.x_scale + first, l.x_inverse + first);
  else
    stripe_scales(job->dy + first, job->k, job->n, count, l.dy_scale + first, l.dy_inverse + first);
  if (of_x && job->x_total) stripe_totals(job->x + first, job->k, job->m, count, job->x_total + first);
}

/* Width of the panel that begins at a column. */
static inline size_t panel_width(size_t np, size_t column) { return np - column < TILE_WIDTH ? TILE_LANES : TILE_WIDTH; }

static void correct_columns(const Code *b, size_t np, size_t depth, size_t positions, int32_t *corrections) {
#if defined(TILE_COLUMN_CORRECTION)
  for (size_t column = 0; column < np; column += TILE_WIDTH)
    TILE_COLUMN_CORRECTION(b + column * depth, panel_width(np, column), positions, corrections + column);
#else
  (void)b, (void)depth, (void)positions;
  memset(corrections, 0, np * sizeof *corrections);
#endif
}

void FG_ISA(fg_matmul_grad_pack)(const fg_matmul_grad *job, size_t block) {
  MatmulLayout l = matmul_layout(job);
  size_t start = block * l.depth, n = job->n, count = job->k - start < l.depth ? job->k - start : l.depth;
  size_t depth = up_to(count, TILE_RUN);
  Code *b = l.b + block * l.np * l.depth;
  for (size_t p = 0; p < depth; p += TILE_GROUP) {
    const float *row = job->dy + (start + p) * n;
    size_t positions = p < count ? count - p : 0;
    for (size_t column = 0; column < l.np; column += TILE_LANES) {
      size_t width = panel_width(l.np, column / TILE_WIDTH * TILE_WIDTH), panel = column / TILE_WIDTH * TILE_WIDTH;
      Code *out = b + panel * l.depth + p * width + (column - panel) * TILE_GROUP;
      pack_group(row + column, n, positions, n - column < TILE_LANES ? n - column : TILE_LANES, l.dy_inverse + column, out);
    }
  }
  correct_columns(b, l.np, l.depth, depth, l.corrections + block * l.np);
}

/* What becomes of a tile's sums. */
typedef struct {
  const int32_t *row_off, *column_off; /* corrections */
  const float *row_scale, *column_scale;
  Overlaid *partial; /* sums of the blocks before, and after, if this is neither the first nor the last */
  const float *base; /* what is added to, or NULL */
  float *out;
  size_t pitch; /* of partial, base and out */
  int first, last;
} Store;

/* `rows` rows of sixteen sums. */
static inline __attribute__((always_inline)) void store_16(const Store *s, size_t rows, const int32_t *sums, size_t width, int first, int last,
                                                           const float *base) {
  for (size_t v = 0; v < TILE_LANES; v += NATIVE_LANES) {
    LooseSum off = *(const LooseSum *)(const void *)(s->column_off + v);
    LooseFloat scale = *(const LooseFloat *)(const void *)(s->column_scale + v);
    for (size_t i = 0; i < rows; i++) {
      size_t at = i * s->pitch + v;
      LooseSum sum = *(const LooseSum *)(const void *)(sums + i * width + v) - off - (uint32_t)s->row_off[i];
      if (!first) sum += *(const LooseSum *)(const void *)(s->partial + at);
      if (!last) {
        *(LooseSum *)(void *)(s->partial + at) = sum;
        continue;
      }
      NativeFloat x = __builtin_convertvector((NativeInt)sum, NativeFloat) * (scale * s->row_scale[i]);
      if (base) x = *(const LooseFloat *)(const void *)(base + at) + x;
      *(LooseFloat *)(void *)(s->out + at) = x;
    }
  }
}

static void store_columns(const Store *s, size_t rows, const int32_t *sums, size_t width, size_t columns) {
  for (size_t i = 0; i < rows; i++, sums += width) {
    Overlaid *partial = s->partial + i * s->pitch;
    uint32_t sum[TILE_LANES], row_off = (uint32_t)s->row_off[i];
    for (size_t j = 0; j < columns; j++) sum[j] = (uint32_t)sums[j] - row_off - (uint32_t)s->column_off[j];
    if (!s->first)
      for (size_t j = 0; j < columns; j++) sum[j] += (uint32_t)partial[j];
    if (!s->last) {
      memcpy(partial, sum, columns * sizeof *sum);
      continue;
    }
    float x[TILE_LANES], scale = s->row_scale[i];
    for (size_t j = 0; j < columns; j++) x[j] = (float)(int32_t)sum[j] * (scale * s->column_scale[j]);
    if (s->base)
      for (size_t j = 0; j < columns; j++) x[j] = s->base[i * s->pitch + j] + x[j];
    memcpy(s->out + i * s->pitch, x, columns * sizeof *x);
  }
}

static void store_tile(Store s, size_t rows, const int32_t *sums, size_t width, size_t columns) {
  for (size_t done = 0; done < columns; done += TILE_LANES) {
    if (columns - done < TILE_LANES)
      store_columns(&s, rows, sums + done, width, columns - done);
    else if (s.first && s.last && !s.base) /* the usual case */
      store_16(&s, rows, sums + done, width, 1, 1, NULL);
    else if (!s.last)
      store_16(&s, rows, sums + done, width, s.first, 0, NULL);
    else
      store_16(&s, rows, sums + done, width, s.first, 1, s.base);
    s.partial += TILE_LANES, s.out += TILE_LANES, s.column_off += TILE_LANES, s.column_scale += TILE_LANES;
    if (s.base) s.base += TILE_LANES;
  }
}

/* How many positions tiles read of a block, and how many of them there are. */
static inline size_t block_depth(const fg_matmul_grad *job, const MatmulLayout *l, size_t block, size_t *count) {
  size_t start = block * l->depth;
  *count = job->k - start < l->depth ? job->k - start : l->depth;
  return up_to(*count, TILE_RUN);
}

/* Columns [row, row + rows) of X at a block's positions, for tiles to read, and their corrections. */
static void pack_chunk(const fg_matmul_grad *job, const MatmulLayout *l, size_t block, size_t row, size_t rows, Code *a, int32_t *row_off) {
  size_t count, depth = block_depth(job, l, block, &count), at = block * l->depth * job->m + row;
  pack_rows(job->x ? job->x + at : NULL, job->codes ? job->codes + at : NULL, job->m, count, depth, depth + GRAD_GAP, rows, l->x_inverse + row, a,
            row_off);
}

/* What these rows get from a block. */
static void multiply_chunk(const fg_matmul_grad *job, const MatmulLayout *l, size_t block, size_t row, size_t rows, const Code *a,
                           const int32_t *row_off) {
  size_t n = job->n, count, depth = block_depth(job, l, block, &count), start = block * l->depth, next = start + l->depth;
  int32_t sums[TILE_ROWS * TILE_WIDTH];
  Segment all = {0, depth};
  Store store = {.pitch = n, .first = start % GRAD_EXACT == 0, .last = next >= job->k || next % GRAD_EXACT == 0};
  const float *base = start < GRAD_EXACT ? job->base : job->out;
  Overlaid *partial = l->sums ? (Overlaid *)l->sums : (Overlaid *)(void *)job->out;
  for (size_t column = 0; column < n; column += TILE_WIDTH) {
    size_t width = panel_width(l->np, column);
    const Code *b = l->b + block * l->np * l->depth + column * l->depth;
    store.column_off = l->corrections + block * l->np + column;
    store.column_scale = l->dy_scale + column;
    for (size_t i = 0; i < rows; i += TILE_ROWS) {
      size_t of = rows - i < TILE_ROWS ? rows - i : TILE_ROWS, at = (row + i) * n + column;
      const Code *each[TILE_ROWS];
      for (size_t r = 0; r < of; r++) each[r] = a + i * (depth + GRAD_GAP) + r * TILE_RUN;
      product_tile(of, each, of * TILE_RUN, &all, 1, b, width, sums);
      store.row_off = row_off + i, store.row_scale = l->x_scale + row + i;
      store.partial = partial + at, store.out = job->out + at, store.base = base ? base + at : NULL;
      store_tile(store, of, sums, width, n - column < width ? n - column : width);
    }
  }
}

void FG_ISA(fg_matmul_grad_rows)(const fg_matmul_grad *job, size_t chunk) {
  MatmulLayout l = matmul_layout(job);
  size_t row = chunk * GRAD_ROWS, rows = job->m - row < GRAD_ROWS ? job->m - row : GRAD_ROWS;
  if (job->k <= GRAD_FEW) {
    few_product(job, row, rows);
    return;
  }
  Code a[(GRAD_DEPTH + GRAD_GAP) * GRAD_ROWS];
  int32_t row_off[GRAD_ROWS];
  for (size_t block = 0; block < l.blocks; block++) {
    pack_chunk(job, &l, block, row, rows, a, row_off);
    multiply_chunk(job, &l, block, row, rows, a, row_off);
  }
}
