"""VJP rules of LSTM, GRU and RNN. X is [T, B, I], a layer has D directions, H units and G gates.

The recurrence is run by the C core's nodes or, in a plan of standard ops, step by step (unrolled.py). Products over whole
sequences stand around it, as one matrix product each, for P = X W^T + bias [T B, G H] and its gradient dP:

    dX = dP W    dW = dP^T X    dR = dQ^T (the states before each step)    dWb, dRb = the sums of dP and dQ

Q, the recurrent product H R^T + Rb, has P's gradient, but for GRU with linear_before_reset, where the reset gate stands between.
"""

from dataclasses import dataclass
from typing import Any

from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import DOMAIN, Builder, Node
from fleetgrad.edge.autodiff.registry import Gradients, vjp
from fleetgrad.edge.autodiff.rules.unrolled import CELLS, Back, unroll, unroll_back

ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True, slots=True)
class Layer:
    """A recurrent node's sizes and inputs; `batch` may be symbolic."""

    node: Node
    kind: str
    steps: int
    batch: int
    inputs: int
    units: int
    directions: tuple[bool, ...]  # whether each runs backwards
    before: bool  # GRU: the reset gate comes after the product
    activation: str  # RNN's

    @property
    def wide(self) -> int:
        """Numbers of all gates of a step."""
        return GATES[self.kind] * self.units

    @property
    def gate_shape(self) -> tuple[int, ...]:
        """The shape of one direction's gates."""
        return (1, self.steps, self.batch, self.wide)

    def input(self, i: int) -> str:
        """The name of an input, '' when it is left out."""
        return self.node.x[i] if i < len(self.node.x) else ""


def layer_of(g: Builder, node: Node, kind: str) -> Layer:
    """Reads a node; raises Unsupported for what neither lowering does."""
    steps, batch, inputs = g.shapes[node.x[0]]
    directions, _, units = g.shapes[node.x[2]]
    if node.attribute("layout", 0) or min(steps, inputs) < 1:
        raise Unsupported("needs X as [steps, batch, inputs] with a fixed number of steps")
    for name, harmless in (("clip", 0.0), ("input_forget", 0)):
        if node.attribute(name, harmless) != harmless:
            raise Unsupported(f"with {name}")
    if len(node.x) > 7 and node.x[7]:
        raise Unsupported("with peepholes")
    named = [n.decode().lower() if isinstance(n, bytes) else n.lower() for n in node.attribute("activations", [])]
    if kind == "RNN":
        if len(set(named)) > 1 or not set(named) <= {"tanh", "relu"}:
            raise Unsupported(f"with activations {named}: tanh or relu, the same in both directions")
    elif named and named != ACTIVATIONS[kind] * directions:
        raise Unsupported(f"with activations {named}")
    reverse = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    return Layer(
        node,
        kind,
        steps,
        batch,
        inputs,
        units,
        reverse[node.attribute("direction", "forward")],
        bool(node.attribute("linear_before_reset", 0)),
        named[0] if named else "tanh",
    )


def each(g: Builder, layer: Layer, value: str, axis: int = 0) -> list[str]:
    """A value's parts by direction, the axis kept; nothing for ''."""
    count = len(layer.directions)
    if not value or count == 1:
        return [value] * count
    return g.ops("Split", value, outputs=count, axis=axis, num_outputs=count)


def joined(g: Builder, parts: list[str], axis: int = 0) -> str:
    """The directions' parts as one value."""
    return parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=axis)


def _biases(g: Builder, layer: Layer) -> list[tuple[str, str]]:
    """By direction: what is added to P, and what to the recurrent product of GRU with linear_before_reset."""
    found = []
    for bias in each(g, layer, layer.input(3)):
        if not bias:
            found.append(("", ""))
            continue
        wb, rb = g.ops("Split", g.reshape(bias, (2 * layer.wide,)), outputs=2, axis=0, num_outputs=2)
        if layer.kind == "GRU" and layer.before:
            size = g.integers(2 * layer.units, layer.units)
            gates, inner = g.ops("Split", rb, size, outputs=2, axis=0)
            rest = g.constant([0.0] * layer.units)
            found.append((g.op("Add", wb, g.op("Concat", gates, rest, axis=0)), inner))
        else:
            found.append((g.op("Add", wb, rb), ""))
    return found


def _rule(g: Builder, node: Node, kind: str, dys: list[str | None]) -> Gradients:
    layer = layer_of(g, node, kind)
    with g.instead(node) as outputs:
        rows = g.flatten(node.x[0], layer.inputs)
        weights = [g.reshape(w, (layer.wide, layer.inputs)) for w in each(g, layer, node.x[1])]
        biases = _biases(g, layer)
        projected = [
            g.op("Gemm", rows, w, *([b] if b else []), transB=1) for w, (b, _) in zip(weights, biases, strict=True)
        ]
        inner = [b for _, b in biases]
        native = g.native and kind in ACTIVATIONS
        found = _native(g, layer, projected, inner) if native else _standard(g, layer, projected, inner)
        outputs += found.outputs
    backs = found.back([name or "" for name in dys] + [""] * (3 - len(dys)))
    return _gradients(g, layer, rows, weights, backs)


def _gradients(g: Builder, layer: Layer, rows: str, weights: list[str], backs: list[Back]) -> Gradients:
    node, wide, units = layer.node, layer.wide, layer.units
    dx = dw = dr = db = None
    if node.need(0):
        parts = [g.op("Gemm", back.projected, w) for back, w in zip(backs, weights, strict=True)]
        dx = g.reshape(parts[0] if len(parts) == 1 else g.op("Sum", *parts), g.shapes[node.x[0]])
    if node.need(1):
        each_w = [g.weight_gradient(back.projected, rows, node.x[1], node) for back in backs]
        dw = joined(g, [g.reshape(part, (1, wide, layer.inputs)) for part in each_w])
    if node.need(2):
        dr = joined(g, [g.reshape(_recurrent(g, layer, back), (1, wide, units)) for back in backs])
    if node.need(3):
        sums = [[g.total(m, 0) for m in (back.projected, back.recurrent)] for back in backs]
        db = joined(g, [g.reshape(g.op("Concat", *pair, axis=0), (1, 2 * wide)) for pair in sums])
    states = []
    for i, parts in ((5, [back.h for back in backs]), (6, [back.c for back in backs])):
        wanted = node.need(i)
        states.append(joined(g, [g.reshape(p, (1, layer.batch, units)) for p in parts]) if wanted else None)
    return [dx, dw, dr, db, None, *states]


def _recurrent(g: Builder, layer: Layer, back: Back) -> str:
    """dR of one direction [G H, H]."""
    node, units = layer.node, layer.units
    if not back.reset:
        return g.weight_gradient(back.recurrent, back.previous, node.x[2], node)
    gates, new = g.ops("Split", back.recurrent, g.integers(2 * units, units), outputs=2, axis=1)
    top = g.weight_gradient(gates, back.previous, node.x[2], node)
    return g.op("Concat", top, g.weight_gradient(new, back.reset, node.x[2], node), axis=0)


@dataclass(slots=True)
class Run:
    """A forward recurrence: the node's outputs, and how to go back from their gradients ('' for none)."""

    outputs: list[str]
    back: Any  # (gradients of Y, Y_h, Y_c) -> list[Back], one a direction


def _native(g: Builder, layer: Layer, projected: list[str], inner: list[str]) -> Run:
    """LSTMTrain and LSTMGrad, GRUTrain and GRUGrad."""
    r, lengths, h0, c0 = (layer.input(i) for i in (2, 4, 5, 6))
    how: dict[str, Any] = {"domain": DOMAIN, "reverse": int(layer.directions == (True,))}
    p = joined(g, [g.reshape(part, layer.gate_shape) for part in projected])
    lstm, units, wide = layer.kind == "LSTM", layer.units, layer.wide
    if lstm:
        y, y_h, y_c, gates, cells = g.ops("LSTMTrain", p, r, h0, c0, lengths, outputs=5, **how)
        outputs = [y, y_h, y_c]
    else:
        how["linear_before_reset"] = int(layer.before)
        bias = joined(g, [g.reshape(b, (1, units)) for b in inner]) if inner[0] else ""
        y, y_h, gates, *hidden = g.ops("GRUTrain", p, r, h0, bias, lengths, outputs=3 + layer.before, **how)
        outputs = [y, y_h]

    def back(dys: list[str]) -> list[Back]:
        if lstm:
            names = g.ops("LSTMGrad", gates, r, cells, y, h0, c0, lengths, *dys, outputs=4, **how)
            dp, previous, dh, dc = (each(g, layer, name) for name in names)
            side = dp
        else:
            kept = hidden[0] if hidden else ""
            names = g.ops("GRUGrad", gates, r, y, kept, h0, lengths, *dys[:2], outputs=4, **how)
            dp, previous, side, dh = (each(g, layer, name) for name in names)
            dc = dh
        found = []
        for i in range(len(layer.directions)):
            rows, before = g.flatten(dp[i], wide), g.flatten(previous[i], units)
            if lstm:
                found.append(Back(rows, rows, before, "", dh[i], dc[i]))
            elif layer.before:
                found.append(Back(rows, g.flatten(side[i], wide), before, "", dh[i], ""))
            else:
                found.append(Back(rows, rows, before, g.flatten(side[i], units), dh[i], ""))
        return found

    return Run(outputs, back)


def _standard(g: Builder, layer: Layer, projected: list[str], inner: list[str]) -> Run:
    """Step by step, each direction by itself."""
    cell = CELLS[layer.kind]
    r = [g.reshape(part, (layer.wide, layer.units)) for part in each(g, layer, layer.input(2))]
    states = [each(g, layer, layer.input(i)) for i in (5, 6)]
    runs = [
        unroll(
            g,
            cell(g, r[i], inner[i], layer.units, layer.before, layer.activation),
            projected[i],
            layer.steps,
            reverse,
            [g.flatten(s[i], layer.units) if s[i] else "" for s in states],
            layer.input(4),
        )
        for i, reverse in enumerate(layer.directions)
    ]
    ys = [g.reshape(run.y, (layer.steps, 1, layer.batch, layer.units)) for run in runs]
    lasts = [[g.reshape(run.last[k], (1, layer.batch, layer.units)) for run in runs] for k in range(len(runs[0].last))]
    outputs = [joined(g, ys, axis=1), *(joined(g, last) for last in lasts)]

    def back(dys: list[str]) -> list[Back]:
        parts = [each(g, layer, dys[0], axis=1), *(each(g, layer, name) for name in dys[1:])]
        return [
            unroll_back(g, run, [g.flatten(part[i], layer.units) if part[i] else "" for part in parts])
            for i, run in enumerate(runs)
        ]

    return Run(outputs, back)


@vjp("LSTM", since=14)
def lstm(g: Builder, node: Node, *dys: str | None) -> Gradients:
    """In any direction, with initial states and lengths; without peepholes, clip or other activations."""
    return [*_rule(g, node, "LSTM", list(dys)), None][: len(node.x)]


@vjp("GRU", since=14)
def gru(g: Builder, node: Node, *dys: str | None) -> Gradients:
    """In any direction, with initial state, lengths and both forms of linear_before_reset."""
    return _rule(g, node, "GRU", list(dys))[: len(node.x)]


@vjp("RNN", since=14)
def rnn(g: Builder, node: Node, *dys: str | None) -> Gradients:
    """With tanh or relu; always unrolled."""
    return _rule(g, node, "RNN", list(dys))[: len(node.x)]
