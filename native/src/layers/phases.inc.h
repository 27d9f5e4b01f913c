/* Cuts a plane into its phases (phases.h) and puts it together again. */
#include "phases.h"

typedef struct {
  const fg_window *w;
  Phases p;
  const Stretch *rows, *columns;
} Cut;

/* The tables of a cut, in scratch memory of (count[0] + count[1]) stretches; *behind is what comes after. */
static inline Cut prepare_cut(const fg_window *w, void *scratch, void **behind) {
  Cut cut = {.w = w, .p = phases_of(w)};
  Stretch *rows = scratch, *columns = rows + cut.p.count[0];
  stretches_of(w, 0, cut.p.count[0], cut.p.rows, rows);
  stretches_of(w, 1, cut.p.count[1], cut.p.pitch, columns);
  cut.rows = rows;
  cut.columns = columns;
  *behind = columns + cut.p.count[1];
  return cut;
}

/* Stride 2 with both phases: their inputs alternate. The phase of input 0, or -1. */
static inline int alternating(const Cut *cut) {
  const Stretch *c = cut->columns;
  if (cut->w->stride[1] != 2 || cut->p.count[1] != 2 || !c[0].high || !c[1].high || c[0].first + c[1].first != 1) return -1;
  return c[0].first == 0 ? 0 : 1;
}

/* Writes the inputs into phases whose other elements hold the padding already. */
static void cut_into_phases(const Cut *cut, const float *x, float *out) {
  const fg_window *w = cut->w;
  const Phases *p = &cut->p;
  int pair = alternating(cut);
  for (size_t a = 0; a < p->count[0]; a++) {
    const Stretch *r = cut->rows + a;
    float *phases = out + a * p->count[1] * p->plane;
    for (size_t i = r->low; i < r->high; i++) {
      const float *line = x + (r->first + (i - r->low) * w->stride[0]) * w->input[1];
      if (pair >= 0) {
        const Stretch *even = cut->columns + pair, *odd = cut->columns + (1 - pair);
        float *to_even = phases + (size_t)pair * p->plane + i * p->pitch + even->low;
        float *to_odd = phases + (size_t)(1 - pair) * p->plane + i * p->pitch + odd->low;
        size_t evens = even->high - even->low, odds = odd->high - odd->low, n = evens < odds ? evens : odds;
        unzip_row(line, n, to_even, to_odd);
        for (size_t k = n; k < evens; k++) to_even[k] = line[2 * k];
        for (size_t k = n; k < odds; k++) to_odd[k] = line[2 * k + 1];
        continue;
      }
      for (size_t b = 0; b < p->count[1]; b++) {
        const Stretch *c = cut->columns + b;
        float *to = phases + b * p->plane + i * p->pitch + c->low;
        size_t n = c->high - c->low;
        if (w->stride[1] == 1)
          copy_row(to, line + c->first, n);
        else
          for (size_t k = 0; k < n; k++) to[k] = line[c->first + k * w->stride[1]];
      }
    }
  }
}

/* 1 if every input belongs to a phase, so that joining the phases writes the whole plane. */
static int covers(const Cut *cut) {
  for (int axis = 0; axis < 2; axis++) {
    const Stretch *s = axis ? cut->columns : cut->rows;
    size_t inputs = 0;
    for (size_t phase = 0; phase < cut->p.count[axis]; phase++) inputs += s[phase].high - s[phase].low;
    if (inputs != cut->w->input[axis]) return 0;
  }
  return 1;
}

/* Row phase `a` back into the plane, the opposite of cut_into_phases: element (i, k) of phase b stands at parts[b][i * pitch + k],
 * counted from the phase's beginning if `whole`, else from its stretch's. add: added to what is there. */
static void join_row_phase(const Cut *cut, size_t a, const float *parts, size_t plane, size_t pitch, int whole, int add,
                           float *out) {
  const fg_window *w = cut->w;
  const Stretch *r = cut->rows + a;
  int pair = add ? -1 : alternating(cut);
  size_t s = w->stride[1];
  for (size_t i = 0; i < r->high - r->low; i++) {
    float *line = out + (r->first + i * w->stride[0]) * w->input[1];
    const float *row = parts + (whole ? i + r->low : i) * pitch;
    if (pair >= 0) {
      const Stretch *even = cut->columns + pair, *odd = cut->columns + (1 - pair);
      const float *evens = row + (size_t)pair * plane + (whole ? even->low : 0);
      const float *odds = row + (size_t)(1 - pair) * plane + (whole ? odd->low : 0);
      size_t e = even->high - even->low, o = odd->high - odd->low, n = e < o ? e : o;
      zip_row(evens, odds, n, line);
      for (size_t k = n; k < e; k++) line[2 * k] = evens[k];
      for (size_t k = n; k < o; k++) line[2 * k + 1] = odds[k];
      continue;
    }
    for (size_t b = 0; b < cut->p.count[1]; b++) {
      const Stretch *c = cut->columns + b;
      const float *from = row + b * plane + (whole ? c->low : 0);
      float *to = line + c->first;
      size_t n = c->high - c->low;
      if (s == 1 && !add)
        copy_row(to, from, n);
      else if (add)
        for (size_t k = 0; k < n; k++) to[k * s] += from[k];
      else
        for (size_t k = 0; k < n; k++) to[k * s] = from[k];
    }
  }
}
