"""Weight gradients with int8 operands, as the custom ops compute them, and the quantized activations that a forward pass may keep for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native.binding import Floats, KernelError, check, check_output, ffi, lib, pointer, text, workspace

Codes = NDArray[np.int8]


def quantize_columns(x: Floats) -> tuple[Codes, Floats]:
    """Codes int8[a, c, ...] and scales float32[c] of x [a, c, ...]: x is about codes * scale; a column's (channel's) absmax is 127."""
    check("quantize columns", x, np.float32)
    if x.ndim < 2:
        raise KernelError(f"quantize columns: x has the shape {x.shape}, needs 2 dimensions or more")
    codes, scale = np.empty(x.shape, np.int8), np.empty(x.shape[1], np.float32)
    where = ffi.new("size_t *")
    inner = int(np.prod(x.shape[2:]))
    pointers = pointer("int8_t *", codes), pointer("float *", scale)
    if error := lib.fg_quantize_columns(pointer("float *", x), *x.shape[:2], inner, *pointers, where):
        raise KernelError(f"quantize columns: column {where[0]}: {text(error)}")
    return codes, scale


def matmul_weight_grad(
    x: Floats | Codes,
    dy: Floats,
    out: Floats,
    *,
    scale: Floats | None = None,
    base: Floats | None = None,
    total: Floats | None = None,
) -> None:
    """out[m, n] = base + x[k, m]^T dy[k, n] with int8 operands: what the custom op MatMulWeightGrad computes.

    Each column is scaled by its absmax / 127 and rounded to nearest even, unless x is int8 with a scale per column; sums are int32 over
    at most 65,536 rows. With k of 8 or less nothing is rounded: products and sums are float32, row after row. base is float32[m, n] (zero by default) and may be `out` itself.
    total float32[m], if given, becomes the sums of a float x's columns.
    """
    act = "weight gradient"
    _check(act, x, dy, out, scale, base)
    if x.ndim != 2 or dy.ndim != 2 or x.shape[0] != dy.shape[0] or out.shape != (x.shape[1], dy.shape[1]):
        raise KernelError(f"{act}: x {x.shape}, dy {dy.shape} and out {out.shape} don't fit")
    if x.shape[0] == 0:
        raise KernelError(f"{act}: x and dy have no rows")
    job = ffi.new("fg_matmul_grad *", {"k": x.shape[0], "m": x.shape[1], "n": dy.shape[1]})
    if total is not None:
        if x.dtype == np.int8:
            raise KernelError(f"{act}: a total belongs to a float32 x, x is int8")
        check_output(act, total, np.float32, x.shape[1], x, dy, out)
        job.x_total = pointer("float *", total)
    _run(act, "matmul", job, x, dy, out, scale, base, ("column", x.shape[1]))


def conv_weight_grad(
    x: Floats | Codes,
    dy: Floats,
    out: Floats,
    *,
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    group: int = 1,
    scale: Floats | None = None,
    base: Floats | None = None,
) -> None:
    """out[m, c / group, *kernel] = base + the gradient of the weight of a convolution of x[n, c, *size] that gave dy[n, m, *y].

    One or two spatial axes; attributes as ONNX's Conv has them, pads at least the begins. x has a scale per channel (its absmax / 127,
    or `scale` of an int8 x), dy one per output channel; rounding and sums are those of matmul_weight_grad.
    """
    act = "convolution weight gradient"
    _check(act, x, dy, out, scale, base)
    rank = out.ndim - 2
    if rank not in {1, 2} or x.ndim != out.ndim or dy.ndim != out.ndim:
        raise KernelError(f"{act}: x {x.shape}, dy {dy.shape} and out {out.shape} must have one or two spatial axes")
    stride, dilation = (list(given) or [1] * rank for given in (strides, dilations))
    begins = list(pads)[:rank] or [0] * rank
    ends = list(pads)[rank:] or begins
    if {len(stride), len(dilation), len(begins), len(ends)} != {rank} or min(*stride, *dilation, group) < 1:
        raise KernelError(
            f"{act}: strides {strides}, dilations {dilations}, pads {pads}, group {group} for {rank} axes"
        )
    if min(*begins, *ends) < 0:
        raise KernelError(f"{act}: pads {pads} are negative")
    kernel, size = out.shape[2:], x.shape[2:]
    each = zip(size, kernel, stride, dilation, begins, ends, strict=True)
    windows = [(n + b + e - (k - 1) * d - 1) // s + 1 for n, k, s, d, b, e in each]
    if (
        x.shape[1] % group
        or out.shape[0] % group
        or out.shape[:2] != (dy.shape[1], x.shape[1] // group)
        or dy.shape != (x.shape[0], out.shape[0], *windows)
        or 0 in (*x.shape, *dy.shape, *kernel)
    ):
        raise KernelError(
            f"{act}: x {x.shape}, dy {dy.shape} and out {out.shape} don't fit (windows {windows}, group {group})"
        )
    job = ffi.new(
        "fg_conv_grad *", {"batch": x.shape[0], "channels": x.shape[1], "outputs": dy.shape[1], "group": group}
    )
    axes = {"x_size": size, "y_size": dy.shape[2:], "kernel": kernel, "stride": stride, "dilation": dilation}
    for name, values in axes.items():
        setattr(job, name, [1] * (2 - rank) + list(values))
    job.before = [0] * (2 - rank) + begins
    _run(act, "conv", job, x, dy, out, scale, base, ("channel", x.shape[1]))


def _check(act: str, x: Floats | Codes, dy: Floats, out: Floats, scale: Floats | None, base: Floats | None) -> None:
    check(act, x, np.int8 if x.dtype == np.int8 else np.float32)
    check(act, dy, np.float32)
    check_output(act, out, np.float32)
    if (scale is not None) != (x.dtype == np.int8):
        raise KernelError(f"{act}: a scale belongs to an int8 x, and to nothing else")
    if scale is not None:
        check(act, scale, np.float32, x.shape[1] if x.ndim > 1 else None)
    if base is not None:
        check(act, base, np.float32)
        if base.shape != out.shape:
            raise KernelError(f"{act}: base {base.shape} and out {out.shape} must have the same shape")
    same = base is not None and base.ctypes.data == out.ctypes.data
    if any(a is not None and np.may_share_memory(a, out) for a in (x, dy, scale, None if same else base)):
        raise KernelError(f"{act}: out overlaps an input")


def _run(
    act: str,
    kind: str,
    job: Any,
    x: Floats | Codes,
    dy: Floats,
    out: Floats,
    scale: Floats | None,
    base: Floats | None,
    names: tuple[str, int],
) -> None:
    """Sets the job's pointers, runs it and raises KernelError with the column."""
    if x.dtype == np.int8:
        job.codes = pointer("int8_t *", x)
    else:
        job.x = pointer("float *", x)
    job.dy, job.out = pointer("float *", dy), pointer("float *", out)
    job.scale = ffi.NULL if scale is None else pointer("float *", scale)
    job.base = ffi.NULL if base is None else pointer("float *", base)
    parts = ffi.new("fg_grad_parts *")
    getattr(lib, f"fg_{kind}_grad_plan")(job, parts)
    scratch = workspace(parts.scratch)
    job.scratch = pointer("void *", scratch)
    where = ffi.new("size_t *")
    if error := getattr(lib, f"fg_{kind}_grad_run")(job, where):
        name, columns = names
        side, column = ("x", where[0]) if where[0] < columns else ("dy", where[0] - columns)
        raise KernelError(f"{act}: {name} {column} of {side}: {text(error)}")
