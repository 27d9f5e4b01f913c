/* Gradient of an embedding: rows of dY added up by index, in the order of their positions.
 *
 * A call makes a range of the table's rows and passes over the others, so threads that share a table never meet, and each row is the
 * same sum whoever makes it.
 */
void FG_ISA(fg_embedding_sum)(const uint32_t *slots, size_t count, const float *dy, size_t width, size_t first, size_t last, float *out) {
  memset(out, 0, (last - first) * width * sizeof *out);
  for (size_t i = 0; i < count; i++) {
    if (slots[i] < first || slots[i] >= last) continue;
    float *restrict to = out + (slots[i] - first) * width;
    const float *restrict from = dy + i * width;
    for (size_t j = 0; j < width; j++) to[j] += from[j];
  }
}
