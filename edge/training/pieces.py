"""Micro-batches: a batch that is run as pieces, whose gradients add up to the batch's own.

    L = sum_i c_i L_i / sum_i c_i        L_i a piece's mean loss, c_i what its mean is over; gradients likewise

c_i is the number of samples; where cross-entropy has class weights or an ignored label, it is the sum of the weights of
the labels that count. Batch normalisation with the batch's statistics is the exception: each piece has its own.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fleetgrad.wire.loss import LEAST_COUNT
from fleetgrad.wire.plan import Manifest

LEAST_NORMALISED = 3  # samples of a micro-batch under batch normalisation: pairs would leave one of an odd batch over


def least(manifest: Manifest) -> int:
    """The smallest micro-batch that a plan can train with."""
    return LEAST_NORMALISED if manifest.measured else 1


def cut(count: int, most: int | None) -> list[int]:
    """Where pieces of a batch of `count` samples begin and end: as few as have at most `most` samples, of nearly one size."""
    pieces = 1 if most is None else -(-count // most)
    return [count * i // pieces for i in range(pieces + 1)]


def shares(edges: Sequence[int], y: NDArray[np.generic], manifest: Manifest) -> list[float]:
    """What each piece's mean counts in the batch's; y are the batch's labels."""
    options = manifest.loss_options
    if manifest.loss != "cross-entropy" or not (options.class_weights or options.ignore_index is not None):
        return [(end - start) / edges[-1] for start, end in pairwise(edges)]
    weights = np.array(options.class_weights or [1.0] * manifest.classes)
    counts = y != options.ignore_index
    each = np.where(counts, weights[np.where(counts, y, 0).astype(np.int64)], 0.0).reshape(len(y), -1).sum(1)
    whole = max(float(each.sum()), LEAST_COUNT)
    return [max(float(each[start:end].sum()), LEAST_COUNT) / whole for start, end in pairwise(edges)]
