"""Batch normalisation in plans: whose statistics, where they are kept, and which layers are left as they are."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleetgrad.edge.autodiff import ModelError, compile_model, export_model, survey
from fleetgrad.edge.data.dataset import Dataset, fit
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer, TrainingError
from fleetgrad.wire import plan
from fleetgrad.wire.choice import ALL, Choice
from tests.edge.test_edge_command import run_here

TRAINING = {"batch_size": 8, "learning_rate": 0.05, "momentum": 0.9, "seed": 3}
SOME = ("scale", "bias", "mean", "var")


def network(shared: bool = False) -> onnx.ModelProto:
    """Dense, batch normalisation (exported in training mode), dense; `shared`: the normalisation twice."""
    random = np.random.Generator(np.random.PCG64(2))
    weights = {
        "a": random.standard_normal((4, 6)), "scale": np.ones(6), "bias": np.zeros(6), "mean": np.zeros(6),
        "var": np.ones(6), "b": random.standard_normal((6, 3)),
    }  # fmt: skip
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"])]
    for i in range(1 + shared):
        source = "n0" if i else "h"
        outputs = [f"n{i}", f"m{i}", f"v{i}"]
        nodes.append(helper.make_node("BatchNormalization", [source, *SOME], outputs, training_mode=1))
    nodes.append(helper.make_node("MatMul", [f"n{int(shared)}", "b"], ["y"]))
    graph = helper.make_graph(
        nodes, "bn", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 3))],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples(folder: Path, count: int) -> Dataset:
    random = np.random.Generator(np.random.PCG64(4))
    x = random.standard_normal((count, 4)) * 3 + 5
    return fit("d", x, (x[:, 0] > x[:, 1]).astype(np.int64), open_plan(folder).manifest)


def test_running_statistics_follow_the_data_and_stay_on_the_device(tmp_path: Path) -> None:
    manifest = compile_model(network(), loss="cross-entropy", output=tmp_path / "plan")
    assert {t.name for t in manifest.of_role("personal")} == {"mean", "var"}
    assert manifest.travels == max(t.end for t in manifest.of_role("trainable"))
    trainer, data = Trainer(open_plan(tmp_path / "plan")), samples(tmp_path / "plan", 200)
    base = trainer.parameters.copy()
    before = trainer.evaluate(data)
    trainer.run_epochs(data, epochs=4, **TRAINING)  # type: ignore[arg-type]
    assert trainer.delta(base).size == manifest.travels
    after = trainer.evaluate(data)
    assert before.accuracy is not None
    assert after.accuracy is not None
    assert after.accuracy > max(0.9, before.accuracy)
    whole = trainer.model
    parts = {t.name: whole[t.offset : t.offset + t.size].reshape(t.shape) for t in manifest.tensors}
    hidden = np.asarray(data.batch(np.arange(200))[0], np.float32) @ parts["a"]
    np.testing.assert_allclose(parts["mean"], hidden.mean(0), atol=3)
    assert (parts["var"] > 5).all()

    # The exported model predicts with them.
    export_model(tmp_path / "plan", whole, tmp_path / "out.onnx")
    x, y = data.batch(np.arange(200))
    (logits,) = onnxruntime.InferenceSession(str(tmp_path / "out.onnx")).run(["y"], {"x": x})
    assert (logits.argmax(1) == y).mean() == pytest.approx(after.accuracy)


def test_the_command_exports_the_statistics(tmp_path: Path) -> None:
    compile_model(network(), loss="cross-entropy", output=tmp_path / "plan")
    data = samples(tmp_path / "plan", 60)
    x, y = data.batch(np.arange(60))
    np.savez(tmp_path / "d.npz", x=x, y=y)
    words = ["train", tmp_path / "plan", "--data", tmp_path / "d.npz", "--output", tmp_path / "out.onnx"]
    done = run_here(*words)
    assert done.returncode == 0, done.stderr
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert np.abs(weights["mean"]).max() > 1


def test_a_single_sample_at_the_end_joins_the_batch_before(tmp_path: Path) -> None:
    compile_model(network(), loss="cross-entropy", output=tmp_path / "plan")
    trainer = Trainer(open_plan(tmp_path / "plan"))
    result = trainer.run_epochs(samples(tmp_path / "plan", 17), epochs=1, **TRAINING)  # type: ignore[arg-type]
    assert result.steps == 2
    assert trainer._edges(18, 8) == [0, 8, 16, 18]


@pytest.mark.parametrize("how", [{"batch_norm": "frozen"}, {"choice": Choice(freeze=["scale", "bias"])}])
def test_frozen_layers_keep_their_statistics(tmp_path: Path, how: dict[str, object]) -> None:
    manifest = compile_model(network(), loss="cross-entropy", output=tmp_path / "plan", **how)  # type: ignore[arg-type]
    assert not manifest.of_role("personal")
    assert {"mean", "var"} <= {t.name for t in manifest.of_role("frozen")}
    kinds = [n.op_type for n in onnx.load(tmp_path / "plan" / plan.TRAIN).graph.node]
    assert "BatchNormalization" in kinds
    assert "BatchNorm" not in kinds


def test_layers_that_share_statistics_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="share the statistics 'mean'"):
        compile_model(network(shared=True), loss="cross-entropy", output=tmp_path / "plan")
    compile_model(network(shared=True), loss="cross-entropy", batch_norm="frozen", output=tmp_path / "plan")


def test_a_plan_of_standard_ops_has_fp32_gradients(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cpu-std"):
        compile_model(network(), loss="cross-entropy", profile="cpu-std", output=tmp_path / "plan")
    manifest = compile_model(
        network(), loss="cross-entropy", profile="cpu-std", gradients="fp32", output=tmp_path / "plan"
    )
    assert manifest.op_abi == 0
    Trainer(open_plan(tmp_path / "plan")).run_epochs(samples(tmp_path / "plan", 20), epochs=1, **TRAINING)  # type: ignore[arg-type]


def test_shared_statistics_travel_behind_the_weights_in_a_unit_that_leaves_them_room(tmp_path: Path) -> None:
    manifest = compile_model(network(), loss="cross-entropy", batch_norm="shared", output=tmp_path / "plan")
    assert [(t.name, t.role) for t in manifest.tensors] == [
        ("a", "trainable"), ("scale", "trainable"), ("bias", "trainable"), ("b", "trainable"),
        ("mean", "statistic"), ("var", "statistic"),
    ]  # fmt: skip
    assert manifest.travels == manifest.length
    trainer, data = Trainer(open_plan(tmp_path / "plan")), samples(tmp_path / "plan", 40)
    base = trainer.parameters.copy()
    trainer.run_epochs(data, epochs=1, **TRAINING)  # type: ignore[arg-type]
    start = manifest.of_role("statistic")[0].offset
    assert np.abs(trainer.delta(base)[start:]).max() > 1
    trained = trainer.parameters.copy()
    trainer.parameters[start:] = base[start:] + 1000
    assert trainer.delta(base)[start] == 1000
    trainer.parameters[start] = base[start] + 300_000
    with pytest.raises(TrainingError, match=r"changes tensor 'mean' by 3e\+05, at most 262144 can be summed"):
        trainer.delta(base)
    trainer.load(base)
    trainer.run_epochs(data, epochs=1, **TRAINING)  # type: ignore[arg-type]
    assert np.array_equal(trainer.parameters, trained)  # statistics begin where the loaded model has them
    model = network()
    large = next(t for t in model.graph.initializer if t.name == "var")
    large.CopyFrom(numpy_helper.from_array(np.full(6, 3000, np.float32), "var"))
    manifest = compile_model(model, loss="cross-entropy", batch_norm="shared", output=tmp_path / "plan")
    assert manifest.statistics.exponent == 14  # 256 x 3,000 is under 64 x 2^14


@pytest.mark.parametrize("choice", [ALL, Choice(train=["b"])])
@pytest.mark.parametrize("kind", ["batch", "shared", "frozen"])
def test_a_survey_counts_the_statistics_that_would_travel(tmp_path: Path, kind: plan.BatchNorm, choice: Choice) -> None:
    manifest = compile_model(network(), loss="mse", batch_norm=kind, choice=choice, output=tmp_path / "plan")
    totals = survey(network(), batch_norm=kind, choice=choice).totals
    assert totals is not None
    assert (totals.travels, totals.length) == (manifest.travels, manifest.length)
