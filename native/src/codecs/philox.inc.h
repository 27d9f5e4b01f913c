/* Philox4x32-10 (J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random bits by position.
 *
 * Sixteen counters are run side by side, word w of counter c in lane c, so that vectors of any width give the same bits without a shuffle:
 *
 *   dither    128 coordinates a group, 16 bits each: coordinate 32 w + 16 h + c has half h (0 = low) of word w of counter c
 *   signs    2048 coordinates a group, one bit each: coordinate 16 b + c has bit b % 32 of word b / 32 of counter c
 *
 * Counter c of group g is (16 g + c as 64 bits, stream, purpose); the key is the seed's 64 bits.
 */
#define PHILOX_LANES 16
#define PHILOX_DITHER 128 /* coordinates that one group of counters serves */
#define PHILOX_SIGNS 2048

enum { PURPOSE_DITHER = 1, PURPOSE_SIGNS = 2, PURPOSE_ROUNDING = 3 };

typedef struct {
  uint32_t word[4][PHILOX_LANES];
} Random;

static inline void philox_group(uint64_t key, uint64_t group, uint32_t stream, uint32_t purpose, Random *out) {
  uint32_t a[PHILOX_LANES], b[PHILOX_LANES], c[PHILOX_LANES], d[PHILOX_LANES];
  for (uint32_t i = 0; i < PHILOX_LANES; i++) {
    a[i] = (uint32_t)(group << 4) + i;
    b[i] = (uint32_t)(group >> 28);
    c[i] = stream;
    d[i] = purpose;
  }
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; round++) {
    for (int i = 0; i < PHILOX_LANES; i++) {
      uint64_t p = (uint64_t)a[i] * 0xd2511f53u, q = (uint64_t)c[i] * 0xcd9e8d57u;
      a[i] = (uint32_t)(q >> 32) ^ b[i] ^ k0;
      b[i] = (uint32_t)q;
      c[i] = (uint32_t)(p >> 32) ^ d[i] ^ k1;
      d[i] = (uint32_t)p;
    }
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  memcpy(out->word[0], a, sizeof a);
  memcpy(out->word[1], b, sizeof b);
  memcpy(out->word[2], c, sizeof c);
  memcpy(out->word[3], d, sizeof d);
}

void FG_ISA(fg_philox)(uint64_t key, uint64_t group, uint32_t stream, uint32_t purpose, uint32_t *out) {
  Random random;
  philox_group(key, group, stream, purpose, &random);
  memcpy(out, &random, sizeof random);
}
