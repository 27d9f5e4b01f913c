"""Optimised graphs from the cache give the same bytes; a damaged, foreign or unwritable cache is no error."""

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from fleetgrad.edge.autodiff import compile_model, zoo
from fleetgrad.edge.data.dataset import fit
from fleetgrad.edge.training import cache, sessions
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from tests.edge.test_batch_norm import network
from tests.edge.test_repeating import deep

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


def whole(folder: Path) -> list[str]:
    """The keys of the files, each of which is what its name says."""
    parts = [path.stem.partition("-") for path in folder.iterdir()]
    assert [digest for _, _, digest in parts] == [cache._digest(path) for path in folder.iterdir()]
    return sorted(key for key, _, _ in parts)


def test_a_damaged_file_is_made_anew_with_a_log_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_model(zoo.mlp(), loss="cross-entropy", output=tmp_path / "plan")
    without, folder = trained(tmp_path / "plan", None), tmp_path / "cache"
    trained(tmp_path / "plan", folder)
    keys, files = whole(folder), list(folder.iterdir())
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    capfd.readouterr()
    assert trained(tmp_path / "plan", folder) == without
    assert capfd.readouterr().err.count("cache_dropped") == 2
    assert whole(folder) == keys
    # What has the right name and isn't a graph.
    key = keys[0]
    for path in folder.iterdir():
        path.unlink()
    (folder / "junk").write_bytes(b"junk")
    (folder / "junk").rename(folder / f"{key}-{cache._digest(folder / 'junk')}.ort")
    assert trained(tmp_path / "plan", folder) == without
    assert "cache_dropped" in capfd.readouterr().err
    assert whole(folder) == keys
    files = list(folder.iterdir())
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


def test_nodes_run_in_the_order_that_they_had_without_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_model(deep(), loss="cross-entropy", recompute="cheap", output=tmp_path / "plan")
    orders = list[list[str]]()

    def profiled(op_abi: int, threads: int) -> ort.SessionOptions:
        how = sessions.options(op_abi, threads)
        how.enable_profiling = True
        how.profile_file_prefix = str(tmp_path / "profile")
        return how

    monkeypatch.setattr(cache, "options", profiled)
    for _ in range(2):
        trainer = Trainer(open_plan(tmp_path / "plan"), cache=tmp_path / "cache")
        events = json.loads(Path(trainer._train.end_profiling()).read_text())
        orders.append([e["name"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")])
    assert orders[0] == orders[1]
    assert any(".again" in name for name in orders[0])
