/* Levels' tables, and the header of a stream: see entropy.h. */
#include "entropy.h"

#include <string.h>

typedef struct {
  double symbols, table; /* bits */
} Cost;

/* Of level `a`, together with level `b` where they differ. */
static Cost cost_of(const EcCounts *counts, size_t a, size_t b, uint32_t log_bins) {
  Cost cost = {0, 8};
  for (size_t bin = 0; bin < (size_t)1 << log_bins; bin++) {
    uint32_t both[RANS_SYMBOLS];
    double table;
    memcpy(both, counts->symbol[a][bin], sizeof both);
    if (a != b)
      for (size_t s = 0; s < RANS_SYMBOLS; s++) both[s] += counts->symbol[b][bin][s];
    cost.symbols += fg_rans_cost(both, &table);
    cost.table += table;
  }
  return cost;
}

static void halve_bins(EcCounts *counts, uint32_t log_bins) {
  for (size_t level = 0; level < EC_LEVELS; level++) {
    if (!counts->level[level]) continue;
    for (size_t bin = 0; bin < (size_t)1 << (log_bins - 1); bin++)
      for (size_t s = 0; s < RANS_SYMBOLS; s++)
        counts->symbol[level][bin][s] = counts->symbol[level][2 * bin][s] + counts->symbol[level][2 * bin + 1][s];
  }
}

/* Merges neighbours, the pair that saves most first, into the higher level. Returns the bits of symbols and tables. */
static double merge_levels(EcCounts *counts, uint32_t log_bins, double scale) {
  Cost cost[EC_LEVELS], merged[EC_LEVELS]; /* merged: with the next level in use */
  size_t next[EC_LEVELS];
  double total = 0;
  int known[EC_LEVELS] = {0};
  for (size_t level = 0; level < EC_LEVELS; level++)
    if (counts->level[level]) {
      cost[level] = cost_of(counts, level, level, log_bins);
      total += cost[level].symbols * scale + cost[level].table;
    }
  for (;;) {
    double least = 0;
    size_t best = EC_LEVELS, before = EC_LEVELS, before_best = EC_LEVELS;
    for (size_t level = 0; level < EC_LEVELS; level++) {
      if (!counts->level[level]) continue;
      size_t after = level + 1;
      while (after < EC_LEVELS && !counts->level[after]) after++;
      next[level] = after;
      if (after < EC_LEVELS && ec_shift(level) == ec_shift(after)) {
        if (!known[level]) merged[level] = cost_of(counts, level, after, log_bins), known[level] = 1;
        double change = (merged[level].symbols - cost[level].symbols - cost[after].symbols) * scale + merged[level].table -
                        cost[level].table - cost[after].table;
        if (change < least) least = change, best = level, before_best = before;
      }
      before = level;
    }
    if (best == EC_LEVELS) return total;
    size_t to = next[best];
    for (size_t bin = 0; bin < (size_t)1 << log_bins; bin++)
      for (size_t s = 0; s < RANS_SYMBOLS; s++) counts->symbol[to][bin][s] += counts->symbol[best][bin][s];
    counts->level[to] += counts->level[best];
    counts->level[best] = 0;
    total += least;
    cost[to] = merged[best];
    known[to] = 0;
    if (before_best < EC_LEVELS) known[before_best] = 0;
  }
}

double fg_ec_group(EcCounts *counts, EcCounts *plain, uint32_t most_log_bins, double scale, size_t n, EcModel *model) {
  double raw = 0, table, bits = 0; /* raw bits: those below the symbols, and escapes */
  for (size_t level = 0; level < EC_LEVELS; level++) {
    if (!counts->level[level]) continue;
    raw += (double)counts->level[level] * ec_shift(level) * scale;
    for (size_t bin = 0; bin < (size_t)1 << most_log_bins; bin++) raw += (double)counts->symbol[level][bin][EC_ESCAPE] * EC_ESCAPE_BITS * scale;
  }
  if (most_log_bins) { /* all bins or none */
    memcpy(plain->level, counts->level, sizeof plain->level);
    for (size_t level = 0; level < EC_LEVELS; level++)
      if (counts->level[level]) memcpy(plain->symbol[level], counts->symbol[level], sizeof plain->symbol[level]);
    for (uint32_t b = most_log_bins; b > 0; b--) halve_bins(plain, b);
    bits = merge_levels(plain, 0, scale);
  }
  double binned = merge_levels(counts, most_log_bins, scale);
  model->log_bins = most_log_bins;
  if (most_log_bins && bits < binned) {
    memcpy(counts->level, plain->level, sizeof plain->level);
    for (size_t level = 0; level < EC_LEVELS; level++)
      if (counts->level[level]) memcpy(counts->symbol[level], plain->symbol[level], sizeof plain->symbol[level]);
    model->log_bins = 0;
  } else {
    bits = binned;
  }
  model->tables = 0;
  for (size_t level = 0; level < EC_LEVELS; level++) {
    model->table_of[level] = (uint8_t)model->tables;
    if (counts->level[level]) model->last[model->tables++] = (uint8_t)level;
  }
  for (size_t level = 0; level < EC_LEVELS; level++) /* levels behind the last table are in no block */
    if (model->table_of[level] >= model->tables) model->table_of[level] = 0;
  double symbols = 0; /* of all tables: a sample fits its own by about so many times 1 / (2 ln 2) bits better than what it stands for */
  for (size_t table = 0; table < model->tables; table++)
    for (size_t bin = 0; bin < (size_t)1 << model->log_bins; bin++)
      for (size_t s = 0; s < RANS_SYMBOLS; s++) symbols += counts->symbol[model->last[table]][bin][s] != 0;
  bits += 0.7213475 * symbols * (scale - 1.0);
  uint32_t classes[RANS_SYMBOLS] = {0};
  memcpy(classes, counts->class_, sizeof counts->class_);
  bits += fg_rans_cost(classes, &table) * scale;
  bits += table + raw + 8.0 * (model->kind == EC_DITHER ? 7 : 19);
  double chunks = (double)((n + EC_CHUNK - 1) / EC_CHUNK), lanes = bits / chunks / RANS_LANE_BITS;
  return bits + chunks * (8.0 * 6 + 24.0 * (lanes < 1 ? 1 : lanes > 32 ? 32 : lanes / 1.4)); /* lanes: a power of two below */
}

double fg_ec_normalise(const EcCounts *counts, EcModel *model) {
  double loss = 0;
  uint32_t classes[RANS_SYMBOLS] = {0};
  memcpy(classes, counts->class_, sizeof counts->class_);
  loss += fg_rans_normalise(classes, model->classes);
  for (size_t table = 0; table < model->tables; table++)
    for (size_t bin = 0; bin < (size_t)1 << model->log_bins; bin++)
      loss += fg_rans_normalise(counts->symbol[model->last[table]][bin], model->frequencies[table][bin]);
  return loss;
}

size_t fg_ec_write(const EcModel *model, uint8_t *out) {
  size_t n = 0;
  out[n++] = (uint8_t)(model->kind | (model->step != 0.0f && model->offsets) << 4);
  out[n++] = (uint8_t)model->log_bins;
  out[n++] = (uint8_t)model->tables;
  memcpy(out + n, &model->step, 4);
  n += 4;
  if (model->step == 0.0f) return n;
  if (model->kind == EC_DEADZONE) {
    memcpy(out + n, model->points, 12);
    n += 12;
  }
  for (size_t table = 0; table < model->tables; table++) {
    out[n++] = model->last[table];
    for (size_t bin = 0; bin < (size_t)1 << model->log_bins; bin++) n += fg_rans_write(model->frequencies[table][bin], out + n);
  }
  return n + fg_rans_write(model->classes, out + n);
}

int fg_ec_read(const uint8_t **in, const uint8_t *end, int kind, EcModel *model) {
  const uint8_t *at = *in;
  if (end - at < 7) return FG_TRUNCATED;
  model->kind = at[0] & 15;
  model->offsets = at[0] >> 4;
  model->log_bins = at[1];
  model->tables = at[2];
  memcpy(&model->step, at + 3, 4);
  *in = at += 7;
  if (model->kind != kind || model->offsets > 1 || model->log_bins > (kind == EC_DITHER ? EC_LOG_BINS : 0) || model->tables > EC_LEVELS) return FG_FIELD;
  uint32_t raw;
  memcpy(&raw, &model->step, 4);
  if (raw == 0) return model->tables == 0 && model->log_bins == 0 && !model->offsets ? FG_OK : FG_FIELD;
  if (!(raw < 0x7f800000u && model->step >= 0x1p-90f && model->step <= 0x1p90f)) return FG_SCALE;
  if (kind == EC_DEADZONE) {
    if (end - at < 12) return FG_TRUNCATED;
    memcpy(model->points, at, 12);
    at += 12;
    for (size_t i = 0; i < 2; i++) /* false for NaN too */
      if (!(model->points[i] >= 0.0f && model->points[i] <= 4.0f * model->step)) return FG_SCALE;
    if (!(model->points[2] >= -model->step && model->points[2] <= model->step)) return FG_SCALE;
  }
  size_t level = 0;
  int error = FG_OK;
  for (size_t table = 0; table < model->tables; table++) {
    if (at == end) return FG_TRUNCATED;
    size_t last = *at++;
    if (last < level || last >= EC_LEVELS) return FG_FIELD;
    model->last[table] = (uint8_t)last;
    while (level <= last) model->table_of[level++] = (uint8_t)table;
    for (size_t bin = 0; bin < (size_t)1 << model->log_bins; bin++)
      if ((error = fg_rans_read(&at, end, model->frequencies[table][bin]))) return error;
  }
  while (level < EC_LEVELS) model->table_of[level++] = 0;
  if ((error = fg_rans_read(&at, end, model->classes))) return error;
  for (size_t s = model->tables ? 30 : 2; s < RANS_SYMBOLS; s++)
    if (model->classes[s]) return FG_TABLE;
  *in = at;
  return FG_OK;
}

int fg_ec_has_offsets(const fg_ec *request, size_t m) {
  size_t columns = request->columns[m];
  return columns > 1 && request->sizes[m] / columns >= EC_ROWS;
}

size_t fg_ec_offsets(const fg_ec *request) {
  size_t count = 0;
  for (size_t m = 0; m < request->matrices; m++)
    if (fg_ec_has_offsets(request, m)) count += request->columns[m];
  return count;
}
