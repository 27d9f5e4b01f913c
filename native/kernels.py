"""Kernels that every room uses: checksums, the scan for NaN, the integer ring; and the custom ops' library."""

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import _core
from fleetgrad.native.binding import Buffer, Floats, KernelError, check, check_output, ffi, lib, pointer, text

MAX_WEIGHT = 2**24
RING_RANGE = 64  # magnitude that a value added to the ring may have
OP_ABI = 3  # version of the custom ops' contracts; a plan names the one it was compiled for
DOMAIN = "fleetgrad"  # of the custom ops


def custom_ops_library() -> str:
    """Path of the shared object for onnxruntime's SessionOptions.register_custom_ops_library."""
    path = _core.__file__
    if path is None:
        raise KernelError("the C core was loaded from no file")
    return str(path)


def scratch_most() -> int:
    """The most bytes that kernels of the custom ops held at once since the last call; they aren't of onnxruntime's arena."""
    return int(lib.fg_scratch_most())


def ring_add(accumulator: NDArray[np.int64], values: Floats, weight: int) -> None:
    """accumulator[n] += weight * rint_even(values[n] * 2^32); a value beyond +-64 is refused before anything is added."""
    check("ring add", values, np.float32)
    check_output("ring add", accumulator, np.int64, values.size, values)
    if not 1 <= weight <= MAX_WEIGHT:
        raise KernelError(f"ring add: weight {weight}, expected 1 to {MAX_WEIGHT}")
    where = ffi.new("size_t *")
    error = lib.fg_ring_add(pointer("int64_t *", accumulator), pointer("float *", values), values.size, weight, where)
    if error:
        limit = f" of {RING_RANGE}" if error == lib.FG_RANGE else ""
        raise KernelError(
            f"ring add: value {where[0]} of {values.size}: {text(error)}{limit} ({values.ravel()[where[0]]})"
        )


def ring_mean(accumulator: NDArray[np.int64], total_weight: int, base: Floats, out: Floats) -> None:
    """out[n] = base[n] + accumulator[n] / total_weight * 2^-32, in double, rounded once to float32."""
    check("ring mean", base, np.float32)
    check("ring mean", accumulator, np.int64, base.size)
    check_output("ring mean", out, np.float32, base.size, accumulator)
    if not 1 <= total_weight <= MAX_WEIGHT:
        raise KernelError(f"ring mean: total weight {total_weight}, expected 1 to {MAX_WEIGHT}")
    lib.fg_ring_mean(
        pointer("int64_t *", accumulator), base.size, total_weight, pointer("float *", base), pointer("float *", out)
    )


def crc32c(data: Buffer, crc: int = 0) -> int:
    """CRC-32C (Castagnoli) of `data`, continuing from `crc`."""
    view = ffi.from_buffer("uint8_t[]", data)
    return int(lib.fg_crc32c(crc, view, len(view)))


def find_nonfinite(values: Floats) -> int:
    """Index of the first NaN or infinity in float32[n], or -1."""
    check("finite scan", values, np.float32)
    index = int(lib.fg_find_nonfinite(pointer("float *", values), values.size))
    return index if index < values.size else -1
