"""Windows over planes, as the layers' kernels take them: checked, and with the number of windows that ONNX defines."""

from collections.abc import Sequence
from typing import Any

from fleetgrad.native.binding import KernelError, ffi, lib

LIMIT = int(lib.FG_WINDOW_LIMIT)  # of sizes, taps, strides, dilations and pads


def _axes(act: str, name: str, values: Sequence[int] | None, count: int, default: int, least: int) -> list[int]:
    given = [default] * count if values is None else [int(v) for v in values]
    if len(given) != count or any(not least <= v <= LIMIT for v in given):
        raise KernelError(f"{act}: {name} {given}, expected {count} values from {least} to {LIMIT}")
    return given


def window(
    act: str,
    size: Sequence[int],
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> Any:
    """fg_window * over one or two spatial axes of `size`; pads are all begins, then all ends, as in ONNX.

    Raises KernelError, with `act` as what was tried, for a value out of range or a window larger than its padded axis.
    """
    rank = len(size)
    if rank not in {1, 2}:
        raise KernelError(f"{act}: {rank} spatial axes, expected 1 or 2")
    size = _axes(act, "size", size, rank, 1, 1)
    kernel = _axes(act, "kernel", kernel, rank, 1, 1)
    stride = _axes(act, "strides", strides, rank, 1, 1)
    dilation = _axes(act, "dilations", dilations, rank, 1, 1)
    pad = _axes(act, "pads", pads, 2 * rank, 0, 0)
    for axis in range(rank):
        span = (kernel[axis] - 1) * dilation[axis] + 1
        padded = size[axis] + pad[axis] + pad[rank + axis]
        if span > padded:
            raise KernelError(f"{act}: a window spans {span} on spatial axis {axis}, the padded input has {padded}")
    result = ffi.new("fg_window *")
    fields = {"input": size, "kernel": kernel, "stride": stride, "dilation": dilation}
    for name, values in fields.items():
        setattr(result, name, [1] * (2 - rank) + values)
    result.before = [0] * (2 - rank) + pad[:rank]
    result.after = [0] * (2 - rank) + pad[rank:]
    if error := lib.fg_window_fit(result, int(ceil_mode)):
        raise KernelError(f"{act}: {ffi.string(lib.fg_error_text(error)).decode()}")
    return result


def output_shape(fitted: Any, rank: int) -> tuple[int, ...]:
    """Number of windows on each of `rank` spatial axes."""
    return tuple(fitted.output[2 - rank + axis] for axis in range(rank))


def scratch(act: str, size: int) -> Any:
    """A 64-byte aligned buffer, and what keeps it alive."""
    if size > 2**62 or size < 0:
        raise KernelError(f"{act}: the windows need more scratch memory than can be addressed")
    memory = ffi.new("uint8_t[]", size + 64)
    address = int(ffi.cast("uintptr_t", memory))
    return memory, ffi.cast("void *", (address + 63) // 64 * 64)
