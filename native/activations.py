"""Gradients of activations, as the custom ops compute them: float32 of any shape, contiguous, in one pass."""

import math

import numpy as np

from fleetgrad.native.binding import Floats, KernelError, check, lib, pointer


def _check(act: str, a: Floats, dy: Floats) -> Floats:
    check(act, a, np.float32)
    check(act, dy, np.float32)
    if a.shape != dy.shape:
        raise KernelError(f"{act}: shapes {a.shape} and {dy.shape}, expected the same")
    return np.empty(dy.shape, np.float32)


def relu_grad(y: Floats, dy: Floats) -> Floats:
    """dy where y > 0, else 0 (also where y is NaN)."""
    dx = _check("ReLU gradient", y, dy)
    lib.fg_relu_grad(*(pointer("float *", a) for a in (y, dy)), dy.size, pointer("float *", dx))
    return dx


def clip_grad(
    x: Floats, dy: Floats, low: float = -math.inf, high: float = math.inf, *, inclusive: bool = True
) -> Floats:
    """dy where low <= x <= high, else 0 (also where x is NaN).

    torch.clamp passes the gradient at the bounds themselves (inclusive), torch's ReLU6 and Hardtanh don't.
    """
    dx = _check("clip gradient", x, dy)
    pointers = (pointer("float *", a) for a in (x, dy))
    lib.fg_clip_grad(*pointers, low, high, int(inclusive), dy.size, pointer("float *", dx))
    return dx
