"""Every VJP rule, in every variant of cases/, through the numeric checker."""

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fleetgrad.edge.autodiff import registry
from fleetgrad.edge.autodiff.checker import _model, _run, check_rule
from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import OPSET, Builder
from fleetgrad.edge.autodiff.registry import FLAT, RULES, differentiate
from tests.edge.cases import CASES
from tests.edge.cases.inputs import numbers

r = numbers()


@pytest.mark.parametrize(
    ("op", "inputs", "how"),
    CASES,
    ids=[
        f"{op}-{'-'.join('none' if x is None else 'x'.join(map(str, x.shape)) for x in xs)}-{how}"
        for op, xs, how in CASES
    ],
)
def test_the_rule_equals_finite_differences(op: str, inputs: tuple[Any, ...], how: dict[str, Any]) -> None:
    check_rule(op, *inputs, **how)


def test_every_rule_has_a_case() -> None:
    chance = {"RandomNormalLike", "RandomUniformLike"}  # other numbers at each run: nothing to compare
    straight = {"QuantizeLinear", "DequantizeLinear"}  # no difference of steps is 1: test_quantized.py
    assert {op for op, _, _ in CASES} | chance | straight == set(RULES) | FLAT


def test_an_op_takes_no_more_than_the_page_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/adding-an-op.md: without Exp's rule it is refused; with the page's, it passes the page's case."""
    page = (Path(__file__).parents[2] / "docs" / "adding-an-op.md").read_text()
    rule, case = (textwrap.dedent(block) for block in re.findall(r"   ```python\n(.*?)   ```", page, re.DOTALL)[:2])
    assert (len(rule.splitlines()), len(case.splitlines())) == (4, 1)
    assert rule == inspect.getsource(RULES["Exp"][1])
    op, inputs, how = eval(case, {"r": r})  # noqa: S307 - our own page
    monkeypatch.delitem(RULES, op)
    with pytest.raises(Unsupported, match="no gradient rule"):
        check_rule(op, *inputs, **how)
    exec(rule, vars(registry).copy())  # noqa: S102 - our own page
    check_rule(op, *inputs, **how)


def test_the_checker_notices_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "Tanh", RULES["Sigmoid"])
    with pytest.raises(AssertionError, match="by differences"):
        check_rule("Tanh", r(3, 4))


def test_the_checker_notices_a_wrong_native_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    since, right = RULES["Relu"]
    monkeypatch.setitem(RULES, "Relu", (since, lambda g, node, dy: right(g, node, g.op("Neg", dy) if g.native else dy)))
    with pytest.raises(AssertionError, match="native True: off by"):
        check_rule("Relu", r(3, 4))


@pytest.mark.parametrize(
    ("op", "how"),
    [
        ("LpNormalization", {}),
        ("LpNormalization", {"p": 1}),
        ("LpPool", {"kernel_shape": [2, 2], "p": 3}),
        ("LpPool", {"kernel_shape": [2, 2], "p": 2, "strides": [2, 2]}),
        ("GlobalLpPool", {"p": 4}),
    ],
)
@pytest.mark.parametrize("value", [0.0, 1e-25])
def test_the_gradient_at_zero_is_finite(op: str, how: dict[str, Any], value: float) -> None:
    x = np.full((2, 3, 4, 4), value, np.float32)
    node = onnx.helper.make_node(op, ["x"], ["y"], **how)
    (y,) = _run(_model([node], {"x": x}, ["y"], {}), {"x": x}, ["y"])
    g = Builder({"x": x.shape, "y": y.shape}, ["x", "y", "dy"])
    found = differentiate([node], {"y": "dy"}, ["x"], {"x", "y"}, g, OPSET)
    feeds = {"x": x, "dy": np.ones_like(y)}
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in g.constants.values()}
    (dx,) = _run(_model([node, *g.nodes], feeds, [found["x"]], constants), feeds, [found["x"]])
    assert np.isfinite(dx).all()
    assert value or not dx.any()


def test_random_convolutions_equal_finite_differences(seed: int) -> None:
    print(f"seed {seed}")
    random = np.random.Generator(np.random.PCG64(seed))
    for _ in range(12):
        rank, group = int(random.integers(1, 3)), int(random.choice([1, 1, 2]))
        channels, outputs = group * int(random.integers(1, 6)), group * int(random.integers(1, 4))
        kernel, size = random.integers(1, 4, rank), random.integers(7, 10, rank)
        how = {
            "strides": random.integers(1, 4, rank).tolist(),
            "dilations": random.integers(1, 3, rank).tolist(),
            "pads": random.integers(0, 3, 2 * rank).tolist(),
            "group": group,
        }
        x, w = r(2, channels, *size), r(outputs, channels // group, *kernel)
        check_rule("Conv", x, w, r(outputs), probes=10, seed=seed, **how)


def test_random_broadcasts_equal_finite_differences(seed: int) -> None:
    print(f"seed {seed}")
    random = np.random.Generator(np.random.PCG64(seed))
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Where"):
        full = tuple(int(n) for n in random.integers(1, 4, random.integers(1, 5)))
        # The first input has the full shape and the batch; the others lack dimensions, or have ones.
        shapes = [
            tuple(n if random.random() < 0.6 else 1 for n in full[random.integers(0, len(full) + 1) :])
            for _ in range(1 if op in {"Sub", "Add", "Mul", "Div", "Where"} else 2)
        ]
        batched = [0, *(i + 1 for i, s in enumerate(shapes) if len(s) == len(full) and s[0] > 1)]
        inputs = [r(*full), *(r(*s) for s in shapes)]
        if op == "Where":
            inputs, batched = [random.random(full) < 0.5, *inputs], [i + 1 for i in batched] + [0]
        check_rule(op, *inputs, batched=batched, probes=10, seed=seed)


def test_random_reductions_equal_finite_differences(seed: int) -> None:
    print(f"seed {seed}")
    random = np.random.Generator(np.random.PCG64(seed))
    for op in sorted(op for op in RULES if op.startswith("Reduce")):
        shape = tuple(int(n) for n in random.integers(2, 4, random.integers(1, 5)))
        some = random.permutation(len(shape))[: random.integers(0, len(shape) + 1)]
        axes = np.array([int(a) - (len(shape) if random.random() < 0.5 else 0) for a in some], np.int64)
        x = np.abs(r(*shape)) if "Log" in op else r(*shape)
        check_rule(op, x, axes, keepdims=int(random.integers(0, 2)), probes=10, seed=seed)
