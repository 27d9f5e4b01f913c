"""Optimised graphs from the cache give the same bytes; a damaged, foreign or unwritable cache is no error."""

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetgrad.edge.autodiff import compile_model, zoo
from fleetgrad.edge.data.dataset import fit
from fleetgrad.edge.training import cache
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from tests.edge.test_batch_norm import network

HOW: dict[str, Any] = {"epochs": 1, "batch_size": 8, "learning_rate": 0.05, "momentum": 0.9, "seed": 3}


@pytest.fixture(params=["digits", "standard", "normed"])
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    how: dict[str, Any] = {"gradients": "fp32", "profile": "cpu-std"} if request.param == "standard" else {}
    model = network() if request.param == "normed" else zoo.digits_cnn()
    compile_model(model, loss="cross-entropy", output=tmp_path / "plan", **how)
    return tmp_path / "plan"


def trained(plan: Path, folder: Path | None) -> bytes:
    """The model after a short training, and its evaluation."""
    trainer, random = Trainer(open_plan(plan), cache=folder), np.random.Generator(np.random.PCG64(1))
    shape = trainer.manifest.inputs[0].shape
    x, y = random.random((20, *shape), np.float32), random.integers(0, trainer.manifest.classes, 20)
    data = fit("d", x, y, trainer.manifest)
    trainer.run_epochs(data, **HOW)
    return trainer.model.tobytes() + np.float64(trainer.evaluate(data).loss).tobytes()


def test_a_session_from_the_cache_computes_the_same_bytes(plan: Path, tmp_path: Path) -> None:
    without = trained(plan, None)
    assert trained(plan, tmp_path / "cache") == without
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 2
    times = [path.stat().st_mtime_ns for path in files]
    assert trained(plan, tmp_path / "cache") == without
    assert sorted((tmp_path / "cache").iterdir()) == files
    assert [path.stat().st_mtime_ns for path in files] == times, "read, not written"


def test_a_damaged_file_is_made_anew_with_a_log_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_model(zoo.mlp(), loss="cross-entropy", output=tmp_path / "plan")
    without, folder = trained(tmp_path / "plan", None), tmp_path / "cache"
    trained(tmp_path / "plan", folder)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    for path, raw in files.items():
        path.write_bytes(raw[: len(raw) // 2])
    capfd.readouterr()
    assert trained(tmp_path / "plan", folder) == without
    assert capfd.readouterr().err.count("cache_dropped") == 2
    assert {path: path.read_bytes() for path in folder.iterdir()} == files
    # What has the right name and isn't a graph.
    key = next(iter(files)).stem.partition("-")[0]
    for path in files:
        path.unlink()
    (folder / "junk").write_bytes(b"junk")
    (folder / "junk").rename(folder / f"{key}-{cache._digest(folder / 'junk')}.onnx")
    assert trained(tmp_path / "plan", folder) == without
    assert "cache_dropped" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == files
    # Another processor has files of its own, and only the newest are kept.
    for name in ("one", "two", "three"):
        monkeypatch.setattr(cache, "processor", lambda name=name: name)
        trained(tmp_path / "plan", folder)
    assert len(list(folder.iterdir())) == cache.MOST_FILES
    assert not set(folder.iterdir()) & set(files)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    compile_model(zoo.mlp(), loss="cross-entropy", output=tmp_path / "plan")
    (tmp_path / "file").write_text("")
    assert trained(tmp_path / "plan", tmp_path / "file" / "cache") == trained(tmp_path / "plan", None)
    assert "cache_unwritable" in capfd.readouterr().err
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a full disk, after the file's first bytes
    try:
        found = trained(tmp_path / "plan", tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found == trained(tmp_path / "plan", None)
    assert trained(tmp_path / "plan", tmp_path / "cache") == found
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_processor_is_known() -> None:
    assert len(cache.processor().splitlines()) > 1 or not cache.CPUINFO.exists()
