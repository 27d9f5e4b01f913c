/* Weight gradients of convolutions, without im2col.
 *
 *   dW[m][c][kh][kw] = sum over n, oh, ow of dY[n][m][oh][ow] X[n][c][oh s + kh d - pad][ow s + kw d - pad]
 *
 * is a product whose rows are (c, kh, kw), whose columns are m and whose positions are (n, oh, ow). X is quantized once, padded, and split
 * by stride: in a plane of its own lie the pixels with the same remainder of both coordinates, so that any stride becomes 1 and the row
 * (c, kh, kw) is one pointer into the planes, its positions neighbours:
 *
 *   stride 2, taps 0 1 2:   pixels  a b c d e f   ->   plane 0:  a c e   taps 0 and 2, by 0 and by 1
 *                                                      plane 1:  b d f   tap 1, by 0
 *
 * dY is packed once for each block of positions. Positions are either those of the output, row by row, or, where rows are short, those of a
 * whole plane in one run, with zeros of dY where a window would cross the edge.
 *
 * With few outputs in a group (depthwise) each dW is a dot product of two such runs, and dY stays in the order that it has.
 *
 * Rounding leaves in each channel of dY a sum of errors, which X's mean would carry into dW; it is taken off:
 *
 *   dW[m][c][...] -= mean of X[c] * (scale of dY[m] * sum of its codes - sum of dY[m])
 *
 * with the mean of what lies in the planes, as codes. Where dY sums to almost nothing, as before batch normalisation, that is most of the error.
 */

#include "conv_layout.inc.h"

void FG_ISA(fg_conv_grad_plan)(const fg_conv_grad *job, fg_grad_parts *parts) {
  ConvLayout l = conv_layout(job);
  parts->scales = job->channels + job->outputs;
  parts->packs = job->batch * job->channels + (l.direct ? job->outputs : job->group * l.blocks);
  parts->rows = l.direct ? job->channels : job->group * parts_of(l.rows, GRAD_ROWS);
  parts->scratch = l.bytes;
}

void FG_ISA(fg_conv_grad_scales)(const fg_conv_grad *job, size_t part) {
  ConvLayout l = conv_layout(job);
  size_t c = job->channels;
  if (part >= c)
    channel_scale(job->dy, job->batch, job->outputs, job->y_size[0] * job->y_size[1], part - c, l.dy_scale, l.dy_inverse, l.dy_sum);
  else if (job->codes)
    take_scales(job->scale + part, 1, l.x_scale + part);
  else
    channel_scale(job->x, job->batch, c, job->x_size[0] * job->x_size[1], part, l.x_scale, l.x_inverse, NULL);
}

static inline int32_t sum_of_codes(const Code *codes, size_t count) {
  int32_t sum = 0;
  for (size_t i = 0; i < count; i++) sum += codes[i];
  return sum;
}

/* The same of rows' codes, without their bias. */
static inline int64_t sum_of_pixels(const Code *codes, size_t count) {
  int64_t total = 0;
  for (size_t start = 0; start < count; start += GRAD_EXACT) {
    size_t run = count - start < GRAD_EXACT ? count - start : GRAD_EXACT;
#if defined(TILE_ROW_SUM)
    total += TILE_ROW_SUM(codes + start, run);
#else
    int32_t sum = 0;
    for (size_t i = start; i < start + run; i++) sum += (Code)(codes[i] - TILE_BIAS);
    total += sum;
#endif
  }
  return total;
}

/* Mean of what windows read of a channel of X, its padding included. */
static inline float mean_of(const fg_conv_grad *job, const ConvLayout *l, size_t c) {
  int64_t codes = 0;
  for (size_t n = 0; n < job->batch; n++) codes += l->x_codes[n * job->channels + c];
  return (float)((double)l->x_scale[c] * (double)codes / (double)(job->batch * l->channel));
}

/* What rounding added to a channel of dY. */
static inline float rounding_of(const ConvLayout *l, size_t m, int64_t codes) {
  double sum = (double)l->dy_scale[m] * (double)codes - l->dy_sum[m];
  return sum > -0x1p96 && sum < 0x1p96 ? (float)sum : 0.0f; /* a sum of floats may have overflowed */
}

/* Every `stride`-th pixel of a row, from pixel `first` (negative: before the row's start), into a plane's row. */
static void split_row(const float *x, const int8_t *codes, size_t size, ptrdiff_t first, size_t stride, float inverse, size_t width, Code *out) {
  size_t before = first < 0 ? parts_of((size_t)-first, stride) : 0;
  if (before > width) before = width;
  size_t start = (size_t)(first + (ptrdiff_t)(before * stride)), after = start < size ? before + parts_of(size - start, stride) : before;
  if (after > width) after = width;
  for (size_t i = 0; i < before; i++) out[i] = ZERO_CODE;
  for (size_t i = after; i < width; i++) out[i] = ZERO_CODE;
  for (size_t i = before; i < after;) {
    float picked[64];
    size_t count = after - i < 64 ? after - i : 64, at = start + (i - before) * stride;
    if (codes) {
      if (stride == 1)
        widen_run(codes + at, count, out + i);
      else
        for (size_t j = 0; j < count; j++) out[i + j] = (Code)(codes[at + j * stride] + TILE_BIAS);
    } else if (stride == 1) {
      count = after - i;
      quantize_run(x + at, count, inverse, TILE_BIAS, out + i);
    } else {
      if (stride == 2)
        for (size_t j = 0; j < count; j++) picked[j] = x[at + j * 2];
      else
        for (size_t j = 0; j < count; j++) picked[j] = x[at + j * stride];
      quantize_run(picked, count, inverse, TILE_BIAS, out + i);
    }
    i += count;
  }
}

static void pack_channel(const fg_conv_grad *job, const ConvLayout *l, size_t plane) {
  size_t size = job->x_size[0] * job->x_size[1], c = plane % job->channels;
  const float *x = job->x ? job->x + plane * size : NULL;
  const int8_t *codes = job->codes ? job->codes + plane * size : NULL;
  Code *out = l->x + plane * l->channel;
  for (size_t sh = 0; sh < l->slots[0]; sh++)
    for (size_t sw = 0; sw < l->slots[1]; sw++)
      for (size_t i = 0; i < l->plane[0]; i++, out += l->plane[1]) {
        size_t high = i * job->stride[0] + sh * job->dilation[0] % job->stride[0], row = high - job->before[0];
        if (high < job->before[0] || row >= job->x_size[0]) {
          for (size_t j = 0; j < l->plane[1]; j++) out[j] = ZERO_CODE;
          continue;
        }
        ptrdiff_t first = (ptrdiff_t)(sw * job->dilation[1] % job->stride[1]) - (ptrdiff_t)job->before[1];
        size_t at = row * job->x_size[1];
        split_row(x ? x + at : NULL, codes ? codes + at : NULL, job->x_size[1], first, job->stride[1], l->x_inverse[c], l->plane[1], out);
      }
  l->x_codes[plane] = sum_of_pixels(l->x + plane * l->channel, l->channel);
  if (plane + 1 == job->batch * job->channels) /* what is read behind the last plane */
    for (size_t j = 0; j < 2 * DOT_STEP; j++) out[j] = ZERO_CODE;
}

/* Positions [first, first + count) of one plane of dY, in the order of a plane of X: zeros where a row ends before the plane does. */
static void pack_flat(const fg_conv_grad *job, const ConvLayout *l, const float *dy, float inverse, size_t first, size_t count, Code *out) {
  size_t width = job->y_size[1], pitch = l->plane[1];
  for (size_t i = 0; i < count;) {
    size_t row = (first + i) / pitch, column = (first + i) % pitch, rest = count - i;
    size_t run = column < width ? width - column : 0;
    if (run > rest) run = rest;
    quantize_run(dy + row * width + column, run, inverse, 0, out + i);
    size_t gap = pitch - column - run;
    if (gap > rest - run) gap = rest - run;
    for (size_t j = 0; j < gap; j++) out[i + run + j] = 0;
    i += run + gap;
  }
}

/* Segments of a block. */
static size_t block_of(const fg_conv_grad *job, const ConvLayout *l, size_t block, size_t *first) {
  size_t exact = block / l->exact_blocks, start = exact * l->exact_segments, end = start + l->exact_segments;
  (void)job;
  *first = start + block % l->exact_blocks * l->block_segments;
  if (end > l->segments) end = l->segments;
  return end - *first < l->block_segments ? end - *first : l->block_segments;
}

/* A segment's place; from one to the next it takes no division. */
typedef struct {
  size_t image, row, piece; /* with flat, all rows are one */
} Place;

static inline Place place_of(const fg_conv_grad *job, const ConvLayout *l, size_t s) {
  size_t line = s / l->pieces, rows = l->flat ? 1 : job->y_size[0];
  return (Place){line / rows, line % rows, s % l->pieces};
}

static inline void step(const fg_conv_grad *job, const ConvLayout *l, Place *at) {
  if (++at->piece < l->pieces) return;
  at->piece = 0;
  if (!l->flat && ++at->row < job->y_size[0]) return;
  at->row = 0;
  at->image++;
}

/* Where a segment begins, in positions of its row or plane, and how long it is. */
static inline size_t piece_of(const fg_conv_grad *job, const ConvLayout *l, const Place *at, size_t *length) {
  size_t start = at->piece * l->piece, all = l->flat ? l->positions : job->y_size[1];
  *length = all - start < l->piece ? all - start : l->piece;
  return start;
}

/* Segments of a block that lie side by side in dY and need no padding: where they begin, and how long they are together. */
typedef struct {
  size_t image;  /* floats to the image's first plane */
  size_t start;  /* in a plane: a float, or with flat a position */
  size_t length;
} Piece;

static void pack_block(const fg_conv_grad *job, const ConvLayout *l, size_t group, size_t block) {
  enum { PITCH = GRAD_DEPTH + 16 };
  Code lanes[TILE_LANES * PITCH];
  Piece pieces[MOST_SEGMENTS];
  size_t first, count = block_of(job, l, block, &first), outputs = job->y_size[0] * job->y_size[1], positions = 0;
  Piece *end = pieces;
  Place place = place_of(job, l, first);
  for (size_t s = 0; s < count; s++, step(job, l, &place)) {
    size_t length, start = piece_of(job, l, &place, &length) + place.row * job->y_size[1], image = place.image * job->outputs * outputs;
    if (end > pieces && end[-1].image == image && end[-1].start + end[-1].length == start && end[-1].length % TILE_PAD == 0)
      end[-1].length += length;
    else
      *end++ = (Piece){image, start, length};
  }
  Code *b = l->dy + (group * l->blocks + block) * l->np * l->depth;
  for (size_t column = 0; column < l->np; column += TILE_LANES) {
    for (size_t j = 0; j < TILE_LANES; j++) {
      size_t m = group * l->out_group + column + j, at = 0;
      Code *lane = lanes + j * PITCH;
      for (const Piece *piece = pieces; piece < end; piece++) {
        size_t length = piece->length, padded = up_to(length, TILE_PAD);
        if (column + j >= l->out_group) {
          memset(lane + at, 0, padded * sizeof *lane);
        } else {
          const float *dy = job->dy + piece->image + m * outputs;
          if (l->flat)
            pack_flat(job, l, dy, l->dy_inverse[m], piece->start, length, lane + at);
          else
            quantize_run(dy + piece->start, length, l->dy_inverse[m], 0, lane + at);
          for (size_t i = length; i < padded; i++) lane[at + i] = 0;
        }
        at += padded;
      }
      positions = at;
#if !defined(TILE_COLUMN_SUM)
      l->dy_codes[(group * l->blocks + block) * l->np + column + j] = sum_of_codes(lane, positions);
#endif
    }
    size_t panel = column / TILE_WIDTH * TILE_WIDTH;
    interleave(lanes, PITCH, positions, b + panel * l->depth + (column - panel) * TILE_GROUP, panel_width(l->np, panel));
  }
  int32_t *corrections = l->corrections + (group * l->blocks + block) * l->np;
  correct_columns(b, l->np, l->depth, positions, corrections);
#if defined(TILE_COLUMN_SUM)
  for (size_t j = 0; j < l->np; j++) l->dy_codes[(group * l->blocks + block) * l->np + j] = TILE_COLUMN_SUM(corrections[j]);
#endif
}

void FG_ISA(fg_conv_grad_pack)(const fg_conv_grad *job, size_t part) {
  ConvLayout l = conv_layout(job);
  size_t planes = job->batch * job->channels;
  if (part < planes) {
    pack_channel(job, &l, part);
  } else if (!l.direct) {
    pack_block(job, &l, (part - planes) / l.blocks, (part - planes) % l.blocks);
  } else {
    size_t m = part - planes, outputs = job->y_size[0] * job->y_size[1];
    for (size_t n = 0; n < job->batch; n++) {
      Code *out = l.dy + (m * job->batch + n) * l.depth;
      pack_flat(job, &l, job->dy + (n * job->outputs + m) * outputs, l.dy_inverse[m], 0, l.positions, out);
      for (size_t i = l.positions; i < l.depth; i++) out[i] = 0;
      l.dy_codes[m * job->batch + n] = sum_of_codes(out, l.positions);
    }
  }
}

/* Codes from an image's start to where tap `tap` of channel c sees the first position. */
static inline size_t tap_start(const fg_conv_grad *job, const ConvLayout *l, size_t c, size_t tap) {
  size_t kh = tap / job->kernel[1], kw = tap % job->kernel[1];
  size_t slot = kh % l->slots[0] * l->slots[1] + kw % l->slots[1];
  size_t down = kh * job->dilation[0] / job->stride[0], right = kw * job->dilation[1] / job->stride[1];
  return c * l->channel + (slot * l->plane[0] + down) * l->plane[1] + right;
}

static void direct_rows(const fg_conv_grad *job, const ConvLayout *l, size_t c) {
  size_t group = c / l->in_group, images = GRAD_EXACT / (job->y_size[0] * job->y_size[1]);
  for (size_t m = group * l->out_group; m < (group + 1) * l->out_group; m++) {
    float scale = l->x_scale[c] * l->dy_scale[m];
    int64_t codes = 0;
    for (size_t n = 0; n < job->batch; n++) codes += l->dy_codes[m * job->batch + n];
    float off = mean_of(job, l, c) * rounding_of(l, m, codes);
    float *out = job->out + m * l->rows + c % l->in_group * l->taps;
    const float *base = job->base ? job->base + (out - job->out) : NULL;
    size_t calls = parts_of(l->taps, DOT_TAPS), each = parts_of(l->taps, calls);
    for (size_t tap = 0; tap < l->taps; tap += each) {
      size_t taps = l->taps - tap < each ? l->taps - tap : each;
      for (size_t first = 0; first < job->batch; first += images) {
        size_t end = job->batch - first < images ? job->batch : first + images;
        int32_t sums[DOT_TAPS * DOT_LANES] = {0};
        int32_t total = 0;
        for (size_t n = first; n < end; n++) {
          const Code *a[DOT_TAPS], *dy = l->dy + (m * job->batch + n) * l->depth;
          for (size_t t = 0; t < taps; t++) a[t] = l->x + n * l->image + tap_start(job, l, c, tap + t);
          dots(a, taps, dy, l->depth, sums);
          total += l->dy_codes[m * job->batch + n];
        }
        for (size_t t = 0; t < taps; t++) {
          uint32_t sum = (uint32_t)total * (uint32_t)TILE_BIAS; /* rows were read as code + 128 */
          for (size_t i = 0; i < DOT_LANES; i++) sum += (uint32_t)sums[t * DOT_LANES + i];
          float x = (float)(int32_t)sum * scale;
          if (first)
            x = out[tap + t] + x;
          else
            x -= off;
          out[tap + t] = base && !first ? base[tap + t] + x : x;
        }
      }
    }
  }
}

/* A chunk's complete sums [rows][np] into dW [out_group][all rows]: four by four, transposed. */
static void store_transposed(const fg_conv_grad *job, const ConvLayout *l, size_t group, size_t row, size_t rows, const int32_t *sums, int again) {
  float scale[GRAD_ROWS], mean[GRAD_ROWS];
  for (size_t r = 0; r < rows; r++) {
    size_t c = group * l->in_group + (row + r) / l->taps;
    scale[r] = l->x_scale[c];
    mean[r] = again ? 0.0f : r && (row + r) % l->taps ? mean[r - 1] : mean_of(job, l, c);
  }
  const float *base = again ? job->out : job->base;
  for (size_t j = 0; j < l->out_group; j += 4) {
    size_t width = l->out_group - j < 4 ? l->out_group - j : 4;
    float off[4];
    for (size_t i = 0; i < width; i++) {
      int64_t codes = 0;
      for (size_t block = 0; block < l->blocks; block++) codes += l->dy_codes[(group * l->blocks + block) * l->np + j + i];
      off[i] = rounding_of(l, group * l->out_group + j + i, codes);
    }
    for (size_t r = 0; r < rows; r += 4) {
      Four v[4];
      size_t height = rows - r < 4 ? rows - r : 4;
      for (size_t i = 0; i < 4; i++) memcpy(&v[i], sums + (r + (i < height ? i : 0)) * l->np + j, 16);
      transpose4(v);
      for (size_t i = 0; i < width; i++) {
        size_t m = group * l->out_group + j + i, at = m * l->rows + row + r;
        float dy_scale = l->dy_scale[m];
        for (size_t h = 0; h < height; h++) {
          float x = (float)v[i][h] * (scale[r + h] * dy_scale) - mean[r + h] * off[i];
          job->out[at + h] = base ? base[at + h] + x : x;
        }
      }
    }
  }
}

/* A row of a tile, corrected, onto the sums of the blocks before. width: a multiple of TILE_LANES */
static inline void add_sums(const int32_t *tile, int32_t row_off, const int32_t *column_off, size_t width, int fresh, int32_t *sums) {
  for (size_t j = 0; j < width; j += NATIVE_LANES) {
    LooseSum sum = *(const LooseSum *)(const void *)(tile + j) - (uint32_t)row_off - *(const LooseSum *)(const void *)(column_off + j);
    if (!fresh) sum += *(const LooseSum *)(const void *)(sums + j);
    *(LooseSum *)(void *)(sums + j) = sum;
  }
}

static void tiled_rows(const fg_conv_grad *job, const ConvLayout *l, size_t group, size_t row) {
  size_t rows = l->rows - row < GRAD_ROWS ? l->rows - row : GRAD_ROWS;
  int32_t row_off[GRAD_ROWS] = {0}, tile_sums[TILE_ROWS * TILE_WIDTH], *sums = l->sums + (group * l->rows + row) * l->np;
  const Code *at[GRAD_ROWS];
  for (size_t r = 0; r < rows; r++) at[r] = l->x + tap_start(job, l, group * l->in_group + (row + r) / l->taps, (row + r) % l->taps);
  for (size_t block = 0; block < l->blocks; block++) {
    Segment segments[MOST_SEGMENTS];
    size_t first, count = block_of(job, l, block, &first);
    Place at_segment = place_of(job, l, first);
    for (size_t s = 0; s < count; s++, step(job, l, &at_segment)) {
      size_t length, start = piece_of(job, l, &at_segment, &length) + at_segment.row * l->plane[1];
      segments[s] = (Segment){at_segment.image * l->image + start, up_to(length, TILE_PAD)};
    }
#if defined(TILE_ROWS_CORRECTION)
    for (size_t r = 0; r < rows; r += 4) TILE_ROWS_CORRECTION(rows - r < 4 ? rows - r : 4, at + r, segments, count, row_off + r);
#endif
    size_t place = group * l->blocks + block;
    int fresh = block % l->exact_blocks == 0, complete = (block + 1) % l->exact_blocks == 0 || block + 1 == l->blocks;
    for (size_t column = 0; column < l->np; column += TILE_WIDTH) {
      size_t width = panel_width(l->np, column);
      const Code *b = l->dy + place * l->np * l->depth + column * l->depth;
      const int32_t *column_off = l->corrections + place * l->np + column;
      for (size_t r = 0; r < rows; r += TILE_ROWS) {
        size_t of = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
        product_tile(of, at + r, TILE_RUN, segments, count, b, width, tile_sums);
        for (size_t i = 0; i < of; i++)
          add_sums(tile_sums + i * width, row_off[r + i], column_off, width, fresh, sums + (r + i) * l->np + column);
      }
    }
    if (complete) store_transposed(job, l, group, row, rows, sums, block >= l->exact_blocks);
  }
}

void FG_ISA(fg_conv_grad_rows)(const fg_conv_grad *job, size_t part) {
  ConvLayout l = conv_layout(job);
  size_t chunks = parts_of(l.rows, GRAD_ROWS);
  if (l.direct)
    direct_rows(job, &l, part);
  else
    tiled_rows(job, &l, part / chunks, part % chunks * GRAD_ROWS);
}
