"""Codecs of the flat vector: their stable ids, and the payload that an update carries.

    payload = u16 length of info | info (msgpack, messages.UpdateInfo) | coded vector

Sizes follow from the number of floats alone, so a decoder knows the one right length before it reads anything.
"""

import math
import struct
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import binding, kernels
from fleetgrad.native import codecs as native_codecs
from fleetgrad.wire.messages import CodecName, UpdateInfo
from fleetgrad.wire.signing import MALFORMED

MAX_INFO_BYTES = 512
_LENGTH = struct.Struct("<H")


class CodecError(ValueError):
    """A payload that doesn't decode to exactly what the plan says; the message names the field and both values."""


@dataclass(frozen=True, slots=True)
class Codec:
    """One row of the codec table: its id on the wire and its bits per value."""

    id: int
    name: CodecName
    bits: int

    def size(self, count: int) -> int:
        """Exact bytes of `count` coded floats."""
        return 4 * count if self.name == "raw32" else native_codecs.blk8_size(count)


RAW32 = Codec(0, "raw32", 32)
BLK8 = Codec(3, "blk8", 8)
CODECS: dict[str, Codec] = {c.name: c for c in (RAW32, BLK8)}
_BY_ID = {(c.id, c.bits): c for c in CODECS.values()}


def payload_bound(codec: Codec, count: int) -> int:
    """Most bytes that a payload with `count` floats can have."""
    return _LENGTH.size + MAX_INFO_BYTES + codec.size(count)


def encode_payload(
    codec: Codec, values: NDArray[np.float32], *, weight: int, steps: int, loss: float, seed: int | None
) -> bytes:
    """An update's payload from its flat float32 delta.

    `seed` (64 bits) draws the stochastic rounding of a quantizing codec; None rounds to nearest.
    Raises binding.KernelError on NaN or infinity, with the index.
    """
    info = msgspec.msgpack.encode(
        UpdateInfo(codec=codec.id, bits=codec.bits, count=values.size, weight=weight, steps=steps, loss=loss)
    )
    payload = np.empty(_LENGTH.size + len(info) + codec.size(values.size), np.uint8)
    start = _LENGTH.size + len(info)
    payload[:start] = np.frombuffer(_LENGTH.pack(len(info)) + info, np.uint8)
    if codec is RAW32:
        if (index := kernels.find_nonfinite(values)) >= 0:
            raise binding.KernelError(f"raw32 encode: value {index} of {values.size} is {values[index]}")
        payload[start:] = values.astype("<f4", copy=False).view(np.uint8)
    else:
        native_codecs.blk8_encode(values, payload[start:], seed)
    return payload.tobytes()


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


def decode_payload(payload: bytes | memoryview, codec: Codec, out: NDArray[np.float32]) -> UpdateInfo:
    """Decodes into `out`, whose size must be the sender's count; raises CodecError.

    The codec is the one that the policy names: a payload in any other is refused.
    """
    info, coded = read_info(payload)
    if _BY_ID.get((info.codec, info.bits)) is not codec:
        raise CodecError(f"update is coded as codec {info.codec} with {info.bits} bits, this round uses {codec.name}")
    if info.count != out.size:
        raise CodecError(
            f"update holds {info.count} floats, the plan has {out.size} (was it trained on another model?)"
        )
    if len(coded) != codec.size(out.size):
        raise CodecError(
            f"coded vector has {len(coded)} bytes, {codec.name} of {out.size} floats {codec.size(out.size)}"
        )
    if codec is RAW32:
        out[:] = np.frombuffer(coded, "<f4")
        if (index := kernels.find_nonfinite(out)) >= 0:
            raise CodecError(f"value {index} of {out.size} is {out[index]}")
        return info
    try:
        native_codecs.blk8_decode(coded, out)
    except binding.KernelError as e:
        raise CodecError(str(e)) from e
    return info
