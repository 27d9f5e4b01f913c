"""The C core's typed face: checks types, sizes and aliasing, then makes one C call, which runs without the GIL.

Arrays are C-contiguous; floats are float32. What a caller gets wrong and what data gets wrong both raise KernelError, with
the index where there is one. FLEETGRAD_CAPABILITY=serial|avx2|... masks the instruction sets down to one.
"""

import os
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import _core

BLOCK = 64  # values under one blk8 scale
MAX_WEIGHT = 2**24
OP_ABI = 1  # version of the custom ops' contracts; a plan names the one it was compiled for
DOMAIN = "fleetgrad"  # of the custom ops

CAPABILITIES = ("serial", "avx2", "avx512vnni", "neon", "neondotprod")  # in the order of fleetgrad.h
VARIABLE = "FLEETGRAD_CAPABILITY"

Floats = NDArray[np.float32]
Buffer = bytes | bytearray | memoryview | NDArray[np.uint8]
_A = TypeVar("_A", bound=np.generic)

_ffi, _lib = _core.ffi, _core.lib


class KernelError(ValueError):
    """Input that a kernel refuses; nothing was written that counts."""


def capabilities() -> tuple[str, ...]:
    """Instruction sets that this machine can run, the portable one first, the best last."""
    return tuple(name for i, name in enumerate(CAPABILITIES) if _lib.fg_has_capability(i))


def capability() -> str:
    """The instruction set in use."""
    return CAPABILITIES[_lib.fg_capability()]


def use_capability(name: str) -> None:
    """Switches to another instruction set; raises KernelError if this machine hasn't got it."""
    if name not in CAPABILITIES or _lib.fg_use_capability(CAPABILITIES.index(name)):
        raise KernelError(f"{VARIABLE}={name}: this machine has {', '.join(capabilities())}")


def custom_ops_library() -> str:
    """Path of the shared object for onnxruntime's SessionOptions.register_custom_ops_library."""
    path = _core.__file__
    if path is None:
        raise KernelError("the C core was loaded from no file")
    return str(path)


def blk8_size(count: int) -> int:
    """Bytes of `count` encoded values: one float per block of 64 and one byte per value."""
    return 4 * -(-count // BLOCK) + count


def blk8_encode(values: Floats, out: NDArray[np.uint8], seed: int | None) -> int:
    """Encodes float32[n] as absmax blocks into uint8[blk8_size(n)]; returns that size.

    Each block is its scale (absmax / 127, little-endian float32) and one int8 code per value. `seed` (64 bits) rounds
    stochastically, so that the decoded value is right on average; None rounds to nearest, ties to even.
    """
    _check("blk8 encode", values, np.float32)
    _check("blk8 encode", out, np.uint8, blk8_size(values.size))
    if seed is not None and not 0 <= seed < 2**64:
        raise KernelError(f"blk8 encode: seed {seed} doesn't fit 64 bits")
    key = _ffi.NULL if seed is None else _ffi.new("uint64_t *", seed)
    where = _ffi.new("size_t *")
    error = _lib.fg_blk8_encode(
        _pointer("float *", values), values.size, key, _ffi.from_buffer("uint8_t *", out, True), where
    )
    if error:
        raise KernelError(f"blk8 encode: value {where[0]} of {values.size}: {_text(error)} ({values[where[0]]})")
    return out.size


def blk8_decode(payload: Buffer, out: Floats) -> None:
    """Decodes blk8_size(n) bytes into float32[n]; raises KernelError on any byte that no encoder writes."""
    _check("blk8 decode", out, np.float32)
    size = len(_ffi.from_buffer(payload))
    if size != blk8_size(out.size):
        raise KernelError(f"blk8 decode: {size} bytes, {out.size} values take {blk8_size(out.size)}")
    where = _ffi.new("size_t *")
    error = _lib.fg_blk8_decode(_ffi.from_buffer("uint8_t *", payload), out.size, _pointer("float *", out), where)
    if error:
        raise KernelError(f"blk8 decode: block {where[0]}: {_text(error)}")


def ring_add(accumulator: NDArray[np.int64], values: Floats, weight: int) -> None:
    """accumulator[n] += weight * rint_even(values[n] * 2^32); a value beyond +-64 is refused before anything is added."""
    _check("ring add", values, np.float32)
    _check("ring add", accumulator, np.int64, values.size)
    if not 1 <= weight <= MAX_WEIGHT:
        raise KernelError(f"ring add: weight {weight}, expected 1 to {MAX_WEIGHT}")
    where = _ffi.new("size_t *")
    error = _lib.fg_ring_add(
        _pointer("int64_t *", accumulator), _pointer("float *", values), values.size, weight, where
    )
    if error:
        raise KernelError(f"ring add: value {where[0]} of {values.size}: {_text(error)} ({values[where[0]]})")


def ring_mean(accumulator: NDArray[np.int64], total_weight: int, base: Floats, out: Floats) -> None:
    """out[n] = base[n] + accumulator[n] / total_weight * 2^-32, in double, rounded once to float32."""
    _check("ring mean", base, np.float32)
    _check("ring mean", accumulator, np.int64, base.size)
    _check("ring mean", out, np.float32, base.size)
    if not 1 <= total_weight <= MAX_WEIGHT:
        raise KernelError(f"ring mean: total weight {total_weight}, expected 1 to {MAX_WEIGHT}")
    _lib.fg_ring_mean(
        _pointer("int64_t *", accumulator), base.size, total_weight, _pointer("float *", base), _pointer("float *", out)
    )


def sgd_momentum_step(
    parameters: Floats,
    gradients: Floats,
    velocity: Floats,
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float = 0.0,
) -> None:
    """One step in place: velocity = momentum * velocity + (g + weight_decay * p); p -= learning_rate * velocity.

    All three are float32[n] and don't overlap (Sutskever et al., ICML 2013, in the form that torch uses).
    """
    for array in (parameters, gradients, velocity):
        _check("sgd step", array, np.float32, parameters.size)
    pairs = ((parameters, gradients), (parameters, velocity), (gradients, velocity))
    if any(np.may_share_memory(a, b) for a, b in pairs):
        raise KernelError("sgd step: parameters, gradients and velocity must not share memory")
    _lib.fg_sgd_momentum(
        *(_pointer("float *", a) for a in (parameters, gradients, velocity)),
        parameters.size,
        learning_rate,
        momentum,
        weight_decay,
    )


def crc32c(data: Buffer, crc: int = 0) -> int:
    """CRC-32C (Castagnoli) of `data`, continuing from `crc`."""
    return int(_lib.fg_crc32c(crc, _ffi.from_buffer("uint8_t *", data), len(_ffi.from_buffer(data))))


def find_nonfinite(values: Floats) -> int:
    """Index of the first NaN or infinity in float32[n], or -1."""
    _check("finite scan", values, np.float32)
    index = int(_lib.fg_find_nonfinite(_pointer("float *", values), values.size))
    return index if index < values.size else -1


def matmul_weight_grad(x: Floats, dy: Floats, out: Floats) -> None:
    """out[m, n] = x[k, m]^T dy[k, n] with int8 operands: what the custom op MatMulWeightGrad computes.

    Each column is scaled by its absmax / 127 and rounded to nearest even; sums are int32 over at most 65,536 rows.
    """
    for array in (x, dy, out):
        _check("weight gradient", array, np.float32)
    if x.ndim != 2 or dy.ndim != 2 or x.shape[0] != dy.shape[0] or out.shape != (x.shape[1], dy.shape[1]):
        raise KernelError(f"weight gradient: x {x.shape}, dy {dy.shape} and out {out.shape} don't fit")
    k, m, n = x.shape[0], x.shape[1], dy.shape[1]
    scratch = np.empty(_lib.fg_weight_grad_scratch(k, m, n), np.uint8)
    where = _ffi.new("size_t *")
    pointers = [_pointer("float *", a) for a in (x, dy)]
    error = _lib.fg_weight_grad(
        *pointers, k, m, n, _pointer("float *", out), _ffi.from_buffer("void *", scratch), where
    )
    if error:
        side, column = ("x", where[0]) if where[0] < m else ("dy", where[0] - m)
        raise KernelError(f"weight gradient: column {column} of {side}: {_text(error)}")


def _check(act: str, array: NDArray[_A], dtype: type[np.generic], size: int | None = None) -> None:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise KernelError(f"{act}: needs contiguous {np.dtype(dtype)}, got {array.dtype} with strides {array.strides}")
    if size is not None and array.size != size:
        raise KernelError(f"{act}: array has {array.size} elements, expected {size}")


def _pointer(kind: str, array: NDArray[_A]) -> Any:
    return _ffi.cast(kind, array.ctypes.data)


def _text(error: int) -> str:
    return str(_ffi.string(_lib.fg_error_text(error)).decode())


if name := os.environ.get(VARIABLE):
    use_capability(name)
