"""Splits one data set over devices, to emulate a fleet: held-out part, and Dirichlet label skew.

Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution for federated visual classification" (2019): each
device draws its class proportions from Dirichlet(alpha); alpha = infinity is IID, 0.5 is strongly skewed.
"""

import math

import numpy as np
from numpy.typing import NDArray

from fleetgrad.edge.data.dataset import DataError

LEAST_SAMPLES = 10  # a device with fewer is refused
TRIES = 1000

Indices = NDArray[np.int64]


def held_out(labels: NDArray[np.generic], fraction: float, seed: int) -> tuple[Indices, Indices]:
    """(training, held-out) indices; of each class, `fraction` is held out."""
    rng = np.random.Generator(np.random.PCG64(seed))
    test = [
        rng.permutation(np.flatnonzero(labels == value))[: round(fraction * int((labels == value).sum()))]
        for value in np.unique(labels)
    ]
    out = np.sort(np.concatenate(test)).astype(np.int64)
    return np.setdiff1d(np.arange(len(labels)), out), out


def dirichlet(labels: NDArray[np.generic], devices: int, alpha: float, seed: int) -> list[Indices]:
    """Indices of each device, all samples given away, at least LEAST_SAMPLES to each; raises DataError."""
    if devices < 1 or not alpha > 0:
        raise DataError(f"can't split over {devices} devices with alpha {alpha}: at least 1, and above 0")
    if len(labels) < devices * LEAST_SAMPLES:
        raise DataError(f"{len(labels)} samples over {devices} devices: each needs at least {LEAST_SAMPLES}")
    rng = np.random.Generator(np.random.PCG64(seed))
    classes = [rng.permutation(np.flatnonzero(labels == value)) for value in np.unique(labels)]
    for _ in range(TRIES):
        parts: list[list[Indices]] = [[] for _ in range(devices)]
        for members in classes:
            share = np.full(devices, 1 / devices) if math.isinf(alpha) else rng.dirichlet(np.full(devices, alpha))
            cuts = (np.cumsum(share)[:-1] * len(members)).round().astype(int)
            for device, part in enumerate(np.split(members, cuts)):
                parts[device].append(part)
        split = [np.sort(np.concatenate(p)).astype(np.int64) for p in parts]
        if min(map(len, split)) >= LEAST_SAMPLES:
            return split
    return _top_up(split)


def _top_up(split: list[Indices]) -> list[Indices]:
    """Very skewed splits starve someone: the largest parts give until each has enough."""
    pools = [list(p) for p in split]
    for pool in pools:
        while len(pool) < LEAST_SAMPLES:
            pool.append(max(pools, key=len).pop())
    return [np.sort(np.array(p, np.int64)) for p in pools]
