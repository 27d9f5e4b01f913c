/* Groups of classes, and the header of a stream: see entropy.h. */
#include "entropy.h"

#include <string.h>

#include "fleetgrad.h"

typedef struct {
  double symbols, table; /* bits */
} Cost;

static Cost cost_of(const EcCounts *counts, size_t class_, uint32_t log_bins) {
  Cost cost = {0, 8};
  for (size_t bin = 0; bin < 1u << log_bins; bin++) {
    double table;
    cost.symbols += fg_rans_cost(counts->symbol[class_][bin], &table);
    cost.table += table;
  }
  return cost;
}

static double numbers_cost(const uint32_t blocks[EC_CLASSES], double scale) {
  uint32_t counts[RANS_SYMBOLS] = {0};
  memcpy(counts, blocks, EC_CLASSES * sizeof *counts);
  double table, bits = fg_rans_cost(counts, &table);
  return bits * scale + table;
}

static void add(EcCounts *counts, size_t to, size_t from, uint32_t log_bins) {
  for (size_t bin = 0; bin < 1u << log_bins; bin++)
    for (size_t s = 0; s < RANS_SYMBOLS; s++) counts->symbol[to][bin][s] += counts->symbol[from][bin][s];
  counts->blocks[to] += counts->blocks[from];
  counts->blocks[from] = 0;
}

static void halve_bins(EcCounts *counts, uint32_t log_bins) {
  for (size_t class_ = 1; class_ < EC_CLASSES; class_++) {
    if (!counts->blocks[class_]) continue;
    for (size_t bin = 0; bin < 1u << (log_bins - 1); bin++)
      for (size_t s = 0; s < RANS_SYMBOLS; s++)
        counts->symbol[class_][bin][s] = counts->symbol[class_][2 * bin][s] + counts->symbol[class_][2 * bin + 1][s];
  }
}

/* Merges neighbours, the pair that saves most first; the merged class keeps the higher number. */
static double merge_classes(EcCounts *counts, uint32_t log_bins, double scale, uint8_t merged_into[EC_CLASSES]) {
  Cost cost[EC_CLASSES];
  double total = 0;
  for (size_t class_ = 0; class_ < EC_CLASSES; class_++) {
    merged_into[class_] = (uint8_t)class_;
    if (!class_ || !counts->blocks[class_]) continue;
    cost[class_] = cost_of(counts, class_, log_bins);
    total += cost[class_].symbols * scale + cost[class_].table;
  }
  for (;;) {
    double least = 0, numbers = numbers_cost(counts->blocks, scale);
    size_t best = 0, best_next = 0;
    for (size_t class_ = 1; class_ < EC_CLASSES; class_++) {
      size_t next = class_ + 1;
      while (next < EC_CLASSES && !counts->blocks[next]) next++;
      if (!counts->blocks[class_] || next == EC_CLASSES || ec_shift((uint32_t)class_) != ec_shift((uint32_t)next)) continue;
      uint32_t both[RANS_SYMBOLS], blocks[EC_CLASSES];
      Cost merged = {0, 8};
      for (size_t bin = 0; bin < 1u << log_bins; bin++) {
        double table;
        for (size_t s = 0; s < RANS_SYMBOLS; s++)
          both[s] = counts->symbol[class_][bin][s] + counts->symbol[next][bin][s];
        merged.symbols += fg_rans_cost(both, &table);
        merged.table += table;
      }
      memcpy(blocks, counts->blocks, sizeof blocks);
      blocks[next] += blocks[class_];
      blocks[class_] = 0;
      double change = (merged.symbols - cost[class_].symbols - cost[next].symbols) * scale + merged.table - cost[class_].table -
                      cost[next].table + numbers_cost(blocks, scale) - numbers;
      if (change < least) least = change, best = class_, best_next = next;
    }
    if (!best) return total + numbers;
    total -= (cost[best].symbols + cost[best_next].symbols) * scale + cost[best].table + cost[best_next].table;
    add(counts, best_next, best, log_bins);
    cost[best_next] = cost_of(counts, best_next, log_bins);
    total += cost[best_next].symbols * scale + cost[best_next].table;
    for (size_t class_ = 1; class_ < EC_CLASSES; class_++)
      if (merged_into[class_] == best) merged_into[class_] = (uint8_t)best_next;
  }
}

double fg_ec_group(EcCounts *counts, EcCounts *plain, uint32_t most_log_bins, double scale, size_t n, EcModel *model) {
  /* All bins or none: those between save less than they cost to try. The copy is merged without bins. */
  uint8_t merged[EC_CLASSES], merged_plain[EC_CLASSES];
  *plain = *counts;
  for (uint32_t b = most_log_bins; b > 0; b--) halve_bins(plain, b);
  double bits = merge_classes(plain, 0, scale, merged_plain);
  model->log_bins = 0;
  if (most_log_bins) {
    double binned = merge_classes(counts, most_log_bins, scale, merged);
    if (binned < bits) bits = binned, model->log_bins = most_log_bins;
  }
  if (!model->log_bins) {
    *counts = *plain;
    memcpy(merged, merged_plain, sizeof merged);
  }
  uint8_t number[EC_CLASSES] = {0};
  model->groups = 0;
  for (size_t class_ = 1; class_ < EC_CLASSES; class_++) {
    if (!counts->blocks[class_]) continue;
    number[class_] = (uint8_t)++model->groups;
    model->shift[model->groups] = (uint8_t)ec_shift((uint32_t)class_);
  }
  for (size_t class_ = 0; class_ < EC_CLASSES; class_++) model->group[class_] = number[merged[class_]];
  double raw = 0; /* bits below the symbols; escapes are too few to count */
  for (size_t class_ = 1; class_ < EC_CLASSES; class_++)
    raw += (double)counts->blocks[class_] * EC_BLOCK * ec_shift((uint32_t)class_) * scale;
  bits += raw + 8.0 * (model->kind == EC_DITHER ? 7 : 19);
  double chunks = (double)((n + EC_CHUNK - 1) / EC_CHUNK), lanes = bits / chunks / (24.0 * 160.0);
  return bits + chunks * (8.0 * 6 + 24.0 * (lanes < 1 ? 1 : lanes > 32 ? 32 : lanes / 1.4)); /* lanes are rounded down to a power of two */
}

void fg_ec_normalise(const EcCounts *counts, EcModel *model) {
  uint32_t numbers[RANS_SYMBOLS] = {0};
  numbers[0] = counts->blocks[0];
  size_t group = 0;
  for (size_t class_ = 1; class_ < EC_CLASSES; class_++) {
    if (!counts->blocks[class_]) continue;
    numbers[++group] = counts->blocks[class_];
    for (size_t bin = 0; bin < 1u << model->log_bins; bin++) {
      const uint32_t *bin_counts = counts->symbol[class_][bin];
      uint32_t any = 0;
      for (size_t s = 0; s < RANS_SYMBOLS; s++) any |= bin_counts[s];
      if (any) {
        fg_rans_normalise(bin_counts, model->frequencies[group - 1][bin]);
      } else { /* a bin that no coordinate of the group falls into */
        memset(model->frequencies[group - 1][bin], 0, sizeof model->frequencies[0][0]);
        model->frequencies[group - 1][bin][0] = RANS_TOTAL;
      }
    }
  }
  fg_rans_normalise(numbers, model->numbers);
}

size_t fg_ec_write(const EcModel *model, uint8_t *out) {
  size_t n = 0;
  out[n++] = (uint8_t)model->kind;
  out[n++] = (uint8_t)model->log_bins;
  out[n++] = (uint8_t)model->groups;
  memcpy(out + n, &model->step, 4);
  n += 4;
  if (model->step == 0.0f) return n;
  if (model->kind == EC_DEADZONE) {
    memcpy(out + n, model->points, 12);
    n += 12;
  }
  n += fg_rans_write(model->numbers, out + n);
  for (size_t group = 1; group <= model->groups; group++) {
    out[n++] = model->shift[group];
    for (size_t bin = 0; bin < 1u << model->log_bins; bin++) n += fg_rans_write(model->frequencies[group - 1][bin], out + n);
  }
  return n;
}

int fg_ec_read(const uint8_t **in, const uint8_t *end, int kind, EcModel *model) {
  const uint8_t *at = *in;
  if (end - at < 7) return FG_TRUNCATED;
  model->kind = at[0];
  model->log_bins = at[1];
  model->groups = at[2];
  memcpy(&model->step, at + 3, 4);
  at += 7;
  *in = at;
  if (model->kind != kind || model->log_bins > (kind == EC_DITHER ? EC_LOG_BINS : 0) || model->groups >= EC_CLASSES) return FG_FIELD;
  uint32_t raw;
  memcpy(&raw, &model->step, 4);
  if (raw == 0) return model->groups == 0 && model->log_bins == 0 ? FG_OK : FG_FIELD;
  if (!(raw < 0x7f800000u && model->step >= 0x1p-90f && model->step <= 0x1p90f)) return FG_SCALE;
  if (kind == EC_DEADZONE) {
    if (end - at < 12) return FG_TRUNCATED;
    memcpy(model->points, at, 12);
    at += 12;
    for (size_t i = 0; i < 2; i++) /* false for NaN too */
      if (!(model->points[i] >= 0.0f && model->points[i] <= 4.0f * model->step)) return FG_SCALE;
    if (!(model->points[2] >= -model->step && model->points[2] <= model->step)) return FG_SCALE;
  }
  int error = fg_rans_read(&at, end, model->numbers);
  for (size_t s = model->groups + 1; !error && s < RANS_SYMBOLS; s++)
    if (model->numbers[s]) error = FG_TABLE;
  for (size_t group = 1; !error && group <= model->groups; group++) {
    if (at == end) return FG_TRUNCATED;
    model->shift[group] = *at++;
    if (model->shift[group] > EC_CLASSES - 14) return FG_FIELD;
    for (size_t bin = 0; !error && bin < 1u << model->log_bins; bin++)
      error = fg_rans_read(&at, end, model->frequencies[group - 1][bin]);
  }
  *in = at;
  return error;
}
