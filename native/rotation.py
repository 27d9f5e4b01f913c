"""Codecs behind a randomized Hadamard rotation: rot-k (EDEN, k bits a coordinate) and ring (integers that can be added mod 2^r)."""

import numpy as np
from numpy.typing import NDArray

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

LEAST_STEP, MOST_STEP = 2.0**-90, 2.0**90
RING_BITS = (16, 20, 32)


def rot_size(count: int, k: int) -> int:
    """Bytes of `count` values in k bits each, scales included: the size doesn't depend on the values."""
    if not 1 <= k <= 8:
        raise KernelError(f"rot-{k}: k is 1 to 8")
    return int(lib.fg_rot_size(count, k))


def rot_encode(values: Floats, out: Bytes, *, k: int, key: int, stream: int = 0) -> int:
    """Encodes float32[n] into uint8[rot_size(n, k)]; returns that size.

    Right on average over `key` (64 bits) where no few values make up the norm: one Hadamard transform leaves sparse vectors sparse, and
    under rot-1 (3, 1, 0, ...) is (3.33, 0, 0, ...) under every key. Its error is about D / (1 - D) times the squared norm, D that of the
    k-bit Lloyd-Max quantizer (Vargaftik et al., ICML 2022). Raises KernelError on NaN, infinity and magnitudes over 2^80, with the index.
    """
    check("rot encode", values, np.float32)
    check_output("rot encode", out, np.uint8, rot_size(values.size, k), values)
    where = ffi.new("size_t *")
    error = lib.fg_rot_encode(
        pointer("float *", values), values.size, k, _key("rot encode", key), stream, pointer("uint8_t *", out), where
    )
    _raise("rot encode", error, values, where[0])
    return out.size


def rot_decode(payload: Buffer, out: Floats, *, k: int, key: int, stream: int = 0) -> None:
    """Decodes rot_size(n, k) bytes into float32[n]; raises KernelError on bytes that no encoder writes."""
    check_output("rot decode", out, np.float32, None, payload)
    data, size = read_only(payload)
    if size != rot_size(out.size, k):
        raise KernelError(f"rot decode: {size} bytes, {out.size} values take {rot_size(out.size, k)}")
    where = ffi.new("size_t *")
    error = lib.fg_rot_decode(data, out.size, k, _key("rot decode", key), stream, pointer("float *", out), where)
    if error:
        raise KernelError(f"rot decode: window {where[0]}: {text(error)}")


def ring_size(count: int, r: int) -> int:
    """Bytes of `count` integers mod 2^r, r = 16, 20 or 32."""
    if r not in RING_BITS:
        raise KernelError(f"ring: r = {r}, expected 16, 20 or 32")
    return (count * r + 7) // 8


def ring_encode(
    values: Floats, *, step: float, most: int, shared: int, own: int, stream: int = 0
) -> NDArray[np.uint32]:
    """Integers z with rotation(values) / step rounded stochastically, as uint32 (two's complement): their sums decode to sums.

    `shared` is the rotation's key, the same for all who are added; `own` draws the rounding and is nobody else's. Raises KernelError where
    |rotated value / step| isn't below `most` (at most 2^23), with the rotated coordinate's index, and on NaN, infinity and magnitudes over 2^90.
    """
    check("ring encode", values, np.float32)
    if not (LEAST_STEP <= step <= MOST_STEP and 1 <= most <= 2**23):
        raise KernelError(f"ring encode: step {step} or most {most} out of range")
    out = np.empty(values.size, np.uint32)
    where = ffi.new("size_t *")
    error = lib.fg_lattice_encode(
        pointer("float *", values), values.size, step, most, _key("ring encode", shared), _key("ring encode", own), stream,
        pointer("uint32_t *", out), where,
    )  # fmt: skip
    if error == lib.FG_RANGE and abs(values.ravel()[where[0]]) <= MOST_STEP:
        raise KernelError(
            f"ring encode: rotated coordinate {where[0]} is {most} steps of {step:g} or more: take a larger step"
        )
    _raise("ring encode", error, values, where[0])
    return out


def ring_decode(total: NDArray[np.uint32], out: Floats, *, r: int, step: float, shared: int, stream: int = 0) -> None:
    """Floats from a sum of ring_encode's integers, read as signed r-bit numbers; float32[n]."""
    check("ring decode", total, np.uint32)
    check_output("ring decode", out, np.float32, total.size, total)
    ring_size(0, r)
    if not LEAST_STEP <= step <= MOST_STEP:
        raise KernelError(f"ring decode: step {step} out of range")
    lib.fg_lattice_decode(
        pointer("uint32_t *", total), total.size, r, step, _key("ring decode", shared), stream, pointer("float *", out)
    )


def ring_pack(total: NDArray[np.uint32], out: Bytes, *, r: int) -> None:
    """The lowest r bits of each integer, as uint8[ring_size(n, r)]."""
    check("ring pack", total, np.uint32)
    check_output("ring pack", out, np.uint8, ring_size(total.size, r), total)
    lib.fg_lattice_pack(pointer("uint32_t *", total), total.size, r, pointer("uint8_t *", out))


def ring_unpack(payload: Buffer, out: NDArray[np.uint32], *, r: int) -> None:
    """The integers of ring_pack; raises KernelError where bits behind the last one are set."""
    check_output("ring unpack", out, np.uint32, None, payload)
    data, size = read_only(payload)
    if size != ring_size(out.size, r):
        raise KernelError(f"ring unpack: {size} bytes, {out.size} integers mod 2^{r} take {ring_size(out.size, r)}")
    if lib.fg_lattice_unpack(data, out.size, r, pointer("uint32_t *", out)):
        raise KernelError("ring unpack: bits behind the last integer are set")


def _key(act: str, key: int) -> int:
    if not 0 <= key < 2**64:
        raise KernelError(f"{act}: key {key} doesn't fit 64 bits")
    return key


def _raise(act: str, error: int, values: Floats, where: int) -> None:
    if error:
        raise KernelError(f"{act}: value {where} of {values.size}: {text(error)} ({values.ravel()[where]})")
