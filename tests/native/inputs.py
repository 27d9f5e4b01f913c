"""Vectors that every codec is tried on: kinds of values by number of values."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Vector = Callable[[int], NDArray[np.float32]]
SIZES = [0, 1, 63, 64, 65, 4095, 4096, 4097, 65537, 2**20 + 1]


def vectors(seed: int) -> list[Vector]:
    """Zeros, a constant, subnormals, one outlier, noise, and what an update by SGD looks like."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)

    def outlier(size: int) -> NDArray[np.float32]:
        values = normal(size) * np.float32(1e-6)
        values[size // 2 : size // 2 + 1] = -1e6
        return values

    def normal(size: int) -> NDArray[np.float32]:
        return rng.standard_normal(size).astype(np.float32)

    return [
        lambda size: np.zeros(size, np.float32),
        lambda size: np.full(size, -0.37, np.float32),
        lambda size: (rng.integers(0, 2**23, size, np.uint32)).view(np.float32),
        outlier,
        normal,
        lambda size: sgd(rng, size),
    ]


def sgd(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Rows and columns of very different size, some exactly zero, as ReLU nets' updates are."""
    columns = 1 + size // 64 % 400
    row = np.exp(1.3 * rng.standard_normal(-(-size // columns)))[:, None]
    column = np.exp(0.8 * rng.standard_normal(columns)) * (rng.random(columns) > 0.15)
    values: NDArray[np.float64] = row * column * rng.standard_normal((row.size, columns)) * 1e-3
    return np.ravel(values)[:size].astype(np.float32)
