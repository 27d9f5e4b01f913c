/* A plane cut into phases, so that a window's tap is a shift whatever the stride and the dilation are.
 *
 * Along one axis, tap k of window o sees input o s + k d - before (stride s, dilation d). With k d = q s + r that is element o + q of
 * phase r, the phase being the inputs r, r + s, r + 2s, ... of the padded axis. The phases in use are the residues of 0, d, 2d, ...
 * modulo s, which repeat after s / gcd(s, d) taps. All phases get the same shape, rows x pitch, so that tap k's value for
 * the window in row i, column j stands at a fixed distance from i * pitch + j: loops over windows read contiguous floats and check
 * no bounds.
 */
#ifndef FG_LAYERS_PHASES_H
#define FG_LAYERS_PHASES_H

#include "fleetgrad.h"

#define PHASE_SLACK 16 /* floats behind a plane that a vector may read */

typedef struct {
  size_t period[2]; /* taps after which residues repeat */
  size_t count[2];  /* phases in use */
  size_t reach[2];  /* largest q */
  size_t rows, pitch;
  size_t plane; /* floats from a phase to the next */
} Phases;

/* Elements low .. high - 1 of a phase are inputs first, first + s, ...; the others are padding, or inputs that no window sees. */
typedef struct {
  size_t low, high, first;
} Stretch;

static inline Phases phases_of(const fg_window *w) {
  Phases p;
  for (int axis = 0; axis < 2; axis++) {
    size_t a = w->stride[axis], b = w->dilation[axis];
    while (b) {
      size_t rest = a % b;
      a = b;
      b = rest;
    }
    p.period[axis] = w->stride[axis] / a;
    p.count[axis] = w->kernel[axis] < p.period[axis] ? w->kernel[axis] : p.period[axis];
    p.reach[axis] = (w->kernel[axis] - 1) * w->dilation[axis] / w->stride[axis];
  }
  p.rows = w->output[0] + p.reach[0];
  p.pitch = w->output[1] + p.reach[1];
  p.plane = p.rows * p.pitch + PHASE_SLACK;
  return p;
}

/* Writes the stretch of each phase of an axis, of `length` elements. */
static inline void stretches_of(const fg_window *w, int axis, size_t count, size_t length, Stretch *stretch) {
  size_t s = w->stride[axis], before = w->before[axis], end = before + w->input[axis];
  for (size_t phase = 0; phase < count; phase++, stretch++) {
    size_t residue = phase * w->dilation[axis] % s;
    stretch->low = before > residue ? (before - residue - 1) / s + 1 : 0;
    stretch->high = end > residue ? (end - residue - 1) / s + 1 : 0;
    if (stretch->high > length) stretch->high = length;
    if (stretch->low >= stretch->high) stretch->low = stretch->high = 0; /* padding alone */
    stretch->first = stretch->high ? stretch->low * s + residue - before : 0;
  }
}

/* Where tap (ky, kx) of the window at row 0, column 0 stands, counted from the first phase. */
static inline size_t tap_offset(const fg_window *w, const Phases *p, size_t ky, size_t kx) {
  size_t phase = ky % p->period[0] * p->count[1] + kx % p->period[1];
  return phase * p->plane + ky * w->dilation[0] / w->stride[0] * p->pitch + kx * w->dilation[1] / w->stride[1];
}

#endif
