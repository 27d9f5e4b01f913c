"""Dropout of models exported in training mode: masks in training that a seed repeats, none in evaluation and use."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from fleetgrad.edge.autodiff import compile_model, survey
from fleetgrad.edge.data.dataset import fit
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.wire import plan
from tests.edge.test_autodiff_compile import make, node, ones, session

NOISE = plan.NOISE + "b"
SETTINGS = {"batch_size": 4, "learning_rate": 0.1, "momentum": 0.9, "epochs": 2}


def model(shape: tuple[int, ...] = (-1, 3)) -> onnx.ModelProto:
    """y = dropout(x w) v, the dropout of a view of the shape."""
    nodes = [
        node("MatMul", "x w", "m"),
        node("Reshape", "m shape", "a"),
        node("Dropout", "a ratio true", "b"),
        node("Reshape", "b back", "c"),
        node("MatMul", "c v", "y"),
    ]
    constants = {"ratio": np.array(0.25, np.float32), "true": np.array(True)}
    return make(
        nodes, {"w": ones(4, 3), "v": ones(3, 2), "shape": np.array(shape), "back": np.array([-1, 3]), **constants}
    )


@pytest.mark.parametrize("shape", [(-1, 3), (-1,), (3, -1)])
def test_the_gradient_is_that_of_the_masked_product(tmp_path: Path, shape: tuple[int, ...]) -> None:
    manifest = compile_model(model(shape), loss="mse", gradients="fp32", output=tmp_path / "plan")
    (feed,) = manifest.noise
    assert (feed.name, feed.shape) == (NOISE, (3,))
    random = np.random.Generator(np.random.PCG64(1))
    x, label = random.standard_normal((5, 4), np.float32), random.standard_normal((5, 2), np.float32)
    noise, w, v = random.random((5, 3), np.float32), ones(4, 3), ones(3, 2)
    fetches = [plan.LOSS, plan.GRADIENT + "w", plan.GRADIENT + "v"]
    feeds = {"x": x, plan.LABEL: label, NOISE: noise, "w": w, "v": v}
    loss, dw, dv = session(tmp_path / "plan" / plan.TRAIN).run(fetches, feeds)
    mask = (noise >= 0.25) / np.float32(0.75)
    if shape[-1] == -1 and len(shape) > 1:  # a view [3, N]: each sample's three numbers are a column's
        mask = mask.T.reshape(5, 3)
    off = (x @ w) * mask @ v - label
    np.testing.assert_allclose(loss, (off**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(dv, ((x @ w) * mask).T @ (2 * off / off.size), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(dw, x.T @ ((2 * off / off.size) @ v.T * mask), rtol=1e-4, atol=1e-6)


def test_evaluation_and_use_drop_nothing(tmp_path: Path) -> None:
    compile_model(model(), loss="mse", output=tmp_path / "plan")
    assert all(row.trains for row in survey(model()).nodes)
    x = np.random.Generator(np.random.PCG64(2)).standard_normal((5, 4), np.float32)
    expected = x @ ones(4, 3) @ ones(3, 2)
    use = onnxruntime.InferenceSession(str(tmp_path / "plan" / plan.INFER))
    np.testing.assert_allclose(use.run(None, {"x": x})[0], expected, rtol=1e-5)
    evaluation = session(tmp_path / "plan" / plan.EVAL)
    feeds = {"x": x, plan.LABEL: expected, "w": ones(4, 3), "v": ones(3, 2)}
    assert evaluation.run([plan.LOSS], feeds)[0] < 1e-10


def test_a_seed_repeats_the_masks_byte_for_byte_and_another_one_does_not(tmp_path: Path) -> None:
    manifest = compile_model(model(), loss="mse", output=tmp_path / "plan")
    random = np.random.Generator(np.random.PCG64(3))
    data = fit("d", random.standard_normal((16, 4), np.float32), random.standard_normal((16, 2), np.float32), manifest)
    trained = []
    for seed in (5, 5, 6):
        trainer = Trainer(open_plan(tmp_path / "plan"))
        trainer.run_epochs(data, seed=seed, **SETTINGS)  # type: ignore[arg-type]
        trained.append(trainer.parameters.tobytes())
    trainer.load(open_plan(tmp_path / "plan").initial_parameters()[: manifest.travels])
    trainer.run_epochs(data, seed=5, **SETTINGS)  # type: ignore[arg-type]
    assert trained[0] == trained[1] == trainer.parameters.tobytes()
    assert trained[0] != trained[2]
