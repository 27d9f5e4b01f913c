/* Recurrent cells over a sequence, forward and backward, and the gradient of an embedding. */
#ifndef FLEETGRAD_RECURRENT_H
#define FLEETGRAD_RECURRENT_H

#include <stddef.h>
#include <stdint.h>

#define FG_PANEL 32 /* packed columns and rows of scratch are padded to this */

/* One direction of a recurrent layer, T steps of B sequences with H hidden units. A call computes sequences [first, last): they don't depend
 * on each other, so any cut of the batch gives the same bytes. `projected` below is X W^T + bias, made by a matrix product outside. */
typedef struct {
  size_t steps, batch, hidden; /* T, B, H, each at least 1 */
  size_t first, last;
  size_t stride;          /* floats from one step's Y (or dY) to the next's; a step's is [B][H] */
  int reverse;            /* 1: from a sequence's last step to its first */
  int reset_after;        /* GRU: 1 is linear_before_reset of ONNX (torch, cuDNN), 0 the paper's */
  const int32_t *lengths; /* [B], each in 0..T: steps behind it give zeros; NULL: all T */
  const float *weights;   /* packed; which matrix, each kernel says */
  const float *more;      /* packed; GRU */
  float *scratch;         /* fg_recurrent_scratch(this) floats, aligned to 64 bytes */
} fg_sequence;

#define FG_RECURRENT_KERNELS(X)                                                                                           \
  /* matrix [k][n], or its transpose from matrix [n][k], as panels for products with rows of k floats: fg_packed(k, n) floats. */ \
  X(void, recurrent_pack, (const float *matrix, size_t k, size_t n, int transposed, float *packed),                    \
    (matrix, k, n, transposed, packed))                                                                               \
  /* out = sigmoid(x) or tanh(x), to 3 units in the last place; out may be x. */                                      \
  X(void, sigmoid, (const float *x, size_t n, float *out), (x, n, out))                                               \
  X(void, hyperbolic_tangent, (const float *x, size_t n, float *out), (x, n, out))                                    \
  /* LSTM: gates i, o, f, c of projected [T][B][4H] + h R^T; weights: R [4H][H] transposed. Writes activated gates [T][B][4H], cells \
     [T][B][H], y, and the last states [B][H]. h0, c0 may be NULL. where = step * B + sequence with a NaN or infinity. */ \
  X(int, lstm_forward,                                                                                                \
    (const fg_sequence *s, const float *projected, const float *h0, const float *c0, float *gates, float *cells, float *y, float *y_h, \
     float *y_c, size_t *where),                                                                                      \
    (s, projected, h0, c0, gates, cells, y, y_h, y_c, where))                                                         \
  /* The gradient of projected, and of the initial states, from what the forward pass wrote; weights: R as it is, [4H][H]. dy (with the \
     stride), dy_h, dy_c may be NULL: zeros. */                                                                       \
  X(int, lstm_backward,                                                                                               \
    (const fg_sequence *s, const float *gates, const float *cells, const float *c0, const float *dy, const float *dy_h, const float *dy_c, \
     float *dprojected, float *dh0, float *dc0, size_t *where),                                                       \
    (s, gates, cells, c0, dy, dy_h, dy_c, dprojected, dh0, dc0, where))                                               \
  /* GRU: gates z, r, h of projected [T][B][3H]; weights: R's rows of z and r [2H][H] transposed, more: its rows of h [H][H] transposed. With \
     reset_after, hidden [T][B][H] becomes h R_h^T + bias [H] (NULL: zeros). */                                       \
  X(int, gru_forward,                                                                                                 \
    (const fg_sequence *s, const float *projected, const float *h0, const float *bias, float *gates, float *hidden, float *y, float *y_h, \
     size_t *where),                                                                                                  \
    (s, projected, h0, bias, gates, hidden, y, y_h, where))                                                           \
  /* recurrent: with reset_after the gradient [T][B][3H] of h R^T + bias (weights: R [3H][H]); without, the rows [T][B][H] = r * h that R_h \
     multiplies (weights: R's rows of z and r [2H][H], more: those of h). */                                          \
  X(int, gru_backward,                                                                                                \
    (const fg_sequence *s, const float *gates, const float *hidden, const float *y, const float *h0, const float *dy, const float *dy_h, \
     float *dprojected, float *recurrent, float *dh0, size_t *where),                                                 \
    (s, gates, hidden, y, h0, dy, dy_h, dprojected, recurrent, dh0, where))                                           \
  /* out [last - first][width] = sum of the rows of dy [count][width] whose index is the output row's, in their order; the others are 0. \
     Indices are slots in [0, last). */                                                                               \
  X(void, embedding_sum, (const uint32_t *slots, size_t count, const float *dy, size_t width, size_t first, size_t last, float *out), \
    (slots, count, dy, width, first, last, out))

size_t fg_packed(size_t k, size_t n);                                                              /* floats */
size_t fg_recurrent_scratch(const fg_sequence *s);                                                 /* floats */
void fg_previous_states(const fg_sequence *s, const float *y, const float *h0, float *out); /* out [T][B][H]: the h that a step began with */

/* Indices (int32, or int64 where wide) as slots: negative ones count from the end, as in ONNX Gather. FG_RANGE, where = position. */
int fg_embedding_slots(const void *indices, int wide, size_t count, size_t vocabulary, uint32_t *slots, size_t *where);
/* Rows that occur, ascending, at rows; slots then number them. seen: vocabulary words of scratch. Returns how many there are. */
size_t fg_embedding_rows(uint32_t *slots, size_t count, size_t vocabulary, uint32_t *seen, int64_t *rows);

#endif
