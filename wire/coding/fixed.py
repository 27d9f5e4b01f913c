"""Codecs whose size follows from the number of values alone: raw32, fp16, blk8 and blk4, rot-k, ring."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import codecs, rotation
from fleetgrad.native.binding import Bytes, Floats
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.seeds import Keys

_MOST_RING = 2**23  # steps that one update's rotated coordinate may have, whatever r says


class Fixed:
    """A codec for which `most` is also the one right size."""

    exact: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Raw32(Fixed):
    """The values themselves, little-endian float32."""

    id: ClassVar[int] = 0
    parameter: ClassVar[int] = 32

    def most(self, layout: VectorLayout) -> int:
        return 4 * layout.count

    def encode(self, values: Floats, layout: VectorLayout, keys: Keys) -> Bytes:
        return values.astype("<f4", copy=False).view(np.uint8)

    def decode(self, coded: memoryview, layout: VectorLayout, keys: Keys, out: Floats) -> None:
        out[:] = np.frombuffer(coded, "<f4")


@dataclass(frozen=True, slots=True)
class Fp16(Fixed):
    """Each value as IEEE binary16, rounded to nearest even."""

    id: ClassVar[int] = 1
    parameter: ClassVar[int] = 16

    def most(self, layout: VectorLayout) -> int:
        return codecs.fp16_size(layout.count)

    def encode(self, values: Floats, layout: VectorLayout, keys: Keys) -> Bytes:
        out = np.empty(codecs.fp16_size(values.size), np.uint8)
        codecs.fp16_encode(values, out)
        return out

    def decode(self, coded: memoryview, layout: VectorLayout, keys: Keys, out: Floats) -> None:
        codecs.fp16_decode(coded, out)


@dataclass(frozen=True, slots=True)
class Blocks(Fixed):
    """Blocks of 64 values under one scale, in 8 or 4 bits; the device's own key draws the rounding, unless it is to nearest."""

    id: ClassVar[int] = 3
    parameter: int
    stochastic: bool = True

    def most(self, layout: VectorLayout) -> int:
        return (codecs.blk8_size if self.parameter == 8 else codecs.blk4_size)(layout.count)

    def encode(self, values: Floats, layout: VectorLayout, keys: Keys) -> Bytes:
        out = np.empty(self.most(layout), np.uint8)
        (codecs.blk8_encode if self.parameter == 8 else codecs.blk4_encode)(
            values, out, keys.own if self.stochastic else None
        )
        return out

    def decode(self, coded: memoryview, layout: VectorLayout, keys: Keys, out: Floats) -> None:
        (codecs.blk8_decode if self.parameter == 8 else codecs.blk4_decode)(coded, out)


@dataclass(frozen=True, slots=True)
class Rotated(Fixed):
    """rot-k: k bits a value behind a rotation of the device's own."""

    id: ClassVar[int] = 4
    parameter: int

    def most(self, layout: VectorLayout) -> int:
        return rotation.rot_size(layout.count, self.parameter)

    def encode(self, values: Floats, layout: VectorLayout, keys: Keys) -> Bytes:
        out = np.empty(rotation.rot_size(values.size, self.parameter), np.uint8)
        rotation.rot_encode(values, out, k=self.parameter, key=keys.own)
        return out

    def decode(self, coded: memoryview, layout: VectorLayout, keys: Keys, out: Floats) -> None:
        rotation.rot_decode(coded, out, k=self.parameter, key=keys.own)


@dataclass(frozen=True, slots=True)
class Ring(Fixed):
    """Integers mod 2^r behind the round's shared rotation: what can be added without being decoded, and masked."""

    id: ClassVar[int] = 9
    parameter: int
    step: float

    def most(self, layout: VectorLayout) -> int:
        return rotation.ring_size(layout.count, self.parameter)

    def encode(self, values: Floats, layout: VectorLayout, keys: Keys) -> Bytes:
        most = min(_MOST_RING, 2 ** (self.parameter - 1))
        integers = rotation.ring_encode(values, step=self.step, most=most, shared=keys.shared, own=keys.own)
        out = np.empty(self.most(layout), np.uint8)
        rotation.ring_pack(integers, out, r=self.parameter)
        return out

    def decode(self, coded: memoryview, layout: VectorLayout, keys: Keys, out: Floats) -> None:
        integers: NDArray[np.uint32] = np.empty(out.size, np.uint32)
        rotation.ring_unpack(coded, integers, r=self.parameter)
        rotation.ring_decode(integers, out, r=self.parameter, step=self.step, shared=keys.shared)
