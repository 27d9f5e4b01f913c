"""Partial training: what is chosen, what the graph leaves out for it, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fleetgrad.edge.autodiff import ModelError, compile_model, survey, zoo
from fleetgrad.edge.autodiff.survey import Totals
from fleetgrad.wire import plan
from fleetgrad.wire.choice import ALL, Choice
from tests.edge.test_autodiff_compile import make, node, ones

DENSE2 = {"dense2.weight", "dense2.bias"}
BIASES = {"conv1.bias", "conv2.bias", "dense1.bias", "dense2.bias"}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"train": ["dense2*"]}, DENSE2),
        ({"train": ["dense*", "conv2*"], "freeze": ["*1*", "conv*"]}, DENSE2),
        ({"last": 1}, DENSE2),
        ({"last": 2}, DENSE2 | {"dense1.weight", "dense1.bias"}),
        ({"biases_only": True}, BIASES),
        ({"biases_only": True, "last": 1}, {"dense2.bias"}),
    ],
)
def test_options_narrow_what_trains(tmp_path: Path, how: dict[str, Any], expected: set[str]) -> None:
    told: list[str] = []
    manifest = compile_model(
        zoo.digits_cnn(), loss="cross-entropy", output=tmp_path / "p", notice=told.append, choice=Choice(**how)
    )
    assert {t.name for t in manifest.of_role("trainable")} == expected
    assert manifest.travels == sum(plan.padded(t.size) for t in manifest.of_role("trainable"))
    assert told == []


def test_a_bias_that_is_added_belongs_to_its_layer_and_a_transposed_weight_to_its_use(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x w", "h"), node("Add", "h b", "hb"), node("Relu", "hb", "r"),
        node("Transpose", "v", "vt", perm=[1, 0]), node("MatMul", "r vt", "k"), node("Add", "c k", "y"),
    ]  # fmt: skip
    model = make(nodes, {"w": ones(4, 5), "b": ones(5), "v": ones(3, 5), "c": ones(3)})
    for how, expected in ((Choice(last=1), {"v", "c"}), (Choice(biases_only=True), {"b", "c"})):
        manifest = compile_model(model, loss="mse", output=tmp_path / "p", choice=how)
        assert {t.name for t in manifest.of_role("trainable")} == expected


def test_nothing_is_computed_below_the_first_trained_layer(tmp_path: Path) -> None:
    kinds = []
    for how in (ALL, Choice(last=1)):
        compile_model(zoo.digits_cnn(), loss="cross-entropy", gradients="fp32", output=tmp_path / "p", choice=how)
        graph = onnx.load(tmp_path / "p" / plan.TRAIN).graph
        kinds.append([n.op_type for n in graph.node])
        kept = {t.name for t in graph.initializer}
    loss = kinds[1].index("SoftmaxCrossEntropy")
    forward = [n.op_type for n in zoo.digits_cnn().graph.node]
    assert kinds[1][: len(forward)] == forward
    after = kinds[1][loss + 1 :]
    assert after.count("Gemm") + after.count("MatMul") == 1  # dW of the last layer, and no dX
    assert len(after) < len(kinds[0]) - kinds[0].index("SoftmaxCrossEntropy") - 8
    assert {"conv1.weight", "conv2.bias", "dense1.weight"} <= kept


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"train": ["fc*"]}, r"--train 'fc\*' matches no float32 weight .*conv1.bias, conv1.weight"),
        ({"last": 5}, "the model has 4 layers with weights"),
        ({"last": 0}, "1 or more can train"),
        ({"last": 1, "train": ["conv*"]}, "none is chosen .*these could train: conv1.weight"),
    ],
)
def test_a_choice_of_nothing_lists_what_there_is(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        compile_model(zoo.digits_cnn(), loss="cross-entropy", output=tmp_path / "p", choice=Choice(**how))


def test_a_survey_tells_what_a_choice_would_train_and_what_would_travel(tmp_path: Path) -> None:
    for choice in (ALL, Choice(last=1), Choice(biases_only=True), Choice(train=["dense*"], freeze=["*.bias"])):
        found = survey(zoo.digits_cnn(), choice=choice, loss="cross-entropy")
        manifest = compile_model(zoo.digits_cnn(), loss="cross-entropy", choice=choice, output=tmp_path / "p")
        trained = manifest.of_role("trainable")
        assert {w.name for w in found.weights if w.trains} == {t.name for t in trained}
        assert {w.reason for w in found.weights if not w.trains} <= {"not chosen"}
        assert found.totals == Totals(sum(t.size for t in trained), 38_282, manifest.travels, manifest.length)


def test_a_survey_of_a_choice_looks_only_at_what_it_needs() -> None:
    """No gradient passes Compress, but what stands behind it does."""
    nodes = [node("MatMul", "x v", "h"), node("Compress", "h keep", "part", axis=1), node("MatMul", "part w", "y")]
    model = make(nodes, {"v": ones(4, 3), "keep": np.array([True, True, False]), "w": ones(2, 3)})
    assert not survey(model).trains
    found = survey(model, choice=Choice(last=1))
    assert found.trains
    assert {w.name: w.reason for w in found.weights if w.name != "keep"} == {"v": "not chosen", "w": ""}
