"""blk8 and what codecs share, against memcpy, one thread each."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fleetgrad.native import binding, codecs, kernels

COUNT = 1_663_376  # floats of the FedAvg CNN, padding included
REPEATS = 15
LEAST_RATIO = {"blk8 encode, nearest": 1.0, "blk8 encode, stochastic": 1.0}  # to memcpy


def best_seconds(act: Callable[[], object], repeats: int = REPEATS) -> float:
    """The fastest of several calls, after one to warm up."""
    act()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        act()
        times.append(time.perf_counter() - start)
    return min(times)


def in_turns(acts: Mapping[str, Callable[[], object]], turns: int = 12, repeats: int = 5) -> dict[str, float]:
    """The fastest call of each, a few calls of each in turn, so that all meet the machine in the same moods."""
    best = dict.fromkeys(acts, float("inf"))
    for _ in range(turns):
        for name, act in acts.items():
            best[name] = min(best[name], best_seconds(act, repeats))
    return best


def row(figure: str, value: float, unit: str, peer: str, bound: float | None = None) -> dict[str, Any]:
    """One row of a bench's table; a bound is the least value that keeps the promise."""
    return {
        "figure": figure, "value": value, "unit": unit, "bound": bound,
        "holds": None if bound is None else value >= bound, "peer": peer,
    }  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """Rates of the codec kernels as ratios to memcpy of the same floats.

    A copy reads what an encoder reads; both find their source and their output in the caches as the call before left them.
    """
    values = np.random.default_rng(0).standard_normal(COUNT).astype(np.float32) * np.float32(0.01)
    coded, copy = np.empty(codecs.blk8_size(COUNT), np.uint8), np.empty_like(values)
    ring = np.zeros(COUNT, np.int64)
    gigabytes = values.nbytes / 1e9
    acts: dict[str, Callable[[], object]] = {
        "blk8 encode, nearest": lambda: codecs.blk8_encode(values, coded, None),
        "blk8 encode, stochastic": lambda: codecs.blk8_encode(values, coded, 1),
        "blk8 decode": lambda: codecs.blk8_decode(coded, copy),
        "ring add": lambda: kernels.ring_add(ring, values, 3),
        "crc32c": lambda: kernels.crc32c(values.view(np.uint8)),
        "finite scan": lambda: kernels.find_nonfinite(values),
    }
    table = []
    for figure, act in acts.items():
        best = in_turns({"memcpy": lambda: np.copyto(copy, values), figure: act})
        copied, seconds = best["memcpy"], best[figure]
        name = f"memcpy {gigabytes / copied:.1f} GB/s"
        table.append(row(f"{figure} ({binding.capability()})", gigabytes / seconds, "GB/s of floats", name))
        table.append(row(f"{figure} / memcpy", copied / seconds, "ratio", name, LEAST_RATIO.get(figure)))
    return table
