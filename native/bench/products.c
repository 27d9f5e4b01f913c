/* What limits the int8 weight gradients, for gradients.py, which builds this for one instruction set: the family's multiply-add in a loop
 * that touches no memory, and the product alone, between packings that aren't timed.
 *
 *   cc -shared -DFG_BENCH_<ISA> ...
 */
#define FG_GRADIENTS_ONLY
#if defined(FG_BENCH_AVX512VNNI)
#include "../src/isa/avx512vnni.c"
#elif defined(FG_BENCH_AVX2)
#include "../src/isa/avx2.c"
#elif defined(FG_BENCH_NEONDOTPROD)
#include "../src/isa/neondotprod.c"
#endif

#include <time.h>

#define EXPORT __attribute__((visibility("default")))
#define FOUR(step, a, b, c, d) step(a) step(b) step(c) step(d)
#define SIXTEEN(step) FOUR(step, 0, 1, 2, 3) FOUR(step, 4, 5, 6, 7) FOUR(step, 8, 9, 10, 11) FOUR(step, 12, 13, 14, 15)
#define TWELVE(step) FOUR(step, 4, 5, 6, 7) FOUR(step, 8, 9, 10, 11) FOUR(step, 12, 13, 14, 15)

/* Each does `turns` of a loop and returns the multiply-adds of one turn; registers hold whatever they hold. */
#if defined(FG_BENCH_AVX512VNNI)
#define DOT(i) "vpdpbusd %%zmm16, %%zmm17, %%zmm" #i "\n"
EXPORT size_t fg_bench_peak(size_t turns) {
  for (size_t i = 0; i < turns; i++)
    __asm__ volatile(SIXTEEN(DOT)::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                     "xmm12", "xmm13", "xmm14", "xmm15");
  return 16 * 64;
}
#elif defined(FG_BENCH_AVX2)
#define USED_SIXTEEN                                                                                                                       \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
/* The tile's four instructions, two positions' sums of 8 columns and 4 positions each: 32 multiply-adds for one vpmaddwd. */
#define FOUR_POSITIONS(i)                                                                       \
  "vpaddw %%ymm0, %%ymm1, %%ymm2\n vpaddw %%ymm0, %%ymm1, %%ymm3\n vpmaddwd %%ymm2, %%ymm3, %%ymm2\n" \
  "vpaddd %%ymm2, %%ymm" #i ", %%ymm" #i "\n"
EXPORT size_t fg_bench_peak(size_t turns) {
  for (size_t i = 0; i < turns; i++) __asm__ volatile(TWELVE(FOUR_POSITIONS)::: USED_SIXTEEN);
  return 12 * 32;
}
#define TWO_POSITIONS(i) "vpmaddwd %%ymm0, %%ymm1, %%ymm2\n vpaddd %%ymm2, %%ymm" #i ", %%ymm" #i "\n"
EXPORT size_t fg_bench_plain_peak(size_t turns) {
  for (size_t i = 0; i < turns; i++) __asm__ volatile(TWELVE(TWO_POSITIONS)::: USED_SIXTEEN);
  return 12 * 16;
}
#elif defined(FG_BENCH_NEONDOTPROD)
#define DOT(i) "sdot v" #i ".4s, v16.16b, v17.16b\n"
#if defined(__clang__)
FG_TARGET_BEGIN("v8.2a,dotprod")
#else
FG_TARGET_BEGIN("arch=armv8.2-a+dotprod")
#endif
EXPORT size_t fg_bench_peak(size_t turns) {
  for (size_t i = 0; i < turns; i++)
    __asm__ volatile(SIXTEEN(DOT)::: "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15");
  return 16 * 16;
}
FG_TARGET_END
#endif

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

EXPORT size_t fg_bench_scratch(const fg_matmul_grad *job) { return matmul_layout(job).bytes; }

/* The job as fg_matmul_grad_run does it; returns the seconds that its products took, their stores included, packing not. */
EXPORT double fg_bench_product(const fg_matmul_grad *job) {
  fg_grad_parts parts;
  FG_ISA(fg_matmul_grad_plan)(job, &parts);
  for (size_t i = 0; i < parts.scales; i++) FG_ISA(fg_matmul_grad_scales)(job, i);
  for (size_t i = 0; i < parts.packs; i++) FG_ISA(fg_matmul_grad_pack)(job, i);
  MatmulLayout l = matmul_layout(job);
  Code a[(GRAD_DEPTH + GRAD_GAP) * GRAD_ROWS];
  int32_t row_off[GRAD_ROWS];
  double total = 0;
  for (size_t row = 0; row < job->m; row += GRAD_ROWS)
    for (size_t block = 0; block < l.blocks; block++) {
      size_t rows = job->m - row < GRAD_ROWS ? job->m - row : GRAD_ROWS;
      pack_chunk(job, &l, block, row, rows, a, row_off);
      double start = seconds();
      multiply_chunk(job, &l, block, row, rows, a, row_off);
      total += seconds() - start;
    }
  return total;
}
