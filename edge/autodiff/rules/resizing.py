"""VJP of Resize. Along each axis y = A x with a matrix A that is known when the plan is compiled, so dx = A^T dy.

A is measured, not derived: onnxruntime resizes the identity matrix with the node's own attributes, so whatever its kernels
make of coordinate modes, rounding, cubic weights or antialiasing is what is differentiated. Where every entry is repeated a
whole number of times (the usual upsampling), blocks are summed by AveragePool instead.
"""

import functools
import math

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import IR_VERSION, OPSET, Array, Builder, Node
from fleetgrad.edge.autodiff.registry import Gradients, vjp

TEXTS = ("mode", "coordinate_transformation_mode", "nearest_mode")
NUMBERS = ("antialias", "cubic_coeff_a", "exclude_outside", "extrapolation_value")


@vjp("Resize", since=11, still=(1, 2))
def resize(g: Builder, node: Node, dy: str) -> Gradients:
    """Nearest, linear and cubic, by scales or sizes, in every coordinate mode."""
    x, y = g.shapes[node.x[0]], g.shapes[node.y[0]]
    roi, scales, _ = [*node.x[1:], "", "", ""][:3]
    if node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported("with keep_aspect_ratio_policy other than 'stretch'")
    axes = [int(a) % len(x) for a in node.attribute("axes", range(len(x)))]
    factors = dict(zip(axes, g.fixed(scales, "scales").tolist(), strict=True)) if scales else {}
    crop = g.fixed(roi, "roi").ravel().tolist() if roi and 0 not in g.shapes[roi] else []
    how = tuple((k, node.attribute(k, None)) for k in (*TEXTS, *NUMBERS) if node.attribute(k, None) is not None)
    cropped = ("coordinate_transformation_mode", "tf_crop_and_resize") in how
    matrices: dict[int, Array] = {}
    for i, axis in enumerate(axes):
        if not cropped and (factors[axis] == 1.0 if scales else x[axis] == y[axis]):
            continue
        if x[axis] < 1 or y[axis] < 1:
            raise Unsupported(f"needs sizes that are fixed where it resizes, has {x}")
        part = (crop[i], crop[len(axes) + i]) if cropped else None
        matrices[axis] = matrix(x[axis], y[axis], factors.get(axis), how, part)
    rest = [None] * (len(node.x) - 1)
    repeats = {axis: _repeats(m) for axis, m in matrices.items()}
    if matrices and min(repeats.values()) and min(matrices) >= 2 and 3 <= len(x) <= 5:
        block = [repeats.get(axis, 1) for axis in range(2, len(x))]
        mean = g.op("AveragePool", dy, kernel_shape=block, strides=block)
        return [g.op("Mul", mean, g.constant(float(math.prod(block)))), *rest]
    for axis, m in sorted(matrices.items(), reverse=True):
        dy = _along(g, dy, axis, m, [*y[:axis], *(x[i] if i in matrices else y[i] for i in range(axis, len(x)))])
    return [dy, *rest]


def _along(g: Builder, dy: str, axis: int, m: Array, after: list[int]) -> str:
    """m^T dy along an axis; `after` is the shape that results."""
    if axis == len(after) - 1:
        return g.op("MatMul", dy, g.constant(m))
    tail = after[axis + 1 :]
    if min(tail) < 1 or sum(d < 0 for d in after) > 1:
        raise Unsupported("the batch lies behind an axis that is resized")
    lead = 1 if not axis else -1 if min(after[:axis]) < 0 else math.prod(after[:axis])
    dy = g.reshape(dy, (lead, m.shape[0], math.prod(tail)))
    return g.reshape(g.op("MatMul", g.constant(m.T), dy), tuple(after))


def _repeats(m: Array) -> int:
    """k when m repeats every entry k times, else 0."""
    k, rest = divmod(len(m), m.shape[1])
    return k if not rest and np.array_equal(m, np.repeat(np.eye(m.shape[1]), k, axis=0)) else 0


@functools.lru_cache(maxsize=256)
def matrix(
    n: int, m: int, scale: float | None, how: tuple[tuple[str, object], ...], crop: tuple[float, float] | None
) -> Array:
    """A [m, n] of an axis of n that becomes one of m: the identity's rows, resized, less what zeros become."""
    square = np.concatenate([np.eye(n, dtype=np.float32), np.zeros((1, n), np.float32)])[None, None]
    by = [1.0, 1.0, 1.0, scale] if scale else [1, 1, n + 1, m]
    tensors = [
        numpy_helper.from_array(np.array([0, 0, 0, crop[0], 1, 1, 1, crop[1]] if crop else [], np.float32), "roi"),
        numpy_helper.from_array(np.array(by, np.float32 if scale else np.int64), "by"),
    ]
    names = ["x", "roi", "by"] if scale else ["x", "roi", "", "by"]
    node = helper.make_node("Resize", names, ["y"], **dict(how))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, square.shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "axis", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        rows = session.run(None, {"x": square})[0][0, 0]
    except Exception as e:
        raise Unsupported(f"onnxruntime doesn't resize {n} to {m} so: {str(e).splitlines()[0][:200]}") from e
    found: Array = (rows[:n] - rows[n:]).T.astype(np.float64)
    return found
