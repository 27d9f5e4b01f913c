"""Checkpoints: what comes back is what was saved; a damaged or foreign file is refused by name."""

from pathlib import Path

import numpy as np
import pytest

from fleetgrad.edge.autodiff import compile_model, zoo
from fleetgrad.edge.training.checkpoint import MAGIC, Checkpoint, CheckpointError, load, save
from fleetgrad.edge.training.plan_dir import ALIGN_BYTES, open_plan
from fleetgrad.edge.training.trainer import Trainer, TrainingError
from fleetgrad.native import optimizers
from fleetgrad.wire.choice import Choice
from fleetgrad.wire.plan import Manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return compile_model(zoo.mlp(inputs=8, hidden=6, classes=3), loss="cross-entropy", output=tmp_path / "plan")


def test_training_goes_on_from_a_checkpoint_byte_for_byte(tmp_path: Path, manifest: Manifest) -> None:
    random = np.random.Generator(np.random.PCG64(0))
    x, y = random.random((20, 8), np.float32), random.integers(0, 3, 20)
    adam = optimizers.Optimizer("adam", 0.01)

    def train(trainer: Trainer, moments: list[np.ndarray], start: int) -> bytes:
        parameters, gradients, _ = trainer.vectors()
        for step in range(start, start + 5):
            trainer.step(x, y)
            optimizers.step(adam, parameters, gradients, *moments, time=step)
        return trainer.model.tobytes() + b"".join(m.tobytes() for m in moments)

    trainer = Trainer(open_plan(tmp_path / "plan"))
    moments = [np.zeros_like(trainer.vectors()[0]) for _ in range(2)]
    train(trainer, moments, 1)
    save(tmp_path / "s.ckpt", manifest, Checkpoint(trainer.model, moments, 5, {"epoch": 3, "by": "me", "rate": 0.5}))
    expected = train(trainer, moments, 6)
    found = load(tmp_path / "s.ckpt", manifest)
    assert (found.steps, found.properties) == (5, {"epoch": 3, "by": "me", "rate": 0.5})
    assert all(v.ctypes.data % ALIGN_BYTES == 0 for v in (found.model, *found.moments))
    other = Trainer(open_plan(tmp_path / "plan"))
    other.load(found.model)
    assert train(other, list(found.moments), 6) == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan", "s.ckpt"], "nothing is left beside it"


def test_a_damaged_file_is_refused_wherever_a_bit_is_wrong(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "s.ckpt"
    save(path, manifest, Checkpoint(np.zeros(manifest.length, np.float32)))
    raw = path.read_bytes()
    for at in (0, len(MAGIC), len(MAGIC) + 3, 30, len(raw) // 2, len(raw) - 1):
        bad = bytearray(raw)
        bad[at] ^= 1
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"s.ckpt"):
            load(path, manifest)
    for size in (0, 4, len(MAGIC) + 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(CheckpointError, match=r"s.ckpt"):
            load(path, manifest)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        load(path, manifest)


def test_what_does_not_fit_the_plan_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "s.ckpt"
    for bad, said in (
        (Checkpoint(np.zeros(3, np.float32)), r"3 floats, the plan has"),
        (Checkpoint(np.full(manifest.length, np.nan, np.float32)), "isn't finite"),
        (Checkpoint(np.zeros(manifest.length, np.float32), [np.zeros(1, np.float32)] * 3), "at most 2 moments"),
    ):
        with pytest.raises(CheckpointError, match=said):
            save(path, manifest, bad)
    save(path, manifest, Checkpoint(np.zeros(manifest.length, np.float32)))
    other = compile_model(zoo.mlp(inputs=8, hidden=6, classes=4), loss="cross-entropy", output=tmp_path / "other")
    with pytest.raises(CheckpointError, match="other tensors than the plan of 'mlp'"):
        load(path, other)


def test_frozen_weights_are_the_plans(tmp_path: Path) -> None:
    compile_model(zoo.mlp(), loss="cross-entropy", choice=Choice(last=1), output=tmp_path / "plan")
    trainer = Trainer(open_plan(tmp_path / "plan"))
    whole = trainer.model.copy()
    trainer.load(whole)
    whole[-100:] += 1
    with pytest.raises(TrainingError, match="other frozen weights"):
        trainer.load(whole)
