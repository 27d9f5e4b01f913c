"""Rules of elementwise ops, activations, reductions and Einsum against torch's autograd in float64, at kinks and ties too."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from fleetgrad.edge.autodiff import UnsupportedModel, compile_model, rules
from fleetgrad.edge.autodiff.graph import OPSET, Array, Builder
from fleetgrad.edge.autodiff.reference import OPS
from fleetgrad.edge.autodiff.registry import differentiate
from tests.edge.cases.inputs import numbers, whole
from tests.edge.test_autodiff_compile import make, node, ones

assert rules
r = numbers(7)
KINKS = np.array([[-4.0, -3.0, -1.0, -0.5, 0.0], [0.0, 0.5, 1.0, 3.0, 6.0]])
TIES = np.array([[1.0, 2.0, 2.0, 0.0], [3.0, -1.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
TOLERANCE = 1e-7  # attributes, such as the 1/6 of HardSwish, are float32
Case = tuple[str, tuple[Array, ...], dict[str, Any], Callable[..., Any]]


def by_rule(op: str, inputs: tuple[Array, ...], dy: Array, attributes: dict[str, Any]) -> list[Array | None]:
    """The gradients of the float inputs; integers and scalars are constants, as in a model."""
    names = [f"x{i}" for i in range(len(inputs))]
    outputs = ["y", "i"] if op == "TopK" else ["y"]
    forward = helper.make_node(op, names, outputs, **attributes)
    values = dict(zip(names, inputs, strict=True))
    known = {n: x for n, x in values.items() if x.dtype.kind != "f" or not x.ndim}
    wanted = [n for n in names if n not in known]
    g = Builder(
        {**{n: x.shape for n, x in values.items()}, "y": dy.shape}, [*names, "y", "dy"], np.float64, known=known
    )
    found = differentiate([forward], {"y": "dy"}, wanted, {*wanted, "y"}, g, OPSET)
    feeds = {**values, "dy": dy}
    graph = helper.make_graph(
        [*g.forward([forward]), *g.nodes],
        "oracle",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in feeds.items()],
        [helper.make_tensor_value_info(n, 11, None) for n in found.values()],
        list(g.constants.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    got = dict(zip(found, ReferenceEvaluator(model, new_ops=OPS).run(None, feeds), strict=True))
    return [got.get(n) for n in wanted]


def compare(op: str, inputs: tuple[Array, ...], attributes: dict[str, Any], formula: Callable[..., Any]) -> None:
    import torch

    leaves = [torch.tensor(x, requires_grad=x.dtype.kind == "f" and bool(x.ndim)) for x in inputs]
    y = formula(torch, *leaves)
    dy = np.asarray(np.random.Generator(np.random.PCG64(1)).standard_normal(tuple(y.shape)))
    y.backward(torch.tensor(dy))
    wanted = [leaf.grad.numpy() for leaf in leaves if leaf.requires_grad]
    with np.errstate(all="ignore"):
        for found, exact in zip(by_rule(op, inputs, dy, attributes), wanted, strict=True):
            assert found is not None
            assert found.shape == exact.shape
            np.testing.assert_allclose(found, exact, rtol=TOLERANCE, atol=TOLERANCE)


def unary(op: str, x: Array, formula: Callable[..., Any], **attributes: Any) -> Case:
    return op, (x,), attributes, formula


POINTWISE: list[Case] = [
    ("Pow", (KINKS, np.array(2.0)), {}, lambda t, x, e: x**e),
    ("Pow", (KINKS, np.array(3.5)), {}, lambda t, x, e: t.pow(x, e)),
    ("Pow", (KINKS, np.array(0.0)), {}, lambda t, x, e: t.pow(x, e)),
    ("Pow", (np.abs(KINKS), np.array([0.0, 1.0, 2.0, 0.5, 3.0])), {}, lambda t, x, e: t.pow(x, e)),
    ("Pow", (np.abs(KINKS[:, :1]), np.abs(r(2, 3, 1, 4))), {}, lambda t, x, e: t.pow(x, e)),
    ("Max", (TIES, TIES[:, ::-1].copy()), {}, lambda t, a, b: t.maximum(a, b)),
    ("Min", (TIES, np.array([2.0, 2.0, 3.0, 0.0])), {}, lambda t, a, b: t.minimum(a, b)),
    ("Min", (r(3, 1, 4), r(2, 1)), {}, lambda t, a, b: t.minimum(a, b)),
    ("Mod", (r(2, 3, 4), r(4)), {"fmod": 1}, lambda t, a, b: t.fmod(a, b)),
    ("Where", (TIES > 0, r(3, 4), r(4)), {}, lambda t, c, a, b: t.where(c, a, b)),
    ("Div", (r(2, 1, 4), r(3, 1)), {}, lambda t, a, b: a / b),
    ("Clip", (KINKS, np.array(-1.0), np.array(3.0)), {}, lambda t, x, a, b: t.nn.functional.hardtanh(x, -1.0, 3.0)),
    unary("Abs", KINKS, lambda t, x: t.abs(x)),
    unary("Sqrt", np.abs(KINKS), lambda t, x: t.sqrt(x)),
    unary("Reciprocal", r(3, 4), lambda t, x: t.reciprocal(x)),
    unary("Log", np.abs(r(3, 4)), lambda t, x: t.log(x)),
    *(
        unary(op, r(3, 4), lambda t, x, op=op: getattr(t, op.lower())(x))
        for op in ("Exp", "Neg", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh", "Erf")
    ),
    *(unary(op, np.tanh(r(3, 4)), lambda t, x, op=op: getattr(t, op.lower())(x)) for op in ("Asin", "Acos", "Atanh")),
    unary("Acosh", 1.1 + np.abs(r(3, 4)), lambda t, x: t.acosh(x)),
]

ACTIVATIONS: list[Case] = [
    unary("Relu", KINKS, lambda t, x: t.relu(x)),
    unary("LeakyRelu", KINKS, lambda t, x: t.nn.functional.leaky_relu(x, 0.25), alpha=0.25),
    ("PRelu", (KINKS, r(5)), {}, lambda t, x, w: t.nn.functional.prelu(x, w)),
    unary("ThresholdedRelu", KINKS, lambda t, x: t.nn.functional.threshold(x, 0.5, 0.0), alpha=0.5),
    unary("Shrink", KINKS, lambda t, x: t.nn.functional.softshrink(x, 0.5), lambd=0.5, bias=0.5),
    unary("Shrink", KINKS, lambda t, x: t.nn.functional.hardshrink(x, 0.5), lambd=0.5),
    unary("Elu", KINKS, lambda t, x: t.nn.functional.elu(x, 1.5), alpha=1.5),
    unary("Selu", KINKS, lambda t, x: t.nn.functional.selu(x)),
    unary("Celu", KINKS, lambda t, x: t.nn.functional.celu(x, 2.0), alpha=2.0),
    unary("Sigmoid", KINKS, lambda t, x: t.sigmoid(x)),
    unary("HardSwish", KINKS, lambda t, x: t.nn.functional.hardswish(x)),
    unary("Mish", 9 * KINKS, lambda t, x: t.nn.functional.mish(x)),
    unary("Softplus", 9 * KINKS, lambda t, x: t.nn.functional.softplus(x, threshold=1e9)),
    unary("Softsign", KINKS, lambda t, x: t.nn.functional.softsign(x)),
    unary("Tanh", KINKS, lambda t, x: t.tanh(x)),
    unary("Gelu", KINKS, lambda t, x: t.nn.functional.gelu(x)),
    unary("Gelu", KINKS, lambda t, x: t.nn.functional.gelu(x, approximate="tanh"), approximate="tanh"),
    unary("Softmax", r(3, 1, 5), lambda t, x: t.softmax(x, -3), axis=-3),
    unary("LogSoftmax", 50 * r(3, 5, 2), lambda t, x: t.log_softmax(x, -2), axis=-2),
]

REDUCTIONS: list[Case] = [
    ("ReduceSum", (r(3, 4, 2), whole(-2)), {}, lambda t, x, _: x.sum(-2, keepdim=True)),
    ("ReduceMean", (r(3, 4, 2), whole(-1, 0)), {"keepdims": 0}, lambda t, x, _: x.mean((0, 2))),
    ("ReduceMax", (TIES, whole(1)), {"keepdims": 0}, lambda t, x, _: x.amax(1)),
    ("ReduceMin", (TIES, whole(-2)), {}, lambda t, x, _: x.amin(-2, keepdim=True)),
    ("ReduceMax", (TIES,), {"keepdims": 0}, lambda t, x: x.amax()),
    ("ReduceProd", (TIES, whole(1)), {"keepdims": 0}, lambda t, x, _: x.prod(1)),
    ("ReduceProd", (TIES[:2],), {"keepdims": 0}, lambda t, x: x.prod()),
    ("ReduceL1", (TIES, whole(1)), {"keepdims": 0}, lambda t, x, _: x.norm(1, 1)),
    ("ReduceL2", (TIES, whole(1)), {"keepdims": 0}, lambda t, x, _: x.norm(2, 1)),
    ("ReduceL2", (r(2, 3, 4),), {"keepdims": 0}, lambda t, x: x.norm(2)),
    ("ReduceSumSquare", (TIES, whole(0)), {"keepdims": 0}, lambda t, x, _: (x * x).sum(0)),
    ("ReduceLogSum", (np.abs(r(3, 4)), whole(0)), {"keepdims": 0}, lambda t, x, _: x.sum(0).log()),
    ("ReduceLogSumExp", (90 * r(3, 4, 2), whole(2, 1)), {"keepdims": 0}, lambda t, x, _: x.logsumexp((1, 2))),
    ("CumSum", (r(3, 4, 2), np.array(-2)), {}, lambda t, x, _: x.cumsum(-2)),
    ("TopK", (r(3, 7), whole(3)), {}, lambda t, x, _: x.topk(3).values),
    ("TopK", (r(3, 7, 2), whole(4)), {"axis": 1, "largest": 0}, lambda t, x, _: x.topk(4, 1, largest=False).values),
    *(
        (
            "Einsum",
            tuple(r(*shape) for shape in shapes),
            {"equation": equation},
            lambda t, *xs, e=equation: t.einsum(e, *xs),
        )
        for equation, shapes in (
            ("bhid,bhjd->bhij", ((2, 3, 4, 5), (2, 3, 6, 5))),
            ("ij,jk", ((3, 4), (4, 5))),
            ("...ij,kj->...ki", ((2, 3, 4, 5), (6, 5))),
            ("bij,bkl->bik", ((2, 3, 4), (2, 5, 6))),
            ("ab->", ((3, 4),)),
        )
    ),
]


@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    "case",
    [*POINTWISE, *ACTIVATIONS, *REDUCTIONS],
    ids=lambda case: f"{case[0]}-{[x.shape for x in case[1]]}-{case[2]}",
)
def test_the_rule_equals_torch(case: Case) -> None:
    compare(*case)


REFUSED = {
    "Dropout of a weight": (
        [node("Dropout", "u half true", "v"), node("Mul", "a v", "y")],
        {"u": ones(3), "half": np.array(0.5, np.float32), "true": np.array(True)},
        "can't be fed",
    ),
    "Einsum with a letter twice": (
        [node("Einsum", "a s", "y", equation="bi,jj->bi")],
        {"s": ones(3, 3)},
        "letter twice",
    ),
    "Einsum that broadcasts": (
        [node("Einsum", "a s", "y", equation="...i,...i->...i")],
        {"s": ones(1, 3)},
        "broadcast",
    ),
    "Elu with a negative slope": ([node("Elu", "a", "y", alpha=-1.0)], {}, "isn't positive"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_variant_that_is_left_out_is_refused_with_its_reason(tmp_path: Any, what: str) -> None:
    nodes, more, reason = REFUSED[what]
    model = make([node("MatMul", "x w", "a"), *nodes], {"w": ones(4, 3), **more})
    with pytest.raises(UnsupportedModel, match=reason):
        compile_model(model, loss="mse", output=tmp_path / "p")
