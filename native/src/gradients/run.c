/* The stages of a weight gradient one after the other, for callers without threads. */
#include "fleetgrad.h"

size_t fg_grad_refused(const void *scratch, size_t columns) {
  const float *scale = scratch;
  for (size_t j = 0; j < columns; j++)
    if (!(scale[j] >= 0.0f)) return j;
  return columns;
}

int fg_matmul_grad_run(const fg_matmul_grad *job, size_t *where) {
  fg_grad_parts parts;
  fg_matmul_grad_plan(job, &parts);
  for (size_t i = 0; i < parts.scales; i++) fg_matmul_grad_scales(job, i);
  if ((*where = fg_grad_refused(job->scratch, job->m + job->n)) < job->m + job->n) return FG_NONFINITE;
  for (size_t i = 0; i < parts.packs; i++) fg_matmul_grad_pack(job, i);
  for (size_t i = 0; i < parts.rows; i++) fg_matmul_grad_rows(job, i);
  return FG_OK;
}

int fg_conv_grad_run(const fg_conv_grad *job, size_t *where) {
  fg_grad_parts parts;
  fg_conv_grad_plan(job, &parts);
  for (size_t i = 0; i < parts.scales; i++) fg_conv_grad_scales(job, i);
  size_t columns = job->channels + job->outputs;
  if ((*where = fg_grad_refused(job->scratch, columns)) < columns) return FG_NONFINITE;
  for (size_t i = 0; i < parts.packs; i++) fg_conv_grad_pack(job, i);
  for (size_t i = 0; i < parts.rows; i++) fg_conv_grad_rows(job, i);
  return FG_OK;
}
