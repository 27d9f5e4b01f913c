"""The profile cuda: standard ops that a GPU's provider has, the numbers of cpu-std on a CPU, and a CPU where there is no GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from fleetgrad.edge.autodiff import ModelError, compile_model, zoo
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.wire import plan
from tests.edge.test_batch_norm import network

BOTH: tuple[plan.Profile, ...] = ("cpu-std", "cuda")


def compiled(model: onnx.ModelProto, folder: Path, profile: plan.Profile = "cuda") -> Path:
    compile_model(model, loss="cross-entropy", gradients="fp32", profile=profile, output=folder / profile)
    return folder / profile


@pytest.mark.parametrize("model", [network(), zoo.digits_cnn()], ids=["normed", "digits"])
def test_a_plan_for_cuda_gives_the_numbers_of_standard_ops(model: onnx.ModelProto, tmp_path: Path) -> None:
    random = np.random.Generator(np.random.PCG64(4))
    trainers = {kind: Trainer(open_plan(compiled(model, tmp_path, kind))) for kind in BOTH}
    manifest = trainers["cuda"].manifest
    assert (manifest.profile, manifest.op_abi) == ("cuda", 0)
    x = random.standard_normal((6, *manifest.inputs[0].shape), np.float32)
    y = random.integers(0, manifest.classes, 6)
    losses = {kind: [t.step(x, y) for _ in range(2)] for kind, t in trainers.items()}  # the second after new statistics
    np.testing.assert_allclose(losses["cuda"], losses["cpu-std"], rtol=1e-6)
    one, other = (trainers[kind].gradients() for kind in BOTH)
    most = max(np.abs(g).max() for g in one.values())
    for name, gradient in one.items():
        np.testing.assert_allclose(other[name], gradient, rtol=1e-5, atol=2e-6 * most, err_msg=name)
    np.testing.assert_allclose(trainers["cuda"].model, trainers["cpu-std"].model, rtol=1e-6, atol=1e-7)


def test_batch_normalisation_in_training_is_written_out(tmp_path: Path) -> None:
    nodes = onnx.load(compiled(network(), tmp_path) / plan.TRAIN).graph.node
    assert not {n.domain for n in nodes} - {""}
    assert "BatchNormalization" not in {n.op_type for n in nodes}
    nodes = onnx.load(compiled(network(), tmp_path, "cpu-std") / plan.TRAIN).graph.node
    assert "BatchNormalization" in {n.op_type for n in nodes}


def test_int8_gradients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the profile cuda has not: take fp32 gradients"):
        compile_model(network(), loss="cross-entropy", profile="cuda", output=tmp_path / "plan")


def providers(monkeypatch: pytest.MonkeyPatch, offered: list[str], fails: str = "") -> list[list[str]]:
    """The providers that each session is asked for from now on; those of a GPU are left out, as there may be none."""
    asked, real = list[list[str]](), ort.InferenceSession

    def session(path: str, how: ort.SessionOptions, providers: list[Any]) -> ort.InferenceSession:
        asked.append([p if isinstance(p, str) else p[0] for p in providers])
        if fails in asked[-1]:
            raise RuntimeError("CUDA failure 35: CUDA driver version is insufficient")
        return real(path, how, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "get_available_providers", lambda: offered)
    monkeypatch.setattr(ort, "InferenceSession", session)
    return asked


GPU, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def test_the_gpu_is_taken_where_onnxruntime_offers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plans = {kind: open_plan(compiled(zoo.digits_cnn(), tmp_path, kind)) for kind in BOTH}
    asked = providers(monkeypatch, [GPU, CPU])
    Trainer(plans["cuda"], cache=tmp_path / "cache")
    Trainer(plans["cpu-std"])
    assert asked == [[GPU, CPU], [CPU]]
    assert not (tmp_path / "cache").exists()
    assert "cuda_" not in capfd.readouterr().err


@pytest.mark.parametrize(("offered", "fails", "expected", "event"), [
    ([CPU], "", [[CPU]], "cuda_absent file=train.onnx"),
    ([GPU, CPU], GPU, [[GPU, CPU], [CPU]], "cuda_failed file=train.onnx"),
])  # fmt: skip
def test_without_a_gpu_a_plan_trains_on_the_cpu_and_a_line_says_so(
    offered: list[str], fails: str, expected: list[list[str]], event: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    opened = open_plan(compiled(zoo.digits_cnn(), tmp_path))
    asked = providers(monkeypatch, offered, fails)
    trainer = Trainer(opened)
    assert asked == expected
    assert event in capfd.readouterr().err
    assert np.isfinite(trainer.step(np.ones((2, 1, 8, 8), np.float32), np.array([1, 2])))
