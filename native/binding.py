"""What the typed faces share: the C module, the choice of instruction set, and the checks before a call.

A face (codecs.py, gradients.py, optimizers.py, kernels.py) checks types, sizes and aliasing, then makes one C call, which runs without
the GIL. Arrays are C-contiguous; floats are float32. What a caller gets wrong and what data gets wrong both raise KernelError, with
the index where there is one. FLEETGRAD_CAPABILITY=serial|avx2|... masks the instruction sets down to one.
"""

import os
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import _core

CAPABILITIES = ("serial", "avx2", "avx512vnni", "neon", "neondotprod", "neoni8mm")  # in the order of fleetgrad.h
VARIABLE = "FLEETGRAD_CAPABILITY"

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Buffer = bytes | bytearray | memoryview | NDArray[np.uint8]
_A = TypeVar("_A", bound=np.generic)

ffi, lib = _core.ffi, _core.lib


class KernelError(ValueError):
    """Input that a kernel refuses; nothing was written that counts."""


def capabilities() -> tuple[str, ...]:
    """Instruction sets that this machine can run, the portable one first, the best last."""
    return tuple(name for i, name in enumerate(CAPABILITIES) if lib.fg_has_capability(i))


def capability() -> str:
    """The instruction set in use."""
    return CAPABILITIES[lib.fg_capability()]


def use_capability(name: str) -> None:
    """Switches to another instruction set; raises KernelError if this machine hasn't got it."""
    if name not in CAPABILITIES or lib.fg_use_capability(CAPABILITIES.index(name)):
        raise KernelError(f"{VARIABLE}={name}: this machine has {', '.join(capabilities())}")


def check(act: str, array: NDArray[_A], dtype: type[np.generic], size: int | None = None) -> None:
    """Raises KernelError unless the array is contiguous, aligned, of the dtype and (where given) of the size."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise KernelError(f"{act}: needs contiguous {np.dtype(dtype)}, got {array.dtype} with strides {array.strides}")
    if not array.flags.aligned:
        raise KernelError(
            f"{act}: needs aligned {np.dtype(dtype)}, this memory begins at {array.ctypes.data:#x}: copy it"
        )
    if size is not None and array.size != size:
        raise KernelError(f"{act}: array has {array.size} elements, expected {size}")


def check_output(act: str, array: NDArray[_A], dtype: type[np.generic], size: int | None = None, *inputs: Any) -> None:
    """As check, for an array that is written: it must be writeable, and share no memory with the inputs (buffers of any kind)."""
    check(act, array, dtype, size)
    if not array.flags.writeable:
        raise KernelError(f"{act}: the array to write into is read-only")
    for given in inputs:
        if np.may_share_memory(array, given if isinstance(given, np.ndarray) else np.asarray(memoryview(given))):
            raise KernelError(f"{act}: the array to write into overlaps an input")


def pointer(kind: str, array: NDArray[_A]) -> Any:
    """The array's data as a C pointer of type `kind`; array.ctypes takes four times as long."""
    return ffi.cast(kind, ffi.from_buffer(array))


def read_only(data: Buffer) -> tuple[Any, int]:
    """A buffer's bytes as a C pointer, and how many there are."""
    view = ffi.from_buffer("uint8_t[]", data)
    return view, len(view)


def workspace(size: int) -> Bytes:
    """Memory aligned to 64 bytes for a kernel to work in; pages that it doesn't touch cost nothing."""
    memory = np.empty(size + 64, np.uint8)
    start = -int(pointer("uintptr_t", memory)) % 64
    return memory[start : start + size]


def text(error: int) -> str:
    """What an error of the C core says."""
    return str(ffi.string(lib.fg_error_text(error)).decode())


if name := os.environ.get(VARIABLE):
    use_capability(name)
