"""`auto`: small tensors in fp16, the others as one vector at whatever rate the rest of the budget gives.

    coded = u8 id of the large tensors' codec | u8 its parameter | small tensors in fp16 | large tensors
    id      1: there is no large tensor;  4: rot-k, parameter k;  5: ec-dither, parameter 0

Which tensors are small follows from the plan (Part.small). One step for all large tensors is what minimises the squared error at a given
number of bits (reverse water-filling). A rotation makes every vector look normal, which costs nothing where it is normal already; then
rot-k is as good at low rates, and simpler. It is taken at up to 1.5 bits where entropy coding would gain less than 0.1 bit:

    gain = log2(error of rot-k / error of ec-dither) / 2 bits        error of rot-k = D / (1 - D) |x|^2, D that of k-bit Lloyd-Max
                                                                     error of ec-dither = step^2 / 12 a coordinate
"""

import math
import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fleetgrad.native import codecs, entropy, rotation
from fleetgrad.native.binding import Bytes, Floats, KernelError
from fleetgrad.wire.coding.layout import Part, VectorLayout, gather, scatter
from fleetgrad.wire.coding.spec import LEAST_BITS, MOST_BITS
from fleetgrad.wire.coding.variable import Variable, entropy_encode, entropy_most
from fleetgrad.wire.seeds import Keys

FP16, ROTATED, DITHERED = 1, 4, 5
LEAST_GAIN, MOST_ROTATED_BITS = 0.1, 1.5
TOLERANCE = 1.01  # of the budget: what rot-k may take over it, since its rate can't be chosen
INFO_BYTES = 100  # about what stands before the coded vector, where a budget is given in bytes
LLOYD_MAX = {1: 0.3634}  # distortion D of the k-bit quantizer of N(0, 1), for each k that fits MOST_ROTATED_BITS
_STEP = struct.Struct("<f")
_STEP_AT = 3  # of an ec-dither stream (native/src/codecs/entropy.h)
BLOCK = 64


@dataclass(frozen=True, slots=True)
class Auto(Variable):
    """The budget: bits per coordinate of the whole vector, or bytes of the whole payload."""

    id: ClassVar[int] = 10
    parameter: ClassVar[int] = 0
    bits: float | None
    bytes: int | None

    def large_bits(self, layout: VectorLayout) -> float:
        """What is left for a coordinate of the large tensors; never under LEAST_BITS, though the budget may be."""
        small, large = (sum(p.size for p in parts) for parts in (layout.small, layout.large))
        left = 8.0 * (self.budget(layout) - 2 - codecs.fp16_size(small))
        return min(max(left / max(1, large), LEAST_BITS), MOST_BITS)

    def budget(self, layout: VectorLayout) -> float:
        """Bytes that the coded vector is to have."""
        return self.bytes - INFO_BYTES if self.bytes is not None else (self.bits or 0.0) * layout.count / 8

    def least(self, layout: VectorLayout) -> int:
        """Bytes that it has at least, about: small tensors' fp16, and the large ones at LEAST_BITS."""
        small, large = (sum(p.size for p in parts) for parts in (layout.small, layout.large))
        return 2 + codecs.fp16_size(small) + math.ceil(LEAST_BITS * large / 8)

    def most(self, layout: VectorLayout) -> int:
        small, large = (sum(p.size for p in parts) for parts in (layout.small, layout.large))
        bits = self.large_bits(layout)
        return (
            2
            + codecs.fp16_size(small)
            + max(entropy_most("dither", bits, large), rotation.rot_size(large, max(LLOYD_MAX)))
        )

    def encode(self, values: Floats, layout: VectorLayout, keys: Keys) -> Bytes:
        small, large = gather(values, layout.small), gather(values, layout.large)
        halves = np.empty(codecs.fp16_size(small.size), np.uint8)
        codecs.fp16_encode(small, halves)
        if not large.size:
            return np.concatenate([np.array([FP16, 0], np.uint8), halves])
        bits = self.large_bits(layout)
        coded = entropy_encode(
            large, "dither", bits, keys.own, _matrices(layout.large), self.most(layout) - 2 - halves.size
        )
        chosen, k = DITHERED, rotated_bits(large, coded, bits)
        if k:
            chosen, coded = ROTATED, np.empty(rotation.rot_size(large.size, k), np.uint8)
            rotation.rot_encode(large, coded, k=k, key=keys.own)
        return np.concatenate([np.array([chosen, k], np.uint8), halves, coded])

    def decode(self, coded: memoryview, layout: VectorLayout, keys: Keys, out: Floats) -> None:
        small, large = (np.empty(sum(p.size for p in parts), np.float32) for parts in (layout.small, layout.large))
        end = 2 + codecs.fp16_size(small.size)
        if len(coded) < end:
            raise KernelError(f"auto decode: {len(coded)} bytes, the {small.size} small values alone take {end}")
        chosen, parameter, rest = coded[0], coded[1], coded[end:]
        codecs.fp16_decode(coded[2:end], small)
        if (chosen == FP16) != (large.size == 0):
            raise KernelError(f"auto decode: codec {chosen} for the {large.size} large values")
        if chosen == FP16 and parameter == 0 and not len(rest):
            pass
        elif chosen == ROTATED and parameter in LLOYD_MAX:
            rotation.rot_decode(rest, large, k=parameter, key=keys.own)
        elif chosen == DITHERED and parameter == 0:
            entropy.decode(rest, large, kind="dither", key=keys.own, layout=_matrices(layout.large))
        else:
            raise KernelError(
                f"auto decode: codec {chosen} with parameter {parameter} and {len(rest)} bytes for the large values"
            )
        scatter(small, layout.small, out)
        scatter(large, layout.large, out)


def _matrices(parts: tuple[Part, ...]) -> entropy.Layout:
    return entropy.Layout.of([p.shape for p in parts])


def rotated_bits(large: Floats, dithered: Bytes, bits: float) -> int:
    """k of the rot-k that is to be sent in place of an ec-dither stream at `bits` a coordinate; 0 if none is."""
    step = (
        float(_STEP.unpack(dithered[_STEP_AT : _STEP_AT + _STEP.size].tobytes())[0])
        if dithered.size >= _STEP_AT + _STEP.size
        else 0.0
    )
    if bits > MOST_ROTATED_BITS or step == 0.0:
        return 0
    k = int(bits * TOLERANCE)
    if k not in LLOYD_MAX or 8 * rotation.rot_size(large.size, k) > TOLERANCE * bits * large.size:
        return 0
    norm = float(np.dot(large.astype(np.float64), large))
    error = step * step / 12 * coded_coordinates(large)
    return k if 0.5 * math.log2(_error_rotated(k) * norm / error) < LEAST_GAIN else 0


def _error_rotated(k: int) -> float:
    return LLOYD_MAX[k] / (1 - LLOYD_MAX[k])


def coded_coordinates(values: Floats) -> int:
    """Coordinates that get dither's error: those of blocks that aren't all zero."""
    starts = np.arange(0, values.size, BLOCK)
    used = np.logical_or.reduceat(values != 0, starts)
    return int(np.minimum(BLOCK, values.size - starts)[used].sum())
