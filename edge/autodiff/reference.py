"""Forward ops in float64 for the checker, where onnx's reference evaluator has none or a wrong one."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from fleetgrad.edge.autodiff.graph import Array


class ConvTranspose(OpRun):  # type: ignore[misc]
    """Tap by tap: the evaluator's mixes up channels in groups, and knows neither large output_padding nor a bare output_shape."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        w: Array,
        bias: Array | None = None,
        auto_pad: str = "NOTSET",
        dilations: Sequence[int] | None = None,
        group: int = 1,
        kernel_shape: Sequence[int] | None = None,
        output_padding: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        size, kernel, rank = x.shape[2:], w.shape[2:], x.ndim - 2
        s, d, more = strides or [1] * rank, dilations or [1] * rank, output_padding or [0] * rank
        full = [(n - 1) * s[i] + (kernel[i] - 1) * d[i] + 1 + more[i] for i, n in enumerate(size)]
        if auto_pad == "NOTSET" and not output_shape:
            pads = pads or [0] * 2 * rank
        else:
            goal = output_shape or [n * s[i] for i, n in enumerate(size)]
            total = [f - o for f, o in zip(full, goal, strict=True)]
            small, large = [t // 2 for t in total], [t - t // 2 for t in total]
            pads = small + large if auto_pad == "SAME_UPPER" else large + small
        y = np.zeros((len(x), w.shape[1] * group, *full), x.dtype)
        outputs, inputs = w.shape[1], w.shape[0] // group
        for g, tap in itertools.product(range(group), np.ndindex(*kernel)):
            of = slice(g * inputs, (g + 1) * inputs)
            at = tuple(
                slice(t * d[i], t * d[i] + (n - 1) * s[i] + 1, s[i])
                for i, (t, n) in enumerate(zip(tap, size, strict=True))
            )
            part = np.einsum("nc...,cm->nm...", x[:, of], w[(of, slice(None), *tap)])
            y[(slice(None), slice(g * outputs, (g + 1) * outputs), *at)] += part
        y = y[(slice(None), slice(None), *(slice(pads[i], f - pads[rank + i]) for i, f in enumerate(full)))]
        return (y if bias is None else y + bias.reshape(1, -1, *(1 for _ in size)),)


class Erf(OpRun):  # type: ignore[misc]
    """In float64: the evaluator's own rounds to float32."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


class Gelu(OpRun):  # type: ignore[misc]
    """In float64: the evaluator's is made of its own Erf."""

    op_domain = ""

    def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
        if approximate == "tanh":
            return (x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,)
        return (x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))) / 2,)


class GroupNormalization(OpRun):  # type: ignore[misc]
    """In the input's own type: the evaluator's goes through float32."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, bias: Array, epsilon: float = 1e-5, num_groups: int = 1, stash_type: int = 1
    ) -> tuple[Array]:
        rows = x.reshape(len(x), num_groups, -1)
        rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + epsilon)
        wide = (-1, *(1 for _ in x.shape[2:]))
        return (rows.reshape(x.shape) * scale.reshape(wide) + bias.reshape(wide),)


class MeanVarianceNormalization(OpRun):  # type: ignore[misc]
    """In the input's own type: the evaluator's mixes in float32."""

    op_domain = ""

    def _run(self, x: Array, axes: Sequence[int] = (0, 2, 3)) -> tuple[Array]:
        along = tuple(axes)
        return ((x - x.mean(along, keepdims=True)) / (x.std(along, keepdims=True) + 1e-9),)


class LpNormalization(OpRun):  # type: ignore[misc]
    """With absolute values, which the evaluator's leaves out for p = 1."""

    op_domain = ""

    def _run(self, x: Array, axis: int = -1, p: int = 2) -> tuple[Array]:
        return (x / (np.abs(x) ** p).sum(axis, keepdims=True) ** (1 / p),)


class LRN(OpRun):  # type: ignore[misc]
    """Over the channels, where the evaluator's goes over the batch."""

    op_domain = ""

    def _run(self, x: Array, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int = 1) -> tuple[Array]:
        before = (size - 1) // 2
        squares = np.pad(x * x, [(0, 0), (before, size - 1 - before), *((0, 0) for _ in x.shape[2:])])
        total = np.sum([squares[:, k : k + x.shape[1]] for k in range(size)], 0)
        return (x / (bias + alpha / size * total) ** beta,)


class GlobalLpPool(OpRun):  # type: ignore[misc]
    """The evaluator has none."""

    op_domain = ""

    def _run(self, x: Array, p: int = 2) -> tuple[Array]:
        return ((np.abs(x) ** p).sum(tuple(range(2, x.ndim)), keepdims=True) ** (1 / p),)


class GlobalMaxPool(OpRun):  # type: ignore[misc]
    """With any number of spatial axes: the evaluator's keeps one too few of a single one."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(tuple(range(2, x.ndim)), keepdims=True),)


class LpPool(OpRun):  # type: ignore[misc]
    """A window's sum, where the evaluator takes its average times the taps: not the same where a window is cut off."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        p: int = 2,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        rank = len(kernel_shape)
        pads, strides, dilations = pads or [0] * 2 * rank, strides or [1] * rank, dilations or [1] * rank
        total = np.abs(x) ** p
        for i, (k, s, d) in enumerate(zip(kernel_shape, strides, dilations, strict=True)):
            free = x.shape[2 + i] + pads[i] + pads[rank + i] - (k - 1) * d - 1
            count = (free + (s - 1) * ceil_mode) // s + 1
            around = [(0, 0)] * x.ndim
            around[2 + i] = (pads[i], pads[rank + i] + s)
            padded = np.pad(total, around)
            total = np.sum([padded.take(np.arange(count) * s + t * d, 2 + i) for t in range(k)], 0)
        return (total ** (1 / p),)


class Slice(OpRun):  # type: ignore[misc]
    """The evaluator's own takes nothing from a start before the first entry backwards, where the standard takes that entry."""

    op_domain = ""

    def _run(
        self, x: Array, starts: Array, stops: Array, axes: Array | None = None, steps: Array | None = None
    ) -> tuple[Array]:
        for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            axis = i if axes is None else int(axes[i])
            step = 1 if steps is None else int(steps[i])
            n = x.shape[axis]
            first, end = (int(bound) + n if bound < 0 else int(bound) for bound in (start, stop))
            first, end = (
                (np.clip(first, 0, n), np.clip(end, 0, n))
                if step > 0
                else (np.clip(first, 0, n - 1), np.clip(end, -1, n - 1))
            )
            x = x.take(np.arange(first, end, step, dtype=np.int64), axis)
        return (x,)


class Pad(OpRun):  # type: ignore[misc]
    """The evaluator's own can't cut, which is what negative pads do."""

    op_domain = ""

    def _run(self, x: Array, pads: Array, value: Array | None = None, axes: Array | None = None, mode: str = "") -> Any:
        width = [(0, 0)] * x.ndim
        which = range(x.ndim) if axes is None else [int(a) for a in axes]
        for i, axis in enumerate(which):
            width[axis] = (int(pads[i]), int(pads[len(which) + i]))
        x = x[tuple(slice(max(-b, 0), n - max(-a, 0)) for n, (b, a) in zip(x.shape, width, strict=True))]
        fill = {"constant_values": 0 if value is None else value} if mode == "constant" else {}
        return (np.pad(x, [(max(b, 0), max(a, 0)) for b, a in width], mode=mode, **fill),)  # type: ignore[call-overload]


OPS = [op for op in vars().copy().values() if isinstance(op, type) and op.__module__ == __name__]
