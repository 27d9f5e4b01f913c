"""The known batch that a plan was tried with, and whether this machine's step gives the same.

Numbers come from Philox-4x64 (Salmon et al., SC 2011), whose stream NumPy fixes for good: the key is the seed and the feed's
number, the counter goes with the sample and the element, so that a batch of two begins a batch of four.

    float 24 bits of each word, in [0, 1)       class number or token: the part of it that the limit takes
    the gradient's projection: sum of +-g, the signs being the bits of another stream
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import optimizers
from fleetgrad.wire.plan import Feed, Manifest
from fleetgrad.wire.trial import Trial

SIGNS = 1 << 32  # number of the stream beside those of the feeds
BLOCK = 1 << 16  # floats whose signs are drawn at once
DEFAULT_LIMIT = 2  # integers whose range isn't known are 0 and 1
LOSS, NORM, PROJECTION = (
    1e-3,
    2e-2,
    5e-2,
)  # relative (the projection to the norm): other kernels round otherwise, int8 most
LEAST = 1e-6  # of what is compared: a gradient of zero has no relative error

Array = NDArray[np.generic]


def draw(manifest: Manifest, limits: Mapping[str, int], seed: int, samples: int) -> dict[str, Array]:
    """Inputs, labels and noise by the feeds' names, in their types and shapes."""
    feeds = (*manifest.inputs, manifest.label, *manifest.noise)
    return {feed.name: _values(feed, manifest, limits, _words(seed, i, samples, feed)) for i, feed in enumerate(feeds)}


def _words(seed: int, stream: int, samples: int, feed: Feed) -> NDArray[np.float32]:
    size = int(np.prod(feed.shape, dtype=np.int64))
    words = np.random.Philox(key=(seed << 64) | stream).random_raw(samples * size)
    return ((words >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)).reshape(samples, *feed.shape)


def _values(feed: Feed, manifest: Manifest, limits: Mapping[str, int], uniform: NDArray[np.float32]) -> Array:
    if feed is manifest.label:
        if manifest.loss == "output":
            return np.zeros_like(uniform)
        if manifest.loss == "cross-entropy":
            return (uniform * manifest.classes).astype(np.int64)
        if manifest.loss == "kl":
            positive: NDArray[np.float32] = uniform + np.float32(1e-3)
            shares: Array = positive / positive.sum(manifest.loss_options.class_axis, keepdims=True)
            return shares
        return uniform
    if feed.dtype.startswith("float"):
        return uniform.astype(feed.dtype)
    return (uniform * min(limits.get(feed.name, DEFAULT_LIMIT), np.iinfo(np.int32).max)).astype(feed.dtype)


def told(gradient: NDArray[np.float32], seed: int) -> tuple[float, float]:
    """Norm and projection of a gradient, float32[n]."""
    signs, total = np.random.Philox(key=(seed << 64) | SIGNS), 0.0
    for start in range(0, len(gradient), BLOCK):
        part = gradient[start : start + BLOCK]
        bits = np.unpackbits(signs.random_raw(BLOCK // 64).astype("<u8").view(np.uint8))[: len(part)]
        total += float(np.where(bits, -part, part).sum(dtype=np.float64))
    return optimizers.norm(gradient), total


def difference(expected: Trial, loss: float, norm: float, projection: float) -> str:
    """What differs by more than roundings, in words; '' where nothing does."""
    found = [
        f"{name} {value:.6g} where {wanted:.6g} is expected"
        for name, value, wanted, most in (
            ("loss", loss, expected.loss, LOSS * abs(expected.loss)),
            ("norm of the gradient", norm, expected.norm, NORM * expected.norm),
            ("projection of the gradient", projection, expected.projection, PROJECTION * expected.norm),
        )
        if not abs(value - wanted) <= most + LEAST  # NaN differs
    ]
    return ", ".join(found)
