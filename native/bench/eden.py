"""Peers of the codecs: EDEN in torch, and NumPy forms of the codecs that papers compare with. One thread each.

EDEN (Vargaftik et al., ICML 2022) as its published code is built, in torch operations: pad to a power of two, flip signs at
random, rotate the whole vector (Walsh-Hadamard), normalise to N(0, 1), take the nearest Lloyd-Max level, and send the scale
|x|^2 / <rotated, levels> that makes the mean right. Like that code it packs nothing: an index is an int64.
"""

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native.bench.kernels import best_seconds, row
from fleetgrad.native.bench.results import skipped
from fleetgrad.native.bench.theory import eden_nmse, lloyd_max, nmse

NO_TORCH = "torch is not installed (tests/requirements-oracles.txt)"
COUNT = 1 << 20
REPEATS = 7

Floats = NDArray[np.float32]


class Eden:
    """EDEN with `bits` per coordinate; vectors are torch's float32[d]."""

    def __init__(self, bits: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.torch = torch
        levels, boundaries, _ = lloyd_max(bits)
        self.levels, self.boundaries = torch.tensor(levels), torch.tensor(boundaries)

    def encode(self, x: Any, seed: int) -> tuple[Any, Any, int]:
        """(int64 indices [padded d], scale, d)."""
        size = 1 << max(len(x) - 1, 0).bit_length()
        rotated = self.torch.zeros(size)
        rotated[: len(x)] = x
        rotated *= self._signs(size, seed)
        self._hadamard(rotated)
        norm = self.torch.linalg.vector_norm(x)
        index = self.torch.bucketize(rotated * (math.sqrt(size) / norm), self.boundaries)
        return index, norm**2 / self.torch.dot(self.levels[index], rotated), len(x)

    def decode(self, index: Any, scale: Any, count: int, seed: int) -> Any:
        """float32[count]."""
        rotated = self.levels[index]
        self._hadamard(rotated)
        rotated *= self._signs(len(index), seed)
        return rotated[:count] * scale

    def _signs(self, size: int, seed: int) -> Any:
        generator = self.torch.Generator().manual_seed(seed)
        return 2 * self.torch.bernoulli(self.torch.full((size,), 0.5), generator=generator) - 1

    def _hadamard(self, v: Any) -> None:
        """In place, orthonormal, its own inverse: log2(size) passes of sums and differences."""
        width = 2
        while width <= len(v):
            pairs = v.view(-1, width)
            pairs[:, : width // 2] += pairs[:, width // 2 :]
            pairs[:, width // 2 :] = pairs[:, : width // 2] - 2 * pairs[:, width // 2 :]
            width *= 2
        v /= math.sqrt(len(v))


def stochastic_uniform(x: Floats, levels: int, seed: int) -> Floats:
    """QSGD (Alistarh et al. 2017) with the largest magnitude as its norm and `levels` steps each side; decoded."""
    step = np.abs(x).max() / np.float32(levels)
    noise = np.random.default_rng(seed).random(x.size, np.float32)
    decoded: Floats = np.floor(x / step + noise).astype(np.int8) * step
    return decoded


def block_int8(x: Floats, block: int = 256) -> Floats:
    """Absmax int8, nearest; decoded. Its length must be a multiple of `block`."""
    rows = x.reshape(-1, block)
    scale = np.maximum(np.abs(rows).max(1, keepdims=True) / np.float32(127), np.float32(1e-30))
    decoded: Floats = np.rint(rows / scale).astype(np.int8) * scale
    return decoded.ravel()


def top_k(x: Floats, bits: float) -> tuple[Floats, float]:
    """Keeps the largest values as fp16 within `bits` per coordinate; (decoded, bits spent).

    The places are counted at their entropy d H(k / d), which no coder undercuts by more than rounding: a peer at its best.
    """
    least, most = 1, max(1, math.ceil(bits * x.size / 16))
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if _top_k_bits(x.size, middle) <= bits * x.size else (least, middle - 1)
    kept = np.argpartition(np.abs(x), x.size - least)[x.size - least :]
    decoded = np.zeros_like(x)
    decoded[kept] = x[kept].astype(np.float16)
    return decoded, _top_k_bits(x.size, least) / x.size


def _top_k_bits(count: int, kept: int) -> float:
    p = kept / count
    return 16 * kept + count * -(p * math.log2(p) + (1 - p) * math.log2(1 - p) if p < 1 else 0.0)


def rows() -> list[dict[str, Any]]:
    """Rates and errors of the peers at d = 2^20, in GB/s of float32."""
    x = np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)
    gigabytes = x.nbytes / 1e9
    table: list[dict[str, Any]] = []

    def rate(figure: str, act: Callable[[], object], unit: str = "GB/s of floats") -> None:
        table.append(row(figure, gigabytes / best_seconds(act, REPEATS), unit, ""))

    if importlib.util.find_spec("torch") is None:
        table.append(skipped("EDEN in torch", NO_TORCH))
    else:
        import torch

        vector = torch.from_numpy(x)
        for bits in (1, 2, 4):
            eden = Eden(bits)
            found = eden.encode(vector, 1)
            decoded = eden.decode(*found, 1).numpy()
            table.append(
                row(f"EDEN-{bits} in torch, NMSE / theory", nmse(x, decoded) / eden_nmse(bits), "ratio", "D/(1-D)")
            )
        rate("EDEN-4 in torch, encode", lambda: eden.encode(vector, 1))
        rate("EDEN-4 in torch, decode", lambda: eden.decode(*found, 1))
    rate("QSGD, 7 steps each side, in NumPy", lambda: stochastic_uniform(x, 7, 1))
    rate("int8 in blocks of 256 in NumPy", lambda: block_int8(x))
    rate("top-k at 0.25 bit in NumPy", lambda: top_k(x, 0.25))
    return table
