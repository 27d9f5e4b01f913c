"""I13: a device's error feedback loses nothing and sends nothing twice, by the books:

    what its published updates say + what it carries = all the deltas that it has stored updates of

The left side is read from the journal and the device's disk, the right side from what the simulated trainer made. Floats are rounded where
a residual is added and taken out again, so the sums agree to TOLERANCE; a lost or doubled update is off by a thousand times that.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.invariants import Violation

TOLERANCE = 2.0**-16  # values reach a few units: some ten float32 roundings of 2^-23 each


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored update: what training gave, and what its payload decodes to."""

    delta: NDArray[np.float32]
    sent: NDArray[np.float32]


@dataclass(slots=True)
class Book:
    """One device's, since it last carried nothing by rule."""

    name: str
    stored: dict[str, Entry] = field(default_factory=dict)
    dropped: set[str] = field(
        default_factory=set
    )  # updates of which nothing is owed any more, though a record may lie about
    doubtful: bool = (
        False  # a fault has struck what is carried, or a crash the dropping of it by rule: it may be gone, whole
    )

    def close(self) -> None:
        """Another plan or a codec without error feedback: what was carried is dropped by rule."""
        self.dropped.update(self.stored)
        self.stored.clear()

    def store(self, sha256: str, entry: Entry) -> str:
        """Returns the hash, if anything is owed for it."""
        if sha256 in self.dropped:
            return ""
        self.stored[sha256] = entry
        return sha256

    def check(self, carried: NDArray[np.float32] | None, published: Callable[[str], bool]) -> None:
        """Raises Violation unless the books agree."""
        owed = np.zeros(1)
        for sha256, entry in self.stored.items():
            owed = owed + entry.delta - (entry.sent.astype(np.float64) if published(sha256) else 0.0)
        off = float(np.abs(owed - (0.0 if carried is None else carried)).max())
        if off <= TOLERANCE:
            return
        if carried is None and self.doubtful:
            self.stored.clear()
            return
        raise Violation(
            f"I13: {self.name} carries {'nothing' if carried is None else 'another residual'} than its {len(self.stored)} updates left, off by {off:.3g}"
        )
