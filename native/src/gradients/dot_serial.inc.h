/* The int8 panel in plain C. */
/* out[PANEL][columns] = a^T b over `quads` quads of rows; a points at the panel's first column. */
static void dot_panel(const int8_t *a, size_t a_columns, const int8_t *b, size_t columns, size_t quads, int32_t *out) {
  memset(out, 0, PANEL * columns * 4);
  for (size_t q = 0; q < quads; q++, a += a_columns * 4, b += columns * 4)
    for (size_t i = 0; i < PANEL; i++)
      for (size_t j = 0; j < columns; j++) {
        const int8_t *u = a + i * 4, *v = b + j * 4;
        out[i * columns + j] += u[0] * v[0] + u[1] * v[1] + u[2] * v[2] + u[3] * v[3];
      }
}
