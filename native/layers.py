"""Depthwise convolution and its gradients, as the custom ops compute them.

Tensors are float32 [N, C, length] or [N, C, height, width], contiguous; a weight is [M, 1, *kernel] with M a multiple of C, and output
channel m sees input channel m // (M / C), as ONNX's Conv with group = C has it. strides, pads (all begins, then all ends) and dilations
are those of ONNX. Results are the same bytes under every capability and for any number of threads.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fleetgrad.native.binding import Floats, KernelError, check, ffi, lib, pointer
from fleetgrad.native.windows import output_shape, scratch, window

Axes = Sequence[int] | None


def image_rank(act: str, name: str, array: Floats) -> int:
    """Number of spatial axes; raises KernelError unless the array is a batch of planes with channels."""
    check(f"{act}: {name}", array, np.float32)
    if array.ndim not in {3, 4} or not array.shape[1]:
        raise KernelError(f"{act}: {name} has shape {array.shape}, expected [N, C, length] or [N, C, height, width]")
    return array.ndim - 2


def _multiplier(act: str, channels: int, outputs: int) -> int:
    if channels < 1 or outputs < 1 or outputs % channels:
        raise KernelError(f"{act}: {outputs} output channels aren't a multiple of {channels} input channels")
    return outputs // channels


def _weight(act: str, weight: Floats, rank: int) -> None:
    check(f"{act}: weight", weight, np.float32)
    if weight.ndim != rank + 2 or weight.shape[1] != 1:
        raise KernelError(f"{act}: weight has shape {weight.shape}, expected [M, 1] and {rank} axes of taps")


def fits(act: str, dy: Floats, windows: Any, rank: int) -> None:
    if dy.shape[2:] != output_shape(windows, rank):
        raise KernelError(f"{act}: dy has positions {dy.shape[2:]}, the windows give {output_shape(windows, rank)}")


def depthwise_conv(
    x: Floats,
    weight: Floats,
    bias: Floats | None = None,
    *,
    strides: Axes = None,
    pads: Axes = None,
    dilations: Axes = None,
) -> Floats:
    """y [N, M, *] = bias + cross-correlation of x [N, C, *] with weight [M, 1, *kernel], taps added in row-major order."""
    act = "depthwise convolution"
    rank = image_rank(act, "x", x)
    _weight(act, weight, rank)
    multiplier = _multiplier(act, x.shape[1], weight.shape[0])
    if bias is not None:
        check(f"{act}: bias", bias, np.float32, weight.shape[0])
    windows = window(act, x.shape[2:], weight.shape[2:], strides=strides, pads=pads, dilations=dilations)
    y = np.empty((x.shape[0], weight.shape[0], *output_shape(windows, rank)), np.float32)
    memory, aligned = scratch(act, lib.fg_depthwise_scratch(windows, multiplier))
    given = ffi.NULL if bias is None else pointer("float *", bias)
    pointers = [pointer("float *", a) for a in (x, weight)]
    planes = x.shape[0] * x.shape[1]
    lib.fg_depthwise(*pointers, given, windows, x.shape[1], multiplier, 0, planes, pointer("float *", y), aligned)
    ffi.release(memory)
    return y


def depthwise_conv_input_grad(
    dy: Floats,
    weight: Floats,
    shape: Sequence[int],
    *,
    strides: Axes = None,
    pads: Axes = None,
    dilations: Axes = None,
) -> Floats:
    """dx of `shape` [N, C, *] from dy [N, M, *] and weight [M, 1, *kernel]."""
    act = "depthwise input gradient"
    rank = image_rank(act, "dy", dy)
    _weight(act, weight, rank)
    if len(shape) != rank + 2 or shape[0] != dy.shape[0] or weight.shape[0] != dy.shape[1]:
        raise KernelError(f"{act}: x {tuple(shape)}, weight {weight.shape} and dy {dy.shape} don't fit")
    multiplier = _multiplier(act, shape[1], weight.shape[0])
    windows = window(act, shape[2:], weight.shape[2:], strides=strides, pads=pads, dilations=dilations)
    fits(act, dy, windows, rank)
    dx = np.empty(tuple(shape), np.float32)
    memory, aligned = scratch(act, lib.fg_depthwise_scratch(windows, multiplier))
    pointers = [pointer("float *", a) for a in (dy, weight)]
    planes = shape[0] * shape[1]
    lib.fg_depthwise_input_grad(*pointers, windows, shape[1], multiplier, 0, planes, pointer("float *", dx), aligned)
    ffi.release(memory)
    return dx


def depthwise_conv_weight_grad(
    x: Floats,
    dy: Floats,
    kernel: Sequence[int],
    *,
    strides: Axes = None,
    pads: Axes = None,
    dilations: Axes = None,
) -> Floats:
    """dw [M, 1, *kernel] from x [N, C, *] and dy [N, M, *], summed over batch and positions.

    Sixteen partial sums in float32 over stretches of 8,192 positions of a plane, in float64 above.
    """
    act = "depthwise weight gradient"
    rank = image_rank(act, "x", x)
    if image_rank(act, "dy", dy) != rank or x.shape[0] != dy.shape[0]:
        raise KernelError(f"{act}: x {x.shape} and dy {dy.shape} don't fit")
    multiplier = _multiplier(act, x.shape[1], dy.shape[1])
    windows = window(act, x.shape[2:], kernel, strides=strides, pads=pads, dilations=dilations)
    fits(act, dy, windows, rank)
    dw = np.empty((dy.shape[1], 1, *kernel), np.float32)
    memory, aligned = scratch(act, lib.fg_depthwise_scratch(windows, multiplier))
    pointers = [pointer("float *", a) for a in (x, dy)]
    channels = x.shape[1]
    lib.fg_depthwise_weight_grad(
        *pointers, windows, x.shape[0], channels, multiplier, 0, channels, pointer("float *", dw), aligned
    )
    ffi.release(memory)
    return dw
