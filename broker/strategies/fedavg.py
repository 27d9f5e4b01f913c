"""FedAvg: the mean of the members' deltas, each weighted by its number of samples.

McMahan, Moore, Ramage, Hampson and Agueera y Arcas, "Communication-efficient learning of deep networks from decentralized
data" (AISTATS 2017). With integer sums in the ring of 2^64 (wire/SPEC.md section 6):

    S = sum over members of weight * rint(delta * 2^32);   new = old + S / (sum of weights) * 2^-32

Integers commute, so the result doesn't depend on the order of arrival, on duplicates or on restarts.
"""

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import binding, kernels


class FedAvg:
    """One round's sum over `count` floats; memory is O(model), whatever the number of members."""

    def __init__(self, count: int) -> None:
        self._sum = np.zeros(count, np.int64)
        self.total_weight = 0

    def add(self, delta: NDArray[np.float32], weight: int) -> None:
        """Adds one member; raises binding.KernelError and adds nothing if a value is beyond +-64 or the weights' sum 2^24."""
        if self.total_weight + weight > kernels.MAX_WEIGHT:
            raise binding.KernelError(f"weights add up to {self.total_weight + weight}, at most {kernels.MAX_WEIGHT}")
        kernels.ring_add(self._sum, delta, weight)
        self.total_weight += weight

    def apply(self, old: NDArray[np.float32]) -> NDArray[np.float32]:
        """The next model, float32 of `old`'s shape."""
        new = np.empty_like(old)
        kernels.ring_mean(self._sum, self.total_weight, old, new)
        return new
