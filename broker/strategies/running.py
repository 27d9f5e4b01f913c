"""Running statistics of batch normalisation, whose mean over the members is exact where the codec isn't.

They are no parameters: rules that clip, weigh or step (the other files here) never see them. With integer sums as for the rest,
in a unit of their own, 2^(exponent - 32) (wire/SPEC.md section 6):

    S = sum over members of weight * rint(delta * 2^(32 - exponent));   new = old + S / (sum of weights) * 2^(exponent - 32)

and a variance is no less than 0. As in FedAvg; devices whose data differ have means that differ, which the mean of variances
leaves out (Hsieh et al., "The non-IID data quagmire of decentralized machine learning", ICML 2020).
"""

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import kernels
from fleetgrad.wire.coding.layout import VectorLayout

UNIT = 2.0**-32  # of the ring's integers


class RunningStatistics:
    """One round's sum over the statistics of a layout, float32[layout.count - layout.trained.count]."""

    def __init__(self, layout: VectorLayout) -> None:
        self._layout = layout
        self._sum = np.zeros(layout.count - layout.trained.count, np.int64)
        self._weight = 0

    def check(self, delta: NDArray[np.float32]) -> None:
        """Raises binding.KernelError if a statistic of a whole delta is out of range."""
        units = self._layout.summed(delta)[self._layout.trained.count :]
        if units.size:
            kernels.ring_add(np.zeros(units.size, np.int64), units, 1)

    def add(self, delta: NDArray[np.float32], weight: int) -> None:
        """Adds one member's whole delta; raises binding.KernelError and adds nothing if a statistic is out of range."""
        kernels.ring_add(self._sum, self._layout.summed(delta)[self._layout.trained.count :], weight)
        self._weight += weight

    def apply(self, old: NDArray[np.float32]) -> NDArray[np.float32]:
        """The next statistics from the old ones."""
        mean = self._sum.astype(np.float64) / self._weight * (UNIT * 2.0**self._layout.exponent)
        new: NDArray[np.float32] = (old.astype(np.float64) + mean).astype(np.float32)
        start = self._layout.trained.count
        for part in self._layout.variances:
            np.maximum(new[part.start - start : part.end - start], 0, out=new[part.start - start : part.end - start])
        return new
