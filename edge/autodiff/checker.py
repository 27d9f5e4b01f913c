"""Checks VJP rules in float64 against central finite differences, and their float32 form on onnxruntime.

For y = f(x), a random direction r and s(x) = sum(r y): the rule's answer for dy = r must be

    ds/dx_i  ~  (s(x + h e_i) - s(x - h e_i)) / 2h

f and the gradient's nodes are evaluated in float64 by onnx's reference evaluator, so that a difference is a wrong rule
and not rounding; then onnxruntime runs the same nodes in float32, which shows where its kernels read the standard
differently. The first dimension of the data is compiled as the symbolic batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_conv_transpose import ConvTranspose as Ungrouped

from fleetgrad.edge.autodiff.graph import IR_VERSION, OPSET, Array, Builder, Shape
from fleetgrad.edge.autodiff.registry import differentiate

STEP = 1e-5  # of the differences: their error is about STEP^2 + 1e-16 / STEP
TOLERANCE = 1e-6  # float64 rule against differences, relative to the largest entry
TOLERANCE_FLOAT32 = 2e-5  # onnxruntime in float32 against the float64 rule

KINDS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float64): TensorProto.DOUBLE}


class ConvTranspose(Ungrouped):  # type: ignore[misc]
    """The evaluator's own, group by group: it lays out the channels wrongly when a group has several."""

    op_domain = ""

    def _run(self, x: Array, w: Array, bias: Array | None = None, group: int = 1, **attributes: Any) -> tuple[Array]:
        parts = zip(np.split(x, group, axis=1), np.split(w, group, axis=0), strict=True)
        y = np.concatenate(
            [super(ConvTranspose, self)._run(a, b, None, group=1, **attributes)[0] for a, b in parts], axis=1
        )
        return (y if bias is None else y + bias.reshape(1, -1, *(1 for _ in y.shape[2:])),)


def check_rule(
    op: str,
    *inputs: Array | None,
    batched: Sequence[int] = (0,),
    probes: int = 40,
    seed: int = 0,
    **attributes: Any,
) -> None:
    """Raises AssertionError, with both numbers, when the rule of `op` is wrong for these inputs.

    Float inputs are differentiated (float64 is used whatever their type), integer inputs are constants, None is an input
    that is left out. `batched` are the inputs whose first dimension is the batch. At most `probes` entries of each input
    are perturbed.
    """
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    node = helper.make_node(op, names, ["y"], **attributes)
    floats = {
        n: x.astype(np.float64) for n, x in zip(names, inputs, strict=True) if x is not None and x.dtype.kind == "f"
    }
    fixed = {n: x for n, x in zip(names, inputs, strict=True) if x is not None and x.dtype.kind != "f"}
    initializers = [numpy_helper.from_array(x, n) for n, x in fixed.items()]
    forward = ReferenceEvaluator(_model([node], floats, ["y"], initializers, np.float64))
    (y,) = forward.run(None, floats)

    # The shape with a batch of one more tells which dimensions of y hold the batch.
    longer = {
        n: np.concatenate([x, x[:1]]) if n in {f"x{i}" for i in batched} and x.ndim else x for n, x in floats.items()
    }
    count = len(floats[f"x{batched[0]}"]) if batched else 1
    (other,) = forward.run(None, longer) if batched else (y,)
    shapes: dict[str, Shape] = {n: x.shape for n, x in fixed.items()}
    for n, x in [*floats.items(), ("y", y)]:
        grown = other if n == "y" else longer[n]
        shapes[n] = tuple(a if a == b else -(a // count) for a, b in zip(x.shape, grown.shape, strict=True))

    random = np.random.Generator(np.random.PCG64(seed))
    direction = random.standard_normal(y.shape)
    wanted = list(floats)
    gradients: dict[type, dict[str, Array]] = {}
    for dtype in (np.float64, np.float32):
        g = Builder(shapes, [*shapes, "y", "dy"], dtype)
        found = differentiate([node], {"y": "dy"}, wanted, {*floats, "y"}, g, OPSET)
        _hold(list(found) == wanted, f"{op}: the rule gives no gradient for {set(wanted) - set(found)}")
        feeds = {n: x.astype(dtype) for n, x in {**floats, "dy": direction}.items()}
        model = _model([node, *g.nodes], feeds, list(found.values()), [*initializers, *g.constants.values()], dtype)
        gradients[dtype] = dict(zip(found, _run(model, feeds, list(found.values()), dtype), strict=True))

    for name in wanted:
        x, exact = floats[name], gradients[np.float64][name]
        _hold(exact.shape == x.shape, f"{op}: gradient of {name} has shape {exact.shape}, the input has {x.shape}")
        scale = max(1.0, float(np.abs(exact).max(initial=0)))
        for flat in random.permutation(x.size)[:probes]:
            at = np.unravel_index(flat, x.shape)
            sums = []
            for sign in (1, -1):
                moved = x.copy()
                moved[at] += sign * STEP
                (value,) = forward.run(None, {**floats, name: moved})
                sums.append(float((value * direction).sum()))
            measured = (sums[0] - sums[1]) / (2 * STEP)
            _hold(
                abs(measured - float(exact[at])) <= TOLERANCE * scale,
                f"{op} {attributes}: d/d{name}{[int(i) for i in at]} is {exact[at]:.9g} by the rule, {measured:.9g} by differences",
            )
        error = float(np.abs(gradients[np.float32][name] - exact).max(initial=0)) / scale
        _hold(error <= TOLERANCE_FLOAT32, f"{op} {attributes}: onnxruntime's gradient of {name} is off by {error:.2g}")


def _hold(claim: bool, message: str) -> None:
    if not claim:
        raise AssertionError(message)


def _model(
    nodes: list[onnx.NodeProto],
    feeds: dict[str, Array],
    fetches: list[str],
    initializers: list[onnx.TensorProto],
    dtype: type,
) -> onnx.ModelProto:
    kind = KINDS[np.dtype(dtype)]
    inputs = [helper.make_tensor_value_info(n, kind, x.shape) for n, x in feeds.items()]
    outputs = [helper.make_tensor_value_info(n, kind, None) for n in fetches]
    graph = helper.make_graph(nodes, "check", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _run(model: onnx.ModelProto, feeds: dict[str, Array], fetches: list[str], dtype: type) -> list[NDArray[Any]]:
    if dtype is np.float64:
        return [np.asarray(v) for v in ReferenceEvaluator(model, new_ops=[ConvTranspose]).run(fetches, feeds)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(v) for v in session.run(fetches, feeds)]
