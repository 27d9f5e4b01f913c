"""Forward ops in float64 for the checker, where onnx's reference evaluator has none or a wrong one."""

import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv_transpose import ConvTranspose as Ungrouped

from fleetgrad.edge.autodiff.graph import Array


class ConvTranspose(Ungrouped):  # type: ignore[misc]
    """The evaluator's own, group by group: it lays out the channels wrongly when a group has several."""

    op_domain = ""

    def _run(self, x: Array, w: Array, bias: Array | None = None, group: int = 1, **attributes: Any) -> tuple[Array]:
        parts = zip(np.split(x, group, axis=1), np.split(w, group, axis=0), strict=True)
        y = np.concatenate(
            [super(ConvTranspose, self)._run(a, b, None, group=1, **attributes)[0] for a, b in parts], axis=1
        )
        return (y if bias is None else y + bias.reshape(1, -1, *(1 for _ in y.shape[2:])),)


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


OPS: list[type[OpRun]] = [ConvTranspose, Erf, Gelu, Pad]
