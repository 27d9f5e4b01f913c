"""Codecs that need no rotation: a flat float32 vector <-> bytes as raw32, fp16, blk8 or blk4. Their sizes don't depend on the values.

Encoders return the size, and raise KernelError with the index of a value that they refuse; decoders raise it on any byte that no
encoder writes. wire/SPEC.md, section 8, has the bytes.
"""

from typing import Any

import numpy as np

from fleetgrad.native.binding import (
    Buffer,
    Bytes,
    Floats,
    KernelError,
    check,
    check_output,
    ffi,
    lib,
    pointer,
    read_only,
    text,
)

BLOCK = 64  # values under one scale of blk8 or blk4


def raw32_size(count: int) -> int:
    """Bytes of `count` values as they are."""
    return 4 * count


def raw32_encode(values: Floats, out: Bytes) -> int:
    """Copies float32[n] into uint8[4 n], little-endian; refuses NaN and infinity."""
    return _encode("raw32", values, out, raw32_size(values.size))


def raw32_decode(payload: Buffer, out: Floats) -> None:
    """Copies 4 n bytes into float32[n]; refuses NaN and infinity."""
    _decode("raw32", payload, out, raw32_size(out.size), "value")


def fp16_size(count: int) -> int:
    """Bytes of `count` values as halves."""
    return 2 * count


def fp16_encode(values: Floats, out: Bytes) -> int:
    """Encodes float32[n] as IEEE 754 halves into uint8[2 n], little-endian, rounded to nearest even, subnormal halves kept.

    Refuses NaN, infinity and magnitudes of 65520 or more, which would become infinity.
    """
    return _encode("fp16", values, out, fp16_size(values.size))


def fp16_decode(payload: Buffer, out: Floats) -> None:
    """Decodes 2 n bytes into float32[n], exactly; refuses NaN and infinity."""
    _decode("fp16", payload, out, fp16_size(out.size), "value")


def blk8_size(count: int) -> int:
    """Bytes of `count` encoded values: one float per block of 64 and one byte per value."""
    return 4 * -(-count // BLOCK) + count


def blk8_encode(values: Floats, out: Bytes, seed: int | None) -> int:
    """Encodes float32[n] as absmax blocks into uint8[blk8_size(n)].

    Each block is its scale (absmax / 127, little-endian float32) and one int8 code per value. `seed` (64 bits) rounds
    stochastically, so that the decoded value is right on average; None rounds to nearest, ties to even. Refuses NaN, infinity and
    magnitudes over 2^90.
    """
    return _encode("blk8", values, out, blk8_size(values.size), _key("blk8", seed))


def blk8_decode(payload: Buffer, out: Floats) -> None:
    """Decodes blk8_size(n) bytes into float32[n]."""
    _decode("blk8", payload, out, blk8_size(out.size), "block")


def blk4_size(count: int) -> int:
    """Bytes of `count` encoded values: one float per block of 64 and half a byte per value."""
    return 4 * -(-count // BLOCK) + (count + 1) // 2


def blk4_encode(values: Floats, out: Bytes, seed: int | None) -> int:
    """As blk8_encode, with codes of 4 bits (-7..7) under scales of absmax / 7, into uint8[blk4_size(n)]."""
    return _encode("blk4", values, out, blk4_size(values.size), _key("blk4", seed))


def blk4_decode(payload: Buffer, out: Floats) -> None:
    """Decodes blk4_size(n) bytes into float32[n]."""
    _decode("blk4", payload, out, blk4_size(out.size), "block")


def _key(codec: str, seed: int | None) -> Any:
    if seed is not None and not 0 <= seed < 2**64:
        raise KernelError(f"{codec} encode: seed {seed} doesn't fit 64 bits")
    return ffi.NULL if seed is None else ffi.new("uint64_t *", seed)


def _encode(codec: str, values: Floats, out: Bytes, size: int, *key: Any) -> int:
    check(f"{codec} encode", values, np.float32)
    check_output(f"{codec} encode", out, np.uint8, size, values)
    where = ffi.new("size_t *")
    kernel = getattr(lib, f"fg_{codec}_encode")
    error = kernel(pointer("float *", values), values.size, *key, ffi.from_buffer("uint8_t *", out, True), where)
    if error:
        value = values.ravel()[where[0]]
        raise KernelError(f"{codec} encode: value {where[0]} of {values.size}: {text(error)} ({value})")
    return size


def _decode(codec: str, payload: Buffer, out: Floats, size: int, place: str) -> None:
    check_output(f"{codec} decode", out, np.float32, None, payload)
    data, found = read_only(payload)
    if found != size:
        raise KernelError(f"{codec} decode: {found} bytes, {out.size} values take {size}")
    where = ffi.new("size_t *")
    error = getattr(lib, f"fg_{codec}_decode")(data, out.size, pointer("float *", out), where)
    if error:
        raise KernelError(f"{codec} decode: {place} {where[0]}: {text(error)}")
