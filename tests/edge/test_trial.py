"""The known step: every instruction set passes it, whatever the model; a board that computes another step won't train."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fleetgrad.edge.autodiff import compile_model, zoo
from fleetgrad.edge.data.dataset import fit
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.edge.training.trial import difference, draw, told
from fleetgrad.native import binding
from fleetgrad.wire import plan
from fleetgrad.wire.loss import LossName
from fleetgrad.wire.trial import Trial
from tests.edge.test_autodiff_compile import make, node, ones
from tests.edge.test_autodiff_dropout import model as dropping
from tests.edge.test_autodiff_front import attention
from tests.edge.test_batch_norm import network


@pytest.fixture
def capability() -> Iterator[None]:
    before = binding.capability()
    yield
    binding.use_capability(before)


MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], LossName, dict[str, Any]]] = {
    "digits": (zoo.digits_cnn, "cross-entropy", {}),
    "normed": (network, "cross-entropy", {}),
    "dropping": (dropping, "mse", {}),
    "tokens": (attention, "bce", {"dims": {"time": 5}}),
}


@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize("name", MODELS)
def test_every_instruction_set_passes_whole_and_in_pieces(tmp_path: Path, name: str) -> None:
    build, loss, how = MODELS[name]
    manifest = compile_model(build(), loss=loss, output=tmp_path / "plan", **how)
    assert manifest.trial is not None
    assert manifest.trial.norm > 0
    for isa in binding.capabilities():
        binding.use_capability(isa)
        for pieces in (None, 1):
            trainer = Trainer(open_plan(tmp_path / "plan"), micro_batch=pieces)
            initial = open_plan(tmp_path / "plan").initial_parameters()
            assert trainer.model.tobytes() == initial.tobytes(), "nothing is left of the trial, statistics included"


def test_a_trial_changes_nothing_of_what_is_trained(tmp_path: Path) -> None:
    """Masks and momentum as without it."""
    manifest = compile_model(dropping(), loss="mse", output=tmp_path / "plan")
    random = np.random.Generator(np.random.PCG64(3))
    data = fit("d", random.standard_normal((16, 4), np.float32), random.standard_normal((16, 2), np.float32), manifest)
    trained = []
    for trial in (manifest.trial, None):
        (tmp_path / "plan" / plan.MANIFEST).write_bytes(plan.encode(msgspec.structs.replace(manifest, trial=trial)))
        trainer = Trainer(open_plan(tmp_path / "plan"))
        trainer.run_epochs(data, epochs=2, batch_size=4, learning_rate=0.1, momentum=0.9, seed=5)
        trained.append(trainer.parameters.tobytes())
    assert trained[0] == trained[1]


def test_a_graph_that_computes_another_gradient_is_refused(tmp_path: Path) -> None:
    """The first layer's gradient has the other sign, as a broken kernel might give it: the loss and the norm are right."""
    manifest = compile_model(zoo.digits_cnn(), loss="cross-entropy", gradients="fp32", output=tmp_path / "plan")
    graph = onnx.load(tmp_path / "plan" / plan.TRAIN)
    name = plan.GRADIENT + "dense1.weight"
    for made in graph.graph.node:
        made.output[:] = [f"{name}.right" if o == name else o for o in made.output]
    graph.graph.node.append(helper.make_node("Neg", [f"{name}.right"], [name]))
    raw = graph.SerializeToString()
    (tmp_path / "plan" / plan.TRAIN).write_bytes(raw)
    files = {**manifest.files, plan.TRAIN: hashlib.sha256(raw).hexdigest()}
    (tmp_path / "plan" / plan.MANIFEST).write_bytes(plan.encode(msgspec.structs.replace(manifest, files=files)))
    with pytest.raises(plan.PlanError, match=r"computes another step.*projection of the gradient .* is expected"):
        Trainer(open_plan(tmp_path / "plan"))


@pytest.mark.parametrize(("field", "factor"), [("loss", 1.002), ("norm", 1.03), ("norm", 0.97), ("loss", 0.998)])
def test_an_outcome_beyond_the_tolerance_is_refused(tmp_path: Path, field: str, factor: float) -> None:
    manifest = compile_model(zoo.mlp(), loss="cross-entropy", output=tmp_path / "plan")
    expected = manifest.trial
    assert expected is not None
    other = msgspec.structs.replace(expected, **{field: factor * getattr(expected, field)})
    (tmp_path / "plan" / plan.MANIFEST).write_bytes(plan.encode(msgspec.structs.replace(manifest, trial=other)))
    with pytest.raises(plan.PlanError, match=rf"this board computes another step.*{field}"):
        Trainer(open_plan(tmp_path / "plan"))


def test_what_is_no_number_differs() -> None:
    expected = Trial(seed=1, loss=1.0, norm=2.0, projection=0.5)
    assert difference(expected, 1.0005, 2.02, 0.58) == ""
    assert "loss nan" in difference(expected, float("nan"), 2.0, 0.5)
    assert "projection" in difference(expected, 1.0, 2.0, 0.61)


def test_tokens_stay_within_their_table_and_labels_within_their_range(tmp_path: Path) -> None:
    nodes = [
        node("Cast", "x long", "i", to=TensorProto.INT64),
        node("Gather", "table i", "e", axis=0),
        node("ReduceMean", "e", "m", axes=[1], keepdims=0),
        node("MatMul", "m w", "y"),
    ]
    nodes[0].input[:] = ["x"]
    model = make(nodes, {"table": ones(300, 4), "w": ones(4, 3)}, ("N", 6), kind=TensorProto.INT32)
    losses: tuple[LossName, ...] = ("cross-entropy", "kl", "bce")
    for loss in losses:
        manifest = compile_model(model, loss=loss, output=tmp_path / loss)
        assert manifest.trial is not None
        assert manifest.trial.limits == {"x": 300}
        drawn = draw(manifest, manifest.trial.limits, 7, 400)
        few = draw(manifest, manifest.trial.limits, 7, 2)
        assert all(np.array_equal(drawn[name][:2], few[name]) for name in few), "a batch of two begins one of more"
        assert (int(drawn["x"].min()), int(drawn["x"].max())) == (0, 299)
        label = drawn[plan.LABEL]
        fit("d", drawn["x"], label, manifest)  # refuses what is no label of the loss
        assert label.std() > 0.05


def test_the_drawn_numbers_are_the_same_for_good(tmp_path: Path) -> None:
    """Pinned: a device with another NumPy draws the batch that the plan was compiled with."""
    manifest = compile_model(
        make([node("MatMul", "x w", "y")], {"w": ones(4, 3)}), loss="mse", output=tmp_path / "plan"
    )
    found = draw(manifest, {}, 12345, 1)
    assert (found["x"] * 2**24).tolist() == [[15100358, 1831272, 8165298, 3528204]]
    norm, projection = told(np.arange(100, dtype=np.float32), 12345)
    assert norm == pytest.approx(573.01832)
    assert projection == 270


def test_a_model_that_cannot_run_on_made_up_data_compiles_without_a_trial(tmp_path: Path) -> None:
    """log(x - 2) isn't a number below 2."""
    nodes = [node("Sub", "x two", "s"), node("Log", "s", "l"), node("MatMul", "l w", "y")]
    told_: list[str] = []
    model = make(nodes, {"w": ones(4, 3), "two": np.array(2, np.float32)})
    manifest = compile_model(model, loss="mse", output=tmp_path / "plan", notice=told_.append, gradients="fp32")
    assert manifest.trial is None
    assert manifest.memory is not None
    assert any("no self-test" in text for text in told_)
    Trainer(open_plan(tmp_path / "plan"))
