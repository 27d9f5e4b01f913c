"""Samples in memory as they were stored; a batch is scaled and shaped when it is drawn.

A check against the plan prints both shapes: the data's and the plan's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgrad.wire.plan import Feed, Manifest

SCAN_ROWS = 4096
DISTRIBUTION = 1e-3  # how far from 1 the sum of a distribution may be: float32 and text files round


class DataError(ValueError):
    """Data that can't be used; the message names the file, the array and the values that don't fit."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """x[n, ...] and y[n, ...]; a drawn sample is x * scale in `shape` (without the batch), of type `dtype`.

    `more` are the arrays of a model's other inputs, in the types and shapes that the plan feeds.
    """

    x: NDArray[np.generic]
    y: NDArray[np.generic]
    scale: float
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    name: str
    more: tuple[NDArray[np.generic], ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def batch(
        self, indices: NDArray[np.integer], out: Sequence[NDArray[np.generic]] | None = None
    ) -> tuple[NDArray[np.generic], ...]:
        """(x, y, *more) of the samples at `indices`, C-contiguous, in the types that the plan feeds; `out` are arrays to fill."""
        rest, count = (self.y, *self.more), len(indices)
        if out is None:
            out = (
                np.empty((count, *self.shape), self.dtype),
                *(np.empty((count, *a.shape[1:]), a.dtype) for a in rest),
            )
        x, *others = out
        for source, target in zip(rest, others, strict=True):
            np.take(source, indices, 0, target, "clip")  # "raise" would fill a copy first; all indices are ours
        drawn = x.reshape(count, *self.x.shape[1:])
        if self.x.dtype == self.dtype:
            np.take(self.x, indices, 0, drawn, "clip")
        else:
            np.copyto(drawn, self.x[indices], casting="unsafe")
        if self.scale != 1.0:
            np.multiply(x, self.dtype.type(self.scale), out=x)
        return tuple(out)

    def subset(self, indices: NDArray[np.integer]) -> "Dataset":
        """The data set of the samples at `indices`."""
        more = tuple(a[indices] for a in self.more)
        return Dataset(self.x[indices], self.y[indices], self.scale, self.shape, self.dtype, self.name, more)


def fit(
    name: str,
    x: NDArray[np.generic],
    y: NDArray[np.generic],
    manifest: Manifest,
    *,
    scale: float = 1.0,
    shape: tuple[int, ...] | None = None,
    more: Mapping[str, NDArray[np.generic]] | None = None,
) -> Dataset:
    """Checks arrays against a plan and returns them as a Dataset; raises DataError.

    x is the plan's first input, `more` has the others by their names. `shape` says how one sample is to be seen (28 x 28 as 1,28,28); without it, a sample of the right size is taken.
    """
    feed = manifest.inputs[0]
    if len(x) == 0:
        raise DataError(f"{name}: no samples")
    if len(x) != len(y):
        raise DataError(f"{name}: {len(x)} samples and {len(y)} targets")
    own = shape if shape is not None else x.shape[1:]
    if int(np.prod(own)) != int(np.prod(x.shape[1:])):
        raise DataError(f"{name}: a sample has shape {x.shape[1:]}, which can't be seen as {own}")
    if own != feed.shape:
        raise DataError(
            f"{name}: samples have shape {own}, the plan's input {feed.name!r} has {feed.shape} (see --shape)"
        )
    _check_type(name, x, feed)
    if not 0 < scale < math.inf:
        raise DataError(f"{name}: scale {scale:g}: a finite factor above 0 is needed, as 0.00392 for bytes")
    if scale != 1.0 and not feed.dtype.startswith("float"):
        raise DataError(f"{name}: scale {scale:g}: the plan's input {feed.name!r} is {feed.dtype}, which isn't scaled")
    _check_finite(name, "sample", x, feed.dtype, scale)
    others = tuple(_other(name, (more or {}).get(f.name), len(x), f) for f in manifest.inputs[1:])
    return Dataset(x, _targets(name, y, manifest), scale, feed.shape, np.dtype(feed.dtype), name, others)


def _check_type(name: str, x: NDArray[np.generic], feed: Feed) -> None:
    if x.dtype.kind not in "fiub" or (feed.dtype not in ("float32", "float64") and x.dtype.kind == "f"):
        raise DataError(f"{name}: samples have type {x.dtype}, the plan's input {feed.name!r} has {feed.dtype}")
    if feed.dtype not in ("float32", "float64", "bool") and x.size:
        limits, low, high = np.iinfo(feed.dtype), int(x.min()), int(x.max())
        if low < limits.min or high > limits.max:
            raise DataError(f"{name}: input {feed.name!r} is {feed.dtype}, the data goes from {low} to {high}")


def _other(name: str, x: NDArray[np.generic] | None, count: int, feed: Feed) -> NDArray[np.generic]:
    if x is None:
        raise DataError(f"{name}: no array {feed.name!r}, which is an input of the plan")
    if x.shape != (count, *feed.shape):
        raise DataError(f"{name}: array {feed.name!r} has shape {x.shape}, {(count, *feed.shape)} is needed")
    _check_type(name, x, feed)
    _check_finite(name, "sample", x, feed.dtype)
    return x.astype(feed.dtype)


def _targets(name: str, y: NDArray[np.generic], manifest: Manifest) -> NDArray[np.generic]:
    label, classes, options = manifest.label, manifest.classes, manifest.loss_options
    if manifest.loss == "cross-entropy":
        flat: NDArray[Any] = y.reshape(len(y), *label.shape) if y.size == len(y) * int(np.prod(label.shape)) else y
        if flat.shape[1:] != label.shape:
            raise DataError(f"{name}: a target has shape {y.shape[1:]}, the plan's label has {label.shape}")
        _check_finite(name, "target", flat, "float64")
        if flat.dtype.kind not in "iub" and not (flat.dtype.kind == "f" and bool(np.all(flat == np.trunc(flat)))):
            raise DataError(f"{name}: targets have type {y.dtype}: class numbers 0 to {classes - 1} are needed")
        # Compared as they are: as int64, 2^64 - 100 would be -100, which a plan may ignore.
        wrong = ((flat < 0) | (flat >= classes)) & (flat != options.ignore_index)
        if bad := np.flatnonzero(wrong.reshape(len(flat), -1).any(1))[:1].tolist():
            raise DataError(
                f"{name}: target {flat[bad[0]]} of sample {bad[0]} is no class: the plan has 0 to {classes - 1}"
            )
        whole = flat.astype(np.int64)
        if options.ignore_index is not None and bool((whole == options.ignore_index).all()):
            raise DataError(f"{name}: every target is {options.ignore_index}, which the plan ignores: nothing to learn")
        return whole
    if manifest.loss == "output":
        return np.zeros(len(y), np.float32)
    if y.dtype.kind not in "fiub":
        raise DataError(f"{name}: targets have type {y.dtype}, numbers are needed")
    if y.size != len(y) * int(np.prod(label.shape)):
        raise DataError(f"{name}: a target has shape {y.shape[1:]}, the plan's output has {label.shape}")
    _check_finite(name, "target", y, "float32")
    found = y.astype(np.float32).reshape(len(y), *label.shape)
    if manifest.loss == "bce" and not (found.min() >= 0 and found.max() <= 1):
        raise DataError(f"{name}: targets go from {found.min():g} to {found.max():g}: probabilities are needed, 0 to 1")
    if manifest.loss == "kl":
        sums = found.sum(options.class_axis)
        if found.min() < 0 or np.abs(sums - 1).max() > DISTRIBUTION:
            raise DataError(
                f"{name}: a target holds {found.min():g} at least and sums to {sums.min():g} to {sums.max():g}: "
                f"a distribution over {classes} classes is needed"
            )
    return found


def _check_finite(name: str, what: str, array: NDArray[np.generic], dtype: str, scale: float = 1.0) -> None:
    """Refuses what isn't finite in the type that the plan feeds, scaled: 1e300 is infinity as float32."""
    if array.dtype.kind != "f" and scale == 1.0:
        return
    for start in range(0, len(array), SCAN_ROWS):
        rows = array[start : start + SCAN_ROWS].reshape(min(SCAN_ROWS, len(array) - start), -1)
        with np.errstate(over="ignore", invalid="ignore"):
            fed = rows.astype(dtype)
            finite = np.isfinite(fed if scale == 1.0 else fed * np.dtype(dtype).type(scale)).all(1)
        if not finite.all():
            times = "" if scale == 1.0 else f", times the scale {scale:g}"
            raise DataError(
                f"{name}: {what} {start + int(np.argmin(finite))} holds NaN, infinity or more than {dtype} can{times}"
            )
