"""Weight gradients with int8 operands, as the custom ops compute them."""

import numpy as np

from fleetgrad.native.binding import Floats, KernelError, check, ffi, lib, pointer, text


def matmul_weight_grad(x: Floats, dy: Floats, out: Floats) -> None:
    """out[m, n] = x[k, m]^T dy[k, n] with int8 operands: what the custom op MatMulWeightGrad computes.

    Each column is scaled by its absmax / 127 and rounded to nearest even; sums are int32 over at most 65,536 rows.
    """
    for array in (x, dy, out):
        check("weight gradient", array, np.float32)
    if x.ndim != 2 or dy.ndim != 2 or x.shape[0] != dy.shape[0] or out.shape != (x.shape[1], dy.shape[1]):
        raise KernelError(f"weight gradient: x {x.shape}, dy {dy.shape} and out {out.shape} don't fit")
    k, m, n = x.shape[0], x.shape[1], dy.shape[1]
    scratch = np.empty(lib.fg_weight_grad_scratch(k, m, n), np.uint8)
    where = ffi.new("size_t *")
    pointers = [pointer("float *", a) for a in (x, dy)]
    error = lib.fg_weight_grad(*pointers, k, m, n, pointer("float *", out), ffi.from_buffer("void *", scratch), where)
    if error:
        side, column = ("x", where[0]) if where[0] < m else ("dy", where[0] - m)
        raise KernelError(f"weight gradient: column {column} of {side}: {text(error)}")
