"""What theory says about quantising a standard normal number: Lloyd-Max levels, their error, and an entropy.

Lloyd, "Least squares quantization in PCM" (1982); Max, "Quantizing for minimum distortion" (1960). With 2^k levels the mean
squared error D is .3634, .1175, .03455, .00950 at k = 1..4; EDEN's unbiased scale turns it into D / (1 - D).
"""

import math
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

ROUNDS = 100_000  # of Lloyd's iteration, at most
SETTLED = 1e-7  # a level's last move


def _density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi) if math.isfinite(x) else 0.0


def _mass(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


@lru_cache
def lloyd_max(bits: int) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """(2^bits levels, the boundaries between them, mean squared error) for N(0, 1)."""
    half = 1 << (bits - 1)
    # Each level moves to its cell's mean, each boundary between its levels; by symmetry, only the positive half is kept.
    # Many levels lie with the density of N(0, 3) (Panter and Dite 1951): a start that is nearly the end.
    levels = [NormalDist(sigma=math.sqrt(3)).inv_cdf(0.5 + (i + 0.5) / (2 * half)) for i in range(half)]
    for _ in range(ROUNDS):
        cuts = [0.0, *((a + b) / 2 for a, b in pairwise(levels)), math.inf]
        moved = [(_density(a) - _density(b)) / (_mass(-a) - _mass(-b)) for a, b in pairwise(cuts)]
        change = max(abs(a - b) for a, b in zip(levels, moved, strict=True))
        levels = moved
        if change < SETTLED:
            break
    cuts = [(a + b) / 2 for a, b in pairwise(levels)]
    distortion = 1.0  # E (x - level)^2 = 1 - 2 E x level + E level^2, which is flat where the levels are best
    for level, (a, b) in zip(levels, pairwise([0.0, *cuts, math.inf]), strict=True):
        distortion += 2 * level * (level * (_mass(-a) - _mass(-b)) - 2 * (_density(a) - _density(b)))
    both = (*(-v for v in reversed(levels)), *levels)
    return both, (*(-c for c in reversed(cuts)), 0.0, *cuts), distortion


def eden_nmse(bits: int) -> float:
    """|x - x'|^2 / |x|^2 that EDEN's unbiased scale gives after a rotation: D / (1 - D)."""
    distortion = lloyd_max(bits)[2]
    return distortion / (1 - distortion)


def nmse(values: NDArray[np.float32], decoded: NDArray[np.float32]) -> float:
    """|x - x'|^2 / |x|^2 in double precision."""
    x = values.astype(np.float64)
    return float(((x - decoded) ** 2).sum() / (x**2).sum())


def entropy(symbols: NDArray[np.integer]) -> float:
    """Bits that an ideal coder with one table spends on all the symbols, the table not counted."""
    _, counts = np.unique(symbols, return_counts=True)
    return float(-(counts * np.log2(counts / symbols.size)).sum())
