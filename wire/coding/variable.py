"""Codecs whose size depends on the values: ec-dither, ec-dz, topk, lossless. What a reader accepts is bounded all the same."""

from dataclasses import dataclass
from typing import ClassVar

from fleetgrad.native import entropy, lossless, topk
from fleetgrad.native.binding import Bytes, Floats, KernelError
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.seeds import Keys

SLACK, SLACK_BYTES = 1.25, 8192  # over the requested rate: tables, and vectors that have few rates
LEAST_DEAD_ZONE = 1.6  # bits: what a vector of equal magnitudes takes, of which ec-dz can send all or nothing
NEAR, FAR = 0.004, 0.1  # relative misses of the rate: good enough, and hopeless
TOPK_SLACK_BYTES, TOPK_VALUE_BYTES = 2000, 9  # what the encoder's own buffer has room for


class Variable:
    """A codec for which `most` is a bound."""

    exact: ClassVar[bool] = False


def entropy_most(kind: entropy.Kind, bits: float, count: int) -> int:
    """Most bytes of `count` values at a requested rate."""
    rate = max(bits, LEAST_DEAD_ZONE) if kind == "dead-zone" else bits
    return int(SLACK * rate * count / 8) + SLACK_BYTES


def entropy_encode(
    values: Floats, kind: entropy.Kind, bits: float, key: int, layout: entropy.Layout, most: int
) -> Bytes:
    """A stream of at most `most` bytes, at the requested rate unless these values have none near it."""
    target = bits * values.size / 8
    while True:
        coded = entropy.encode(values, kind=kind, key=key, bits=bits, layout=layout)
        if coded.size <= most:
            # The search for a step ends on an estimate, and the choice of tables can make the rate jump: look about a little.
            for part in (0.5, 1.0) if NEAR < abs(coded.size / target - 1) < FAR else ():
                again = min(bits * (1 - part * (coded.size / target - 1)), entropy.MOST_BITS)
                other = entropy.encode(values, kind=kind, key=key, bits=again, layout=layout)
                coded = min(coded, other, key=lambda c: abs(c.size - target))
            return coded
        bits /= 2
        if bits < entropy.LEAST_BITS:
            raise KernelError(f"entropy encode: {values.size} values take {coded.size} bytes, at most {most}")


@dataclass(frozen=True, slots=True)
class EntropyCoded(Variable):
    """ec-dither (5) and ec-dz (6): one step for the whole vector, its integers entropy-coded."""

    parameter: ClassVar[int] = 0
    kind: entropy.Kind
    bits: float

    @property
    def id(self) -> int:
        return 5 if self.kind == "dither" else 6

    def most(self, layout: VectorLayout) -> int:
        return entropy_most(self.kind, self.bits, layout.count)

    def encode(self, values: Floats, layout: VectorLayout, keys: Keys) -> Bytes:
        return entropy_encode(values, self.kind, self.bits, keys.own, layout.matrices, self.most(layout))

    def decode(self, coded: memoryview, layout: VectorLayout, keys: Keys, out: Floats) -> None:
        entropy.decode(coded, out, kind=self.kind, key=keys.own, layout=layout.matrices)


@dataclass(frozen=True, slots=True)
class TopK(Variable):
    """The largest magnitudes of the whole vector, with their places; everything else is zero."""

    id: ClassVar[int] = 7
    parameter: ClassVar[int] = 0
    fraction: float

    def kept(self, count: int) -> int:
        """How many of `count` values are sent: the fraction, rounded to even halves, and at least one."""
        return min(count, max(1, round(self.fraction * count)))

    def most(self, layout: VectorLayout) -> int:
        return TOPK_SLACK_BYTES + TOPK_VALUE_BYTES * self.kept(layout.count)

    def encode(self, values: Floats, layout: VectorLayout, keys: Keys) -> Bytes:
        return topk.encode(values, self.kept(values.size))

    def decode(self, coded: memoryview, layout: VectorLayout, keys: Keys, out: Floats) -> None:
        kept = int.from_bytes(coded[:4], "little")
        if kept > self.kept(out.size):
            raise KernelError(f"topk decode: {kept} values, this round sends {self.kept(out.size)} of {out.size}")
        topk.decode(coded, out)


@dataclass(frozen=True, slots=True)
class Lossless(Variable):
    """Every bit of every value, in planes that are entropy-coded where that helps."""

    id: ClassVar[int] = 8
    parameter: ClassVar[int] = 0

    def most(self, layout: VectorLayout) -> int:
        return 8 + 4 * layout.count + layout.count // 4096

    def encode(self, values: Floats, layout: VectorLayout, keys: Keys) -> Bytes:
        return lossless.encode(values)

    def decode(self, coded: memoryview, layout: VectorLayout, keys: Keys, out: Floats) -> None:
        lossless.decode(coded, out)
