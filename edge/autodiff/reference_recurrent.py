"""LSTM, GRU and RNN in float64 for the checker: onnx's reference evaluator knows one direction and no lengths."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from fleetgrad.edge.autodiff.graph import Array

States = list[Array]
Step = Callable[[Array, States, Array, Array], States]  # (X W^T, states, R, (Wb, Rb)) -> new states


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    return np.asarray(1 / (1 + np.exp(-x)))


def run(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None,
    lengths: Array | None,
    initial: Sequence[Array | None],
    direction: str,
    step: Step,
) -> tuple[Array, ...]:
    """Y [T, D, B, H] and the last states [D, B, H], sequence by sequence and direction by direction."""
    steps, batch = x.shape[:2]
    directions, _, units = r.shape
    y = np.zeros((steps, directions, batch, units), x.dtype)
    last = [np.zeros((directions, batch, units), x.dtype) for _ in initial]
    for d in range(directions):
        backwards = direction == "reverse" or d == 1
        bias = np.zeros((2, w.shape[1]), x.dtype) if b is None else b[d].reshape(2, -1)
        for n in range(batch):
            state: States = [np.zeros(units, x.dtype) if s is None else s[d, n] for s in initial]
            length = steps if lengths is None else int(lengths[n])
            for t in reversed(range(length)) if backwards else range(length):
                state = step(x[t, n] @ w[d].T, state, r[d], bias)
                y[t, d, n] = state[0]
            for all_, own in zip(last, state, strict=True):
                all_[d, n] = own
    return (y, *last)


class LSTM(OpRun):  # type: ignore[misc]
    """Gates i, o, f, c."""

    op_domain = ""

    def _run(
        self, x: Array, w: Array, r: Array, b: Any = None, lengths: Any = None, h: Any = None, c: Any = None,
        direction: str = "forward", **_: Any,
    ) -> tuple[Array, ...]:  # fmt: skip
        def step(p: Array, old: States, r: Array, bias: Array) -> States:
            i, o, f, new = np.split(p + old[0] @ r.T + bias.sum(0), 4)
            c = sigmoid(f) * old[1] + sigmoid(i) * np.tanh(new)
            return [sigmoid(o) * np.tanh(c), c]

        return run(x, w, r, b, lengths, [h, c], direction, step)


class GRU(OpRun):  # type: ignore[misc]
    """Gates z, r, h."""

    op_domain = ""

    def _run(
        self, x: Array, w: Array, r: Array, b: Any = None, lengths: Any = None, h: Any = None,
        direction: str = "forward", linear_before_reset: int = 0, **_: Any,
    ) -> tuple[Array, ...]:  # fmt: skip
        def step(p: Array, old: States, r: Array, bias: Array) -> States:
            h, (pz, pr, pn), (bz, br, bn) = old[0], np.split(p + bias[0], 3), np.split(bias[1], 3)
            rz, rr, rn = np.split(r, 3)
            z, reset = sigmoid(pz + h @ rz.T + bz), sigmoid(pr + h @ rr.T + br)
            inner = reset * (h @ rn.T + bn) if linear_before_reset else (reset * h) @ rn.T + bn
            return [(1 - z) * np.tanh(pn + inner) + z * h]

        return run(x, w, r, b, lengths, [h], direction, step)


class RNN(OpRun):  # type: ignore[misc]
    """tanh or relu."""

    op_domain = ""

    def _run(
        self, x: Array, w: Array, r: Array, b: Any = None, lengths: Any = None, h: Any = None,
        direction: str = "forward", activations: Sequence[str] = ("Tanh",), **_: Any,
    ) -> tuple[Array, ...]:  # fmt: skip
        def step(p: Array, old: States, r: Array, bias: Array) -> States:
            sums = p + old[0] @ r.T + bias.sum(0)
            return [np.tanh(sums) if activations[0] == "Tanh" else np.maximum(sums, 0)]

        return run(x, w, r, b, lengths, [h], direction, step)


OPS: list[type[OpRun]] = [LSTM, GRU, RNN]
