/* Number of windows over a plane, and the sizes of the scratch buffers that callers provide. */
#include "phases.h"

int fg_window_fit(fg_window *w, int ceil_mode) {
  for (int axis = 0; axis < 2; axis++) {
    const size_t positive[4] = {w->input[axis], w->kernel[axis], w->stride[axis], w->dilation[axis]};
    for (int i = 0; i < 4; i++)
      if (positive[i] == 0 || positive[i] > FG_WINDOW_LIMIT) return FG_WINDOW;
    if (w->before[axis] > FG_WINDOW_LIMIT || w->after[axis] > FG_WINDOW_LIMIT) return FG_WINDOW;
    uint64_t span = (uint64_t)(w->kernel[axis] - 1) * w->dilation[axis] + 1;
    uint64_t padded = (uint64_t)w->input[axis] + w->before[axis] + w->after[axis];
    if (span > padded) return FG_WINDOW;
    size_t room = (size_t)(padded - span), stride = w->stride[axis];
    size_t more = room / stride;
    if (ceil_mode && room % stride && (more + 1) * stride < w->input[axis] + w->before[axis]) more++;
    w->output[axis] = more + 1;
  }
  return FG_OK;
}

static size_t addressable(uint64_t bytes) { return bytes < SIZE_MAX / 2 ? (size_t)bytes : SIZE_MAX; }

/* Floats of all phases. In 64 bits: a phase axis is at most 2^26, all of them together as well. */
static uint64_t phase_floats(const fg_window *w, const Phases *p) {
  uint64_t plane = (uint64_t)(w->output[0] + p->reach[0]) * (w->output[1] + p->reach[1]) + PHASE_SLACK;
  return plane * p->count[0] * p->count[1];
}

size_t fg_depthwise_scratch(const fg_window *w, size_t multiplier) {
  Phases p = phases_of(w);
  uint64_t taps = (uint64_t)w->kernel[0] * w->kernel[1];
  uint64_t tables = sizeof(Stretch) * (p.count[0] + p.count[1]) + sizeof(size_t) * (p.count[0] * p.count[1] + 1);
  tables += taps * (2 * sizeof(size_t) + sizeof(float)) + 128 * taps * multiplier; /* 16 doubles a tap */
  uint64_t image = phase_floats(w, &p) + (uint64_t)w->output[0] * p.pitch + PHASE_SLACK;
  uint64_t gradient = (uint64_t)(w->output[0] + 2 * p.reach[0]) * (w->output[1] + 2 * p.reach[1]) + PHASE_SLACK;
  gradient += phase_floats(w, &p) / p.count[0]; /* the phases of one row phase */
  return addressable(tables + 4 * (image > gradient ? image : gradient) + 64);
}

size_t fg_pool_scratch(const fg_window *w) {
  Phases p = phases_of(w);
  uint64_t tables = sizeof(Stretch) * (p.count[0] + p.count[1]) + (uint64_t)w->kernel[0] * w->kernel[1] * sizeof(size_t);
  uint64_t rows = 4 * ((uint64_t)w->output[1] + PHASE_SLACK);
  return addressable(tables + 4 * (rows + 2 * phase_floats(w, &p)) + 64);
}
