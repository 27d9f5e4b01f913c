"""How a plan lays the travelling vector out, as codecs need it: which tensor an index lies in, which tensors are matrices.

Padding between tensors (wire/plan.py) is coded like anything else and decodes to zero whatever the bytes say.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import entropy
from fleetgrad.wire.plan import Manifest, padded

SMALL = 1024  # values: a tensor below this is worth its fp16 bits in `auto`

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor's values: [start, end) of the vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def small(self) -> bool:
        """Whether `auto` sends it in fp16: few values, or a vector such as a bias or a norm's scale."""
        return self.size < SMALL or len(self.shape) < 2


@dataclass(frozen=True)
class VectorLayout:
    """Tensors in the vector's order, and the number of floats, padding included."""

    parts: tuple[Part, ...]
    count: int
    statistics: tuple[Part, ...] = ()  # the last of the parts
    variances: tuple[Part, ...] = ()  # those of the statistics that can't be negative
    exponent: int = 0  # statistics are summed in a unit of 2^exponent times the others'

    @classmethod
    def of(cls, manifest: Manifest) -> "VectorLayout":
        """The layout of what a plan sends: its trainable and statistic tensors."""
        trained, statistics = (
            tuple(Part(t.name, t.shape, t.offset, t.offset + t.size) for t in manifest.of_role(role))
            for role in ("trainable", "statistic")
        )
        variances = tuple(p for p in statistics if p.name in manifest.statistics.variances)
        return cls((*trained, *statistics), manifest.travels, statistics, variances, manifest.statistics.exponent)

    @classmethod
    def flat(cls, count: int) -> "VectorLayout":
        """A vector of which nothing is known."""
        return cls((Part("vector", (count,), 0, count),), count)

    @classmethod
    def stacked(cls, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> "VectorLayout":
        """Tensors of these names and shapes, each aligned as a plan aligns them."""
        parts, at = [], 0
        for name, shape in shapes:
            size = int(np.prod(shape, dtype=np.int64))
            parts.append(Part(name, shape, at, at + size))
            at += padded(size)
        return cls(tuple(parts), at)

    @cached_property
    def trained(self) -> "VectorLayout":
        """The part that codecs code: without the statistics, which travel as they are."""
        if not self.statistics:
            return self
        return VectorLayout(self.parts[: -len(self.statistics)], self.statistics[0].start)

    def summed(self, values: Floats) -> Floats:
        """The values as the integer sum takes them: statistics in their own unit."""
        if not self.statistics:
            return values
        found = values.copy()
        found[self.trained.count :] *= np.float32(2.0**-self.exponent)
        return found

    def where(self, index: int) -> str:
        """An index in words: its tensor, and the value's place in it."""
        for part in self.parts:
            if part.start <= index < part.end:
                return f"tensor {part.name!r}, value {index - part.start} of {part.size}"
        return f"padding, value {index} of {self.count}"

    def clear_padding(self, values: Floats) -> None:
        """Zeroes what belongs to no tensor."""
        for start, end in self._gaps:
            values[start:end] = 0

    @cached_property
    def _gaps(self) -> tuple[tuple[int, int], ...]:
        ends = [*(p.start for p in self.parts[1:]), self.count]
        return tuple((p.end, end) for p, end in zip(self.parts, ends, strict=True) if p.end < end)

    @cached_property
    def matrices(self) -> entropy.Layout:
        """The whole vector as matrices, with padding as vectors between."""
        shapes: list[tuple[int, ...]] = []
        ends = [*(p.start for p in self.parts[1:]), self.count]
        for part, end in zip(self.parts, ends, strict=True):
            shapes += [part.shape] if part.end == end else [part.shape, (end - part.end,)]
        return entropy.Layout.of(shapes)

    @cached_property
    def small(self) -> tuple[Part, ...]:
        """What `auto` sends in fp16."""
        return tuple(p for p in self.parts if p.small)

    @cached_property
    def large(self) -> tuple[Part, ...]:
        """What `auto` sends at a rate of its own, as one vector."""
        return tuple(p for p in self.parts if not p.small)


def gather(values: Floats, parts: tuple[Part, ...]) -> Floats:
    """The parts' values side by side."""
    return np.concatenate([values[p.start : p.end] for p in parts]) if parts else np.empty(0, np.float32)


def scatter(joined: Floats, parts: tuple[Part, ...], out: Floats) -> None:
    """Puts what `gather` gave back in place."""
    at = 0
    for p in parts:
        out[p.start : p.end] = joined[at : at + p.size]
        at += p.size
