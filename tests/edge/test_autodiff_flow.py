"""Where gradients flow, and what a weight is told that none comes to."""

from pathlib import Path

import numpy as np
import pytest

from fleetgrad.edge.autodiff import ModelError, compile_model, survey
from tests.edge.test_autodiff_compile import gradients, make, node, ones

FLOORED = [node("MatMul", "x v", "a"), node("Floor", "a", "b"), node("MatMul", "x w", "c"), node("Add", "b c", "y")]


def test_a_weight_behind_a_flat_op_stays_as_it_is_and_is_named(tmp_path: Path) -> None:
    model = make(FLOORED, {"v": ones(4, 3), "w": ones(4, 3)})
    manifest = compile_model(model, loss="cross-entropy", output=tmp_path / "plan")
    assert {t.name: t.role for t in manifest.tensors} == {"w": "trainable", "v": "frozen"}
    rows = {row.name: row for row in survey(model).weights}
    assert rows["w"].trains
    assert not rows["v"].trains
    assert rows["v"].reason == "no gradient passes Floor 'the-b', which is flat"


def test_a_model_with_nothing_but_flat_ways_is_refused(tmp_path: Path) -> None:
    model = make([*FLOORED[:1], node("Floor", "a", "y")], {"v": ones(4, 3)})
    with pytest.raises(ModelError, match="no trainable weights"):
        compile_model(model, loss="cross-entropy", output=tmp_path / "plan")


def test_a_scalar_initializer_is_a_constant(tmp_path: Path) -> None:
    model = make(
        [node("MatMul", "x w", "a"), node("Mul", "a two", "y")], {"w": ones(4, 3), "two": np.array(2, np.float32)}
    )
    manifest = compile_model(model, loss="cross-entropy", output=tmp_path / "plan")
    assert [t.name for t in manifest.tensors] == ["w"]
    rows = {row.name: row for row in survey(model).weights}
    assert rows["two"].reason == "a scalar counts as a constant"


def test_swish_of_a_newer_opset_trains_as_what_it_is_made_of(tmp_path: Path) -> None:
    weights = {"w": ones(4, 3)}
    new = make([node("MatMul", "x w", "a"), node("Swish", "a", "y", alpha=1.5)], weights, opset=24)
    new.ir_version = 11
    made = [node("MatMul", "x w", "a"), node("Mul", "a k", "b"), node("Sigmoid", "b", "c"), node("Mul", "a c", "y")]
    old = make(made, {**weights, "k": np.array(1.5, np.float32)})
    x = np.random.Generator(np.random.PCG64(1)).standard_normal((5, 4), np.float32)
    one, other = (gradients(m, x, np.arange(5) % 3, tmp_path / str(i))["w"] for i, m in enumerate((new, old)))
    np.testing.assert_allclose(one, other, rtol=1e-6)
