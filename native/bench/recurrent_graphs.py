"""Training graphs of one LSTM or GRU layer, forward and backward, once around the custom ops and once of standard ops, unrolled over time.

Both forms take x [T, B, I], w [D, gH, I], r [D, gH, H], b [D, 2gH] (Wb, Rb), h0 and c0 [D, B, H], dy [T, D, B, H] and give y, dx, dw, dr, db, dh0
(and dc0), as an autodiff pass would emit them: sizes are constants, products over whole sequences are matrix products outside the recurrence.
"""

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from fleetgrad.native import kernels

OPSET = 21


class Graph:
    """Nodes in the order of their making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._names = (f"v{i}" for i in itertools.count())

    def many(self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        """A node of several outputs."""
        names = [next(self._names) for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node of one output."""
        return self.many(kind, *inputs, outputs=1, **attributes)[0]

    def constant(self, value: Any, dtype: type[np.generic] = np.int64) -> str:
        """An initializer."""
        name = next(self._names)
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def reshape(self, x: str, *shape: int) -> str:
        """x in another shape."""
        return self.op("Reshape", x, self.constant(shape))

    def slice(self, x: str, start: int, end: int, axis: int) -> str:
        """x[..., start:end, ...]."""
        return self.op("Slice", x, *(self.constant([v]) for v in (start, end, axis)))

    def session(self, inputs: list[str], outputs: dict[str, str], threads: int = 1) -> ort.InferenceSession:
        """The graph in a stock session; outputs: name -> value. Inputs are floats, but for `indices` (int64) and `lengths` (int32)."""
        for name, value in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name]))

        def info(name: str) -> onnx.ValueInfoProto:
            kind = {"indices": TensorProto.INT64, "lengths": TensorProto.INT32}.get(name, TensorProto.FLOAT)
            return helper.make_tensor_value_info(name, kind, None)

        results = [helper.make_empty_tensor_value_info(n) for n in outputs]
        graph = helper.make_graph(self.nodes, "layer", [info(n) for n in inputs], results, self.constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(kernels.DOMAIN, kernels.OP_ABI)]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.register_custom_ops_library(kernels.custom_ops_library())
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


INPUTS = {"LSTM": ["x", "w", "r", "b", "h0", "c0", "dy"], "GRU": ["x", "w", "r", "b", "h0", "dy"]}


def native(
    kind: str, t: int, n: int, i: int, h: int, d: int = 1, *, reverse: int = 0, before: int = 1, lengths: bool = False,
    threads: int = 1,
) -> ort.InferenceSession:  # fmt: skip
    """The layer around LSTMTrain and LSTMGrad, or GRUTrain and GRUGrad with linear_before_reset = before."""
    g = Graph()
    gates = 4 if kind == "LSTM" else 3
    wide = gates * h
    wb, rb = g.slice("b", 0, wide, 1), g.slice("b", wide, 2 * wide, 1)
    inner = ""
    if kind == "GRU" and before:
        inner = g.slice(rb, 2 * h, wide, 1)
        rb = g.op("Mul", rb, g.constant([1.0] * 2 * h + [0.0] * h, np.float32))
    bias = g.op("Add", wb, rb)
    x = g.reshape("x", t * n, i)
    if d == 1:
        projected = g.op("Gemm", x, g.reshape("w", wide, i), g.reshape(bias, wide), transB=1)
    else:
        projected = g.op("Add", g.op("MatMul", x, g.op("Transpose", "w", perm=[0, 2, 1])), g.reshape(bias, d, 1, wide))
    projected = g.reshape(projected, d, t, n, wide)
    steps = "lengths" if lengths else ""
    domain: dict[str, Any] = {"domain": kernels.DOMAIN, "reverse": reverse}
    if kind == "LSTM":
        y, y_h, y_c, saved, cells = g.many("LSTMTrain", projected, "r", "h0", "c0", steps, outputs=5, **domain)
        dp, previous, dh0, dc0 = g.many(
            "LSTMGrad", saved, "r", cells, y, "h0", "c0", steps, "dy", outputs=4, **domain
        )  # fmt: skip
        side = dp
        last = {"y_h": y_h, "y_c": y_c, "dh0": dh0, "dc0": dc0}
    else:
        how: dict[str, Any] = {**domain, "linear_before_reset": before}
        y, y_h, saved, *hidden = g.many("GRUTrain", projected, "r", "h0", inner, steps, outputs=3 + before, **how)
        dp, previous, side, dh0 = g.many(
            "GRUGrad", saved, "r", y, hidden[0] if before else "", "h0", steps, "dy", outputs=4, **how
        )
        last = {"y_h": y_h, "dh0": dh0}
    weights = _products(g, kind, before, x, dp, previous, side, (t, n, i, h, d))
    inputs = [*INPUTS[kind], *(["lengths"] if lengths else [])]
    return g.session(inputs, {"y": y, **last, **weights}, threads)


def _products(
    g: Graph, kind: str, before: int, x: str, dp: str, previous: str, side: str, sizes: tuple[int, ...]
) -> dict[str, str]:
    """dx, dw, dr and db from what the recurrence leaves."""
    t, n, i, h, d = sizes
    wide = (4 if kind == "LSTM" else 3) * h

    def left(a: str, b: str, rows: int, columns: int) -> str:
        """[d, t * n, rows]^T [d or 1, t * n, columns]."""
        if d == 1:
            product = g.op("Gemm", g.reshape(a, t * n, rows), g.reshape(b, t * n, columns), transA=1)
            return g.reshape(product, 1, rows, columns)
        other = b if b == x else g.reshape(b, d, t * n, columns)
        return g.op("MatMul", g.op("Transpose", g.reshape(a, d, t * n, rows), perm=[0, 2, 1]), other)

    def summed(a: str) -> str:
        """Over steps and sequences, as a product with ones: onnxruntime's ReduceSum takes ten times as long here."""
        ones = g.constant(np.ones((1, t * n)), np.float32)
        return g.reshape(g.op("MatMul", ones, g.reshape(a, d, t * n, wide)), d, wide)

    if d == 1:
        dx = g.op("Gemm", g.reshape(dp, t * n, wide), g.reshape("w", wide, i))
    else:
        dx = g.op("ReduceSum", g.op("MatMul", g.reshape(dp, d, t * n, wide), "w"), g.constant([0]), keepdims=0)
    dwb = summed(dp)
    drb = summed(side) if kind == "GRU" and before else dwb
    if kind == "GRU" and not before:
        parts = g.many("Split", dp, g.constant([2 * h, h]), axis=3, outputs=2)
        dr = g.op("Concat", left(parts[0], previous, 2 * h, h), left(parts[1], side, h, h), axis=1)
    else:
        dr = left(side, previous, wide, h)
    return {"dx": g.reshape(dx, t, n, i), "dw": left(dp, x, wide, i), "dr": dr, "db": g.op("Concat", dwb, drb, axis=1)}


def twin(kind: str, t: int, n: int, i: int, h: int, threads: int = 1) -> ort.InferenceSession:
    """The same layer (one direction, GRU with linear_before_reset = 1) of standard ops, unrolled: the portable lowering."""
    g = Graph()
    gates = 4 if kind == "LSTM" else 3
    wide = gates * h
    one = g.constant(1.0, np.float32)
    wb, rb = g.reshape(g.slice("b", 0, wide, 1), wide), g.reshape(g.slice("b", wide, 2 * wide, 1), wide)
    r, x = g.reshape("r", wide, h), g.reshape("x", t * n, i)
    bias = g.op("Add", wb, rb) if kind == "LSTM" else wb
    projected = g.op("Gemm", x, g.reshape("w", wide, i), bias, transB=1)
    steps = g.many("Split", projected, g.constant([n] * t), axis=0, outputs=t)
    dys = g.many("Split", g.reshape("dy", t * n, h), g.constant([n] * t), axis=0, outputs=t)
    states = [g.reshape("h0", n, h)]
    saved: list[tuple[str, ...]] = []
    cells = [g.reshape("c0", n, h)] if kind == "LSTM" else []
    for p in steps:
        if kind == "LSTM":
            a = g.many("Split", g.op("Gemm", states[-1], r, p, transB=1), g.constant([3 * h, h]), axis=1, outputs=2)
            si, so, sf = g.many("Split", g.op("Sigmoid", a[0]), g.constant([h] * 3), axis=1, outputs=3)
            sg = g.op("Tanh", a[1])
            cells.append(g.op("Add", g.op("Mul", sf, cells[-1]), g.op("Mul", si, sg)))
            tangent = g.op("Tanh", cells[-1])
            states.append(g.op("Mul", so, tangent))
            saved.append((si, so, sf, sg, tangent))
        else:
            inner = g.many(
                "Split", g.op("Gemm", states[-1], r, rb, transB=1), g.constant([2 * h, h]), axis=1, outputs=2
            )
            outer = g.many("Split", p, g.constant([2 * h, h]), axis=1, outputs=2)
            z, reset = g.many(
                "Split", g.op("Sigmoid", g.op("Add", outer[0], inner[0])), g.constant([h] * 2), axis=1, outputs=2
            )
            new = g.op("Tanh", g.op("Add", outer[1], g.op("Mul", reset, inner[1])))
            states.append(g.op("Add", g.op("Mul", g.op("Sub", one, z), new), g.op("Mul", z, states[-1])))
            saved.append((z, reset, new, inner[1]))

    def slope(s: str) -> str:
        return g.op("Mul", s, g.op("Sub", one, s))

    def bend(u: str) -> str:
        return g.op("Sub", one, g.op("Mul", u, u))

    dps, sides, carry, dcell = [""] * t, [""] * t, "", ""
    for k in reversed(range(t)):
        dh = g.op("Add", dys[k], carry) if carry else dys[k]
        if kind == "LSTM":
            si, so, sf, sg, tangent = saved[k]
            dc = g.op("Mul", g.op("Mul", dh, so), bend(tangent))
            dc = g.op("Add", dc, dcell) if dcell else dc
            parts = [
                g.op("Mul", g.op("Mul", dc, sg), slope(si)),
                g.op("Mul", g.op("Mul", dh, tangent), slope(so)),
                g.op("Mul", g.op("Mul", dc, cells[k]), slope(sf)),
                g.op("Mul", g.op("Mul", dc, si), bend(sg)),
            ]
            dps[k] = sides[k] = g.op("Concat", *parts, axis=1)
            carry, dcell = g.op("MatMul", dps[k], r), g.op("Mul", dc, sf)
        else:
            z, reset, new, inside = saved[k]
            dn = g.op("Mul", g.op("Mul", dh, g.op("Sub", one, z)), bend(new))
            dz = g.op("Mul", g.op("Mul", dh, g.op("Sub", states[k], new)), slope(z))
            dreset = g.op("Mul", g.op("Mul", dn, inside), slope(reset))
            dps[k] = g.op("Concat", dz, dreset, dn, axis=1)
            sides[k] = g.op("Concat", dz, dreset, g.op("Mul", dn, reset), axis=1)
            carry = g.op("Add", g.op("MatMul", sides[k], r), g.op("Mul", dh, z))
    dp = g.op("Concat", *dps, axis=0)
    side = dp if kind == "LSTM" else g.op("Concat", *sides, axis=0)
    previous = g.op("Concat", *states[:-1], axis=0)
    last = {"y": g.reshape(g.op("Concat", *states[1:], axis=0), t, 1, n, h), "y_h": g.reshape(states[-1], 1, n, h)}
    last["dh0"] = g.reshape(carry, 1, n, h)
    if kind == "LSTM":
        last |= {"y_c": g.reshape(cells[-1], 1, n, h), "dc0": g.reshape(dcell, 1, n, h)}
    return g.session(INPUTS[kind], {**last, **_products(g, kind, 1, x, dp, previous, side, (t, n, i, h, 1))}, threads)


def embedding(form: str, vocabulary: int, width: int, threads: int = 1) -> ort.InferenceSession:
    """The gradient of Gather(W, indices) [vocabulary, width] from indices int64[n] and dy [n, width]: by the custom op or by standard ops."""
    g = Graph()
    if form == "EmbeddingGrad":
        out = {"dw": g.op(form, "indices", "dy", domain=kernels.DOMAIN, vocabulary=vocabulary)}
    elif form == "SparseEmbeddingGrad":
        values, rows = g.many(form, "indices", "dy", outputs=2, domain=kernels.DOMAIN, vocabulary=vocabulary)
        out = {"values": values, "rows": rows}
    elif form == "OneHot":
        zero_one = g.constant([0.0, 1.0], np.float32)
        hot = g.op("OneHot", "indices", g.constant(vocabulary), zero_one)
        out = {"dw": g.op("Gemm", hot, "dy", transA=1)}
    else:
        zeros = g.op(
            "ConstantOfShape", g.constant([vocabulary, width]), value=numpy_helper.from_array(np.zeros(1, np.float32))
        )
        column = g.op("Unsqueeze", "indices", g.constant([1]))
        if form == "ScatterElements":
            column = g.op("Expand", column, g.constant([1, width]))
        out = {"dw": g.op(form, zeros, column, "dy", reduction="add", **({"axis": 0} if form != "ScatterND" else {}))}
    return g.session(["indices", "dy"], out, threads)
