"""Batch normalization in training and its gradient, as the custom ops compute them (Ioffe and Szegedy, ICML 2015).

x is float32 [N, C] or [N, C, *], statistics and parameters are float32 [C]; M = N x positions values a channel. Sums are float64.
"""

from typing import NamedTuple

import numpy as np

from fleetgrad.native.binding import Floats, KernelError, check, ffi, lib, pointer


class Normalized(NamedTuple):
    """y, the batch's statistics (var is the population's, invstd = 1 / sqrt(var + epsilon)) and the updated running ones."""

    y: Floats
    mean: Floats
    var: Floats
    invstd: Floats
    running_mean: Floats
    running_var: Floats


class Gradients(NamedTuple):
    """Gradients by x, scale and bias."""

    dx: Floats
    dscale: Floats
    dbias: Floats


def _shape(act: str, x: Floats) -> tuple[int, int, int]:
    check(f"{act}: x", x, np.float32)
    if x.ndim < 2 or not x.size:
        raise KernelError(f"{act}: x has shape {x.shape}, expected [N, C, *] with at least one value")
    return x.shape[0], x.shape[1], x.size // x.shape[0] // x.shape[1]


def batch_norm(
    x: Floats,
    scale: Floats,
    bias: Floats,
    running_mean: Floats,
    running_var: Floats,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
) -> Normalized:
    """Training mode: y = (x - mean) invstd scale + bias by the batch's own statistics.

    running = (1 - momentum) running + momentum batch, with the sample's variance (M - 1), as torch has it; ONNX's momentum is 1 minus it.
    """
    act = "batch norm"
    batch, channels, positions = _shape(act, x)
    if batch * positions < 2:
        raise KernelError(f"{act}: 1 value a channel, statistics of a batch need at least 2")
    if not (epsilon >= 0 and 0 <= momentum <= 1):
        raise KernelError(f"{act}: epsilon {epsilon} and momentum {momentum}, expected 0 or more, and 0 to 1")
    inputs = (scale, bias, running_mean, running_var)
    for array in inputs:
        check(act, array, np.float32, channels)
    shape = ffi.new("fg_norm *", (batch, channels, positions, epsilon, momentum))
    y, statistics = np.empty_like(x), [np.empty(channels, np.float32) for _ in range(5)]
    results = ffi.new("fg_norm_results *", tuple(pointer("float *", a) for a in statistics))
    pointers = [pointer("float *", a) for a in (x, *inputs)]
    lib.fg_batch_norm(*pointers, shape, 0, channels, pointer("float *", y), results)
    return Normalized(y, *statistics)


def batch_norm_grad(
    x: Floats, dy: Floats, scale: Floats, mean: Floats, invstd: Floats, *, training: bool = True
) -> Gradients:
    """Gradients from the batch's mean and invstd; training=False takes these as constants, as in a frozen layer."""
    act = "batch norm gradient"
    batch, channels, positions = _shape(act, x)
    check(f"{act}: dy", dy, np.float32)
    if x.shape != dy.shape:
        raise KernelError(f"{act}: x {x.shape} and dy {dy.shape}, expected the same shape")
    for array in (scale, mean, invstd):
        check(act, array, np.float32, channels)
    shape = ffi.new("fg_norm *", (batch, channels, positions, 0.0, 0.0))
    results = Gradients(np.empty_like(x), np.empty(channels, np.float32), np.empty(channels, np.float32))
    pointers = [pointer("float *", a) for a in (x, dy, scale, mean, invstd)]
    lib.fg_batch_norm_grad(*pointers, shape, int(training), 0, channels, *(pointer("float *", a) for a in results))
    return results
