"""Pooling and its gradients, as the custom ops compute them.

Tensors are float32 [N, C, length] or [N, C, height, width], contiguous; kernel, strides, pads (all begins, then all ends), dilations and
ceil_mode are those of ONNX. argmax is uint8, the tap of each window in row-major order: the first of equal maxima, as torch has it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fleetgrad.native.binding import Bytes, Floats, KernelError, check, ffi, lib, pointer
from fleetgrad.native.layers import fits, image_rank
from fleetgrad.native.windows import output_shape, scratch, window

MOST_TAPS = 256  # of a window whose argmax is kept


def max_pool(x: Floats, kernel: Sequence[int], **attributes: Any) -> tuple[Floats, Bytes]:
    """(y, argmax) of the windows over x [N, C, *], padding as -infinity; a window holds at most 256 taps."""
    act = "max pool"
    rank = image_rank(act, "x", x)
    windows = window(act, x.shape[2:], kernel, **attributes)
    if (taps := int(np.prod(kernel))) > MOST_TAPS:
        raise KernelError(f"{act}: argmax of {taps} taps, at most {MOST_TAPS}")
    shape = (*x.shape[:2], *output_shape(windows, rank))
    y, argmax = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    memory, aligned = scratch(act, lib.fg_pool_scratch(windows))
    planes = x.shape[0] * x.shape[1]
    pointers = pointer("float *", y), pointer("uint8_t *", argmax)
    lib.fg_max_pool(pointer("float *", x), windows, 0, planes, *pointers, aligned)
    ffi.release(memory)
    return y, argmax


def max_pool_grad(x: Floats, dy: Floats, kernel: Sequence[int], **attributes: Any) -> Floats:
    """dx [N, C, *]: dy where the maximum of x's windows was taken; overlapping windows add up by row, then by tap."""
    act = "max pool gradient"
    rank = image_rank(act, "x", x)
    if image_rank(act, "dy", dy) != rank or x.shape[:2] != dy.shape[:2]:
        raise KernelError(f"{act}: x {x.shape} and dy {dy.shape} don't fit")
    return _max_pool_grad(act, pointer("float *", x), ffi.NULL, dy, x.shape, kernel, attributes)


def max_pool_argmax_grad(
    argmax: Bytes, dy: Floats, shape: Sequence[int], kernel: Sequence[int], **attributes: Any
) -> Floats:
    """The same from argmax, for an x of `shape` [N, C, *]."""
    act = "max pool gradient"
    check(f"{act}: argmax", argmax, np.uint8, dy.size)
    if len(shape) != dy.ndim or tuple(shape[:2]) != dy.shape[:2] or argmax.shape != dy.shape:
        raise KernelError(f"{act}: x {tuple(shape)}, argmax {argmax.shape} and dy {dy.shape} don't fit")
    return _max_pool_grad(act, ffi.NULL, pointer("uint8_t *", argmax), dy, shape, kernel, attributes)


def _max_pool_grad(
    act: str, x: Any, argmax: Any, dy: Floats, shape: Sequence[int], kernel: Sequence[int], attributes: dict[str, Any]
) -> Floats:
    rank = image_rank(act, "dy", dy)
    windows = window(act, shape[2:], kernel, **attributes)
    fits(act, dy, windows, rank)
    dx = np.empty(tuple(shape), np.float32)
    memory, aligned = scratch(act, lib.fg_pool_scratch(windows))
    planes = dy.shape[0] * dy.shape[1]
    pointers = pointer("float *", dy), windows, 0, planes, pointer("float *", dx)
    lib.fg_max_pool_grad(x, argmax, *pointers, aligned)
    ffi.release(memory)
    return dx


def average_pool_grad(
    dy: Floats, shape: Sequence[int], kernel: Sequence[int], *, count_include_pad: bool = False, **attributes: Any
) -> Floats:
    """dx of `shape` [N, C, *]: dy / count to each input of a window.

    count is the number of inputs in the window, or with count_include_pad that of its taps inside the padded plane, as torch has it.
    """
    act = "average pool gradient"
    rank = image_rank(act, "dy", dy)
    if len(shape) != dy.ndim or tuple(shape[:2]) != dy.shape[:2]:
        raise KernelError(f"{act}: x {tuple(shape)} and dy {dy.shape} don't fit")
    windows = window(act, shape[2:], kernel, **attributes)
    fits(act, dy, windows, rank)
    dx = np.empty(tuple(shape), np.float32)
    memory, aligned = scratch(act, lib.fg_pool_scratch(windows))
    planes = dy.shape[0] * dy.shape[1]
    pointers = pointer("float *", dy), windows, int(count_include_pad), 0, planes, pointer("float *", dx)
    lib.fg_average_pool_grad(*pointers, aligned)
    ffi.release(memory)
    return dx
