"""Codecs of the flat vector: their stable ids, and the payload that an update carries.

    payload = u16 length of info | info (msgpack, messages.UpdateInfo) | coded vector | statistics, float32

    id  codec                 size          bytes of the coded vector
     0  raw32                 fixed         coding/fixed.py
     1  fp16                  fixed
     3  blk8, blk4            fixed         native/src/codecs/blocks.inc.h
     4  rot-k, k = 1..8       fixed         native/src/codecs/eden.inc.h, rotation.inc.h
     5  ec-dither             by the values native/src/codecs/entropy.h
     6  ec-dz                 by the values
     7  topk                  by the values native/src/codecs/topk.inc.h
     8  lossless              by the values native/src/codecs/lossless.inc.h
     9  ring                  fixed         native/src/codecs/lattice.inc.h
    10  auto                  by the values coding/auto.py

A reader knows codec, parameter, number of floats and layout from the round's policy and plan: a payload says them again, and one that
says anything else is refused. Running statistics go as they are, in any codec: a variance that is rounded could be negative.
The most bytes that a payload can have are known before it comes (`payload_bound`).
"""

import math
import struct
from functools import lru_cache
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import binding, kernels
from fleetgrad.native.binding import Bytes, Floats
from fleetgrad.wire.coding.auto import INFO_BYTES, Auto
from fleetgrad.wire.coding.fixed import Blocks, Fp16, Raw32, Ring, Rotated
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.coding.variable import EntropyCoded, Lossless, TopK
from fleetgrad.wire.messages import UpdateInfo
from fleetgrad.wire.seeds import Keys
from fleetgrad.wire.strict import MALFORMED

MAX_INFO_BYTES = 512
FLOAT_BYTES = 4
_LENGTH = struct.Struct("<H")


class CodecError(ValueError):
    """A vector that can't be coded, or a payload that doesn't decode to exactly what the plan says; the message names the place."""


class Codec(Protocol):
    """One codec with its parameters. `most` is the most bytes of a coded vector, and where `exact` the only right number."""

    @property
    def id(self) -> int: ...
    @property
    def parameter(self) -> int: ...
    @property
    def exact(self) -> bool: ...
    def most(self, layout: VectorLayout) -> int: ...
    def encode(self, values: Floats, layout: VectorLayout, keys: Keys) -> Bytes: ...
    def decode(self, coded: memoryview, layout: VectorLayout, keys: Keys, out: Floats) -> None: ...


@lru_cache(maxsize=64)
def codec_of(spec: CodecSpec) -> Codec:
    """The codec that a policy asks for."""
    match spec.name:
        case "raw32":
            return Raw32()
        case "fp16":
            return Fp16()
        case "blk8" | "blk4":
            return Blocks(int(spec.name[3:]), spec.rounding == "stochastic")
        case "ec-dither":
            return EntropyCoded("dither", spec.bits or 0.0)
        case "ec-dz":
            return EntropyCoded("dead-zone", spec.bits or 0.0)
        case "ring":
            return Ring(int(spec.bits or 0), spec.step or 0.0)
        case "auto":
            return Auto(spec.bits, spec.bytes)
        case "topk":
            return TopK(spec.fraction or 0.0)
        case "lossless":
            return Lossless()
    return Rotated(int(spec.name.removeprefix("rot-")))


def payload_bound(spec: CodecSpec, layout: VectorLayout) -> int:
    """Most bytes that a payload can have."""
    return _LENGTH.size + MAX_INFO_BYTES + codec_of(spec).most(layout.trained) + _statistics_size(layout)


def _statistics_size(layout: VectorLayout) -> int:
    """Bytes of the statistics, padding included."""
    return FLOAT_BYTES * (layout.count - layout.trained.count)


def shortfall(spec: CodecSpec, layout: VectorLayout) -> str:
    """Why updates of this plan will take more than the policy asks for; nothing where they won't."""
    codec, layout = codec_of(spec), layout.trained
    if not isinstance(codec, Auto) or codec.least(layout) <= codec.budget(layout):
        return ""
    small = sum(p.size for p in layout.small)
    asked = f"{spec.bits:g} bits" if spec.bits is not None else f"{spec.bytes} bytes"
    return (
        f"codec auto: {asked} are too few for this model: its small tensors ({small:,} values) travel in fp16, and an update takes "
        f"about {codec.least(layout) + INFO_BYTES:,} bytes at least"
    )


def encode_payload(
    spec: CodecSpec, layout: VectorLayout, values: NDArray[np.float32], *, keys: Keys, weight: int, steps: int, loss: float
) -> bytes:  # fmt: skip
    """An update's payload from its flat float32 delta; raises CodecError, for a value that isn't finite with tensor and index."""
    codec = codec_of(spec)
    if values.size != layout.count:
        raise CodecError(f"vector of {values.size} floats, the plan has {layout.count}")
    if (index := kernels.find_nonfinite(values)) >= 0:
        raise CodecError(f"{layout.where(index)} is {values[index]}: {spec.name} codes finite values")
    try:
        coded = codec.encode(values[: layout.trained.count], layout.trained, keys).tobytes()
    except binding.KernelError as e:
        raise CodecError(str(e)) from e
    coded += values[layout.trained.count :].astype("<f4").tobytes()
    info = msgspec.msgpack.encode(
        UpdateInfo(
            codec=codec.id, parameter=codec.parameter, count=values.size, rate=_rate(len(coded), values.size), weight=weight,
            steps=steps, loss=loss,
        )
    )  # fmt: skip
    return b"".join([_LENGTH.pack(len(info)), info, coded])


def _rate(coded: int, count: int) -> float:
    """Bits that a coordinate took."""
    return 8.0 * coded / count


def read_info(payload: bytes | memoryview) -> tuple[UpdateInfo, memoryview]:
    """The info of a payload and the coded vector after it; raises CodecError."""
    view = memoryview(payload)
    if len(view) < _LENGTH.size:
        raise CodecError(f"payload of {len(view)} bytes is shorter than its length field")
    (length,) = _LENGTH.unpack_from(view)
    if length > min(MAX_INFO_BYTES, len(view) - _LENGTH.size):
        raise CodecError(f"update info of {length} bytes, at most {MAX_INFO_BYTES} in a payload of {len(view)}")
    try:
        info = msgspec.msgpack.decode(view[_LENGTH.size : _LENGTH.size + length], type=UpdateInfo)
    except MALFORMED as e:
        raise CodecError(f"update info: {e}") from e
    if not math.isfinite(info.loss):
        raise CodecError(f"update info: loss is {info.loss}")
    return info, view[_LENGTH.size + length :]


def decode_payload(
    payload: bytes | memoryview, spec: CodecSpec, layout: VectorLayout, keys: Keys, out: NDArray[np.float32]
) -> UpdateInfo:
    """Decodes into `out`, float32[layout.count]; raises CodecError.

    Codec and parameters are those that the policy names: a payload in any other is refused. Padding is zero whatever was sent.
    """
    codec = codec_of(spec)
    info, coded = read_info(payload)
    if (info.codec, info.parameter) != (codec.id, codec.parameter):
        raise CodecError(
            f"update is in codec {info.codec} with parameter {info.parameter}, this round uses {spec} "
            f"(codec {codec.id}, parameter {codec.parameter})"
        )
    if info.count != layout.count:
        raise CodecError(
            f"update holds {info.count} floats, the plan has {layout.count} (was it trained on another model?)"
        )
    trained, apart = layout.trained, _statistics_size(layout)
    most = codec.most(trained) + apart
    if not apart <= len(coded) <= most or (codec.exact and len(coded) != most):
        raise CodecError(
            f"coded vector has {len(coded)} bytes, {spec.name} of {layout.count} floats {'' if codec.exact else 'at most '}{most}"
        )
    if info.rate != _rate(len(coded), layout.count):
        raise CodecError(
            f"update info: rate is {info.rate:g}, {len(coded)} bytes are {_rate(len(coded), layout.count):g}"
        )
    try:
        codec.decode(coded[: len(coded) - apart], trained, keys, out[: trained.count])
    except binding.KernelError as e:
        raise CodecError(str(e)) from e
    out[trained.count :] = np.frombuffer(coded[len(coded) - apart :], "<f4")
    layout.clear_padding(out)
    if (index := kernels.find_nonfinite(out)) >= 0:
        raise CodecError(f"{layout.where(index)} is {out[index]}")
    return info
