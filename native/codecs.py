"""Codecs' kernels: a flat float32 vector <-> bytes."""

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native.binding import Buffer, Floats, KernelError, check, ffi, lib, pointer, text

BLOCK = 64  # values under one blk8 scale


def blk8_size(count: int) -> int:
    """Bytes of `count` encoded values: one float per block of 64 and one byte per value."""
    return 4 * -(-count // BLOCK) + count


def blk8_encode(values: Floats, out: NDArray[np.uint8], seed: int | None) -> int:
    """Encodes float32[n] as absmax blocks into uint8[blk8_size(n)]; returns that size.

    Each block is its scale (absmax / 127, little-endian float32) and one int8 code per value. `seed` (64 bits) rounds
    stochastically, so that the decoded value is right on average; None rounds to nearest, ties to even.
    """
    check("blk8 encode", values, np.float32)
    check("blk8 encode", out, np.uint8, blk8_size(values.size))
    if seed is not None and not 0 <= seed < 2**64:
        raise KernelError(f"blk8 encode: seed {seed} doesn't fit 64 bits")
    key = ffi.NULL if seed is None else ffi.new("uint64_t *", seed)
    where = ffi.new("size_t *")
    error = lib.fg_blk8_encode(
        pointer("float *", values), values.size, key, ffi.from_buffer("uint8_t *", out, True), where
    )
    if error:
        raise KernelError(f"blk8 encode: value {where[0]} of {values.size}: {text(error)} ({values[where[0]]})")
    return out.size


def blk8_decode(payload: Buffer, out: Floats) -> None:
    """Decodes blk8_size(n) bytes into float32[n]; raises KernelError on any byte that no encoder writes."""
    check("blk8 decode", out, np.float32)
    size = len(ffi.from_buffer(payload))
    if size != blk8_size(out.size):
        raise KernelError(f"blk8 decode: {size} bytes, {out.size} values take {blk8_size(out.size)}")
    where = ffi.new("size_t *")
    error = lib.fg_blk8_decode(ffi.from_buffer("uint8_t *", payload), out.size, pointer("float *", out), where)
    if error:
        raise KernelError(f"blk8 decode: block {where[0]}: {text(error)}")
